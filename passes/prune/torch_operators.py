"""What ONNX operators compute, in torch, for the sake of gradients, which ONNX Runtime does not give.

Each function takes a node and its inputs (tensors; None where one is left out) and returns the output, or several.
What says where and how many, such as shapes and axes, is an attribute or an input, by the operator's version. This
module needs the extra `torch`; it is imported late.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F  # noqa: N812  # its usual name

from graphopt.passes.cleanup.fold_pad import same_pads

Tensor = Any  # torch.Tensor, which a type checker without torch does not know
Inputs = Sequence[Tensor]
Operator = Callable[[ir.Node, Inputs], Tensor]


def _given(inputs: Inputs, index: int) -> Tensor:
    return inputs[index] if index < len(inputs) else None


def _numbers(node: ir.Node, inputs: Inputs, name: str, index: int) -> list[int] | None:
    """Integers of attribute `name` or of input `index`; None if there are none."""
    if name in node.attributes:
        found = node.attributes[name]
        return [found.as_int()] if found.type == ir.AttributeType.INT else list(found.as_ints())
    tensor = _given(inputs, index)
    return None if tensor is None else [int(number) for number in tensor.reshape(-1).tolist()]


def _number(node: ir.Node, inputs: Inputs, name: str, index: int, default: float | None) -> float | None:
    """A float of attribute `name` or of input `index`."""
    if name in node.attributes:
        return node.attributes[name].as_float()
    tensor = _given(inputs, index)
    return default if tensor is None else float(tensor)


def _windows(node: ir.Node, given: Tensor, kernel: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Strides, dilations, and pads as torch's `pad` has them: of the last axis first."""
    ones = (1,) * len(kernel)
    strides, dilations = (list(node.attributes.get_ints(name, ones)) for name in ("strides", "dilations"))
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    pads = list(node.attributes.get_ints("pads", (0,) * (2 * len(kernel))))
    if auto == "VALID":
        pads = [0] * len(pads)
    elif auto != "NOTSET":
        pads = same_pads(auto, given.shape[2:], kernel, strides, dilations)
    return strides, dilations, _last_first(pads)


def _last_first(pads: Sequence[int]) -> list[int]:
    """From ONNX's order, all begins and then all ends."""
    half = len(pads) // 2
    return [number for axis in reversed(range(half)) for number in (pads[axis], pads[half + axis])]


_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_MAX_POOLS = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_AVERAGE_POOLS = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


def _conv(node: ir.Node, inputs: Inputs) -> Tensor:
    given, weight = inputs[:2]
    strides, dilations, pads = _windows(node, given, weight.shape[2:])
    convolution = _CONVOLUTIONS[weight.ndim - 3]
    groups = node.attributes.get_int("group", 1)
    return convolution(F.pad(given, pads), weight, _given(inputs, 2), strides, 0, dilations, groups)


def _conv_transpose(node: ir.Node, inputs: Inputs) -> Tensor:
    given, weight = inputs[:2]
    strides, dilations, pads = _windows(node, given, weight.shape[2:])
    if "output_shape" in node.attributes or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        raise NotImplementedError
    more = list(node.attributes.get_ints("output_padding", (0,) * len(strides)))
    groups = node.attributes.get_int("group", 1)
    whole = _TRANSPOSED[weight.ndim - 3](given, weight, _given(inputs, 2), strides, 0, more, groups, dilations)
    return F.pad(whole, [-number for number in pads])


def _max_pool(node: ir.Node, inputs: Inputs) -> Tensor:
    kernel = list(node.attributes.get_ints("kernel_shape", ()))
    strides, dilations, pads = _windows(node, inputs[0], kernel)
    ceil = node.attributes.get_int("ceil_mode", 0) != 0
    return _MAX_POOLS[len(kernel) - 1](F.pad(inputs[0], pads, value=-math.inf), kernel, strides, 0, dilations, ceil)


def _average_pool(node: ir.Node, inputs: Inputs) -> Tensor:
    kernel = list(node.attributes.get_ints("kernel_shape", ()))
    strides, dilations, pads = _windows(node, inputs[0], kernel)
    if any(step != 1 for step in dilations) or node.attributes.get_int("ceil_mode", 0) != 0:
        raise NotImplementedError
    pool = _AVERAGE_POOLS[len(kernel) - 1]
    found = pool(F.pad(inputs[0], pads), kernel, strides)
    if any(pads) and node.attributes.get_int("count_include_pad", 0) == 0:
        found = found / pool(F.pad(torch.ones_like(inputs[0]), pads), kernel, strides)
    return found


def _spatial(given: Tensor) -> tuple[int, ...]:
    return tuple(range(2, given.ndim))


