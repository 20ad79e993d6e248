"""The kernel of layer normalization: against float64, and within its buffers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.targets.tvm.kernels.layer_norm import layer_norm_kernel
from tests.targets import compiled
from tests.targets.accesses import out_of_bounds
from tests.targets.compiled import parse, run

LENGTHS = [1, 3, 5, 7, 16, 17, 33, 384]


def layer_norm(x: np.ndarray, gain: np.ndarray, bias: np.ndarray, axes: tuple[int, ...] = (-1,)) -> np.ndarray:
    wide = x.astype(np.float64)
    mean = wide.mean(axes, keepdims=True)
    variance = ((wide - mean) ** 2).mean(axes, keepdims=True)
    made: np.ndarray = (wide - mean) / np.sqrt(variance + 1e-5) * gain + bias
    return made


def text(shape: str, rest: str, axis: int) -> str:
    return (
        f'<ir_version: 8, opset_import: ["" : 17]> g (float[{shape}] x, float[{rest}] g, float[{rest}] b) => '
        f"(float[{shape}] y) {{ y = LayerNormalization <axis = {axis}> (x, g, b) }}"
    )


@settings(max_examples=10, deadline=None)
@given(rows=st.sampled_from([1, 2, 5]), length=st.sampled_from(LENGTHS), offset=st.sampled_from([0.0, 30.0]))
def test_is_right_to_rounding_at_any_length(rows: int, length: int, offset: float) -> None:
    random = np.random.default_rng(length)
    x = (random.standard_normal((rows, 2, length)) + offset).astype(np.float32)
    gain, bias = random.standard_normal((2, length)).astype(np.float32)
    model = parse(text(f"{rows},2,{length}", f"{length}", -1))
    assert "layer_norm" in compiled.lowered(model).functions
    found = run(model, {"x": x, "g": gain, "b": bias})["y"]
    # The mean is off by a rounding of x, which is then divided by the deviation.
    deviation = np.sqrt(x.astype(np.float64).var(-1, keepdims=True) + 1e-5)
    slack = 1e-6 * (1 + np.abs(x).max() / deviation) * np.abs(gain) + 1e-6
    assert (np.abs(found - layer_norm(x, gain, bias)) <= slack).all()


def test_over_several_axes() -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((3, 5, 7)).astype(np.float32)
    gain, bias = random.standard_normal((2, 5, 7)).astype(np.float32)
    found = run(parse(text("3,5,7", "5,7", 1)), {"x": x, "g": gain, "b": bias})["y"]
    np.testing.assert_allclose(found, layer_norm(x, gain, bias, (1, 2)), rtol=0, atol=3e-6)


def test_what_is_no_number_stays_in_its_row() -> None:
    x = np.random.default_rng(0).standard_normal((3, 21)).astype(np.float32)
    x[1, 4] = np.nan
    ones = np.ones(21, np.float32)
    found = run(parse(text("3,21", "21", -1)), {"x": x, "g": ones, "b": ones})["y"]
    np.testing.assert_array_equal(np.isnan(found).any(-1), [False, True, False])


@pytest.mark.parametrize("length", LENGTHS)
def test_nothing_is_accessed_out_of_bounds(length: int) -> None:
    assert out_of_bounds(layer_norm_kernel(3, length, 1e-5)) == []
