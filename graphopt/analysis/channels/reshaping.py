"""How Reshape and Flatten carry channels: axes are merged and parted in blocks.

A block is the shortest run of axes before and after that hold equally many numbers. Merged axes spread a channel over
many places; parting gives it back. Where an axis of channels is parted into several, a choice is to be made which of
them holds the channels from there on: the heads of an attention (whole heads go, the width of a head stays), the
longest axis otherwise (so do the groups of a channel shuffle keep their number).
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
import onnx_ir as ir

from graphopt.analysis.channels.labels import Labelling, Labels
from graphopt.ir.reading import constant, is_standard

Block = tuple[list[int], list[int]]
_FOLLOWED = 40  # nodes that are looked at to find out what an axis becomes


def reshape(node: ir.Node, state: Labelling) -> None:
    """Any Reshape or Flatten whose sizes are known, but for one that passes unchanged."""
    value, result = node.inputs[0], node.outputs[0]
    if value is None or value.shape is None or result.shape is None:
        return
    if sum(not isinstance(size, int) for size in result.shape) > 1:
        return
    for before, after in blocks(value.shape, result.shape):
        labelled = [axis for axis in before if state.of(value, axis) is not None]
        if len(labelled) != 1 or not after:
            continue
        sizes = [size for axis in before if isinstance(size := value.shape[axis], int)]
        targets = [size for axis in after if isinstance(size := result.shape[axis], int)]
        if len(sizes) != len(before) or len(targets) != len(after):
            if len(before) == len(after) == 1:
                state.write(result, after[0], state.claim(node, 0, before[0]))
            continue
        labels = state.claim(node, 0, labelled[0])
        if labels is None:
            continue
        spread = [1] * len(sizes)
        spread[before.index(labelled[0])] = -1
        places = np.broadcast_to(labels.reshape(spread), sizes).reshape(targets)
        axis = _bearing(places, node, after)
        moved = np.moveaxis(places, axis, 0).reshape(targets[axis], -1)
        state.link(moved[:, :1], moved)
        state.write(result, after[axis], moved[:, 0].copy())


def blocks(before: ir.Shape, after: ir.Shape) -> Iterator[Block]:
    """The shortest runs of axes that hold equally many numbers. An unknown size matches an unknown one."""
    i = j = 0
    while i < len(before) or j < len(after):
        left, right = [i] if i < len(before) else [], [j] if j < len(after) else []
        i, j = i + len(left), j + len(right)
        while _product(before, left) != _product(after, right):
            one, other = _product(before, left), _product(after, right)
            grow_left = i < len(before) and (
                j >= len(after) or (isinstance(one, int) and isinstance(other, int) and one < other)
            )
            if grow_left:
                left.append(i)
                i += 1
            elif j < len(after):
                right.append(j)
                j += 1
            else:
                return  # sizes that cannot be matched
        yield left, right


def _product(shape: ir.Shape, axes: list[int]) -> int | str:
    sizes = [shape[axis] for axis in axes]
    if all(isinstance(size, int) for size in sizes):
        return prod(size for size in sizes if isinstance(size, int))
    return "unknown" if len(sizes) == 1 else "mixed"


def _bearing(places: Labels, node: ir.Node, axes: list[int]) -> int:
    """Which axis of `places` the channels vary along; a choice where they vary along several."""
    varying = [
        axis for axis in range(places.ndim) if places.shape[axis] > 1 and (places != places.take([0], axis)).any()
    ]
    if len(varying) < 2:
        return varying[0] if varying else places.ndim - 1
    heads = [axis for axis in varying if _is_batch_of_product(node.outputs[0], axes[axis])]
    return heads[-1] if heads else max(varying, key=lambda axis: (places.shape[axis], axis))


def _is_batch_of_product(value: ir.Value, axis: int) -> bool:
    """Whether `axis` becomes an axis that a product of two computed matrices runs over, matrix by matrix."""
    waiting, seen = [(value, axis)], 0
    while waiting and seen < _FOLLOWED:
        value, axis = waiting.pop(0)
        rank = len(value.shape) if value.shape is not None else 0
        for user in value.consumers():
            seen += 1
            if is_standard(user, "MatMul") and all(constant(operand) is None for operand in user.inputs):
                if axis < rank - 2:
                    return True
            else:
                waiting += [
                    (output, place)
                    for output in user.outputs
                    if (place := _place_after(user, value, output, axis)) is not None
                ]
    return False


def _place_after(node: ir.Node, value: ir.Value, output: ir.Value, axis: int) -> int | None:
    """Where `axis` of an input is in an output; None if it is selected from, parted, or lost."""
    if value.shape is None or output.shape is None:
        return None
    if is_standard(node, "Transpose"):
        return list(node.attributes.get_ints("perm", list(reversed(range(len(value.shape)))))).index(axis)
    if is_standard(node, "Gather"):
        selected = node.attributes.get_int("axis", 0) % len(value.shape)
        more = len(output.shape) - len(value.shape)
        return None if axis == selected else axis + more * (axis > selected)
    if is_standard(node, "Reshape", "Squeeze", "Unsqueeze"):
        for before, after in blocks(value.shape, output.shape):
            long = [place for place in after if output.shape[place] != 1]  # an axis of one number is in some block
            if axis in before and len(long) == 1:
                return long[0]
        return None
    if len(output.shape) != len(value.shape) or is_standard(node, "Conv", "Gemm", "MatMul"):
        return None
    return axis if output.shape[axis] == value.shape[axis] else None
