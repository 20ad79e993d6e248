"""The arithmetic of QuantizeLinear and DequantizeLinear, and the choice of their parameters.

    q = saturate(round_half_even(x / s) + z)        x' = (q - z) s

z is an integer of q's type and stands for exactly 0, so that padding and ReLU lose nothing. Weights are symmetric:
z = 0 and q in [-127, 127], so that a product of two int8 fits int16 and -q always exists. A bias has the scale
s_x s_w of the products that it is added to, and 32 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

INT8 = np.dtype(np.int8)
INT8_MIN, INT8_MAX = -128, 127
WEIGHT_MAX = 127
# The product of two scales must be a normal float32, so that no kernel flushes a bias's scale to 0.
MIN_SCALE = 2.0**-62
# Of int32; the other half is for the sum of products: 32,896 products of 127 * 255 fit.
BIAS_MAX = 2**30
# Kernels make int8 sooner of sums below 2**22: so a bias stays below that to which products add a quarter at most.
LONE_BIAS_MAX, LONE = 2**21, 4


@dataclass(frozen=True)
class Parameters:
    """Of a QuantizeLinear: float32 `scale`, `zero_point` of the integer type; both [], or [channels] along `axis`."""

    scale: Array
    zero_point: Array
    axis: int | None = None

    def __post_init__(self) -> None:
        if self.scale.dtype != np.float32 or self.scale.shape != self.zero_point.shape:
            raise ValueError(f"scale {self.scale.dtype}{self.scale.shape}, zero point {self.zero_point.shape}")
        if not (np.isfinite(self.scale).all() and (self.scale >= np.finfo(np.float32).tiny).all()):
            raise ValueError(f"scale {self.scale.min()} to {self.scale.max()}, expected normal positive numbers")


def activation_parameters(
    low: float, high: float, *, symmetric: bool = False, dtype: np.dtype[Any] = INT8
) -> Parameters:
    """int8 parameters whose 256 levels cover low to high (255 levels around 0 if symmetric).

    The range is widened to contain 0; one without width gets the scale 1. Of int16 there are symmetric ones alone.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric or dtype != INT8:
        scale = _scale(np.asarray(max(-low, high) / np.iinfo(dtype).max))
        return Parameters(scale, np.zeros((), dtype))
    scale = _scale(np.asarray(high / 255 - low / 255))
    zero_point = np.clip(np.rint(INT8_MIN - low / float(scale)), INT8_MIN, INT8_MAX)
    return Parameters(scale, zero_point.astype(np.int8))


def weight_parameters(ends: Array, axis: int | None) -> Parameters:
    """Symmetric int8 parameters that hold magnitudes up to `ends`, [channels] along `axis`, or [] without an axis."""
    scale = _scale(np.asarray(ends, np.float64) / WEIGHT_MAX)
    return Parameters(scale, np.zeros(scale.shape, np.int8), axis)


def _scale(wanted: Array) -> Array:
    """As float32, a normal number; 1 where nothing but 0 is to be held."""
    bounded = np.clip(wanted, MIN_SCALE, np.finfo(np.float32).max)
    scale: Array = np.where(wanted > 0, bounded, 1.0).astype(np.float32)
    return scale


def widened_for_bias(weights: Parameters, input_scale: Array, bias: Array, products: int) -> Parameters:
    """`weights` with the scale of each channel raised as far as its bias needs to stay within BIAS_MAX steps, or
    LONE_BIAS_MAX where it is nearly all of the sum.

    Args:
        weights: symmetric parameters, by channel or one for all.
        input_scale: float32 [].
        bias: float [channels].
        products: of which a sum consists, beside the bias.
    """
    size = np.abs(bias.astype(np.float64)) / float(input_scale)
    lone = (weights.scale.ndim > 0) & (size >= LONE * 255 * WEIGHT_MAX * products * weights.scale.astype(np.float64))
    least = size / np.where(lone, LONE_BIAS_MAX, BIAS_MAX)
    if weights.scale.ndim == 0:
        least = least.max(initial=0.0)
    if np.all(weights.scale >= least):
        return weights
    # Rounded up by a part in a million: float32 rounds by less.
    raised = np.maximum(weights.scale.astype(np.float64), least * (1 + 1e-6)).astype(np.float32)
    return Parameters(raised, weights.zero_point, weights.axis)


def bias_parameters(input_scale: Array, weights: Parameters, channels: int) -> Parameters:
    """int32 parameters, [channels] along axis 0: the scale of each is the product of input's and weight's."""
    scale = np.broadcast_to((input_scale * weights.scale).astype(np.float32), (channels,)).copy()
    return Parameters(scale, np.zeros(channels, np.int32), 0)


def quantize(values: Array, parameters: Parameters, *, lowest: int | None = None) -> Array:
    """What QuantizeLinear gives for float32 `values`; for int32, in float64, where float32 has no room for the steps.

    Args:
        lowest: the smallest integer to use, the type's own by default.
    """
    kind = parameters.zero_point.dtype
    wide = np.float64 if kind == np.int32 else np.float32
    scale, zero_point = (_along(p, values.ndim, parameters.axis) for p in (parameters.scale, parameters.zero_point))
    with np.errstate(over="ignore"):  # infinity saturates
        steps = np.rint(values.astype(wide) / scale.astype(wide))
    limits = np.iinfo(kind)
    shifted = steps.astype(np.float64) + zero_point
    integers: Array = np.clip(shifted, limits.min if lowest is None else lowest, limits.max).astype(kind)
    return integers


def dequantize(integers: Array, parameters: Parameters) -> Array:
    """What DequantizeLinear gives: float32."""
    scale, zero_point = (_along(p, integers.ndim, parameters.axis) for p in (parameters.scale, parameters.zero_point))
    floats: Array = (integers.astype(np.int64) - zero_point).astype(np.float32) * scale
    return floats


def _along(vector: Array, rank: int, axis: int | None) -> Array:
    """[channels] shaped so that it broadcasts along `axis` of an array of that rank."""
    if axis is None:
        return vector
    shape = [1] * rank
    shape[axis] = -1
    return vector.reshape(shape)
