"""MaxPool, Concat, Split and Resize between integer kernels move the very integers, with channels last."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from graphopt import ir as gir
from graphopt.analysis.execution import Session
from graphopt.targets.tvm.preparation import prepare
from graphopt.targets.tvm.quantized.rewrite import LEFT_IN_FLOAT
from tests.passes.harness import parse
from tests.targets import compiled

FEW = settings(  # each compiles a model: no shrinking
    max_examples=12, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
SCALE, ZERO = np.float32(0.05), 3


def inferred(model: Any) -> Any:
    """`model` with the shapes of outputs that inference finds."""
    for output in model.graph.outputs:
        output.shape = None
    gir.refresh_shapes(model)
    return model


def open_tensor(dtype: str, name: str, rank: int) -> str:
    """A tensor of unknown sizes in ONNX's text."""
    return f"{dtype}[{','.join(f'{name}{axis}' for axis in range(rank))}] {name}"


def model_of(body: str, outputs: list[str], shape: tuple[int, ...], channels: int, dtype: str, more: Any = None) -> Any:
    """A 1×1 convolution, which leaves the integers `a` with channels last, and `body` behind it."""
    random = np.random.default_rng(0)
    results = ", ".join(open_tensor(dtype, name, len(shape)) for name in outputs)
    low = np.iinfo(dtype).min
    model = parse(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g ({dtype}[{",".join(map(str, shape))}] x) => ({results}) {{
            f = DequantizeLinear(x, s, z) w = DequantizeLinear <axis = 0> (i, t) c = Conv(f, w)
            a = QuantizeLinear(c, s, z) d = DequantizeLinear(a, s, z) {body} }}""",
        s=SCALE,
        z=np.array(ZERO - (-128 - low), dtype),
        i=random.integers(-127, 128, (channels, shape[1], *[1] * (len(shape) - 2)), np.int8),
        t=random.uniform(0.002, 0.02, channels).astype(np.float32),
        **(more or {}),
    )
    return inferred(model)


def run(model: Any, shape: tuple[int, ...], dtype: str) -> dict[str, np.ndarray]:
    """What the compiled model gives of random integers; nothing of it is in float."""
    limits = np.iinfo(dtype)
    x = np.random.default_rng(1).integers(limits.min, limits.max, shape, dtype, endpoint=True)
    assert prepare(model).meta[LEFT_IN_FLOAT] == []
    found = compiled.run(model, {"x": x})
    assert len(np.unique(found["a"])) > 3
    return found


def operator(body: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """What ONNX Runtime makes of these arrays."""
    given = ", ".join(f"{a.dtype}[{','.join(map(str, a.shape))}] {n}" for n, a in inputs.items())
    first = next(iter(inputs.values()))
    result = open_tensor(str(first.dtype), "y", first.ndim)
    model = parse(f"""<ir_version: 8, opset_import: ["" : 17]> g ({given}) => ({result}) {{ y = {body} }}""")
    return np.asarray(Session(inferred(model)).run(inputs)["y"])


@FEW
@given(data=st.data())
def test_the_greatest_of_windows_is_exact(data: Any) -> None:
    draw = data.draw
    rank = draw(st.sampled_from([1, 2, 2]))

    def each(least: int, most: int) -> list[int]:
        return [draw(st.integers(least, most)) for _ in range(rank)]

    kernel, strides, dilations, sizes = each(1, 3), each(1, 2), each(1, 2), each(5, 9)
    pads = [draw(st.integers(0, k - 1)) for _ in range(2) for k in kernel]
    ceil = draw(st.integers(0, 1))
    channels, dtype = draw(st.sampled_from([1, 3, 7, 16, 17, 40])), draw(st.sampled_from(["int8", "uint8"]))
    shape = (draw(st.integers(1, 2)), 3, *sizes)
    form = f"kernel_shape = {kernel}, strides = {strides}, dilations = {dilations}, pads = {pads}"
    pool = f"MaxPool<{form}, ceil_mode = {ceil}>"
    model = model_of(f"p = {pool}(d) y = QuantizeLinear(p, s, z)", ["a", "y"], shape, channels, dtype)
    assert "IntegerMaxPool" in {node.op_type for node in prepare(model).graph}
    found = run(model, shape, dtype)
    np.testing.assert_array_equal(found["y"], operator(f"{pool}(a)", {"a": found["a"]}))


@pytest.mark.parametrize("channels", [1, 5, 16, 37])
@pytest.mark.parametrize("axis", [1, 2])
def test_channels_are_joined_exactly(channels: int, axis: int) -> None:
    shape = (1, channels, 3, 5)
    body = f"e = Relu(d) b = QuantizeLinear(e, s, z) g = DequantizeLinear(b, s, z) p = Concat<axis = {axis}>(d, g, d) "
    model = model_of(f"{body} y = QuantizeLinear(p, s, z)", ["a", "b", "y"], shape, channels, "int8")
    assert ("IntegerConcat" in {node.op_type for node in prepare(model).graph}) is (axis == 1)
    found = run(model, shape, "int8")
    np.testing.assert_array_equal(found["y"], np.concatenate([found["a"], found["b"], found["a"]], axis))


@pytest.mark.parametrize("axis", [1, 3])
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_parts_of_a_split_are_the_integers_themselves(axis: int, dtype: str) -> None:
    shape, sizes = (1, 3, 5, 7), {1: [7, 2, 11], 3: [1, 4, 2]}[axis]
    body = f"p0, p1, p2 = Split<axis = {axis}>(d, sizes) " + " ".join(
        f"q{i} = QuantizeLinear(p{i}, s, z)" for i in range(3)
    )
    model = model_of(body, ["a", "q0", "q1", "q2"], shape, 20, dtype, {"sizes": np.array(sizes)})
    found = run(model, shape, dtype)
    parts = np.split(found["a"], np.cumsum(sizes)[:2], axis)
    for i, part in enumerate(parts):
        np.testing.assert_array_equal(found[f"q{i}"], part)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("channels", [3, 20])
def test_the_nearest_pixels_are_the_integers_themselves(rank: int, channels: int) -> None:
    shape = (2, 3, *(5, 4)[:rank])
    form = 'coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"'
    body = f"p = Resize<{form}>(d, , scales) y = QuantizeLinear(p, s, z)"
    scales = np.array([1, 1, *(2, 1.5)[:rank]], np.float32)
    found = run(model_of(body, ["a", "y"], shape, channels, "int8", {"scales": scales}), shape, "int8")
    expected = found["a"]
    for axis, scale in enumerate(scales):
        at = np.floor(np.arange(int(expected.shape[axis] * scale)) / scale).astype(int)
        expected = np.take(expected, at, axis)
    np.testing.assert_array_equal(found["y"], expected)


def test_a_constant_is_joined_to_integers() -> None:
    shape = (1, 6, 3, 5)
    body = "k = DequantizeLinear(stored, s, z) p = Concat<axis = 1>(d, k) y = QuantizeLinear(p, s, z)"
    stored = np.arange(-30, 30).reshape(1, 4, 3, 5).astype(np.int8)
    found = run(model_of(body, ["a", "y"], shape, 6, "int8", {"stored": stored}), shape, "int8")
    np.testing.assert_array_equal(found["y"], np.concatenate([found["a"], stored], 1))
