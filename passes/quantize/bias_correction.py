"""Bias correction: take from each bias what quantization adds to the mean of its channel.

A layer computes W'x' instead of Wx, with rounded weights and clipped inputs. What that shifts a channel by on average
moves into its bias (M. Nagel and others, Data-free quantization through weight equalization and bias correction, 2019;
here measured on samples, for rounded inputs too). Each layer is measured beside the float model, on the float model's
own inputs: so every layer answers for its own shift, and one run over the samples serves all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.calibration import Progress, each_run
from graphopt.analysis.samples import Samples
from graphopt.ir import clone
from graphopt.passes.cleanup.rewiring import add_initializer
from graphopt.passes.quantize.arithmetic import Parameters, dequantize
from graphopt.passes.quantize.channel_means import channel_axis, channel_mean
from graphopt.passes.quantize.rules import Bias, Layer
from graphopt.passes.quantize.weights import IntegerWeight

Array = np.ndarray[Any, Any]
# By layer, and how its input and its weight are rounded: what that adds to the mean of each channel.
Shifts = dict[tuple[str, bytes, bytes], Array]


def corrected(
    model: ir.Model,
    layers: Sequence[Layer],
    parameters: Mapping[ir.Value, Parameters],
    weights: Mapping[ir.Node, IntegerWeight],
    samples: Samples,
    progress: Progress,
    known: Shifts | None = None,
) -> tuple[Layer, ...]:
    """`layers` with the biases that leave the means of their channels as they are in float.

    Args:
        model: the float model, left as it is.
        layers: of its main graph.
        parameters, weights: what they are to be quantized by.
        samples: to measure on.
        known: what was measured before on these samples, and is not measured again; what is measured is added.

    A layer without a bias gets one, except a MatMul, which has no place for it.
    """
    probe = clone(model)
    made = {output.name: node for node in probe.graph for output in node.outputs}
    known = {} if known is None else known
    keys: dict[ir.Node, tuple[str, bytes, bytes]] = {}
    shifts: dict[str, Layer] = {}
    for layer in layers:
        if layer.weight is not None and layer.weight.index == 1 and (layer.bias or layer.node.op_type != "MatMul"):
            node = made[layer.node.outputs[0].name]
            entry, weight = parameters[layer.operand_values()[0]], weights[layer.node]
            rounding = entry.scale.tobytes() + entry.zero_point.tobytes()
            keys[layer.node] = (str(node.outputs[0].name), rounding, weight.parameters.scale.tobytes())
            if keys[layer.node] not in known:
                shifts[_add_shift(probe, node, entry, weight)] = layer
    total = {name: np.zeros(layer.weight.channels) for name, layer in shifts.items() if layer.weight is not None}

    def receive(tensors: Mapping[str, Array]) -> None:
        for name, array in tensors.items():
            total[name] += array

    if shifts:
        each_run(probe, list(shifts), samples, receive, progress)
    known |= {keys[layer.node]: total[name] / len(samples) for name, layer in shifts.items()}
    return tuple(_moved(layer, known[keys[layer.node]]) if layer.node in keys else layer for layer in layers)


def _moved(layer: Layer, shift: Array) -> Layer:
    bias = layer.bias or Bias(layer.node, 2, np.zeros(len(shift), np.float32))
    values = (bias.values - np.where(np.isfinite(shift), shift, 0.0)).astype(np.float32)
    return replace(layer, bias=replace(bias, values=values))


def _add_shift(probe: ir.Model, node: ir.Node, parameters: Parameters, weight: IntegerWeight) -> str:
    """Compute `node` a second time, on integers; the name of the mean of the difference, by channel."""
    graph = probe.graph
    name = f"{node.outputs[0].name}/shift"
    scale = add_initializer(graph, f"{name}/scale", parameters.scale)
    zero_point = add_initializer(graph, f"{name}/zero_point", parameters.zero_point)
    rounded = ir.node("QuantizeLinear", [node.inputs[0], scale, zero_point])
    floats = ir.node("DequantizeLinear", [rounded.outputs[0], scale, zero_point])
    weights = add_initializer(graph, f"{name}/weight", dequantize(weight.integers, weight.parameters))
    again = ir.node(node.op_type, [floats.outputs[0], weights, *node.inputs[2:]], attributes=dict(node.attributes))
    apart = ir.node("Sub", [again.outputs[0], node.outputs[0]])
    apart.outputs[0].type, apart.outputs[0].shape = node.outputs[0].type, node.outputs[0].shape
    mean = channel_mean(probe, apart.outputs[0], channel_axis(node), name)
    nodes = [rounded, floats, again, apart, mean]
    for index, added in enumerate(nodes[:-1]):
        added.name = added.outputs[0].name = f"{name}/{index}"
    graph.insert_after(node, nodes)
    return name
