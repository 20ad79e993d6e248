"""Weight-only quantization: what is rewritten, its arithmetic against the formula, and what is left alone."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphopt.ir as graph_ir
from graphopt.errors import UsageError
from graphopt.passes.quantize.blocks import dequantize_blocks, quantize_blocks
from graphopt.passes.quantize.quantize_weights import QuantizeWeights
from graphopt.pipeline.base import PassContext
from graphopt.targets.arm.cores import CORES
from tests.passes.harness import Outcome, check, outputs, parse, run

HEADER = '<ir_version: 8, opset_import: ["" : {opset}]>'
LIMITS = {(8, True): (-127, 127), (4, True): (-8, 7), (8, False): (0, 255), (4, False): (0, 15)}


def matrix(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def model_of(opset: int = 21, depth: int = 20) -> ir.Model:
    """A MatMul, a Gemm with a transposed weight, and an embedding."""
    text = f"""{HEADER.format(opset=opset)} g (float[3,{depth}] x, int64[2] i) => (float[3,5] y, float[3,7] z, float[2,{depth}] e) {{
        y = MatMul(x, w)
        z = Gemm<transB = 1>(x, v, b)
        e = Gather(t, i)
    }}"""  # noqa: E501
    return parse(text, w=matrix(depth, 5), v=matrix(7, depth), b=matrix(7), t=matrix(9, depth))


def feeds(depth: int = 20) -> dict[str, np.ndarray]:
    return {"x": matrix(3, depth), "i": np.array([8, -1])}


@pytest.mark.parametrize("bits", [8, 4])
def test_golden(bits: int, golden: Callable[[str, Outcome], None]) -> None:
    quantize = QuantizeWeights(bits=bits, block=16, symmetric=bits == 8, smallest=0)
    outcome = check(quantize, model_of(), feeds=feeds(), relative=0.02 if bits == 8 else 0.2)
    assert outcome.operators().count("DequantizeLinear") == 3
    golden(f"int{bits}", outcome)


@pytest.mark.parametrize(
    "options", [{}, {"block": 0}, {"bits": 4}, {"bits": 4, "block": 0}, {"bits": 8, "symmetric": False}]
)
@pytest.mark.parametrize("opset", [11, 17, 21])
def test_onnxruntime_computes_with_the_rounded_weights(opset: int, options: dict[str, Any]) -> None:
    model, given = model_of(opset), feeds()
    graph_ir.refresh_shapes(model)
    after = graph_ir.clone(model)
    run(QuantizeWeights(smallest=0, **options), after)
    full = {"bits": 8, "block": 32, "symmetric": True} | options
    for name, axis in (("w", 0), ("v", 1), ("t", 1)):
        value = model.graph.initializers[name]
        array = np.asarray(value.const_value)
        made = quantize_blocks(array, axis, full["block"], bits=full["bits"], symmetric=full["symmetric"])
        value.const_value = ir.Tensor(dequantize_blocks(made), name=name)
    expected, found = outputs(model, given), outputs(after, given)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-6 * np.abs(array).max())


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.sampled_from([1, 3, 5, 17, 33]), st.sampled_from([1, 3, 7, 40])),
    axis=st.integers(0, 1),
    block=st.sampled_from([0, 1, 4, 16, 32]),
    bits=st.sampled_from([4, 8]),
    symmetric=st.booleans(),
    scale=st.sampled_from([0.0, 1e-30, 1.0, 1e30]),
    seed=st.integers(0, 2**16),
)
def test_blocks_are_what_the_formula_says(
    shape: tuple[int, int], axis: int, block: int, bits: int, symmetric: bool, scale: float, seed: int
) -> None:
    weights = (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)
    made = quantize_blocks(weights, axis, block, bits=bits, symmetric=symmetric)
    size = block or shape[axis]
    count = -(-shape[axis] // size)
    assert made.integers.shape == shape and made.scale.shape[axis] == count
    assert (made.zero_point is None) == symmetric
    low, high = LIMITS[bits, symmetric]
    for number in range(count):
        piece = weights.take(range(number * size, min((number + 1) * size, shape[axis])), axis=axis)
        step = made.scale.take([number], axis=axis)
        zero = 0 if made.zero_point is None else made.zero_point.astype(int).take([number], axis=axis)
        expected = np.clip(np.rint(piece / step) + zero, low, high)
        found = made.integers.astype(int).take(range(number * size, number * size + piece.shape[axis]), axis=axis)
        np.testing.assert_array_equal(found, expected)
        back = dequantize_blocks(made).take(range(number * size, number * size + piece.shape[axis]), axis=axis)
        np.testing.assert_array_equal(back, (expected - zero).astype(np.float32) * step)
        # no worse than the plain choice of the largest magnitude or the two ends
        plain = np.abs(piece).max(axis=axis, keepdims=True) / (high if symmetric else 1)
        if symmetric:
            plain = np.where(plain > 0, np.maximum(plain, 2.0**-62), 1).astype(np.float32)
            error = np.square(piece - np.clip(np.rint(piece / plain), low, high) * plain, dtype=np.float64)
            bound = error.sum(axis=axis) * (1 + 1e-4) + 1e-70
            assert (np.square(piece - back, dtype=np.float64).sum(axis=axis) <= bound).all()


@pytest.mark.parametrize(("bits", "steps"), [(8, 127), (8, 100), (8, 45), (8, 1), (4, 7), (4, 5), (4, 3), (4, 1)])
def test_weights_on_a_grid_are_met_exactly(bits: int, steps: int) -> None:
    integers = np.random.default_rng(steps).integers(-steps, steps + 1, (32, 4))
    integers[0] = steps
    weights = integers.astype(np.float32) * np.float32(0.125)
    np.testing.assert_array_equal(
        dequantize_blocks(quantize_blocks(weights, 0, 32, bits=bits, symmetric=True)), weights
    )


def test_int4_is_packed_in_the_file(tmp_path: Any) -> None:
    model = parse(
        f"{HEADER.format(opset=21)} g (float[3,64] x) => (float[3,96] y) {{ y = MatMul(x, w) }}", w=matrix(64, 96)
    )
    graph_ir.refresh_shapes(model)
    result = run(QuantizeWeights(bits=4), model)
    graph_ir.save(model, tmp_path / "m.onnx")
    assert result.statistics["bytes-before"] == 64 * 96 * 4
    assert result.statistics["bytes-after"] == 64 * 96 // 2 + 2 * 96 * 4
    assert (tmp_path / "m.onnx").stat().st_size < 64 * 96 // 2 + 2 * 96 * 4 + 600
    again = graph_ir.load(tmp_path / "m.onnx")
    np.testing.assert_array_equal(outputs(again, {"x": matrix(3, 64)})["y"], outputs(model, {"x": matrix(3, 64)})["y"])


def test_a_weight_that_two_layers_read_is_stored_once() -> None:
    text = f"""{HEADER.format(opset=21)} g (float[3,9] x, int64[2] i) => (float[3,5] y, float[2,9] e) {{
        y = Gemm<transB = 1>(x, w)
        e = Gather(w, i)
    }}"""
    model = parse(text, w=matrix(5, 9))
    outcome = check(
        QuantizeWeights(smallest=0), model, feeds={"x": matrix(3, 9), "i": np.array([4, -5])}, relative=0.02
    )
    assert outcome.result.statistics["quantized-weights"] == 1 and outcome.operators().count("DequantizeLinear") == 1


def test_a_weight_that_is_read_along_two_axes_is_stored_for_each() -> None:
    text = f"""{HEADER.format(opset=21)} g (float[3,9] x, float[3,9] t) => (float[3,9] y, float[3,9] z) {{
        y = MatMul(x, w)
        z = Gemm<transB = 1>(t, w)
    }}"""
    outcome = check(QuantizeWeights(smallest=0, block=4), parse(text, w=matrix(9, 9)), relative=0.02)
    assert outcome.result.statistics["quantized-weights"] == 2


DECLINED = {
    "its right operand is no constant": "(float[3,7] x, float[7,5] t) => (float[3,5] y) { y = MatMul(x, t) }",
    "it is excluded by 'matmul_*'": "(float[3,7] x) => (float[3,5] y) { y = MatMul(x, w) }",
    "its weight is quantized already": "(float[3,7] x) => (float[3,5] y) {d = DequantizeLinear(i, s) y = MatMul(x, d)}",
    "its weight holds NaN or infinity": "(float[3,7] x) => (float[3,5] y) { y = MatMul(x, inf) }",
    "its weight has the shape [7], expected a matrix": "(float[3,7] x) => (float[3] y) { y = MatMul(x, u) }",
    "its weight has 35 elements, fewer than 36": "(float[3,7] x) => (float[3,5] y) { y = Gemm(x, w) }",
    "its weight is float64; only float32 is quantized": "(double[3,7] x) => (double[3,5] y) { y = MatMul(x, wide) }",
    "its weight has the shape [2, 7, 5]; only blocks can share scales there": (
        "(float[3,7] x) => (float[2,3,5] y) { y = MatMul(x, w3) }"
    ),
    "it does not pick rows": "(int64[2] x) => (float[7,2] y) { y = Gather<axis = 1>(w, x) }",
    "weight-only quantization is for MatMul, Gemm and Gather": "(float[1,7,3] x) => (float[1,4,3] y) {y = Conv(x, c)}",
}


@pytest.mark.filterwarnings("ignore:.*NaN or infinite")
@pytest.mark.parametrize("reason", DECLINED)
def test_what_it_leaves_alone_it_says_why(reason: str) -> None:
    weights = {
        "w": matrix(7, 5),
        "inf": np.full((7, 5), np.inf, np.float32),
        "u": matrix(7),
        "w3": matrix(2, 7, 5),
        "wide": matrix(7, 5).astype(np.float64),
        "i": np.ones((7, 5), np.int8),
        "s": np.array(0.1, np.float32),
        "c": matrix(4, 7, 1),
    }
    used = {name: array for name, array in weights.items() if re.search(rf"\b{name}\b", DECLINED[reason])}
    model = parse(f"{HEADER.format(opset=21)} g {DECLINED[reason]}", **used)
    graph_ir.refresh_shapes(model)
    exclude = ("matmul_*",) if "excluded" in reason else ()
    smallest, block = (36 if "36" in reason else 0), (0 if "w3" in used else 32)
    result = run(QuantizeWeights(exclude=exclude, smallest=smallest, block=block), model)
    assert not result.changed and [declined.reason for declined in result.declined] == [reason]


@pytest.mark.parametrize("options", [{"bits": 3}, {"block": -1}])
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected 8 or 4 and a number from 0"):
        run(QuantizeWeights(**options), model_of())


def test_a_target_without_the_scheme_refuses_it() -> None:
    target = dataclasses.replace(CORES[0], quantization=("int8", "weights-int8"))
    run(QuantizeWeights(), model_of(), PassContext(target=target))
    with pytest.raises(UsageError, match="does not serve the scheme 'weights-int4'"):
        run(QuantizeWeights(bits=4), model_of(), PassContext(target=target))