def _gemm(node: ir.Node, inputs: Inputs) -> Tensor:
    first, second = inputs[:2]
    first = first.T if node.attributes.get_int("transA", 0) != 0 else first
    second = second.T if node.attributes.get_int("transB", 0) != 0 else second
    product = node.attributes.get_float("alpha", 1.0) * (first @ second)
    bias = _given(inputs, 2)
    return product if bias is None else product + node.attributes.get_float("beta", 1.0) * bias


def _clip(node: ir.Node, inputs: Inputs) -> Tensor:
    low, high = _number(node, inputs, "min", 1, None), _number(node, inputs, "max", 2, None)
    return inputs[0] if low is None and high is None else torch.clamp(inputs[0], low, high)


def _hard_sigmoid(node: ir.Node, inputs: Inputs) -> Tensor:
    slope, shift = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    return torch.clamp(slope * inputs[0] + shift, 0, 1)


def _prelu(_node: ir.Node, inputs: Inputs) -> Tensor:
    return torch.where(inputs[0] < 0, inputs[0] * inputs[1], inputs[0])


def _gelu(node: ir.Node, inputs: Inputs) -> Tensor:
    return F.gelu(inputs[0], approximate=node.attributes.get_string("approximate", "none"))


def _softmax(function: Callable[..., Tensor]) -> Operator:
    def compute(node: ir.Node, inputs: Inputs) -> Tensor:
        version = node.version or (node.graph.opset_imports.get("", 13) if node.graph is not None else 13)
        axis = node.attributes.get_int("axis", -1 if version >= 13 else 1) % inputs[0].ndim
        if version >= 13:
            return function(inputs[0], dim=axis)
        return function(inputs[0].flatten(axis), dim=-1).reshape(inputs[0].shape)

    return compute


def _batch_norm(node: ir.Node, inputs: Inputs) -> Tensor:
    given, scale, bias, mean, variance = inputs[:5]
    if node.attributes.get_int("training_mode", 0) != 0:
        raise NotImplementedError
    return F.batch_norm(given, mean, variance, scale, bias, False, 0.0, node.attributes.get_float("epsilon", 1e-5))


def _instance_norm(node: ir.Node, inputs: Inputs) -> Tensor:
    return F.instance_norm(inputs[0], weight=inputs[1], bias=inputs[2], eps=node.attributes.get_float("epsilon", 1e-5))


def _layer_norm(node: ir.Node, inputs: Inputs) -> Tensor:
    axis = node.attributes.get_int("axis", -1) % inputs[0].ndim
    shape, epsilon = inputs[0].shape[axis:], node.attributes.get_float("epsilon", 1e-5)
    found = F.layer_norm(inputs[0], shape, eps=epsilon) * inputs[1]
    return found if _given(inputs, 2) is None else found + inputs[2]


def _reduce(function: Callable[..., Tensor]) -> Operator:
    def compute(node: ir.Node, inputs: Inputs) -> Tensor:
        axes = _numbers(node, inputs, "axes", 1)
        if not axes and node.attributes.get_int("noop_with_empty_axes", 0) != 0:
            return inputs[0]
        axes = axes or list(range(inputs[0].ndim))
        return function(inputs[0], dim=axes, keepdim=node.attributes.get_int("keepdims", 1) != 0)

    return compute


