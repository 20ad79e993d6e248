"""Quantized sums, products, means, functions and movements: bit-exact with their definition, within a step of ORT."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from graphopt import ir as gir
from graphopt.analysis.execution import Session
from graphopt.targets.tvm.kernels.integer_elementwise import fixed_point
from graphopt.targets.tvm.preparation import prepare
from graphopt.targets.tvm.quantized.rewrite import LEFT_IN_FLOAT
from tests.targets import compiled
from tests.targets.quantized_models import Activation

FEW = settings(  # each compiles a model: no shrinking
    max_examples=6, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)


@st.composite
def activations(draw: Any) -> Activation:
    dtype = draw(st.sampled_from([np.int8, np.uint8]))
    limits = np.iinfo(dtype)
    scale = float(np.float32(0.05 * draw(st.floats(0.25, 4.0, width=32))))
    return Activation(dtype, scale, draw(st.sampled_from([limits.min, limits.max, 0, 7])))


def integers(random: np.random.Generator, q: Activation, shape: tuple[int, ...]) -> np.ndarray:
    return random.integers(*q.limits(), shape, q.dtype, endpoint=True)


def operator_model(
    operator: str, inputs: list[tuple[Activation, tuple[int, ...]]], y: Activation, more: dict[str, Any], **given: Any
) -> Any:
    """x0, x1 … dequantized, the operator with further constant inputs, and its result quantized."""
    arrays = dict(more)
    nodes, values = [], []
    for i, (q, shape) in enumerate(inputs):
        arrays |= {f"s{i}": np.float32(q.scale), f"z{i}": np.array(q.zero_point, q.dtype)}
        nodes.append(helper.make_node("DequantizeLinear", [f"x{i}", f"s{i}", f"z{i}"], [f"x{i}_f"]))
        values.append(helper.make_tensor_value_info(f"x{i}", helper.np_dtype_to_tensor_dtype(np.dtype(q.dtype)), shape))
    arrays |= {"sy": np.float32(y.scale), "zy": np.array(y.zero_point, y.dtype)}
    floats = [f"x{i}_f" for i in range(len(inputs))]
    nodes.append(helper.make_node(operator, [*floats, *more], ["y_f"], name="layer", **given))
    nodes.append(helper.make_node("QuantizeLinear", ["y_f", "sy", "zy"], ["y"]))
    output = helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(np.dtype(y.dtype)), None)
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "operator", values, [output], initializers)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    model = gir.load(onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True))
    gir.refresh_shapes(model)
    return model


def compute(model: Any, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """What the compiled model gives; checked to have no layer in float, and against ONNX Runtime."""
    prepared = prepare(model)
    assert prepared.meta[LEFT_IN_FLOAT] == []
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in prepared.graph}
    found = compiled.run(model, feeds)["y"]
    reference = Session(model).run(feeds)["y"]
    assert np.abs(found.astype(int) - reference.astype(int)).max(initial=0) <= 1
    return found


def requantized(sums: np.ndarray, multiplier: float, y: Activation) -> np.ndarray:
    rounded = np.rint(sums.astype(np.int32).astype(np.float32) * np.float32(multiplier)).astype(np.int64)
    made: np.ndarray = np.clip(rounded + y.zero_point, *y.limits()).astype(y.dtype)
    return made


@FEW
@given(data=st.data())
def test_sums_and_products_are_bit_exact(data: Any) -> None:
    draw = data.draw
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    operator = draw(st.sampled_from(["Add", "Sub", "Mul"]))
    spread = draw(st.booleans())
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 40)), draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    other = (*shape[:2], 1, 1) if spread else shape
    qa, qb, qy = draw(activations()), draw(activations()), draw(activations())
    a, b = integers(random, qa, shape), integers(random, qb, other)
    found = compute(operator_model(operator, [(qa, shape), (qb, other)], qy, {}), {"x0": a, "x1": b})
    real = [x.astype(np.int64) - q.zero_point for x, q in ((a, qa), (b, qb))]
    if operator == "Mul":
        multiplier = np.float32(np.float32(qa.scale) * np.float32(qb.scale)) / np.float32(qy.scale)
        expected = requantized(real[0] * real[1], float(multiplier), qy)
    else:
        sign = -1 if operator == "Sub" else 1
        (first, second), bits = fixed_point((qa.scale / qy.scale, sign * qb.scale / qy.scale))
        expected = requantized(real[0] * first + real[1] * second, math.ldexp(1.0, -bits), qy)
    np.testing.assert_array_equal(found, expected)


@FEW
@given(data=st.data())
def test_means_are_bit_exact(data: Any) -> None:
    draw = data.draw
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    shape = (draw(st.integers(1, 2)), draw(st.integers(1, 40)), draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    q, y = draw(activations()), draw(activations())
    x = integers(random, q, shape)
    operator, given = draw(
        st.sampled_from([("GlobalAveragePool", {}), ("ReduceMean", {"axes": [2, -1], "keepdims": 0})])
    )
    found = compute(operator_model(operator, [(q, shape)], y, {}, **given), {"x0": x})
    sums = (x.astype(np.int64) - q.zero_point).sum((2, 3), keepdims=operator == "GlobalAveragePool")
    multiplier = np.float32(float(np.float32(q.scale)) / (float(np.float32(y.scale)) * shape[2] * shape[3]))
    np.testing.assert_array_equal(found, requantized(sums, float(multiplier), y))


@pytest.mark.parametrize(
    ("shape", "given"),
    [
        ((2, 21, 7, 6), {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ((1, 9, 5, 6), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
        ((1, 17, 9), {"kernel_shape": [4], "strides": [3]}),
        ((1, 5, 6, 6), {"kernel_shape": [6, 6]}),
    ],
)
def test_average_pools_are_bit_exact(shape: tuple[int, ...], given: dict[str, Any]) -> None:
    random = np.random.default_rng(0)
    q, y = Activation(np.uint8, 0.07, 100), Activation(np.int8, 0.03, -11)
    x = integers(random, q, shape)
    found = compute(operator_model("AveragePool", [(q, shape)], y, {}, **given), {"x0": x})
    kernel, rank = given["kernel_shape"], len(shape) - 2
    pads = given.get("pads", [0] * (2 * rank))
    around = [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)]
    shifted = np.pad(x.astype(np.int64) - q.zero_point, around)
    windows = np.lib.stride_tricks.sliding_window_view(shifted, kernel, tuple(range(2, rank + 2)))
    steps = tuple(slice(None, None, step) for step in given.get("strides", [1] * rank))
    sums = windows[(slice(None), slice(None), *steps)].sum(tuple(range(-rank, 0)))
    multiplier = np.float32(float(np.float32(q.scale)) / (float(np.float32(y.scale)) * math.prod(kernel)))
    np.testing.assert_array_equal(found, requantized(sums, float(multiplier), y))


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, "its windows at the border average fewer elements"),
        ({"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, "its windows may reach beyond the image"),
        ({"kernel_shape": [6, 6]}, "its window has 36 elements"),
    ],
)
def test_average_pools_without_a_kernel_stay_in_float_with_the_reason(given: dict[str, Any], reason: str) -> None:
    q = Activation(np.int8, 0.07, 3)
    (left,) = prepare(operator_model("AveragePool", [(q, (1, 3, 7, 7))], q, {}, **given)).meta[LEFT_IN_FLOAT]
    assert left.name == "layer" and left.reason.startswith(reason)


@pytest.mark.parametrize(
    ("operator", "given"),
    [("Sigmoid", {}), ("HardSwish", {}), ("LeakyRelu", {"alpha": 0.2}), ("Tanh", {}), ("Relu", {})],
)
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_functions_are_tables_of_what_each_integer_gives(operator: str, given: dict[str, float], dtype: Any) -> None:
    q, y = Activation(dtype, 0.04, 5), Activation(dtype, 0.01, 0)
    x = np.arange(*(end + i for i, end in enumerate(q.limits())), dtype=dtype).reshape(1, 256)
    compute(operator_model(operator, [(q, x.shape)], y, {}, **given), {"x0": x})


@pytest.mark.parametrize(
    ("operator", "shape", "more", "given"),
    [
        ("MaxPool", (1, 3, 6, 7), {}, {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ("Reshape", (2, 3, 4), {"shape": np.array([4, -1])}, {}),
        ("Transpose", (2, 3, 4), {}, {"perm": [2, 0, 1]}),
        ("Slice", (2, 3, 8), {"a": np.array([1]), "b": np.array([7]), "c": np.array([2]), "d": np.array([2])}, {}),
    ],
)
@pytest.mark.parametrize("same", [True, False])
def test_movements_work_on_the_integers(
    operator: str, shape: tuple[int, ...], more: dict[str, Any], given: dict[str, Any], same: bool
) -> None:
    q = Activation(np.uint8, 0.05, 100)
    model = operator_model(operator, [(q, shape)], q if same else Activation(np.int8, 0.07, -3), more, **given)
    x = integers(np.random.default_rng(0), q, shape)
    kinds = {node.op_type for node in prepare(model).graph}
    assert ("IntegerTable" in kinds) is not same
    found = compute(model, {"x0": x})
    np.testing.assert_array_equal(found, Session(model).run({"x0": x})["y"])


def test_concatenation_converts_what_has_another_scale() -> None:
    q, other = Activation(np.int8, 0.05, 10), Activation(np.int8, 0.1, 0)
    random = np.random.default_rng(0)
    feeds = {"x0": integers(random, q, (1, 3, 4, 4)), "x1": integers(random, other, (1, 5, 4, 4))}
    model = operator_model("Concat", [(q, (1, 3, 4, 4)), (other, (1, 5, 4, 4))], q, {}, axis=1)
    assert [node.op_type for node in prepare(model).graph] == ["IntegerTable", "Concat"]
    np.testing.assert_array_equal(compute(model, feeds), Session(model).run(feeds)["y"])
