from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from hypothesis import given, settings

from graphopt.passes.cleanup.merge_slices import MergeSlices
from tests.passes import random_graphs as steps
from tests.passes.harness import Outcome, check, parse


def header(opset: int = 17) -> str:
    return f'<ir_version: 8, opset_import: ["" : {opset}]>'


def test_slices_of_two_axes_golden(golden: Callable[[str, Outcome], None]) -> None:
    model = parse(
        header() + "g (float[6,8] x) => (float[2,4] y) { a = Slice(x, s, e, i, t) b = Slice(a, u, v, j) y = Relu(b) }",
        **{name: np.array([number]) for name, number in zip("seituvj", (-1, -7, 0, -3, 2, -2, 1), strict=True)},
    )
    outcome = check(MergeSlices(), model)
    golden("two-axes", outcome)
    assert outcome.operators() == ["Slice", "Relu"]


def test_slices_of_one_axis_in_the_form_of_version_9() -> None:
    model = parse(
        header(9) + "g (float[8] x) => (float[3] y) "
        "{ a = Slice <starts = [1], ends = [7]> (x) b = Slice <starts = [2], ends = [5]> (a) y = Relu(b) }"
    )
    outcome = check(MergeSlices(), model)
    assert outcome.operators() == ["Slice", "Relu"]
    assert outcome.after.graph[0].attributes["starts"].as_ints() == (3,)


def test_a_slice_of_a_concat_comes_from_its_part() -> None:
    model = parse(
        header() + "g (float[2,3] x, float[2,4] z) => (float[2,4] y, float[2,2] w, float[2,7] v) "
        "{ v = Concat <axis = 1> (x, z) a = Slice(v, i, j, k) y = Relu(a) b = Slice(v, k, l, k) w = Relu(b) }",
        i=np.array([3]),
        j=np.array([99]),
        k=np.array([1]),
        l=np.array([3]),
    )
    outcome = check(MergeSlices(), model)
    assert sorted(outcome.operators()) == ["Concat", "Relu", "Relu", "Slice"]
    assert outcome.result.statistics == {"merged-slices": 0, "slices-of-parts": 2}


def test_a_slice_across_two_parts_stays() -> None:
    model = parse(
        header() + "g (float[2] x, float[2] z) => (float[2] y) { a = Concat <axis = 0> (x, z) y = Slice(a, i, j) }",
        i=np.array([1]),
        j=np.array([3]),
    )
    check(MergeSlices(), model, changes=False)


def test_a_slice_with_another_reader_stays() -> None:
    model = parse(
        header() + "g (float[8] x) => (float[2] y, float[6] z) { a = Slice(x, i, j) y = Slice(a, i, k) z = Relu(a) }",
        i=np.array([1]),
        j=np.array([7]),
        k=np.array([3]),
    )
    check(MergeSlices(), model, changes=False)


@settings(deadline=None, max_examples=60)
@given(steps.models(steps.slice_, steps.slice_, steps.slice_, steps.concat, steps.unary))
def test_random_graphs_keep_their_outputs(model: ir.Model) -> None:
    check(MergeSlices(), model, changes=None)
