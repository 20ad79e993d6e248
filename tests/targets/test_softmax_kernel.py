"""The kernel of softmax: against float64, ONNX Runtime, and within its buffers; and Div by a constant."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.targets.tvm.kernels.softmax import softmax_kernel
from tests.targets.accesses import out_of_bounds
from tests.targets.compiled import parse, run

HEADER = '<ir_version: 8, opset_import: ["" : 17]> '


def softmax(x: np.ndarray) -> np.ndarray:
    """Along the last axis, in float64 but for the differences from the maximum, which float32 rounds."""
    made = np.exp((x - x.max(axis=-1, keepdims=True)).astype(np.float64))
    return np.asarray(made / made.sum(axis=-1, keepdims=True))


@settings(max_examples=12, deadline=None)
@given(
    rows=st.sampled_from([1, 2, 5]),
    length=st.sampled_from([1, 2, 3, 4, 5, 7, 15, 16, 17, 30, 33, 128]),
    spread=st.sampled_from([0.1, 3.0, 40.0]),
)
def test_is_right_to_rounding_at_any_length(rows: int, length: int, spread: float) -> None:
    model = parse(
        f"{HEADER} g (float[{rows},{length}] x) => (float[{rows},{length}] y) {{ y = Softmax <axis = -1> (x) }}"
    )
    x = np.random.default_rng(length).normal(0, spread, (rows, length)).astype(np.float32)
    np.testing.assert_allclose(run(model, {"x": x})["y"], softmax(x), rtol=1e-6, atol=1e-37)


def test_exponentials_are_within_the_stated_bound() -> None:
    """A row of two: e(x) / (e(x) + 1), for all x that are told apart, against float64."""
    x = np.zeros((20001, 2), np.float32)
    x[:, 0] = np.linspace(-87, 0, 20001, dtype=np.float32)
    model = parse(f"{HEADER} g (float[20001,2] x) => (float[20001,2] y) {{ y = Softmax <axis = 1> (x) }}")
    found = run(model, {"x": x})["y"]
    np.testing.assert_allclose(found[:, 0] / found[:, 1], np.exp(x[:, 0].astype(np.float64)), rtol=4e-7)


def test_masked_elements_become_nothing() -> None:
    x = np.array([[0, -np.inf, 1, -1e9, 2, -np.inf, 3, 4]], np.float32)
    model = parse(f"{HEADER} g (float[1,8] x) => (float[1,8] y) {{ y = Softmax <axis = -1> (x) }}")
    np.testing.assert_allclose(run(model, {"x": x})["y"], softmax(x), rtol=1e-6, atol=1e-37)


@pytest.mark.parametrize("length", [1, 6, 21])
def test_rows_without_a_maximum_are_not_a_number(length: int) -> None:
    """One NaN makes its row NaN, as do +∞ and nothing but −∞; other rows keep their values."""
    x = np.random.default_rng(0).normal(size=(5, length)).astype(np.float32)
    x[0, length // 2], x[1, -1], x[2], x[3, 0] = np.nan, np.nan, -np.inf, np.inf
    text = f"{HEADER} g (float[5,{length}] x) => (float[5,{length}] y) {{ y = Softmax <axis = -1> (x) }}"
    found = run(parse(text), {"x": x})["y"]
    assert np.isnan(found[:4]).all()
    np.testing.assert_allclose(found[4], softmax(x[4:])[0], rtol=1e-6)


def test_other_axes_agree_with_onnx_runtime() -> None:
    text = f"{HEADER} g (float[2,3,5] x) => (float[2,3,5] y) {{ y = Softmax <axis = 1> (x) }}"
    x = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)
    session = onnxruntime.InferenceSession(onnx.parser.parse_model(text).SerializeToString())
    np.testing.assert_allclose(run(parse(text), {"x": x})["y"], session.run(None, {"x": x})[0], rtol=2e-6)


@pytest.mark.parametrize("length", [1, 3, 4, 18, 37])
def test_nothing_is_accessed_out_of_bounds(length: int) -> None:
    assert out_of_bounds(softmax_kernel(3, length)) == []


@pytest.mark.parametrize("divisor", ["1.41421356", "3.0", "1e-39", "3e38", "0.0"])
def test_a_quotient_by_a_constant_differs_by_one_rounding_at_most(divisor: str) -> None:
    """Also where the reciprocal is no normal number: then it is divided."""
    text = f"{HEADER} g (float[64] x) => (float[64] y) <float c = {{{divisor}}}> {{ y = Div(x, c) }}"
    x = np.random.default_rng(0).normal(size=64).astype(np.float32)
    with np.errstate(all="ignore"):
        expected = x / np.float32(divisor)
    np.testing.assert_allclose(run(parse(text), {"x": x})["y"], expected, rtol=2.0**-22, atol=1e-44)
