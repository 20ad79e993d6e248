"""Operators that compute the same in any order of the axes, and how to tell them a new order.

    f(Transpose_p(x), …)  =  Transpose_p(f'(x, …))

f' is f with its axes, pads, constants and so on permuted: axis i of the transposed tensor is axis p[i] of x. An
entry of the table says which inputs are tensors in that order (or that the node cannot be told), and changes the
node. Such an operator works on tensors of one rank; constants of a lower rank are first given leading axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.ir.reading import constant, has_parameter, integers, is_standard
from graphopt.passes.cleanup.merge_transposes import Permutation, inverse
from graphopt.passes.cleanup.rewiring import add_initializer


@dataclass(frozen=True)
class LayoutFree:
    """`inputs` gives the inputs in the order of the axes (None: it matters); `permute` changes the node."""

    inputs: Callable[[ir.Node, int], Sequence[int] | None]
    permute: Callable[[ir.Graph, ir.Node, Permutation], None]


def ordered_inputs(node: ir.Node, rank: int, version: int) -> tuple[int, ...] | None:
    """The inputs of `node` that are tensors of `rank` axes like its outputs; None if the order of the axes matters."""
    if not is_standard(node) or node.op_type not in TABLE or (node.op_type in SINCE_13 and version < 13):
        return None
    if any(output.name and _rank(output) != rank for output in node.outputs):
        return None
    inputs = TABLE[node.op_type].inputs(node, rank)
    if not inputs or any(_rank(node.inputs[index]) != rank for index in inputs):
        return None
    return tuple(inputs)


def permute(graph: ir.Graph, node: ir.Node, permutation: Permutation) -> None:
    """Make `node` compute in the order of the axes that its inputs had before Transpose by `permutation`."""
    TABLE[node.op_type].permute(graph, node, permutation)


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


def _first(node: ir.Node, rank: int) -> Sequence[int] | None:
    return (0,)


def _first_of_one_output(node: ir.Node, rank: int) -> Sequence[int] | None:
    return (0,) if len(node.outputs) == 1 else None


def _all(node: ir.Node, rank: int) -> Sequence[int] | None:
    return range(len(node.inputs))


def _unchanged(graph: ir.Graph, node: ir.Node, permutation: Permutation) -> None:
    """Nothing in the node speaks of axes."""


def _broadcast_inputs(node: ir.Node, rank: int) -> Sequence[int] | None:
    ordered = []
    for index, value in enumerate(node.inputs):
        if value is not None and constant(value) is None and _rank(value) != 0:
            ordered.append(index)
    return ordered


def _permute_constants(graph: ir.Graph, node: ir.Node, permutation: Permutation) -> None:
    for index, value in enumerate(node.inputs):
        array = constant(value)
        if array is not None and array.size > 1:
            permute_constant(graph, node, index, permutation)


def permute_constant(graph: ir.Graph, node: ir.Node, index: int, permutation: Permutation) -> None:
    """Give `node` its constant input `index` in the order that the axes had before Transpose by `permutation`."""
    value = node.inputs[index]
    array = constant(value)
    assert value is not None
    assert array is not None
    full = array.reshape((1,) * (len(permutation) - array.ndim) + array.shape)
    moved = np.ascontiguousarray(full.transpose(inverse(permutation)))
    node.replace_input_with(index, add_initializer(graph, f"{value.name}", moved))


def _permute_axis(graph: ir.Graph, node: ir.Node, permutation: Permutation) -> None:
    given = "axis" in node.attributes
    axis = node.attributes["axis"].as_int() if given else DEFAULT_AXIS.get(node.op_type, 0)
    node.attributes["axis"] = ir.AttrInt64("axis", permutation[axis])


def _keeps_axes(node: ir.Node) -> bool:
    return "keepdims" not in node.attributes or bool(node.attributes["keepdims"].as_int())


def _reduced(node: ir.Node, rank: int) -> Sequence[int] | None:
    known = not has_parameter(node, "axes", 1) or integers(node, "axes", 1) is not None
    return (0,) if known and _keeps_axes(node) else None


def _permute_axes(graph: ir.Graph, node: ir.Node, permutation: Permutation) -> None:
    axes = integers(node, "axes", 1)
    if axes:
        _write(graph, node, "axes", 1, sorted(permutation[axis] for axis in axes))


def _argument(node: ir.Node, rank: int) -> Sequence[int] | None:
    return (0,) if _keeps_axes(node) else None


def _quantized(node: ir.Node, rank: int) -> Sequence[int] | None:
    return None if node.attributes.get_int("block_size") or _rank(node.inputs[1]) not in (0, 1) else (0,)


def _permute_quantized(graph: ir.Graph, node: ir.Node, permutation: Permutation) -> None:
    if _rank(node.inputs[1]) == 1:
        _permute_axis(graph, node, permutation)


def _padded(node: ir.Node, rank: int) -> Sequence[int] | None:
    pads = integers(node, "pads", 1)
    return (0,) if pads is not None and len(pads) == 2 * rank and not has_parameter(node, "axes", 3) else None


def _permute_pads(graph: ir.Graph, node: ir.Node, permutation: Permutation) -> None:
    pads, rank = integers(node, "pads", 1) or (), len(permutation)
    order = inverse(permutation)
    _write(graph, node, "pads", 1, [pads[axis] for axis in order] + [pads[axis + rank] for axis in order])


def _sliced(node: ir.Node, rank: int) -> Sequence[int] | None:
    known = integers(node, "axes", 3) if has_parameter(node, "axes", 3) else integers(node, "starts", 1)
    return (0,) if known is not None else None


def _permute_slice(graph: ir.Graph, node: ir.Node, permutation: Permutation) -> None:
    axes = integers(node, "axes", 3)
    if axes is None:
        axes = tuple(range(len(integers(node, "starts", 1) or ())))
    _write(graph, node, "axes", 3, [permutation[axis] for axis in axes])


def _write(graph: ir.Graph, node: ir.Node, name: str, index: int, numbers: Sequence[int]) -> None:
    """Give a parameter new integers, in the form, attribute or input, that the node's others have."""
    if name in node.attributes or "starts" in node.attributes:
        node.attributes[name] = ir.AttrInt64s(name, numbers)
        return
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, add_initializer(graph, f"{node.outputs[0].name}", np.array(numbers, np.int64)))


UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Clip Cos Cosh Elu Erf Exp Floor Gelu HardSigmoid "
    "HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh "
    "Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
).split()
BROADCAST = (
    "Add And BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or "
    "Pow PRelu Sub Sum Where Xor"
).split()
REDUCE = "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum".split()
DEFAULT_AXIS = {"Softmax": -1, "LogSoftmax": -1, "Hardmax": -1, "QuantizeLinear": 1, "DequantizeLinear": 1}
# before version 13 these looked at the tensor as a matrix, all axes before and after one taken together
SINCE_13 = frozenset({"Softmax", "LogSoftmax", "Hardmax"})

TABLE: dict[str, LayoutFree] = {
    **dict.fromkeys(UNARY, LayoutFree(_first, _unchanged)),
    "Dropout": LayoutFree(_first_of_one_output, _unchanged),
    **dict.fromkeys(BROADCAST, LayoutFree(_broadcast_inputs, _permute_constants)),
    "Concat": LayoutFree(_all, _permute_axis),
    "Split": LayoutFree(_first, _permute_axis),
    **dict.fromkeys(sorted(SINCE_13), LayoutFree(_first, _permute_axis)),
    **dict.fromkeys((*REDUCE, "ReduceSumSquare"), LayoutFree(_reduced, _permute_axes)),
    **dict.fromkeys(("ArgMax", "ArgMin"), LayoutFree(_argument, _permute_axis)),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), LayoutFree(_quantized, _permute_quantized)),
    "Pad": LayoutFree(_padded, _permute_pads),
    "Slice": LayoutFree(_sliced, _permute_slice),
}
