"""Dynamic quantization: what is rewritten, how exact it is against the formula and ONNX Runtime, what is left alone."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphopt.ir as graph_ir
from graphopt.errors import UsageError
from graphopt.passes.quantize.quantize_dynamic import Per, QuantizeDynamic
from graphopt.pipeline.base import PassContext
from graphopt.targets.arm.cores import CORES
from tests.passes.harness import Outcome, check, outputs, parse, run

HEADER = '<ir_version: 8, opset_import: ["" : {opset}]>'


def matrix(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def product(opset: int = 17, columns: int = 5, depth: int = 7) -> ir.Model:
    """Two products of one input: a MatMul with a bias behind it, and a Gemm with a transposed weight."""
    text = f"""{HEADER.format(opset=opset)} g (float[3,{depth}] x) => (float[3,{columns}] y, float[3,{columns}] z) {{
        h = MatMul(x, w)
        y = Add(h, b)
        z = Gemm<transB = 1>(x, v, b)
    }}"""
    return parse(text, w=matrix(depth, columns), v=matrix(columns, depth), b=matrix(columns))


@pytest.mark.parametrize("per", list(Per))
def test_products_become_integer_products(per: Per, golden: Callable[[str, Outcome], None]) -> None:
    outcome = check(QuantizeDynamic(per=per), product(), relative=0.03)
    assert outcome.operators().count("MatMulInteger") == 2
    golden(per.value, outcome)


@pytest.mark.parametrize("per", list(Per))
@pytest.mark.parametrize("opset", [13, 18, 21])
def test_it_holds_in_all_opsets(per: Per, opset: int) -> None:
    check(QuantizeDynamic(per=per), product(opset), relative=0.03)


def test_an_old_model_is_converted() -> None:
    model = product(11)
    run(QuantizeDynamic(), model)
    assert model.opset_imports[""] == 13


def test_what_reads_one_input_shares_its_range_and_what_shares_a_weight_stores_it_once() -> None:
    model = parse(
        f"""{HEADER.format(opset=17)} g (float[3,7] x, float[4,7] t) => (float[3,5] y, float[3,5] z, float[4,5] u) {{
            y = MatMul(x, w)
            z = MatMul(x, v)
            u = MatMul(t, w)
        }}""",
        w=matrix(7, 5),
        v=matrix(7, 5),
    )
    outcome = check(QuantizeDynamic(), model, relative=0.03)
    assert outcome.result.statistics == {"dynamic-layers": 3, "ranges": 2}
    stored = [value for value in outcome.after.graph.initializers.values() if value.dtype == ir.DataType.UINT8]
    assert sorted(len(value.shape or ()) for value in stored) == [0, 0, 2, 2]


@pytest.mark.parametrize("per", list(Per))
def test_a_result_that_is_an_output_and_an_input_of_the_next_layer(per: Per) -> None:
    model = parse(
        f"""{HEADER.format(opset=17)} g (float[3,7] x) => (float[3,5] y, float[3,4] z) {{
            y = MatMul(x, w)
            z = MatMul(y, v)
        }}""",
        w=matrix(7, 5),
        v=matrix(5, 4),
    )
    check(QuantizeDynamic(per=per), model, relative=0.05)


def by_formula(x: np.ndarray, w: np.ndarray, per: Per) -> np.ndarray:
    """The algebra of the pass's module, with weights by the largest magnitude."""
    scales = np.where(np.abs(w).max(axis=0) > 0, np.abs(w).max(axis=0) / 127, 1).astype(np.float32)
    weights = np.rint(w / scales).astype(np.int64)
    if per is Per.ROW:
        sizes = (np.maximum(np.abs(x).max(axis=1, keepdims=True), np.float32(2.0**-100)) / np.float32(127)).astype("f4")
        return (np.rint(x / sizes).astype(np.int64) @ weights).astype("f4") * sizes * scales
    low, high = min(x.min(), np.float32(0)), max(x.max(), np.float32(0))
    size = np.float32((high - low) / np.float32(255)) if high > low else np.float32(1)
    zero_point = np.clip(np.rint(-low / size), 0, 255)
    integers = np.clip(np.rint(x / size) + zero_point, 0, 255) - zero_point
    return (integers.astype(np.int64) @ weights).astype("f4") * (size * scales)


