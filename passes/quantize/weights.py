"""Weights as integers: a scale for each output channel, raised where the channel's bias would overflow 32 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.analysis.observers import channel_ends
from graphopt.ir.reading import constant
from graphopt.passes.quantize.arithmetic import (
    WEIGHT_MAX,
    Parameters,
    bias_parameters,
    quantize,
    weight_parameters,
    widened_for_bias,
)
from graphopt.passes.quantize.rules import Layer

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class IntegerWeight:
    """int8 `integers` of the weight's shape, and their parameters."""

    integers: Array
    parameters: Parameters

    def bias_parameters(self, input_scale: Array, channels: int) -> Parameters:
        """Of the bias, [channels]. The groups of a ConvTranspose share the scales of the weight's second axis."""
        found = self.parameters
        if found.axis is not None:
            groups = channels // len(found.scale)
            found = Parameters(np.tile(found.scale, groups), np.tile(found.zero_point, groups), 0)
        return bias_parameters(input_scale, found, channels)


def integer_weight(layer: Layer, input_scale: Array, *, per_channel: bool, mse: bool) -> IntegerWeight:
    """The weight of `layer` as integers.

    Args:
        layer: with a weight.
        input_scale: of the other operand.
        per_channel: a scale for each output channel instead of one for all.
        mse: ends by the smallest squared error, instead of the largest magnitude.
    """
    weight = layer.weight
    array = constant(layer.node.inputs[weight.index]) if weight is not None else None
    if weight is None or array is None:
        raise ValueError(f"{layer.node.op_type} '{layer.node.name}' has no constant weight")
    axis = weight.axis if per_channel else None
    chosen = weight_parameters(channel_ends(array, axis, mse=mse), axis)
    if layer.bias is not None:
        groups = weight.channels // array.shape[axis] if axis is not None else 1
        largest = np.abs(layer.bias.values).reshape(groups, -1).max(axis=0)  # of the channels that share a scale
        products = array.size // array.shape[axis] if axis is not None else array.size
        chosen = widened_for_bias(chosen, input_scale, largest, products)
    return IntegerWeight(quantize(array, chosen, lowest=-WEIGHT_MAX), chosen)