def _reshape(node: ir.Node, inputs: Inputs) -> Tensor:
    sizes = _numbers(node, inputs, "shape", 1) or []
    if node.attributes.get_int("allowzero", 0) == 0:
        sizes = [inputs[0].shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return inputs[0].reshape(sizes)


def _flatten(node: ir.Node, inputs: Inputs) -> Tensor:
    axis = node.attributes.get_int("axis", 1)
    axis = axis + inputs[0].ndim if axis < 0 else axis
    return inputs[0].reshape(math.prod(inputs[0].shape[:axis]), -1)


def _transpose(node: ir.Node, inputs: Inputs) -> Tensor:
    return inputs[0].permute(tuple(node.attributes.get_ints("perm", tuple(reversed(range(inputs[0].ndim))))))


def _squeeze(node: ir.Node, inputs: Inputs) -> Tensor:
    axes = _numbers(node, inputs, "axes", 1)
    return inputs[0].squeeze() if axes is None else inputs[0].squeeze(tuple(axes))


def _unsqueeze(node: ir.Node, inputs: Inputs) -> Tensor:
    found = inputs[0]
    axes = _numbers(node, inputs, "axes", 1) or []
    for axis in sorted(each % (found.ndim + len(axes)) for each in axes):
        found = found.unsqueeze(axis)
    return found


def _split(node: ir.Node, inputs: Inputs) -> tuple[Tensor, ...]:
    axis = node.attributes.get_int("axis", 0)
    sizes = _numbers(node, inputs, "split", 1)
    if sizes is None:
        sizes = [-(-inputs[0].shape[axis] // len(node.outputs))] * (len(node.outputs) - 1)
        sizes.append(inputs[0].shape[axis] - sum(sizes))
    return tuple(torch.split(inputs[0], sizes, axis))


def _slice(node: ir.Node, inputs: Inputs) -> Tensor:
    starts, ends = _numbers(node, inputs, "starts", 1) or [], _numbers(node, inputs, "ends", 2) or []
    axes = _numbers(node, inputs, "axes", 3) or list(range(len(starts)))
    steps = _numbers(node, inputs, "steps", 4) or [1] * len(starts)
    found = inputs[0]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        places = range(found.shape[axis])[start:end:step]
        found = found.index_select(axis, torch.tensor(list(places), dtype=torch.int64))
    return found


def _pad(node: ir.Node, inputs: Inputs) -> Tensor:
    if node.attributes.get_string("mode", "constant") != "constant" or _given(inputs, 3) is not None:
        raise NotImplementedError
    pads = _numbers(node, inputs, "pads", 1) or []
    return F.pad(inputs[0], _last_first(pads), value=_number(node, inputs, "value", 2, 0.0))


def _gather(node: ir.Node, inputs: Inputs) -> Tensor:
    axis = node.attributes.get_int("axis", 0) % inputs[0].ndim
    places = inputs[1].long() % inputs[0].shape[axis]
    found = inputs[0].index_select(axis, places.reshape(-1))
    return found.reshape((*inputs[0].shape[:axis], *places.shape, *inputs[0].shape[axis + 1 :]))


def _cast(node: ir.Node, inputs: Inputs) -> Tensor:
    kind = ir.DataType(node.attributes.get_int("to", 1))
    types = {ir.DataType.FLOAT: torch.float32, ir.DataType.INT64: torch.int64, ir.DataType.INT32: torch.int32}
    if kind not in types:
        raise NotImplementedError
    return inputs[0].to(types[kind])


def _total(_node: ir.Node, inputs: Inputs) -> Tensor:
    found = inputs[0]
    for each in inputs[1:]:
        found = found + each
    return found


def _divide(_node: ir.Node, inputs: Inputs) -> Tensor:
    whole = None if inputs[0].is_floating_point() else "trunc"
    return torch.div(inputs[0], inputs[1], rounding_mode=whole)


OPERATORS: Mapping[str, Operator] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": lambda _, inputs: inputs[0] @ inputs[1],
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda _, inputs: inputs[0].mean(_spatial(inputs[0]), keepdim=True),
    "GlobalMaxPool": lambda _, inputs: inputs[0].amax(_spatial(inputs[0]), keepdim=True),
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "Softmax": _softmax(F.softmax),
    "LogSoftmax": _softmax(F.log_softmax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "ReduceMax": _reduce(torch.amax),
    "Relu": lambda _, inputs: torch.relu(inputs[0]),
    "LeakyRelu": lambda node, inputs: F.leaky_relu(inputs[0], node.attributes.get_float("alpha", 0.01)),
    "PRelu": _prelu,
    "Clip": _clip,
    "HardSwish": lambda _, inputs: F.hardswish(inputs[0]),
    "HardSigmoid": _hard_sigmoid,
    "Sigmoid": lambda _, inputs: torch.sigmoid(inputs[0]),
    "Tanh": lambda _, inputs: torch.tanh(inputs[0]),
    "Elu": lambda node, inputs: F.elu(inputs[0], node.attributes.get_float("alpha", 1.0)),
    "Softplus": lambda _, inputs: F.softplus(inputs[0]),
    "Gelu": _gelu,
    "Erf": lambda _, inputs: torch.erf(inputs[0]),
    "Exp": lambda _, inputs: torch.exp(inputs[0]),
    "Sqrt": lambda _, inputs: torch.sqrt(inputs[0]),
    "Reciprocal": lambda _, inputs: torch.reciprocal(inputs[0]),
    "Neg": lambda _, inputs: -inputs[0],
    "Abs": lambda _, inputs: torch.abs(inputs[0]),
    "Add": lambda _, inputs: inputs[0] + inputs[1],
    "Sub": lambda _, inputs: inputs[0] - inputs[1],
    "Mul": lambda _, inputs: inputs[0] * inputs[1],
    "Div": _divide,
    "Pow": lambda _, inputs: torch.pow(inputs[0], inputs[1]),
    "Sum": _total,
    "Concat": lambda node, inputs: torch.cat(list(inputs), node.attributes.get_int("axis", 0)),
    "Split": _split,
    "Slice": _slice,
    "Pad": _pad,
    "Gather": _gather,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Shape": lambda _, inputs: torch.tensor(inputs[0].shape),
    "Cast": _cast,
    "Identity": lambda _, inputs: inputs[0],
    "Dropout": lambda _, inputs: inputs[0],
}
