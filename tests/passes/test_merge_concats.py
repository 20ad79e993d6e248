from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from graphopt.passes.cleanup.merge_concats import MergeConcats
from tests.passes import random_graphs as steps
from tests.passes.harness import Outcome, check, parse


def header(opset: int = 17) -> str:
    return f'<ir_version: 8, opset_import: ["" : {opset}]>'


def test_nested_concats_golden(golden: Callable[[str, Outcome], None]) -> None:
    model = parse(
        header() + "g (float[2,3] x, float[2,4] z) => (float[2,13] y) "
        "{ a = Concat <axis = 1> (x, z) b = Concat <axis = -1> (x, a) y = Concat <axis = 1> (b, x) }"
    )
    outcome = check(MergeConcats(), model)
    golden("nested", outcome)
    assert outcome.operators() == ["Concat"]


PARTS = {
    "split": "a, b = Split <axis = 1> (z) c = Concat <axis = 1> (a, b)",
    "slices": "a = Slice(z, i, j, k) b = Slice(z, j, l, k) c = Concat <axis = 1> (a, b)",
}
NUMBERS = {name: np.array([number]) for name, number in {"i": 0, "j": 2, "k": 1, "l": 4}.items()}


@pytest.mark.parametrize("case", PARTS)
def test_all_parts_joined_are_the_whole(case: str) -> None:
    model = parse(
        header(11) + f"g (float[2,4] x) => (float[2,4] y) {{ z = Neg(x) {PARTS[case]} y = Relu(c) }}", **NUMBERS
    )
    outcome = check(MergeConcats(), model)
    assert outcome.operators() == ["Neg", "Relu"]


OTHERS = {
    "parts in another order": "a, b = Split <axis = 1> (z) c = Concat <axis = 1> (b, a)",
    "another axis": "a, b = Split <axis = 0> (z) d = Concat <axis = 1> (a, b) c = Reshape(d, s)",
    "a part is missing": "a, b = Split <axis = 1> (z) c = Concat <axis = 1> (b, b)",
    "an inner concat with another reader": "a = Concat <axis = 1> (z, z) d = Concat <axis = 1> (z, a) e = Neg(a) "
    "f = Concat <axis = 1> (d, e) c = Slice(f, i, l, k)",
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_does_not_give_the_whole_stays(case: str) -> None:
    model = parse(
        header(11) + f"g (float[2,4] x) => (float[2,4] y) {{ z = Neg(x) {OTHERS[case]} y = Relu(c) }}",
        s=np.array([2, 4]),
        **NUMBERS,
    )
    merged = check(MergeConcats(), model, changes=None).result.statistics
    assert merged["rejoined"] == 0
    assert merged["merged"] == (1 if case.startswith("an inner") else 0)


def test_empty_parts_are_dropped() -> None:
    model = parse(
        header() + "g (float[2,3] x) => (float[2,6] y) { y = Concat <axis = 1> (x, w, x) }",
        w=np.zeros((2, 0), np.float32),
    )
    outcome = check(MergeConcats(), model)
    assert len(outcome.after.graph[0].inputs) == 2


@settings(deadline=None, max_examples=60)
@given(steps.models(steps.halves, steps.concat, steps.slice_, steps.unary))
def test_random_graphs_keep_their_outputs(model: ir.Model) -> None:
    check(MergeConcats(), model, changes=None)
