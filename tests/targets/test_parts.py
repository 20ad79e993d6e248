"""No calls and no memory for what can be in place: Reshape, Concat, and element-wise results; outputs stay right."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from tvm.script import tirx as T  # noqa: N812

from graphopt import ir as gir
from graphopt.analysis.execution import Session
from graphopt.targets.host import HOST
from graphopt.targets.tvm import parts
from graphopt.targets.tvm.memory_plan import lower_bound
from graphopt.targets.tvm.parts import lifetimes
from graphopt.targets.tvm.schedule import schedule
from tests.targets import compiled

WEIGHTS = {"w": (16, 16, 3, 3), "v": (16, 32, 1, 1), "u": (16, 48, 1, 1)} | {
    "w1": (256, 16, 1, 1),
    "w2": (256, 256, 1, 1),
    "w3": (240, 256, 1, 1),
    "w4": (16, 256, 1, 1),
    "w5": (1, 16, 1, 1),
    "w6": (15, 16, 1, 1),
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
    for name, shape in {"m": (1, 16, 8, 8), "r": (1, 16, 1, 1)}.items():
        if f", {name})" in body:
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


POOL = "MaxPool<kernel_shape=[2,2], strides=[2,2]>"
POOLED = f"y = {POOL}(d)"
OVERWRITTEN = {
    "a product": f"a = Softmax<axis=3>(x) d = Mul(a, m) {POOLED}",
    "a square": f"a = Softmax<axis=3>(x) d = Mul(a, a) {POOLED}",
    "beside what has a part that is read elsewhere": "a = Conv(x, w5) b = Conv(x, w6) c = Concat<axis=1>(a, b) "
    f"e = Softmax<axis=3>(c) t = Mul(c, a) d = Mul(t, e) {POOLED}",
    "beside a broadcast": f"a = Softmax<axis=3>(x) d = Mul(a, r) {POOLED}",
}
APART = {
    "read later": f"a = Softmax<axis=3>(x) b = Mul(a, m) c = Softmax<axis=3>(b) d = Sub(c, a) {POOLED}",
    "of an input": f"d = Mul(x, m) {POOLED}",
    "of other elements": f"a = Softmax<axis=3>(x) d = Transpose<perm=[0,1,3,2]>(a) {POOLED}",
    "beside a kernel that needs both": "a = Softmax<axis=3>(x) b = Mul(a, m) c = Softmax<axis=3>(b) d = Mul(c, m) "
    + POOLED,
    "to no gain": f"a = Softmax<axis=3>(x) b = Mul(a, m) c = Conv(b, w1) d = Conv(c, w4) {POOLED}",
}


def overwritten(made: Any) -> int:
    """Values that lie over another of their size."""
    return sum(value.bytes == over.bytes for value, (over, _) in compiled.lowered(made).parts.items())


@pytest.mark.parametrize("case", OVERWRITTEN)
def test_an_element_wise_result_lies_over_its_operand(case: str) -> None:
    made = model(OVERWRITTEN[case], "float[1,16,4,4] y")
    assert overwritten(made) == 1
    assert_right(made)


@pytest.mark.parametrize("case", APART)
def test_what_is_read_otherwise_or_gains_nothing_lies_apart(case: str) -> None:
    made = model(APART[case], "float[1,16,4,4] y")
    assert overwritten(made) == 0
    assert_right(made)


def test_nothing_lies_over_an_operand_of_which_a_part_is_read_elsewhere() -> None:
    low = compiled.lowered(model(OVERWRITTEN["beside what has a part that is read elsewhere"], "float[1,16,4,4] y"))
    joined = {over for value, (over, _) in low.parts.items() if value.bytes < over.bytes}
    assert len(joined) == 1
    assert all(over not in joined for value, (over, _) in low.parts.items() if value.bytes == over.bytes)


def test_an_overwriting_kernel_is_vectors_that_may_alias() -> None:
    low = compiled.lowered(model(OVERWRITTEN["a product"], "float[1,16,4,4] y"))
    scheduled = {name: schedule(function, HOST) for name, function in low.functions.items()}
    aliased = [function for function in scheduled.values() if not function.attrs.get("tirx.noalias", True)]
    assert len(aliased) == 1
    assert "T.vectorized(T.int64(4))" in aliased[0].script()


def test_overwriting_halves_the_arena(monkeypatch: pytest.MonkeyPatch) -> None:
    def arena() -> int:
        low = compiled.lowered(model(OVERWRITTEN["a product"], "float[1,16,4,4] y"))
        return lower_bound(list(lifetimes(low, low.parts).values()))

    size = 16 * 8 * 8 * 4
    assert arena() == size
    monkeypatch.setattr(parts, "is_element_wise", lambda *_: False)
    assert arena() == 2 * size


def test_a_kernel_of_loops_without_blocks_is_not_known_to_be_element_wise() -> None:
    @T.prim_func(private=True, s_tir=True)
    def doubled(x: T.Buffer((4,), "float32"), y: T.Buffer((4,), "float32")) -> None:  # type: ignore[valid-type]
        for i in range(4):
            y[i] = x[i] + x[i]

    assert not parts.is_element_wise(doubled, 0)
