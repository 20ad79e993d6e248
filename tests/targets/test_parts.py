"""Reshape and Flatten take no call, nor does a Concat whose operands can be made in its place; outputs stay right."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from graphopt import ir as gir
from graphopt.analysis.execution import Session
from tests.targets import compiled

WEIGHTS = {"w": (16, 16, 3, 3), "v": (16, 32, 1, 1), "u": (16, 48, 1, 1)} | {
    "w1": (256, 16, 1, 1),
    "w2": (256, 256, 1, 1),
    "w3": (240, 256, 1, 1),
    "w4": (16, 256, 1, 1),
}
CONV = "Conv<pads=[1,1,1,1]>"


def model(body: str, output: str = "float[1,16,8,8] y") -> Any:
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[1,16,8,8] x) => ({output}) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in WEIGHTS.items():
        if f"{name})" in body:
            array = rng.normal(size=shape).astype(np.float32)
            proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 16, 8, 8]), "s"))
    made = gir.load(proto)
    gir.refresh_shapes(made)
    return made


def concatenations(made: Any) -> int:
    return sum("concatenate" in call.function for call in compiled.lowered(made).calls)


def assert_right(made: Any) -> None:
    x = {"x": np.random.default_rng(1).normal(size=(1, 16, 8, 8)).astype(np.float32)}
    found = compiled.run(made, x)
    with Session(made) as session:
        expected = session.run(x)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-4 * np.abs(array).max())


IN_PLACE = {
    "two": f"a = {CONV}(x, w) b = {CONV}(a, w) c = Concat<axis=1>(a, b) y = Conv(c, v)",
    "nested": f"a = {CONV}(x, w) b = {CONV}(a, w) c = Concat<axis=1>(a, b) d = Conv(c, v) e = {CONV}(d, w) "
    "f = Concat<axis=1>(c, e) y = Conv(f, u)",
    "read again": f"a = {CONV}(x, w) b = {CONV}(a, w) c = Concat<axis=1>(b, a) d = Conv(c, v) e = {CONV}(d, w) "
    f"f = {CONV}(a, w) y = Add(e, f)",
}
COPIED = {
    "of an input": f"a = {CONV}(x, w) c = Concat<axis=1>(a, x) y = Conv(c, v)",
    "twice the same": f"a = {CONV}(x, w) c = Concat<axis=1>(a, a) y = Conv(c, v)",
    "across rows": f"a = {CONV}(x, w) b = {CONV}(a, w) c = Concat<axis=2>(a, b) y = MaxPool<kernel_shape=[2,1], "
    "strides=[2,1]>(c)",
}


@pytest.mark.parametrize("case", IN_PLACE)
def test_operands_are_made_in_place(case: str) -> None:
    made = model(IN_PLACE[case])
    assert concatenations(made) == 0
    assert_right(made)


@pytest.mark.parametrize("case", COPIED)
def test_what_cannot_be_made_in_place_is_copied(case: str) -> None:
    made = model(COPIED[case])
    assert concatenations(made) == 1
    assert_right(made)


def test_a_result_of_the_model_is_copied() -> None:
    made = model(f"a = {CONV}(x, w) b = {CONV}(a, w) y = Concat<axis=1>(a, b)", "float[1,32,8,8] y")
    assert concatenations(made) == 1
    assert_right(made)


def test_what_would_hold_memory_early_is_copied() -> None:
    """The first operand is made before the largest values: the joined one, 16 times as large, would lie beside them."""
    made = model(
        f"a = {CONV}(x, w) b = Conv(a, w1) c = Conv(b, w2) d = Conv(c, w3) e = Concat<axis=1>(a, d) y = Conv(e, w4)"
    )
    assert concatenations(made) == 1
    assert_right(made)


def test_reshapes_take_no_call() -> None:
    made = model(f"a = {CONV}(x, w) b = Flatten<axis=2>(a) c = Softmax<axis=1>(b) d = Reshape(c, s) y = {CONV}(d, w)")
    assert [call.function for call in compiled.lowered(made).calls if "reshape" in call.function] == []
    assert len(compiled.lowered(made).calls) == 3
    assert_right(made)
