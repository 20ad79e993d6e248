"""The schemes of static quantization: the integers of activations, and what follows from them.

int8      256 levels, asymmetric unless asked otherwise; biases are int32 with the scale of the products.
int16x8   65,535 levels around 0 beside int8 weights. Rounding costs so little that no range is cut: the ends of what
          was seen are the range. A bias stays in float32: as an int32 with the scale of such products it could
          overflow, and standard ONNX has no wider one.
"""

from __future__ import annotations

import enum

import numpy as np

from graphopt.analysis.observers import Observer, Range

# Ranges that a function's rule fixes so that 8 bits have a round scale: without 1 itself, which 16 bits have room for.
_WHOLE: dict[Range, Range] = {(0.0, 255 / 256): (0.0, 1.0), (-1.0, 127 / 128): (-1.0, 1.0)}


class Scheme(enum.Enum):
    """The integers to compute on."""

    INT8 = "int8"
    INT16X8 = "int16x8"

    @property
    def dtype(self) -> np.dtype[np.signedinteger]:
        """Of activations."""
        return np.dtype(np.int8 if self is Scheme.INT8 else np.int16)

    @property
    def opset(self) -> int:
        """The first that can express it: with a scale for each channel, with 16 bits."""
        return 13 if self is Scheme.INT8 else 21

    @property
    def integer_bias(self) -> bool:
        return self is Scheme.INT8

    def observer(self, chosen: Observer) -> Observer:
        """Squared error weighs cutting a range against 256 levels; 65,535 never gain by it."""
        return Observer.MIN_MAX if self is Scheme.INT16X8 and chosen is Observer.MSE else chosen

    def fixed(self, range_: Range) -> Range:
        """The range of a function whose rule knows it."""
        return range_ if self is Scheme.INT8 else _WHOLE.get(range_, range_)
