"""Fold Pad into the padding of the Conv, AveragePool or MaxPool behind it.

A Conv pads with zeros, so it takes in a Pad of zeros. An AveragePool takes in a Pad of zeros if it counts padding as
elements (count_include_pad=1), or has none of its own and is made to count it. A MaxPool pads with −∞: it takes in a
Pad of −∞, or one of zeros where its input cannot be negative (every window holds at least one element that was not
padded). Pads of channels or the batch, negative ones (a crop) and other modes than constant stay.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir.reading import constant, integers, is_standard, opset_of, static_shape
from graphopt.passes.cleanup.constants import remove_unused_constant
from graphopt.passes.cleanup.rewiring import replace
from graphopt.passes.cleanup.sweeping import fold_until_settled
from graphopt.pipeline.base import Pass, PassContext, PassResult

_TAKES_PADDING = ("Conv", "AveragePool", "MaxPool")
# Operators whose result is never negative.
_NOT_NEGATIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Softplus", "Abs", "Exp", "Sqrt")


@dataclass(frozen=True)
class FoldPad(Pass):
    """Fold Pad into the padding of the Conv, AveragePool or MaxPool behind it."""

    name: ClassVar[str] = "fold-pad"
    exact: ClassVar[bool] = True

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Fold in the main graph and its subgraphs until nothing changes."""
        opset = opset_of(model)

        def attempt(node: ir.Node) -> str | None:
            users = node.outputs[0].consumers() if is_standard(node, "Pad") else ()
            return _fold(node, opset) if any(is_standard(user, *_TAKES_PADDING) for user in users) else None

        return fold_until_settled(model, attempt)


