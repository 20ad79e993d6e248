from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.cleanup.fuse_matmul_add import FuseMatmulAdd
from tests.passes.harness import Outcome, check, parse

Array = npt.NDArray[Any]


def normal(*shape: int) -> Array:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def header(opset: int = 17) -> str:
    return f'<ir_version: 8, opset_import: ["" : {opset}]>'


def test_matmul_add_golden(golden: Callable[[str, Outcome], None]) -> None:
    model = parse(
        header() + "g (float[2,3] x) => (float[2,1] z) { y = MatMul(x, w) z = Add(y, b) }",
        w=np.ones((3, 1), np.float32),
        b=np.array([1], np.float32),
    )
    outcome = check(FuseMatmulAdd(), model)
    golden("matmul-add", outcome)
    assert outcome.operators() == ["Gemm"]


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 18, 22])
@pytest.mark.parametrize("shape", [(5,), (1, 5), (2, 5), (2, 1), (1,), ()])
@pytest.mark.parametrize("text", ["Add(y, b)", "Add(b, y)"])
def test_every_opset_and_shape_of_bias(opset: int, shape: tuple[int, ...], text: str) -> None:
    model = parse(
        header(opset) + f"g (float[2,3] x) => (float[2,5] z) {{ y = MatMul(x, w) z = {text} }}",
        w=normal(3, 5),
        b=normal(*shape),
    )
    assert check(FuseMatmulAdd(), model).operators() == ["Gemm"]


def test_an_unknown_batch_is_no_hindrance() -> None:
    model = parse(
        header() + "g (float[N,3] x) => (float[N,5] z) { y = MatMul(x, w) z = Add(y, b) }", w=normal(3, 5), b=normal(5)
    )
    assert check(FuseMatmulAdd(), model, feeds={"x": normal(4, 3)}).operators() == ["Gemm"]


def test_a_gemm_without_bias_gets_one_and_its_beta_is_dropped() -> None:
    model = parse(
        header() + "g (float[3,2] x) => (float[2,5] z) "
        "{ y = Gemm<alpha = 2.0, beta = 3.0, transA = 1, transB = 1>(x, w) z = Add(y, b) }",
        w=normal(5, 3),
        b=normal(5),
    )
    outcome = check(FuseMatmulAdd(), model)
    assert outcome.operators() == ["Gemm"]
    assert set(outcome.after.graph[0].attributes) == {"alpha", "transA", "transB"}


DECLINED = [
    ("rank", "float[2,4,3] x", "y = MatMul(x, w) z = Add(y, b)", "float[A,B,C]", "of ranks 3 and 2"),
    ("vector", "float[3] x", "y = MatMul(x, w) z = Add(y, b)", "float[A]", "of ranks 1 and 2"),
    ("used twice", "float[2,3] x", "y = MatMul(x, w) a = Add(y, b) z = Mul(a, y)", "float[A,B]", "also used elsewhere"),
    ("broadcast", "float[1,3] x", "y = MatMul(x, w) z = Add(y, m)", "float[A,B]", "would broadcast the product"),
    ("higher rank", "float[2,3] x", "y = MatMul(x, w) z = Add(y, h)", "float[A,B,C]", "its constant has rank 3"),
    ("integers", "int32[2,3] x", "y = MatMul(x, i) z = Add(y, j)", "int32[A,B]", "floating-point"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "text", "result", "reason"), [case[1:] for case in DECLINED], ids=[case[0] for case in DECLINED]
)
def test_declines_and_says_why(given: str, text: str, result: str, reason: str) -> None:
    model = parse(
        header() + f"g ({given}) => ({result} z) {{ {text} }}",
        w=normal(3, 5),
        b=normal(5),
        m=normal(2, 5),
        h=normal(1, 2, 5),
        i=np.ones((3, 5), np.int32),
        j=np.ones(5, np.int32),
    )
    [said] = check(FuseMatmulAdd(), model, changes=False).reasons().values()
    assert reason in said


def test_a_residual_addition_is_no_bias() -> None:
    model = parse(
        header() + "g (float[2,3] x, float[2,5] r) => (float[2,5] z) { y = MatMul(x, w) z = Add(y, r) }", w=normal(3, 5)
    )
    assert check(FuseMatmulAdd(), model, changes=False).reasons() == {}


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_random_products_keep_their_outputs(data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, 3))
    rows, inner, columns = (data.draw(st.sampled_from((1, 3, 5, 7, 17))) for _ in range(3))
    shape = {1: (inner,), 2: (rows, inner), 3: (2, rows, inner)}[rank]
    bias = data.draw(st.sampled_from([(), (1,), (columns,), (1, columns), (rows, 1), (rows, columns), (2, 1, columns)]))
    result = max(rank, len(bias))
    model = parse(
        header() + f"g (float[{','.join(map(str, shape))}] x) => (float[{','.join('ABC'[:result])}] z) "
        "{ y = MatMul(x, w) z = Add(b, y) }",
        w=normal(inner, columns),
        b=normal(*bias),
    )
    check(FuseMatmulAdd(), model, changes=None)
