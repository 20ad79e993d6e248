"""Functions of one quantized tensor, of many nodes and with quantization between them, are one table."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from graphopt import ir as gir
from graphopt.analysis.execution import Session
from graphopt.targets.tvm.preparation import prepare
from graphopt.targets.tvm.quantized.rewrite import LEFT_IN_FLOAT
from tests.targets import compiled
from tests.targets.quantized_models import Activation

Node = tuple[str, list[str], Activation | None]  # operator, inputs by name, and how its result is quantized
INT8 = np.dtype(np.int8)


def function_model(
    x: Activation,
    shape: tuple[int, ...],
    nodes: list[Node],
    constants: dict[str, Any],
    outputs: list[str],
    **given: Any,
) -> Any:
    """x dequantized as `x`, node number i as `v{i}`, which is quantized and dequantized where it says so."""
    arrays = {name: np.asarray(array, np.float32) for name, array in constants.items()}
    made, types = [], {}

    def quantization(name: str, q: Activation) -> list[str]:
        arrays.update({f"{name}_s": np.float32(q.scale), f"{name}_z": np.array(q.zero_point, q.dtype)})
        types[f"{name}_q"] = helper.np_dtype_to_tensor_dtype(np.dtype(q.dtype))
        made.append(helper.make_node("DequantizeLinear", [f"{name}_q", f"{name}_s", f"{name}_z"], [name]))
        return [f"{name}_s", f"{name}_z"]

    quantization("x", x)
    for i, (operator, inputs, q) in enumerate(nodes):
        result = f"v{i}" if q is None else f"v{i}_f"
        made.append(helper.make_node(operator, inputs, [result], name=f"{operator}{i}", **given.get(f"v{i}", {})))
        if q is not None:
            parameters = quantization(f"v{i}", q)
            made.insert(-1, helper.make_node("QuantizeLinear", [result, *parameters], [f"v{i}_q"]))
    graph = helper.make_graph(
        made,
        "function",
        [helper.make_tensor_value_info("x_q", types["x_q"], shape)],
        [helper.make_tensor_value_info(name, types[name], None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    model = gir.load(onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True))
    gir.refresh_shapes(model)
    return model


def all_integers(q: Activation) -> np.ndarray:
    return np.arange(q.limits()[0], q.limits()[1] + 1).astype(q.dtype).reshape(1, 256)


def real(integers: np.ndarray, q: Activation) -> np.ndarray:
    made: np.ndarray = (integers.astype(np.int64) - q.zero_point).astype(np.float32) * np.float32(q.scale)
    return made


def quantized(numbers: np.ndarray, q: Activation) -> np.ndarray:
    steps = np.rint(numbers / np.float32(q.scale)).astype(np.int64) + q.zero_point
    made: np.ndarray = np.clip(steps, *q.limits()).astype(q.dtype)
    return made


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_gelu_with_quantization_between_its_nodes_is_one_table_with_the_bits_of_all(dtype: Any) -> None:
    x, e, a = Activation(dtype, 0.03, 7), Activation(np.int8, 0.0079, 0), Activation(np.uint8, 0.0158, 1)
    m, y = Activation(np.int8, 0.04, -100), Activation(dtype, 0.021, 12)
    nodes: list[Node] = [
        *[("Div", ["x", "root"], None), ("Erf", ["v0"], e), ("Add", ["v1", "one"], a)],
        *[("Mul", ["x", "v2"], m), ("Mul", ["v3", "half"], y)],
    ]
    constants = {"root": math.sqrt(2), "one": [1.0], "half": 0.5}
    model = function_model(x, (1, 256), nodes, constants, ["v4_q"])
    prepared = prepare(model)
    kinds = [node.op_type for node in prepared.graph]
    assert kinds.count("IntegerTable") == 1 and set(kinds) <= {"IntegerTable", "Cast", "Add"}  # to int8 and back
    assert prepared.meta[LEFT_IN_FLOAT] == []
    integers = all_integers(x)
    number = real(integers, x)
    scaled = number / np.float32(math.sqrt(2))
    erf = np.array([math.erf(float(value)) for value in scaled[0]]).astype(np.float32)[None]
    added = real(quantized(erf, e), e) + np.float32(1)
    product = number * real(quantized(added, a), a)
    expected = quantized(real(quantized(product, m), m) * np.float32(0.5), y)
    np.testing.assert_array_equal(compiled.run(model, {"x_q": integers})["v4_q"], expected)


@pytest.mark.parametrize(
    ("operator", "constants", "given"),
    [
        *[("Sigmoid", {}, {}), ("Tanh", {}, {}), ("Erf", {}, {}), ("HardSwish", {}, {}), ("Mish", {}, {})],
        *[("Gelu", {}, {"approximate": "tanh"}), ("LeakyRelu", {}, {"alpha": 0.2}), ("Softplus", {}, {})],
        *[("Exp", {}, {}), ("Pow", {"c": [[2.0]]}, {}), ("Clip", {"c": -0.4, "d": 0.9}, {}), ("Max", {"c": 0.3}, {})],
        *[("PRelu", {"c": [0.3]}, {}), ("Sub", {"c": 0.1}, {}), ("Elu", {}, {}), ("Celu", {"alpha": 0.7}, {})],
    ],
)
def test_each_operator_is_within_a_step_of_onnx_runtime(
    operator: str, constants: dict[str, Any], given: dict[str, Any]
) -> None:
    q, y = Activation(np.int8, 0.02, 5), Activation(np.uint8, 0.01, 40)
    if "alpha" in constants:
        constants, given = {}, constants
    model = function_model(q, (1, 256), [(operator, ["x", *constants], y)], constants, ["v0_q"], v0=given)
    assert prepare(model).meta[LEFT_IN_FLOAT] == []
    feeds = {"x_q": all_integers(q)}
    found, expected = compiled.run(model, feeds)["v0_q"], Session(model).run(feeds)["v0_q"]
    assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1


def test_a_function_that_changes_no_integer_is_no_node() -> None:
    q, half, y = Activation(np.int8, 0.5, 3), Activation(np.int8, 0.25, 3), Activation(np.int8, 0.1, -5)
    model = function_model(q, (2, 5), [("Mul", ["x", "c"], half), ("Sigmoid", ["v0"], y)], {"c": 0.5}, ["v0_q", "v1_q"])
    assert [node.name for node in prepare(model).graph] == ["Mul0", "Sigmoid1"]  # an output of the model needs a value
    model = function_model(q, (2, 5), [("Mul", ["x", "c"], half), ("Sigmoid", ["v0"], y)], {"c": 0.5}, ["v1_q"])
    assert [node.name for node in prepare(model).graph] == ["Sigmoid1"]


@pytest.mark.parametrize(
    ("nodes", "constants", "reason"),
    [
        ([("Max", ["x", "c"], INT8)], {"c": [[1.0, 2.0]]}, "it has constants that are no scalars"),
        ([("Log", ["x"], INT8)], {}, "it is no number for some of the integers"),
        ([("LpNormalization", ["x"], INT8)], {}, "there is no integer kernel for LpNormalization"),
    ],
)
def test_other_functions_stay_in_float_with_the_reason(nodes: Any, constants: dict[str, Any], reason: str) -> None:
    q = Activation(np.int8, 0.05, 0)
    nodes = [(operator, inputs, q if kind is INT8 else None) for operator, inputs, kind in nodes]
    left = prepare(function_model(q, (3, 2), nodes, constants, [f"v{len(nodes) - 1}_q"])).meta[LEFT_IN_FLOAT]
    assert len(left) == 1 and left[0].reason.startswith(reason)
