from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.cleanup.merge_casts import FLOATS, INTEGERS, MergeCasts, holds
from tests.passes import random_graphs as steps
from tests.passes.harness import Outcome, check, parse

HEADER = '<ir_version: 8, opset_import: ["" : 17]>'
FLOAT, INT32, INT64, BOOL, FLOAT16, DOUBLE = 1, 6, 7, 9, 10, 11


def chain(kind: str, *targets: int, out: str) -> ir.Model:
    casts = " ".join(f"v{i + 1} = Cast <to = {target}> (v{i})" for i, target in enumerate(targets))
    last = f"v{len(targets)}"
    return parse(f"{HEADER} g ({kind}[4] x) => ({out}[4] y) {{ v0 = Identity(x) {casts} y = Identity({last}) }}")


def test_widening_golden(golden: Callable[[str, Outcome], None]) -> None:
    outcome = check(MergeCasts(), chain("int32", INT64, FLOAT, out="float"))
    golden("widening", outcome)
    assert outcome.operators() == ["Identity", "Cast", "Identity"]


def test_there_and_back_vanishes() -> None:
    outcome = check(MergeCasts(), chain("float", DOUBLE, FLOAT, out="float"))
    assert outcome.operators() == ["Identity", "Identity"]


def test_long_chains_collapse() -> None:
    outcome = check(MergeCasts(), chain("float16", FLOAT, DOUBLE, FLOAT, FLOAT16, out="float16"))
    assert outcome.operators() == ["Identity", "Identity"]


@pytest.mark.parametrize(
    ("kind", "targets", "out"),
    [
        ("float", (FLOAT16, FLOAT), "float"),
        ("float", (INT32, FLOAT), "float"),
        ("int32", (FLOAT, INT32), "int32"),
        ("double", (FLOAT, FLOAT16), "float16"),  # rounding twice is not rounding once
        ("float", (BOOL, FLOAT), "float"),
        ("int64", (INT32, INT64), "int64"),
    ],
)
def test_a_step_that_loses_something_stays(kind: str, targets: tuple[int, ...], out: str) -> None:
    outcome = check(MergeCasts(), chain(kind, *targets, out=out), changes=False)
    assert "the first step is not without loss" in outcome.reasons()["cast_2"]


def test_rounding_twice_differs_from_rounding_once() -> None:
    number = np.float64(1 + 2**-11 + 2**-30)  # just above the middle of two float16
    assert number.astype(np.float32).astype(np.float16) != number.astype(np.float16)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(list(INTEGERS | FLOATS)), st.sampled_from(list(INTEGERS | FLOATS)), st.integers(0, 2**64 - 1))
def test_what_holds_a_type_gives_each_of_its_values_back(narrow: ir.DataType, wide: ir.DataType, bits: int) -> None:
    if not holds(narrow, wide):
        return
    source, target = narrow.numpy(), wide.numpy()
    size = np.dtype(source).itemsize
    if narrow == ir.DataType.BOOL:
        value = np.array([bool(bits & 1)])
    else:
        value = np.frombuffer((bits % 2 ** (8 * size)).to_bytes(size, "little"), source)
    assert ml_dtypes is not None  # registers bfloat16 with numpy
    with np.errstate(all="ignore"):
        back = value.astype(target).astype(source)
    assert back.tobytes() == value.tobytes() or np.isnan(value.astype(np.float64)).all()


@settings(deadline=None, max_examples=40)
@given(steps.models(steps.casts, steps.casts, steps.unary))
def test_random_graphs_keep_their_outputs(model: ir.Model) -> None:
    check(MergeCasts(), model, changes=None)