@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 5),
    depth=st.integers(1, 17),
    columns=st.sampled_from([1, 3, 5, 7, 17]),
    scale=st.sampled_from([1e-20, 1e-3, 1.0, 1e6]),
    sign=st.sampled_from([-1, 0, 1]),
    per=st.sampled_from(Per),
    seed=st.integers(0, 2**16),
)
def test_onnxruntime_computes_the_formula(
    rows: int, depth: int, columns: int, scale: float, sign: int, per: Per, seed: int
) -> None:
    random = np.random.default_rng(seed)
    x = (random.standard_normal((rows, depth)) * scale).astype(np.float32)
    x = x if sign == 0 else sign * np.abs(x)
    w = random.standard_normal((depth, columns)).astype(np.float32)
    w[:, 0] *= seed % 2  # a column of zeros, often
    model = parse(
        f"{HEADER.format(opset=17)} g (float[{rows},{depth}] x) => (float[{rows},{columns}] y) {{ y = MatMul(x, w) }}",
        w=w,
    )
    graph_ir.refresh_shapes(model)
    run(QuantizeDynamic(per=per, mse=False), model)
    expected = by_formula(x, w, per)
    np.testing.assert_allclose(outputs(model, {"x": x})["y"], expected, rtol=1e-6, atol=1e-35)


def test_zeros_give_zeros() -> None:
    for per in Per:
        model = product()
        graph_ir.refresh_shapes(model)
        run(QuantizeDynamic(per=per), model)
        bias = np.asarray(model.graph.initializers["b"].const_value)
        assert (outputs(model, {"x": np.zeros((3, 7), np.float32)})["y"] == bias).all()


DECLINED = {
    "its right operand is no constant": "(float[3,7] x, float[7,5] t) => (float[3,5] y) { y = MatMul(x, t) }",
    "it is excluded by 'matmul_*'": "(float[3,7] x) => (float[3,5] y) { y = MatMul(x, w) }",
    "its weight is quantized already": "(float[3,7] x) => (float[3,5] y) {d = DequantizeLinear(i, s) y = MatMul(x, d)}",
    "its weight holds NaN or infinity": "(float[3,7] x) => (float[3,5] y) { y = MatMul(x, inf) }",
    "its weight has the shape [2, 7, 5], expected a matrix": "(float[3,7] x) => (float[2,3,5] y) { y = MatMul(x, w3) }",
    "both operands are constants": "(float[3,5] x) => (float[3,5] y) { h = MatMul(v, w) y = Add(h, x) }",
    "its input is a vector": "(float[7] x) => (float[5] y) { y = MatMul(x, w) }",
    "alpha or beta is not 1": "(float[3,7] x) => (float[3,5] y) { y = Gemm<alpha = 2.0>(x, w) }",
    "its left operand is transposed": "(float[7,3] x) => (float[3,5] y) { y = Gemm<transA = 1>(x, w) }",
    "its weight is float64; only float32 is quantized": "(double[3,7] x) => (double[3,5] y) { y = MatMul(x, wide) }",
    "dynamic quantization is for MatMul and Gemm; int8 with data serves it": (
        "(float[1,7,3] x) => (float[1,4,3] y) { y = Conv(x, c) }"
    ),
    "standard ONNX has no integer form of a recurrence; int8 weights (quantize-weights) shrink it": (
        "(float[1,1,3] x) => (float[1,1,1,2] y) { y = LSTM<hidden_size = 2>(x, lw, lr) }"
    ),
}


@pytest.mark.filterwarnings("ignore:.*NaN or infinite")
@pytest.mark.parametrize("reason", DECLINED)
def test_what_it_leaves_alone_it_says_why(reason: str) -> None:
    weights = {
        "w": matrix(7, 5),
        "inf": np.full((7, 5), np.inf, np.float32),
        "w3": matrix(2, 7, 5),
        "v": matrix(3, 7),
        "wide": matrix(7, 5).astype(np.float64),
        "i": np.ones((7, 5), np.int8),
        "s": np.array(0.1, np.float32),
        "c": matrix(4, 7, 1),
        "lw": matrix(1, 8, 3),
        "lr": matrix(1, 8, 2),
    }
    used = {name: array for name, array in weights.items() if re.search(rf"\b{name}\b", DECLINED[reason])}
    model = parse(f"{HEADER.format(opset=17)} g {DECLINED[reason]}", **used)
    graph_ir.refresh_shapes(model)
    exclude = ("matmul_*",) if "excluded" in reason else ()
    result = run(QuantizeDynamic(exclude=exclude), model)
    assert not result.changed and [declined.reason for declined in result.declined] == [reason]


def test_a_product_in_a_subgraph_is_declined() -> None:
    model = parse(
        f"""{HEADER.format(opset=17)} g (bool c, float[3,7] x) => (float[3,5] y) {{
            y = If(c) <
                then_branch = t () => (float[3,5] a) {{ a = MatMul(x, w) }},
                else_branch = e () => (float[3,5] b) {{ b = MatMul(x, w) }}
            >
        }}""",
        w=matrix(7, 5),
    )
    result = run(QuantizeDynamic(), model)
    assert not result.changed and {declined.reason for declined in result.declined} == {"it is in a subgraph"}


def test_a_target_without_the_scheme_refuses_it() -> None:
    target = dataclasses.replace(CORES[0], quantization=("int8",))
    with pytest.raises(UsageError, match="does not serve the scheme 'dynamic-int8'"):
        run(QuantizeDynamic(), product(), PassContext(target=target))
