"""The arithmetic against ONNX Runtime's own QuantizeLinear and DequantizeLinear, and the choice of parameters."""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import onnx.parser
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import graphopt.ir as graph_ir
from graphopt.analysis.execution import Session
from graphopt.passes.quantize.arithmetic import (
    BIAS_MAX,
    MIN_SCALE,
    Parameters,
    activation_parameters,
    bias_parameters,
    dequantize,
    quantize,
    weight_parameters,
    widened_for_bias,
)

Array = np.ndarray[Any, Any]
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
ENDS = st.floats(-1e30, 1e30, allow_nan=False)


@cache
def session(axis: int | None) -> Session:
    vector = "" if axis is None else "[N]"
    attribute = "" if axis is None else f"<axis={axis}>"
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[A,B] x, float{vector} s, int8{vector} z) => (int8[A,B] q, float[A,B] y) {{
            q = QuantizeLinear{attribute}(x, s, z)
            y = DequantizeLinear{attribute}(q, s, z)
        }}"""
    return Session(graph_ir.load(onnx.parser.parse_model(text)), threads=1)


def computed(values: Array, parameters: Parameters) -> tuple[Array, Array]:
    feeds = {"x": values, "s": parameters.scale, "z": parameters.zero_point}
    outputs = session(parameters.axis).run(feeds)
    return outputs["q"], outputs["y"]


@given(
    hnp.arrays(np.float32, (3, 4), elements=FLOATS),
    st.floats(2.0**-100, 2.0**100, width=32),
    st.integers(-128, 127),
)
@settings(deadline=None, max_examples=200)
def test_quantize_is_onnx_runtimes_for_any_value_scale_and_zero_point(values: Array, scale: float, zero: int) -> None:
    parameters = Parameters(np.array(scale, np.float32), np.array(zero, np.int8))
    with np.errstate(over="ignore"):
        integers, floats = computed(values, parameters)
        np.testing.assert_array_equal(quantize(values, parameters), integers)
        np.testing.assert_array_equal(dequantize(integers, parameters), floats)


@given(hnp.arrays(np.int16, (3, 4), elements=st.integers(-300, 300)), st.integers(-128, 127))
@settings(deadline=None, max_examples=50)
def test_halves_round_to_even_and_the_ends_saturate(doubled: Array, zero: int) -> None:
    values = (doubled / 2).astype(np.float32)
    parameters = Parameters(np.array(1, np.float32), np.array(zero, np.int8))
    expected = np.clip([[round(float(v)) + zero for v in row] for row in values], -128, 127)  # Python rounds to even
    np.testing.assert_array_equal(quantize(values, parameters), expected)
    np.testing.assert_array_equal(computed(values, parameters)[0], expected)


@pytest.mark.parametrize("axis", [0, 1])
@given(data=st.data())
@settings(deadline=None, max_examples=30)
def test_scales_by_channel_lie_along_their_axis(axis: int, data: st.DataObject) -> None:
    values = data.draw(hnp.arrays(np.float32, (3, 5), elements=st.floats(-100, 100, width=32)))
    ends = data.draw(hnp.arrays(np.float64, values.shape[axis], elements=st.floats(0, 200)))
    parameters = weight_parameters(ends, axis)
    integers, floats = computed(values, parameters)
    np.testing.assert_array_equal(quantize(values, parameters), integers)
    np.testing.assert_array_equal(dequantize(integers, parameters), floats)


@given(ENDS, ENDS, st.booleans())
@settings(deadline=None)
def test_zero_is_exact_and_scales_are_normal_numbers(one: float, other: float, symmetric: bool) -> None:
    parameters = activation_parameters(min(one, other), max(one, other), symmetric=symmetric)
    assert parameters.zero_point.dtype == np.int8 and parameters.scale.dtype == np.float32
    assert np.isfinite(parameters.scale) and float(parameters.scale) >= MIN_SCALE
    assert not symmetric or parameters.zero_point == 0
    zero = np.zeros((), np.float32)
    assert quantize(zero, parameters) == parameters.zero_point
    assert dequantize(quantize(zero, parameters), parameters) == 0


@given(st.floats(-1e6, 0), st.floats(0, 1e6))
@settings(deadline=None)
def test_values_within_the_range_move_by_half_a_step_or_at_the_ends_one(low: float, high: float) -> None:
    parameters = activation_parameters(low, high)
    values = np.linspace(low, high, 101).astype(np.float32)
    moved = np.abs(dequantize(quantize(values, parameters), parameters).astype(np.float64) - values)
    # rounding the zero point shifts the grid by up to half a step, so that much of one end saturates
    assert np.all(moved <= 1.001 * float(parameters.scale) + 1e-6 * max(-low, high))


@given(st.floats(-1e6, 0), st.floats(0, 1e6))
@settings(deadline=None)
def test_the_zero_point_is_the_integer_nearest_to_where_zero_falls(low: float, high: float) -> None:
    """z = round(-128 - low/s) with s = (high - low)/255, so each end of the range is half a step from -128 and 127."""
    assume(high - low > 1e-12)
    parameters = activation_parameters(low, high)
    scale, zero_point = Fraction(float(parameters.scale)), int(parameters.zero_point)
    assert float(scale) == pytest.approx((high - low) / 255, rel=1e-6)
    half = Fraction(1, 2) + Fraction(1, 10**4)  # float32 holds the scale to 1 part in 10^7, of 255 steps
    assert abs(Fraction(low) / scale + zero_point + 128) <= half
    assert abs(Fraction(high) / scale + zero_point - 127) <= half


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_range_without_width_has_the_scale_one(symmetric: bool) -> None:
    assert activation_parameters(0.0, 0.0, symmetric=symmetric).scale == 1


def test_a_relu_has_the_lowest_integer_for_zero() -> None:
    assert activation_parameters(0.0, 6.0).zero_point == -128


def test_weights_use_minus_127_to_127() -> None:
    parameters = weight_parameters(np.array([2.0, 0.0]), 0)
    weights = np.array([[-2, 2, -3], [0, 0, 0]], np.float32)
    np.testing.assert_array_equal(quantize(weights, parameters, lowest=-127), [[-127, 127, -127], [0, 0, 0]])
    assert parameters.scale[1] == 1


BIASES = hnp.arrays(np.float32, 3, elements=st.floats(-1e6, 1e6, width=32))


@given(BIASES, st.floats(2.0**-30, 10, width=32), hnp.arrays(np.float64, 3, elements=st.floats(0, 10)))
@settings(deadline=None)
def test_a_bias_fits_and_keeps_its_value(bias: Array, input_scale: float, ends: Array) -> None:
    scale = np.array(input_scale, np.float32)
    weights = widened_for_bias(weight_parameters(ends, 0), scale, bias, 9)
    steps = bias_parameters(scale, weights, 3)
    np.testing.assert_array_equal(steps.scale, scale * weights.scale)
    integers = quantize(bias, steps)
    assert integers.dtype == np.int32 and np.all(np.abs(integers.astype(np.int64)) <= BIAS_MAX * (1 + 1e-5))
    error = np.abs(integers * steps.scale.astype(np.float64) - bias)
    assert np.all(error <= 0.5 * steps.scale.astype(np.float64) + 1e-7 * np.abs(bias))


def test_a_bias_beside_which_products_hardly_count_leaves_small_sums() -> None:
    weights, scale = weight_parameters(np.array([1e-7, 0.2, 1.0]), 0), np.array(1e-3, np.float32)
    raised = widened_for_bias(weights, scale, np.ones(3, np.float32), 9)
    integers = quantize(np.ones(3, np.float32), bias_parameters(scale, raised, 3))
    assert integers[0] == pytest.approx(2**21, rel=1e-5)
    np.testing.assert_array_equal(raised.scale[1:], weights.scale[1:])


def test_only_the_channels_whose_bias_overflows_get_a_larger_scale() -> None:
    weights = weight_parameters(np.array([1.0, 1e-9]), 0)
    raised = widened_for_bias(weights, np.array(1e-3, np.float32), np.array([1.0, 1.0], np.float32), 9)
    assert raised.scale[0] == weights.scale[0] and raised.scale[1] > weights.scale[1]


@pytest.mark.parametrize("scale", [0.0, 1e-40, np.inf, np.nan])
def test_a_scale_that_is_no_normal_number_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="scale"):
        Parameters(np.array(scale, np.float32), np.zeros((), np.int8))
