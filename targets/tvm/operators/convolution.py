"""Conv and ConvTranspose by TVM's converters, with what they lack done here.

The bias is added here: TVM would compile a program to reshape each constant. ConvTranspose with constant weights is a
convolution that makes all phases of its stride (`graphopt.targets.tvm.phases`), and a shuffle of what that makes; for
any other `output_shape`, which TVM ignores, becomes the pads that ONNX derives from it.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from tvm import relax

from graphopt.targets.tvm.operators.attributes import convert_by_tvm
from graphopt.targets.tvm.operators.tensors import (
    Attributes,
    Tensors,
    attribute,
    constant,
    given,
    known,
    reshaped,
    shape_of,
)
from graphopt.targets.tvm.phases import filters_of, of_phases, phases_of


def convert_conv(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """Conv-1, -11, -22 in one to three spatial dimensions."""
    return _biased(builder, convert_by_tvm(builder, inputs[:2], node), given(inputs, 2))


def convert_conv_transpose(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """ConvTranspose-1, -11, -22; with `output_shape` the pads are what is left over, see `_pads_for`."""
    by_phases = _convert_by_phases(builder, inputs, node)
    if by_phases is not None:
        return by_phases
    changed = _pads_for(attributes["output_shape"].value, inputs, attributes) if "output_shape" in attributes else {}
    return _biased(builder, convert_by_tvm(builder, inputs[:2], node, changed), given(inputs, 2))


def _convert_by_phases(builder: relax.BlockBuilder, inputs: Tensors, node: ir.Node) -> Any | None:
    """As a convolution in two dimensions; None for a kernel that is not constant, dilated, or has three dimensions."""
    weights, x, result = known(inputs[1]), shape_of(inputs[0]), node.outputs[0].shape
    if weights is None or weights.ndim > 4 or result is None:
        return None
    kept = tuple(int(extent) for extent in result.numpy()[2:])
    phases = phases_of(node, x[2:], kept, weights.shape[2:])
    if isinstance(phases, str):
        return None
    group, two = node.attributes.get_int("group", 1), (1,) * (4 - weights.ndim)
    (s, t), (top, left), (bottom, right) = (
        [*fill, *axes] for fill, axes in ((two, phases.strides), *(((0,) * len(two), side) for side in phases.pads))
    )
    grouped = weights.reshape(group, -1, *weights.shape[1:]).swapaxes(1, 2)  # [group, outputs, inputs, …]
    flat = grouped.reshape(-1, grouped.shape[2], *two, *weights.shape[2:])
    filters = constant(filters_of(flat, group, (s, t)))
    image = reshaped(inputs[0], (*x[:2], *two, *x[2:]))
    made = builder.emit(relax.op.nn.conv2d(image, filters, padding=[top, left, bottom, right], groups=group))
    bias = None if given(inputs, 2) is None else known(inputs[2])
    if bias is not None:
        made = builder.emit(_biased(builder, made, constant(of_phases(bias, group, s * t))))
    batch, channels, rows, columns = shape_of(made)
    if s * t > 1:
        parted = reshaped(made, (batch, group, s, t, channels // (group * s * t), rows, columns))
        ordered = builder.emit(relax.op.permute_dims(builder.emit(parted), [0, 1, 4, 5, 2, 6, 3]))
        made = builder.emit(reshaped(ordered, (batch, channels // (s * t), rows * s, columns * t)))
    if kept != shape_of(made)[4 - len(kept) :]:
        axes = list(range(4 - len(kept), 4))
        made = builder.emit(relax.op.strided_slice(made, axes, list(phases.begins), list(phases.ends)))
    made = reshaped(made, (batch, shape_of(made)[1], *kept)) if two else made
    return made if bias is not None else _biased(builder, made, given(inputs, 2))


def _pads_for(output_shape: Any, inputs: Tensors, attributes: Attributes) -> dict[str, Any]:
    """Pads and output padding with which the result has the spatial shape `output_shape`.

    ONNX: total = stride · (input − 1) + output_padding + (kernel − 1) · dilation + 1 − output, halved; the odd one goes
    to the end if auto_pad is SAME_UPPER, else to the begin. Less than none: the end has rows that no input reaches.
    """
    x, weight = shape_of(inputs[0])[2:], shape_of(inputs[1])[2:]
    rank = len(x)
    sizes = list(output_shape)[-rank:]  # it may or may not name batch and channels
    strides = attribute(attributes, "strides", [1] * rank)
    dilations = attribute(attributes, "dilations", [1] * rank)
    extra = list(attribute(attributes, "output_padding", [0] * rank))
    upper = attribute(attributes, "auto_pad", "NOTSET") == "SAME_UPPER"
    begins, ends = [], []
    for i in range(rank):
        total = strides[i] * (x[i] - 1) + extra[i] + (weight[i] - 1) * dilations[i] + 1 - sizes[i]
        extra[i] += max(-total, 0)
        small = max(total, 0) // 2
        large = max(total, 0) - small
        begins.append(small if upper else large)
        ends.append(large if upper else small)
    return {"pads": begins + ends, "output_padding": extra, "auto_pad": None, "output_shape": None}


def _biased(builder: relax.BlockBuilder, product: Any, bias: Any) -> Any:
    if bias is None:
        return product
    product = builder.emit(product)
    return relax.op.add(product, reshaped(bias, (1, shape_of(bias)[0], *[1] * (len(shape_of(product)) - 2))))


CONVERTERS = {"Conv": convert_conv, "ConvTranspose": convert_conv_transpose}