@dataclasses.dataclass(frozen=True)
class _Padding:
    """What a Pad adds: elements before and after each spatial axis, and their value."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    value: float


def _fold(node: ir.Node, opset: int) -> str:
    """Fold and remove `node`; the reason if that cannot be."""
    output, source = node.outputs[0], node.inputs[0]
    uses = tuple(output.uses())
    if source is None:
        return "it has no input"
    if output.is_graph_output():
        return "its output is an output of the graph"
    if any(index or not is_standard(user, *_TAKES_PADDING) for user, index in uses):
        return "its output is also used by an operator that does not pad"
    if any(user.graph is not node.graph for user, _ in uses):
        return "its output is used in a subgraph"
    padding = _padding_of(node, opset)
    if isinstance(padding, str):
        return padding
    attributes = list[dict[str, ir.Attr]]()
    for user, _ in uses:
        taken = _attributes_with(user, padding)
        if isinstance(taken, str):
            return taken
        attributes.append(taken)
    for (user, _), taken in zip(uses, attributes, strict=True):
        user.attributes.pop("auto_pad", None)
        user.attributes.update(taken)
    constants = [value for value in node.inputs[1:] if value is not None]
    replace(output, source)
    if node.graph is not None:
        node.graph.remove(node, safe=True)
    for value in constants:
        remove_unused_constant(value)
    return ""


def _padding_of(node: ir.Node, opset: int) -> _Padding | str:
    mode = node.attributes.get_string("mode", "constant")
    if mode != "constant":
        return f"it pads by {mode}, not by a constant"
    source = node.inputs[0]
    if source is None or source.shape is None:
        return "the rank of its input is unknown"
    rank = len(source.shape)
    pads = integers(node, "pads", 1)
    if pads is None:
        return "its pads are not constant"
    axes: tuple[int, ...] = tuple(range(rank))
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        given = constant(node.inputs[3])
        if given is None:
            return "its axes are not constant"
        axes = tuple(int(axis) % rank for axis in given.reshape(-1))
    if len(pads) != 2 * len(axes):
        return f"it has {len(pads)} pads for {len(axes)} axes"
    if min(pads, default=0) < 0:
        return "it crops: its pads are negative"
    before, after = [0] * rank, [0] * rank
    for position, axis in enumerate(axes):
        before[axis], after[axis] = pads[position], pads[position + len(axes)]
    if any(before[:2]) or any(after[:2]):
        return "it pads the batch or the channels"
    value = _value_of(node, opset)
    return "its value is not constant" if value is None else _Padding(tuple(before[2:]), tuple(after[2:]), value)


def _value_of(node: ir.Node, opset: int) -> float | None:
    if opset < 11:
        return float(node.attributes.get_float("value", 0.0))
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return 0.0
    array = constant(node.inputs[2])
    return None if array is None or array.size != 1 else float(array.astype(np.float64).reshape(-1)[0])


def _attributes_with(user: ir.Node, padding: _Padding) -> dict[str, ir.Attr] | str:
    """The attributes of `user` that make it do the padding as well, or the reason why there are none."""
    own = _own_pads(user)
    if isinstance(own, str):
        return own
    rank = len(own) // 2
    if len(padding.before) != rank:
        return f"it pads {len(padding.before)} spatial axes, {user.op_type} '{user.name}' has {rank}"
    added = (*padding.before, *padding.after)
    pads = ir.AttrInt64s("pads", [mine + theirs for mine, theirs in zip(own, added, strict=True)])
    if user.op_type == "Conv":
        return {"pads": pads} if padding.value == 0 else f"it pads with {padding.value}, a Conv with 0"
    reason = _why_not_pool(user, own, [int(size) for size in pads.as_ints()], padding)
    if reason:
        return reason
    if user.op_type == "MaxPool":
        return {"pads": pads}
    return {"pads": pads, "count_include_pad": ir.AttrInt64("count_include_pad", 1)}


def _why_not_pool(user: ir.Node, own: list[int], pads: list[int], padding: _Padding) -> str:
    """Why a pool cannot take in the padding; empty if it can."""
    what = f"{user.op_type} '{user.name}'"
    kernel = list(user.attributes.get_ints("kernel_shape", ()))
    if user.attributes.get_int("ceil_mode", 0):
        return f"{what} rounds its size up, and its last windows would change"
    if any(step != 1 for step in user.attributes.get_ints("dilations", ())):
        return f"{what} is dilated"
    if len(kernel) * 2 != len(pads) or any(pad >= kernel[i % len(kernel)] for i, pad in enumerate(pads)):
        return f"{what} would have windows that lie in the padding alone"
    if user.op_type == "AveragePool":
        if padding.value != 0:
            return f"it pads with {padding.value}, an AveragePool with 0"
        if any(own) and not user.attributes.get_int("count_include_pad", 0):
            return f"{what} leaves out its own padding when it counts elements"
        return ""
    if len(user.outputs) > 1 and (user.outputs[1].uses() or user.outputs[1].is_graph_output()):
        return f"{what} also gives positions in the padded input"
    if padding.value == -math.inf:
        return ""
    if padding.value != 0:
        return f"it pads with {padding.value}, a MaxPool with -inf"
    source = user.inputs[0].producer() if user.inputs[0] is not None else None
    if source is None or not _is_not_negative(source.inputs[0]):
        return "it pads with 0, a MaxPool with -inf, and its input may be negative"
    return ""


def _is_not_negative(value: ir.Value | None) -> bool:
    producer = None if value is None else value.producer()
    if producer is None:
        return False
    if is_standard(producer, *_NOT_NEGATIVE):
        return True
    if is_standard(producer, "MaxPool", "AveragePool"):
        return _is_not_negative(producer.inputs[0])
    if not is_standard(producer, "Clip"):
        return False
    low = constant(producer.inputs[1]) if len(producer.inputs) > 1 else None
    return producer.attributes.get_float("min", -1.0) >= 0 or (
        low is not None and bool(np.all(low.astype(np.float64) >= 0))
    )


def _own_pads(user: ir.Node) -> list[int] | str:
    """The pads of a Conv or pool, begins then ends, with auto_pad worked out."""
    what = f"{user.op_type} '{user.name}'"
    kernel = _kernel_of(user)
    if kernel is None:
        return f"the kernel of {what} is unknown"
    rank = len(kernel)
    auto_pad = user.attributes.get_string("auto_pad", "NOTSET")
    if auto_pad == "NOTSET":
        return list(user.attributes.get_ints("pads", (0,) * (2 * rank)))
    if auto_pad == "VALID":
        return [0] * (2 * rank)
    shape = static_shape(user.inputs[0])
    if shape is None:
        return f"{what} pads by {auto_pad}, and the size of its input is unknown"
    strides = user.attributes.get_ints("strides", (1,) * rank)
    dilations = user.attributes.get_ints("dilations", (1,) * rank)
    return same_pads(auto_pad, shape[2:], kernel, strides, dilations)


def same_pads(
    auto_pad: str, sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> list[int]:
    """The pads, begins then ends, that SAME_UPPER or SAME_LOWER stand for; one number a spatial axis of each."""
    before, after = list[int](), list[int]()
    for size, window, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        total = max(0, (math.ceil(size / stride) - 1) * stride + (window - 1) * dilation + 1 - size)
        small, large = total // 2, total - total // 2
        before.append(small if auto_pad == "SAME_UPPER" else large)
        after.append(large if auto_pad == "SAME_UPPER" else small)
    return before + after


def _kernel_of(user: ir.Node) -> list[int] | None:
    if "kernel_shape" in user.attributes:
        return list(user.attributes.get_ints("kernel_shape", ()))
    shape = static_shape(user.inputs[1]) if len(user.inputs) > 1 else None
    return None if shape is None else list(shape[2:])
