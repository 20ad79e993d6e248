"""Weights that a model stores small stay small in the library, and layers compute the same with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import graphopt.ir as graph_ir
from graphopt import optimize, verify
from graphopt.passes.quantize.quantize_weights import QuantizeWeights
from graphopt.pipeline.base import PassContext
from graphopt.targets.tvm.preparation import prepare
from graphopt.targets.tvm.quantized.rewrite import LEFT_IN_FLOAT
from tests.passes.harness import outputs, parse
from tests.targets import compiled

OPTIONS: dict[str, dict[str, Any]] = {
    "int8": {"bits": 8},
    "int8 by column": {"bits": 8, "block": 0},
    "uint8": {"bits": 8, "symmetric": False},
    "int4": {"bits": 4, "block": 16},
    "int4 by column": {"bits": 4, "block": 0},
    "uint4": {"bits": 4, "symmetric": False},
}


def network(rows: int, depth: int, columns: int, opset: int = 17) -> ir.Model:
    """A MatMul with a bias and an activation, a transposed Gemm, and an embedding."""

    def matrix(*shape: int) -> np.ndarray:
        return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)

    text = f"""<ir_version: 8, opset_import: ["" : {opset}]>
        g (float[2,{rows},{depth}] x, int64[3] i)
            => (float[2,{rows},{columns}] y, float[{2 * rows},{columns}] z, float[3,{depth}] e) {{
        a = MatMul(x, w)
        b = Add(a, bias)
        y = Relu(b)
        f = Reshape(x, s)
        z = Gemm<transB = 1>(f, v, bias)
        e = Gather(t, i)
    }}"""
    weights = {
        "w": matrix(depth, columns),
        "v": matrix(columns, depth),
        "bias": matrix(columns),
        "t": matrix(11, depth),
    }
    model = parse(text, s=np.array([2 * rows, depth]), **weights)
    graph_ir.refresh_shapes(model)
    return model


@pytest.mark.parametrize(
    ("case", "rows", "depth", "columns"), [*((case, 1, 33, 17) for case in OPTIONS), ("uint4", 9, 64, 5)]
)
def test_products_and_look_ups(case: str, rows: int, depth: int, columns: int) -> None:
    model = network(rows, depth, columns)
    QuantizeWeights(smallest=0, **OPTIONS[case]).run(model, PassContext())
    graph_ir.refresh_shapes(model)
    operators = [node.op_type for node in prepare(model).graph]
    assert operators.count("StoredProduct") == 2 and "DequantizeLinear" not in operators
    feeds = {"x": np.random.default_rng(0).standard_normal((2, rows, depth)).astype("f4"), "i": np.array([0, -1, 5])}
    expected, found = outputs(model, feeds), compiled.run(model, feeds)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-6 * np.ptp(array), err_msg=name)


def test_integers_of_4_bits_that_no_kernel_reads_become_floats() -> None:
    model = parse(
        """<ir_version: 10, opset_import: ["" : 21]> g (float[6,5] x) => (float[6,5] y, float[5,5] z) {
            w = DequantizeLinear<axis = 0, block_size = 4>(q, s)
            y = Add(x, w)
            v = DequantizeLinear<axis = 1>(r, t)
            z = Sub(v, t)
        }""",
        s=np.arange(1, 11, dtype=np.float32).reshape(2, 5),
        t=np.arange(1, 6, dtype=np.float32),
        q=np.random.default_rng(0).integers(-8, 8, (6, 5)).astype(ir.DataType.INT4.numpy()),
        r=np.random.default_rng(1).integers(-8, 8, (5, 5)).astype(ir.DataType.INT4.numpy()),
    )
    graph_ir.refresh_shapes(model)
    feeds = {"x": np.ones((6, 5), np.float32)}
    found, expected = compiled.run(model, feeds), outputs(model, feeds)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_what_is_left_in_float_is_still_said() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17]> g (int8[3,8] x) => (float[3,5] y) {
            f = DequantizeLinear(x, s, z)
            w = DequantizeLinear<axis = 1>(q, t)
            a = MatMul(f, w)
            y = Relu(a)
            unused = QuantizeLinear(f, s, z)
        }""",
        s=np.linspace(0.1, 0.2, 8, dtype=np.float32),
        z=np.arange(8, dtype=np.int8),
        q=np.random.default_rng(0).integers(-127, 128, (8, 5), np.int8),
        t=np.arange(1, 6, dtype=np.float32),
    )
    graph_ir.refresh_shapes(model)
    prepared = prepare(model)
    assert "StoredProduct" in [node.op_type for node in prepared.graph]
    (left,) = prepared.meta[LEFT_IN_FLOAT]
    assert left.name == "matmul_2" and left.reason == "its input is quantized by channel"
    feeds = {"x": np.random.default_rng(1).integers(-128, 128, (3, 8), np.int8)}
    expected = outputs(model, feeds)["y"]
    np.testing.assert_allclose(compiled.run(model, feeds)["y"], expected, rtol=0, atol=1e-6 * np.ptp(expected))


@pytest.mark.parametrize(("scheme", "most"), [("weights-int8", 0.3), ("weights-int4", 0.18)])
def test_a_bundle_keeps_the_weights_small(scheme: str, most: float, tmp_path: Path) -> None:
    model = network(4, 96, 48)
    floats = 4 * (2 * 96 * 48 + 11 * 96)
    result = optimize(model, "host", out=tmp_path / "out", name="net", quantize=scheme, jobs=1)
    assert result.library.weight_bytes < most * floats
    assert verify(result.out).passed


@pytest.mark.emulation
@pytest.mark.parametrize("target", ["cortex-a53", "armv7"])
@pytest.mark.parametrize("scheme", ["weights-int8", "weights-int4"])
def test_a_bundle_for_arm_verifies(scheme: str, target: str, tmp_path: Path) -> None:
    result = optimize(network(4, 40, 30), target, out=tmp_path / "out", name="net", quantize=scheme, jobs=1)
    assert verify(result.out).passed
