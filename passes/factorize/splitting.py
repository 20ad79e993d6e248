"""Splitting: a layer becomes two in the graph. Its node becomes the second factor, with its outputs and its bias."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.ir.reading import constant
from graphopt.passes.cleanup.constants import remove_unused_constant, set_constant
from graphopt.passes.cleanup.rewiring import add_initializer, fresh_name
from graphopt.passes.factorize.layers import MARK
from graphopt.passes.factorize.low_rank import balanced, factors, rank_one_rows
from graphopt.passes.quantize.naming import fresh_node_name
from graphopt.passes.quantize.patches import from_matrix, to_matrix

Array = np.ndarray[Any, Any]

_WINDOW = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")  # what the first factor takes over


def split(graph: ir.Graph, node: ir.Node, rank: int) -> None:
    """Replace W of a Conv, Gemm or MatMul by the product of rank `rank` that is nearest to it.

    A Conv: the same window to `rank` channels, and a 1×1 Conv. A Gemm: x V without a bias, and the Gemm. A MatMul: two.
    """
    weight = _weight(node)
    left, right = factors(to_matrix(node, weight)[0], rank)
    is_conv = node.op_type == "Conv"
    ones = (1,) * (weight.ndim - 2)
    first = from_matrix(node, right[None], (rank, *weight.shape[1:]) if is_conv else ())
    second = from_matrix(node, left[None], (len(left), rank, *ones) if is_conv else ())
    moved = [node.attributes[name] for name in (*_WINDOW, "transB") if name in node.attributes]
    inner = _put_before(graph, node, node.op_type, [node.inputs[0], _stored(graph, node, 1, first)], "inner", moved)
    for name in _WINDOW:
        node.attributes.pop(name, None)
    if is_conv:
        node.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", ones)
    _end(node, inner, second, "second")


def split_recurrent(graph: ir.Graph, node: ir.Node, rank: int) -> None:
    """Put x V before an LSTM, GRU or RNN, whose W [directions, gates * hidden, input] becomes U of `rank` features."""
    weight = _weight(node)
    left, right = factors(weight.reshape(-1, weight.shape[-1]), rank)
    inputs = [node.inputs[0], _stored(graph, node, 1, right.T)]
    inner = _put_before(graph, node, "MatMul", inputs, "inner", like=node.inputs[0])
    _end(node, inner, left.reshape(*weight.shape[:2], rank), "second")


def split_embedding(graph: ir.Graph, node: ir.Node, rank: int) -> None:
    """Replace a Gather of rows of a table [rows, width] by one of `rank` columns, and a product with [rank, width]."""
    table = node.inputs[0]
    left, right = factors(_weight(node, 0), rank)
    inner = _put_before(graph, node, "Gather", [_stored(graph, node, 0, left), node.inputs[1]], "inner")
    node.attributes.pop("axis", None)
    node.op_type = "MatMul"
    node.replace_input_with(1, _stored(graph, node, 0, right))
    node.replace_input_with(0, inner)
    node.metadata_props[MARK] = "second"
    if table is not None:
        remove_unused_constant(table)


def split_spatial(graph: ir.Graph, node: ir.Node, rank: int) -> None:
    """Replace W of a Conv by k×1 to `rank` channels and 1×k, whose product is nearest to it."""
    weight = _weight(node)
    outputs, channels, high, wide = weight.shape
    left, right = factors(weight.transpose(0, 3, 1, 2).reshape(outputs * wide, -1), rank)
    down = right.reshape(rank, channels, high, 1)
    along = left.reshape(outputs, wide, rank).transpose(0, 2, 1).reshape(outputs, rank, 1, wide)
    window = _window(node, 2)
    first = {name: _only(values, 0) for name, values in window.items()}
    second = {name: _only(values, 1) for name, values in window.items()}
    inner = _before(graph, node, node.inputs[0], down, first, "first")
    _become(node, inner, along, second)


def split_tucker2(graph: ir.Graph, node: ir.Node, rank: int, inner_rank: int) -> None:
    """Replace W of a Conv by 1×1 to `inner_rank` channels, the window from these to `rank`, and 1×1."""
    weight = _weight(node)
    outputs, channels, *size = weight.shape
    left, right = factors(weight.reshape(outputs, -1), rank)
    window = right.reshape(rank, channels, *size)
    core, first = factors(window.swapaxes(0, 1).reshape(channels, -1).T, inner_rank)
    ones = (1,) * len(size)
    core = core.reshape(rank, *size, inner_rank)
    inner = _before(graph, node, node.inputs[0], first.reshape(inner_rank, channels, *ones), {}, "first")
    middle = _before(graph, node, inner, np.moveaxis(core, -1, 1), _window(node, len(size)), "core")
    _become(node, middle, left.reshape(outputs, rank, *ones), {})


def split_decoupled(graph: ir.Graph, node: ir.Node, rank: int) -> None:
    """Replace W of a Conv by `rank` depthwise windows of each channel, and 1×1: nearest to it channel by channel."""
    weight = _weight(node)
    outputs, channels, *size = weight.shape
    pairs = [factors(weight[:, channel].reshape(outputs, -1), rank) for channel in range(channels)]
    windows = np.concatenate([right for _, right in pairs]).reshape(channels * rank, 1, *size)
    mixing = np.concatenate([left for left, _ in pairs], axis=1).reshape(outputs, channels * rank, *(1,) * len(size))
    inner = _before(graph, node, node.inputs[0], windows, _window(node, len(size)), "first", group=channels)
    _become(node, inner, mixing, {})


def split_cp(graph: ir.Graph, node: ir.Node, terms: tuple[Array, Array, Array]) -> None:
    """Replace W of a Conv, of which C, U and V are given, by 1×1, depthwise k×1 and 1×k, and 1×1.

    Args:
        terms: [channels, rank], [rows, rank] and [columns, rank].
    """
    weight = _weight(node)
    channels, rows, columns = terms
    rank = channels.shape[1]
    left = weight.reshape(len(weight), -1).astype(np.float64) @ np.linalg.pinv(rank_one_rows(*terms))
    left, right = balanced(left, channels.T)
    window = _window(node, 2)
    first, second = ({name: _only(values, axis) for name, values in window.items()} for axis in (0, 1))
    inner = _before(graph, node, node.inputs[0], right.reshape(rank, -1, 1, 1), {}, "first")
    down = _before(graph, node, inner, rows.T.reshape(rank, 1, -1, 1), first, "rows", group=rank)
    along = _before(graph, node, down, columns.T.reshape(rank, 1, 1, -1), second, "columns", group=rank)
    _become(node, along, left.reshape(len(weight), rank, 1, 1), {})


def _weight(node: ir.Node, index: int = 1) -> Array:
    weight = constant(node.inputs[index])
    if weight is None:
        raise ValueError(f"{node.op_type} '{node.name}' has no constant weight")
    return weight


def _window(node: ir.Node, axes: int) -> dict[str, tuple[int, ...]]:
    """Strides, dilations and pads of a Conv."""
    defaults = {"strides": (1,) * axes, "dilations": (1,) * axes, "pads": (0,) * (2 * axes)}
    return {name: tuple(node.attributes.get_ints(name, default)) for name, default in defaults.items()}


def _only(values: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """Of the window along one of two axes; along the other it is a single place."""
    neutral = 1 if len(values) == 2 else 0
    return tuple(value if number % 2 == axis else neutral for number, value in enumerate(values))


def _before(
    graph: ir.Graph,
    node: ir.Node,
    read: ir.Value | None,
    weight: Array,
    window: dict[str, tuple[int, ...]],
    place: str,
    group: int = 1,
) -> ir.Value:
    """A Conv without a bias, put before `node`; what it makes."""
    attributes = [ir.AttrInt64s(name, values) for name, values in {"kernel_shape": weight.shape[2:], **window}.items()]
    if group != 1:
        attributes.append(ir.AttrInt64("group", group))
    return _put_before(graph, node, "Conv", [read, _stored(graph, node, 1, weight)], place, attributes, place=place)


def _become(node: ir.Node, read: ir.Value, weight: Array, window: dict[str, tuple[int, ...]]) -> None:
    """Make `node` the last factor, with its bias."""
    for name in _WINDOW:
        node.attributes.pop(name, None)
    for name, values in {"kernel_shape": weight.shape[2:], **window}.items():
        node.attributes[name] = ir.AttrInt64s(name, values)
    _end(node, read, weight, "last")


def _stored(graph: ir.Graph, node: ir.Node, index: int, array: Array) -> ir.Value:
    """An initializer named after the node's input `index`."""
    value = node.inputs[index]
    base = str(value.name if value is not None else node.outputs[0].name)
    return add_initializer(graph, base, np.ascontiguousarray(array, np.float32))


def _put_before(
    graph: ir.Graph,
    node: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    suffix: str,
    attributes: Sequence[ir.Attr] = (),
    place: str = "first",
    like: ir.Value | None = None,
) -> ir.Value:
    """What a new node before `node` makes: of the type of `like`, the node's result by default, and named after it."""
    like = like or node.outputs[0]
    made = ir.Value(name=fresh_name(graph, f"{like.name}/{suffix}"), type=like.type)
    name = fresh_node_name(graph, f"{node.name or node.op_type}/{place}")
    before = ir.Node("", op_type, inputs, attributes=attributes, outputs=[made], name=name)
    before.metadata_props[MARK] = place
    graph.insert_before(node, before)
    return made


def _end(node: ir.Node, read: ir.Value, weight: Array, place: str) -> None:
    """Let `node` read what the factors before it make, by the weight that is left for it."""
    set_constant(node, 1, np.ascontiguousarray(weight, np.float32))
    node.replace_input_with(0, read)
    node.metadata_props[MARK] = place
