"""Elementary functions by arithmetic stay within the rounding of float32, over their whole range and at its ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from onnx import TensorProto, helper, numpy_helper
from tvm import tirx

from graphopt import ir as gir
from graphopt.analysis.execution import Session
from graphopt.targets.arm.cores import CORES
from graphopt.targets.host import HOST
from graphopt.targets.tvm.codegen import lower_kernels, tvm_target
from graphopt.targets.tvm.schedule import schedule
from tests.targets import compiled
from tests.targets.single_node import assert_as_onnxruntime

EDGES = [0, -0.0, 1.2e-38, -1e-7, 100, -100, 88.7, -86.8, 3e38, -3e38, np.inf, -np.inf, np.nan]


def model(operator: str, size: int, dtype: int = TensorProto.FLOAT) -> Any:
    x, y = (helper.make_tensor_value_info(name, dtype, [size]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"])], "function", [x], [y])
    made = gir.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))
    gir.refresh_shapes(made)
    return made


def computed(operator: str, x: np.ndarray) -> np.ndarray:
    dtype = helper.np_dtype_to_tensor_dtype(x.dtype)
    return compiled.run(model(operator, x.size, dtype), {"x": x})["y"]


def sigmoid(x: np.ndarray) -> np.ndarray:
    made: np.ndarray = 1 / (1 + np.exp(-x))
    return made


@pytest.mark.parametrize(
    ("operator", "exact", "ends", "relative", "absolute"),
    [
        ("Exp", np.exp, (-86.9, 88.72), 3e-7, 0),
        ("Exp", np.exp, (-1, 1), 2e-7, 0),
        ("Log", np.log, (1e-37, 3e38), 2e-7, 0),
        ("Log", np.log, (0.5, 2), 2e-7, 0),
        ("Sigmoid", sigmoid, (-80, 80), 0, 1.2e-7),
        ("Tanh", np.tanh, (-10, 10), 0, 3e-7),
        ("Erf", np.vectorize(math.erf), (-5, 5), 0, 4e-7),
    ],
)
def test_errors_over_the_range(
    operator: str, exact: Callable[..., Any], ends: tuple[float, float], relative: float, absolute: float
) -> None:
    x = np.linspace(*ends, 50001).astype(np.float32)
    found, expected = computed(operator, x).astype(np.float64), exact(x.astype(np.float64))
    assert np.abs(found - expected).max() > 0  # not what numpy computes
    assert (np.abs(found - expected) <= relative * np.abs(expected) + absolute).all()


@pytest.mark.parametrize(
    ("operator", "exact"),
    [
        *[("Exp", np.exp), ("Log", np.log), ("Sigmoid", sigmoid), ("Tanh", np.tanh)],
        ("Erf", np.vectorize(math.erf)),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 5, 17])
def test_ends_and_what_is_no_number(operator: str, exact: Callable[..., Any], size: int) -> None:
    x = np.resize(np.array(EDGES, np.float32), -(-len(EDGES) // size) * size)
    with np.errstate(all="ignore"):
        expected = exact(x.astype(np.float64)).astype(np.float32)
    found = np.concatenate([computed(operator, part) for part in x.reshape(-1, size)])
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
    np.testing.assert_allclose(found, expected, rtol=3e-7, atol=4e-7)


@pytest.mark.parametrize("operator", ["Exp", "Sigmoid", "Tanh", "Erf"])
def test_float16_is_computed_in_float32(operator: str) -> None:
    x = np.linspace(-9, 9, 101).astype(np.float16)
    exact = {"Exp": np.exp, "Sigmoid": sigmoid, "Tanh": np.tanh, "Erf": np.vectorize(math.erf)}[operator]
    expected = exact(x.astype(np.float64)).astype(np.float16)
    found = computed(operator, x)
    assert np.abs(found.view(np.int16) - expected.view(np.int16)).max() <= 1  # units in the last place


@pytest.mark.parametrize("operator", ["Exp", "Log", "Sigmoid", "Tanh", "Erf", "Softplus", "Elu", "HardSwish"])
def test_nothing_calls_libm(operator: str) -> None:
    target = next(core for core in CORES if core.name == "cortex-a76")
    low = compiled.lowered(model(operator, 64), target)
    functions = {name: schedule(function, target) for name, function in low.functions.items()}
    kernels, _ = lower_kernels(functions, tvm_target(target).with_host(tvm_target(target)))
    text = "".join(function.script() for function in kernels.values())
    assert not {name for name in ("exp", "log", "sigmoid", "tanh", "erf") if f"T.{name}(" in text}


@pytest.mark.parametrize(("scale", "axis"), [(1, -1), (30, 1), (1000, 0)])
def test_softmax(scale: float, axis: int) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 50)).astype(np.float32) * np.float32(scale)
    assert_as_onnxruntime("Softmax", {"x": x}, axis=axis)


def test_softmax_of_what_a_mask_excludes() -> None:
    x = np.random.default_rng(0).standard_normal((3, 9)).astype(np.float32)
    x[1, 3:], x[2] = -np.inf, np.finfo(np.float32).min
    assert_as_onnxruntime("Softmax", {"x": x})


@pytest.mark.parametrize(
    "operator", ["Exp", "Log", "Sigmoid", "Tanh", "Erf", "Atan", "Asinh", "Sin", "Ceil", "Softplus", "Sign"]
)
def test_functions_of_a_product_are_computed_in_its_kernel(operator: str) -> None:
    random = np.random.default_rng(0)
    x, weights = random.uniform(0.1, 1, (9, 7)).astype(np.float32), random.uniform(0.1, 1, (7, 26)).astype(np.float32)
    types = {"x": [9, 7], "y": [9, 26]}
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in types.items()]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        helper.make_node(operator, ["p"], ["q"]),
        helper.make_node("Mul", ["p", "q"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "product", infos[:1], infos[1:], [numpy_helper.from_array(weights, "w")])
    made = gir.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))
    gir.refresh_shapes(made)
    expected = Session(made).run({"x": x})["y"]
    np.testing.assert_allclose(compiled.run(made, {"x": x})["y"], expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "result"),
    [
        ("y = Greater(a, z)", "bool"),
        ("c = Greater(a, z) y = Cast<to = 1>(c)", "float"),
        ("c = Greater(a, z) d = Not(c) y = Cast<to = 1>(d)", "float"),
        ("c = Greater(a, z) y = Where(c, a, z)", "float"),
        ("y = Where(k, a, z)", "float"),
        ("c = Cast<to = 1>(k) y = Mul(c, a)", "float"),
        ("c = IsNaN(a) y = Cast<to = 1>(c)", "float"),
        ("y = ThresholdedRelu(a)", "float"),
        ("y = Mod<fmod = 1>(a, z)", "float"),
        ("b = Mul(a, z) s = Sinh(b) c = Cosh(b) y = Div(s, c)", "float"),
    ],
)
def test_truths_and_functions_of_libm_behind_a_product(body: str, result: str) -> None:
    random = np.random.default_rng(0)
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[5,16] x, float[16,23] w, bool[5,23] k) => ({result}[5,23] y) <float z = {{0.5}}>
        {{ a = MatMul(x, w) {body} }}"""
    made = compiled.parse(text)
    feeds = {
        "x": random.normal(size=(5, 16)).astype(np.float32),
        "w": random.normal(size=(16, 23)).astype(np.float32),
        "k": random.normal(size=(5, 23)) > 0,
    }
    expected = Session(made).run(feeds)["y"]
    np.testing.assert_allclose(compiled.run(made, feeds)["y"], expected, rtol=2e-6, atol=1e-6)


def test_functions_of_functions_do_not_multiply_the_code() -> None:
    def size(depth: int) -> int:
        steps = " ".join(f"a{i + 1} = Softplus(a{i})" for i in range(depth))
        made = compiled.parse(
            f"""<ir_version: 8, opset_import: ["" : 17]>
            g (float[4,8] x, float[8,8] w) => (float[4,8] a{depth}) {{ a0 = MatMul(x, w) {steps} }}"""
        )
        target = tvm_target(HOST)
        functions = {name: schedule(function, HOST) for name, function in compiled.lowered(made).functions.items()}
        kernels, _ = lower_kernels(functions, target.with_host(target))
        module = tirx.transform.LowerIntrin()(tvm.IRModule(kernels))
        return sum(len(function.script()) for function in module.functions.values())

    one, two, three = (size(depth) for depth in (1, 2, 3))
    assert three - two < 1.2 * (two - one)
