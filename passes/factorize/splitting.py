"""Splitting: a layer becomes two in the graph. Its node becomes the second factor, with its outputs and its bias."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.ir.reading import constant
from graphopt.passes.cleanup.constants import remove_unused_constant, set_constant
from graphopt.passes.cleanup.rewiring import add_initializer, fresh_name
from graphopt.passes.factorize.layers import MARK
from graphopt.passes.factorize.low_rank import factors
from graphopt.passes.quantize.naming import fresh_node_name
from graphopt.passes.quantize.patches import from_matrix, to_matrix

Array = np.ndarray[Any, Any]

_WINDOW = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")  # what the first factor takes over


def split(graph: ir.Graph, node: ir.Node, rank: int) -> None:
    """Replace W of a Conv, Gemm or MatMul by the product of rank `rank` that is nearest to it.

    A Conv: the same window to `rank` channels, and a 1×1 Conv. A Gemm: x V without a bias, and the Gemm. A MatMul: two.
    """
    weight = constant(node.inputs[1])
    if weight is None:
        raise ValueError(f"{node.op_type} '{node.name}' has no constant weight")
    left, right = factors(to_matrix(node, weight)[0], rank)
    outputs = left.shape[0]
    is_conv = node.op_type == "Conv"
    first_shape = (rank, *weight.shape[1:]) if is_conv else ()
    base = str(node.inputs[1].name) if node.inputs[1] is not None else str(node.outputs[0].name)
    first = from_matrix(node, right[None], first_shape).astype(np.float32)
    second = from_matrix(node, left[None], (outputs, rank, *(1,) * (weight.ndim - 2)) if is_conv else ())
    moved = [node.attributes[name] for name in _WINDOW if name in node.attributes]
    kept = [attribute for name, attribute in node.attributes.items() if name == "transB"]
    inner = ir.Value(name=fresh_name(graph, f"{node.outputs[0].name}/inner"), type=node.outputs[0].type)
    before = ir.Node(
        "",
        node.op_type,
        [node.inputs[0], add_initializer(graph, base, np.ascontiguousarray(first))],
        attributes=[*moved, *kept],
        outputs=[inner],
        name=fresh_node_name(graph, f"{node.name or node.op_type}/first"),
    )
    for name in _WINDOW:
        node.attributes.pop(name, None)
    if is_conv:
        node.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", (1,) * (weight.ndim - 2))
    set_constant(node, 1, np.ascontiguousarray(second).astype(np.float32))
    node.replace_input_with(0, inner)
    graph.insert_before(node, before)
    before.metadata_props[MARK] = "first"
    node.metadata_props[MARK] = "second"


def split_recurrent(graph: ir.Graph, node: ir.Node, rank: int) -> None:
    """Put x V before an LSTM, GRU or RNN, whose W [directions, gates * hidden, input] becomes U of `rank` features."""
    weight, read = _weight(node), node.inputs[0]
    left, right = factors(weight.reshape(-1, weight.shape[-1]), rank)
    base = str(node.inputs[1].name) if node.inputs[1] is not None else "W"
    inner = ir.Value(name=fresh_name(graph, f"{base}/inner"), type=read.type if read is not None else None)
    before = ir.Node(
        "",
        "MatMul",
        [read, add_initializer(graph, base, np.ascontiguousarray(right.T, np.float32))],
        outputs=[inner],
        name=fresh_node_name(graph, f"{node.name or node.op_type}/first"),
    )
    set_constant(node, 1, np.ascontiguousarray(left.reshape(*weight.shape[:2], rank), np.float32))
    node.replace_input_with(0, inner)
    graph.insert_before(node, before)
    before.metadata_props[MARK] = "first"
    node.metadata_props[MARK] = "second"


def split_embedding(graph: ir.Graph, node: ir.Node, rank: int) -> None:
    """Replace a Gather of rows of a table [rows, width] by one of `rank` columns, and a product with [rank, width]."""
    table = constant(node.inputs[0])
    if table is None:
        raise ValueError(f"Gather '{node.name}' has no constant table")
    left, right = factors(table, rank)
    inner = ir.Value(name=fresh_name(graph, f"{node.outputs[0].name}/inner"), type=node.outputs[0].type)
    base = str(node.inputs[0].name) if node.inputs[0] is not None else str(node.outputs[0].name)
    before = ir.Node(
        "",
        "Gather",
        [add_initializer(graph, base, np.ascontiguousarray(left, np.float32)), node.inputs[1]],
        outputs=[inner],
        name=fresh_node_name(graph, f"{node.name or node.op_type}/first"),
    )
    node.attributes.pop("axis", None)
    node.op_type = "MatMul"
    node.replace_input_with(1, add_initializer(graph, base, np.ascontiguousarray(right, np.float32)))
    whole = node.inputs[0]
    node.replace_input_with(0, inner)
    if whole is not None:
        remove_unused_constant(whole)
    graph.insert_before(node, before)
    before.metadata_props[MARK] = "first"
    node.metadata_props[MARK] = "second"


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


def split_cp(graph: ir.Graph, node: ir.Node, factors: tuple[Array, Array, Array]) -> None:
    """Replace W of a Conv, of which C, U and V are given, by 1×1, depthwise k×1 and 1×k, and 1×1.

    Args:
        factors: [channels, rank], [rows, rank] and [columns, rank].
    """
    weight = _weight(node)
    outputs = len(weight)
    channels, rows, columns = factors
    rank = channels.shape[1]
    terms = np.einsum("cr,ur,vr->rcuv", channels, rows, columns).reshape(rank, -1)
    left = weight.reshape(outputs, -1).astype(np.float64) @ np.linalg.pinv(terms)
    tallest, widest = np.abs(left).max(axis=0), np.abs(channels).max(axis=0)
    scale = np.sqrt(np.where(tallest > 0, tallest, 1.0) / np.where(widest > 0, widest, 1.0))
    window = _window(node, 2)
    first, second = ({name: _only(values, axis) for name, values in window.items()} for axis in (0, 1))
    inner = _before(graph, node, node.inputs[0], (channels * scale).T.reshape(rank, -1, 1, 1), {}, "first")
    down = _before(graph, node, inner, rows.T.reshape(rank, 1, -1, 1), first, "rows", group=rank)
    along = _before(graph, node, down, columns.T.reshape(rank, 1, 1, -1), second, "columns", group=rank)
    _become(node, along, (left / scale).reshape(outputs, rank, 1, 1), {})


def _weight(node: ir.Node) -> Array:
    weight = constant(node.inputs[1])
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
    base = str(node.inputs[1].name) if node.inputs[1] is not None else str(node.outputs[0].name)
    made = ir.Value(name=fresh_name(graph, f"{node.outputs[0].name}/{place}"), type=node.outputs[0].type)
    attributes = {"kernel_shape": weight.shape[2:], **window}
    conv = ir.Node(
        "",
        "Conv",
        [read, add_initializer(graph, base, np.ascontiguousarray(weight, np.float32))],
        attributes=[ir.AttrInt64s(name, values) for name, values in attributes.items()],
        outputs=[made],
        name=fresh_node_name(graph, f"{node.name or node.op_type}/{place}"),
    )
    if group != 1:
        conv.attributes["group"] = ir.AttrInt64("group", group)
    conv.metadata_props[MARK] = place
    graph.insert_before(node, conv)
    return made


def _become(node: ir.Node, read: ir.Value, weight: Array, window: dict[str, tuple[int, ...]]) -> None:
    """Make `node` the last factor, with its bias."""
    for name in _WINDOW:
        node.attributes.pop(name, None)
    for name, values in {"kernel_shape": weight.shape[2:], **window}.items():
        node.attributes[name] = ir.AttrInt64s(name, values)
    set_constant(node, 1, np.ascontiguousarray(weight, np.float32))
    node.replace_input_with(0, read)
    node.metadata_props[MARK] = "last"
