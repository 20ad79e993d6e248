"""The nodes whose constants take a scale: they begin and end lanes.

A Conv, ConvTranspose, Gemm or MatMul divides its output channels and multiplies its input channels; so does a Mul by a
constant of one number for each channel. A layer norm divides what it makes.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.ir.reading import constant
from graphopt.passes.cleanup.constants import layer_name
from graphopt.passes.cleanup.linear import Affine, channels_in, channels_out, fold_after, fold_before
from graphopt.passes.quantize.lanes import Array, Port, Tracks, aligned, rank_of

MAX_SCALE = 2.0**24
_FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE)


def product(tracks: Tracks, node: ir.Node) -> None:
    """Mul and Div: a constant by channel takes scales from both sides; of two values one keeps its lanes."""
    left, right = node.inputs[0], node.inputs[1]
    if left is None or right is None:
        return
    if left is right:
        tracks.pin_inputs(node)
        return
    if node.op_type == "Mul" and constant(left) is not None:
        left, right = right, left
    if constant(right) is not None and constant(left) is None:
        _product_of_constant(tracks, node, left, right)
        return
    lanes, others = tracks.of.get(left), tracks.of.get(right)
    if node.op_type == "Mul" and others is not None and (lanes is None or tracks.is_pinned(lanes)):
        (left, lanes), (right, others) = (right, others), (left, lanes)
    if others is not None:
        tracks.pin(others, f"{node.op_type} '{layer_name(node)}' takes a scale from its other operand")
    rank = rank_of(node.outputs[0])
    if lanes is not None and rank is not None:
        tracks.of[node.outputs[0]] = aligned(lanes, rank)
    else:
        tracks.pin_inputs(node)


def _product_of_constant(tracks: Tracks, node: ir.Node, value: ir.Value, factor: ir.Value) -> None:
    array, lanes, rank = constant(factor), tracks.of.get(value), rank_of(node.outputs[0])
    if array is None or rank is None:
        tracks.pin_inputs(node)
        return
    shape = (1,) * (rank - array.ndim) + array.shape
    if lanes is not None:
        lanes = aligned(lanes, rank)
    varying = [axis for axis, size in enumerate(shape) if size > 1]
    if node.op_type == "Mul" and len(varying) == 1 and node.outputs[0].dtype in _FLOATS:
        fresh = tracks.fresh(array.size)
        tracks.makers.append(Port(node, fresh, weighted=False))
        tracks.of[node.outputs[0]] = fresh.reshape(shape)
        if lanes is not None:
            along = _along(lanes, varying[0], array.size)
            if along is None:
                tracks.pin_inputs(node)
            else:
                tracks.readers.append(Port(node, along, weighted=False))
    elif lanes is not None:
        tracks.of[node.outputs[0]] = lanes


def _along(lanes: Array, axis: int, channels: int) -> Array | None:
    """[channels] if the lanes differ along `axis` alone."""
    if lanes.size != lanes.shape[axis] or lanes.size not in (1, channels):
        return None
    return np.broadcast_to(lanes.reshape(-1), (channels,))


def layer_norm(tracks: Tracks, node: ir.Node) -> None:
    tracks.pin_inputs(node)
    scale, rank = constant(node.inputs[1]), rank_of(node.inputs[0])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    last = rank is not None and node.attributes.get_int("axis", -1) in (-1, rank - 1)
    vectors = scale is not None and scale.ndim == 1 and (bias is None or constant(bias) is not None)
    if scale is None or rank is None or not last or not vectors or node.outputs[0].dtype not in _FLOATS:
        return
    fresh = tracks.fresh(scale.size)
    tracks.makers.append(Port(node, fresh, weighted=False))
    tracks.of[node.outputs[0]] = fresh.reshape((1,) * (rank - 1) + (-1,))


def linear(tracks: Tracks, node: ir.Node) -> None:
    """Conv, ConvTranspose, Gemm and MatMul with a constant weight; or a MatMul that mixes rows of a value."""
    weight = node.inputs[1]
    if weight is not None and weight in tracks.of and node.op_type == "MatMul" and constant(node.inputs[0]) is None:
        _mixed_rows(tracks, node, tracks.of[weight])
        return
    channels, made = channels_in(node), channels_out(node)
    rank = rank_of(weight) if node.op_type in ("Conv", "ConvTranspose") else rank_of(node.outputs[0])
    if channels is None or made is None or rank is None or weight is None:
        tracks.pin_inputs(node)
        return
    axis = 1 if node.op_type in ("Conv", "ConvTranspose") else rank - 1
    lanes = tracks.read(node)
    reason = _untouchable(node, weight)
    extreme = Affine(np.full(1, MAX_SCALE**2), np.zeros(1))
    if lanes is not None:
        after = fold_before(node, extreme)
        along = _along(lanes, axis, channels) if lanes.ndim == rank else None
        if reason or isinstance(after, str) or along is None:
            tracks.pin(
                lanes, reason or (after if isinstance(after, str) else f"'{layer_name(node)}' mixes its channels")
            )
        else:
            tracks.readers.append(Port(node, along, weighted=True))
    before = fold_after(node, extreme)
    fresh = tracks.fresh(made)
    tracks.of[node.outputs[0]] = fresh.reshape((1,) * axis + (-1,) + (1,) * (rank - axis - 1))
    tracks.makers.append(Port(node, fresh, weighted=True))
    if reason or isinstance(before, str):
        tracks.pin(fresh, reason or (before if isinstance(before, str) else ""))


def _untouchable(node: ir.Node, weight: ir.Value) -> str:
    if len(weight.uses()) > 1:
        return f"its weight '{weight.name}' is shared by {len(weight.uses())} nodes"
    array = constant(weight)
    if node.op_type == "MatMul" and array is not None and array.ndim != 2:
        return f"its weight has the shape {list(array.shape)}, expected a matrix"
    return "" if weight.dtype in _FLOATS else f"it computes in {weight.dtype.name.lower() if weight.dtype else '?'}"


def _mixed_rows(tracks: Tracks, node: ir.Node, lanes: Array) -> None:
    """P·V: each column of V is a channel of the result, and keeps its lane."""
    rank, left = rank_of(node.outputs[0]), tracks.read(node)
    if left is not None:
        tracks.pin(left, f"MatMul '{layer_name(node)}' sums over its channels")
    if rank is None or lanes.ndim != rank or lanes.shape[-2] != 1:
        tracks.pin(lanes, f"MatMul '{layer_name(node)}' sums over its channels")
    else:
        tracks.of[node.outputs[0]] = lanes
