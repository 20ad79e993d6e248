"""Rescaling: divide channels by scales where they are made, multiply them back where they are read.

W₂ f(W₁x + b) = (W₂S) f(S⁻¹W₁x + S⁻¹b) for a positive diagonal S and every f that commutes with it. S is chosen
between two ranges of each channel, before (r) and behind (w): s = r^α / w^(1−α). With α = ½ both are √(r w) afterwards.
Neighbouring scales share weights, so one is chosen after the other, over and over, until none moves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np
import onnx_ir as ir

from graphopt.ir.reading import constant
from graphopt.passes.cleanup.bounds import bounds_of
from graphopt.passes.cleanup.constants import layer_name, remove_unused_constant, set_constant
from graphopt.passes.cleanup.linear import Affine, fold_after, fold_before
from graphopt.passes.cleanup.rewiring import add_initializer
from graphopt.passes.quantize.lane_ports import MAX_SCALE
from graphopt.passes.quantize.lanes import Array, Carried, Lanes, Port
from graphopt.pipeline.base import Declined

SETTLED = 2e-4  # in powers of two: the largest step of a scale in the last sweep
WORTHWHILE = 0.02  # in powers of two: a graph is left alone if no scale would move by more
FLOOR = 2.0**-3  # of the largest range in a seam: less counts as much, because samples may have missed it
_SWEEPS = 500
_RELAXATION = 1.5  # of each step: converges in half the sweeps of 1, which comes last, as it is exact for a single seam
_OWN_RELAXATION = 0.5  # where a layer reads the channels that it makes: more than 1 would swing


@dataclass(frozen=True)
class Seam:
    """Nodes that share scales: `makers` divide, `readers` multiply; `lanes` of all of them, sorted."""

    makers: tuple[Port, ...]
    readers: tuple[Port, ...]
    lanes: Array


def seams_of(lanes: Lanes) -> list[Seam]:
    """The ports of a graph, grouped by what shares a lane, in the order of the graph."""
    sharing: nx.Graph[tuple[str, int]] = nx.Graph()
    for port in (*lanes.makers, *lanes.readers):
        used = np.unique(port.lanes).tolist()
        sharing.add_edges_from((("lane", used[0]), ("lane", lane)) for lane in used)
    group = {lane: number for number, part in enumerate(nx.connected_components(sharing)) for _, lane in part}
    makers: dict[int, list[Port]] = {}
    readers: dict[int, list[Port]] = {}
    for ports, found in ((lanes.makers, makers), (lanes.readers, readers)):
        for port in ports:
            found.setdefault(group[int(port.lanes[0])], []).append(port)
    return [
        Seam(tuple(ports), tuple(readers.get(number, ())), np.unique(np.concatenate([p.lanes for p in ports])))
        for number, ports in makers.items()
    ]


class Weights:
    """Largest magnitudes of weights by pair of channels, for any scales of what they read and make."""

    def __init__(self, seams: Sequence[Seam]) -> None:
        self._matrix: dict[ir.Node, Array] = {}
        self._read: dict[ir.Node, Array] = {}
        self._made: dict[ir.Node, Array] = {}
        for seam in seams:
            for ports, lanes in ((seam.readers, self._read), (seam.makers, self._made)):
                for port in ports:
                    if port.weighted:
                        lanes[port.node] = port.lanes
                        self._matrix[port.node] = _magnitudes(port.node)

    def made(self, port: Port, log2: Array) -> Array:
        """max |W| of each output channel, [channels]."""
        return np.asarray(self._scaled(port.node, log2).max(axis=2, initial=0.0).reshape(-1))

    def read(self, port: Port, log2: Array) -> Array:
        """max |W| of each input channel, [channels]."""
        return np.asarray(self._scaled(port.node, log2).max(axis=1, initial=0.0).reshape(-1))

    def _scaled(self, node: ir.Node, log2: Array) -> Array:
        matrix = self._matrix[node]
        groups, outputs, inputs = matrix.shape
        if node in self._read:
            matrix = matrix * np.exp2(log2[self._read[node]]).reshape(groups, 1, inputs)
        if node in self._made:
            matrix = matrix * np.exp2(-log2[self._made[node]]).reshape(groups, outputs, 1)
        return matrix


def _magnitudes(node: ir.Node) -> Array:
    """max |W| over the places of a kernel, [groups, outputs of a group, inputs of a group]."""
    array = constant(node.inputs[1])
    if array is None:
        raise ValueError(f"{node.op_type} '{layer_name(node)}' has no constant weight")
    groups = node.attributes.get_int("group", 1)
    factor = abs(node.attributes.get_float("alpha", 1.0))
    flat = factor * np.abs(array).reshape(*array.shape[:2], -1).max(axis=2, initial=0)
    outputs_first = node.op_type == "Conv" or (node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1)
    if outputs_first:
        return np.asarray(flat.reshape(groups, -1, flat.shape[1]))
    return np.asarray(flat.reshape(groups, -1, flat.shape[1]).transpose(0, 2, 1))


def settle(
    seams: Sequence[Seam], lanes: Lanes, pinned: Mapping[int, str], *, alpha: float, maxima: Array | None = None
) -> Array:
    """Balance the ranges on both sides of seams: the binary logarithms of the scales by lane; 0 where one is to stay.

    Args:
        pinned: lanes that keep the scale 1. No scale leaves 1/MAX_SCALE to MAX_SCALE.
        alpha: the share of the front's range that moves to the back.
        maxima: of activations by lane, the ranges in front; those of the weights that make them by default.
    """
    weights = Weights(seams)
    log2 = np.zeros(lanes.count)
    free = np.ones(lanes.count, bool)
    free[list(pinned)] = False

    def sweep(relaxation: float) -> float:
        """Move each scale once; the largest step."""
        largest = 0.0
        for seam in seams:
            own = {port.node for port in seam.makers} & {port.node for port in seam.readers}
            used = seam.lanes[free[seam.lanes]]
            makes = [(port.lanes, weights.made(port, log2)) for port in seam.makers if maxima is None]
            front = _largest(makes, lanes.count) if maxima is None else maxima / np.exp2(log2)
            back = _largest([(p.lanes, weights.read(p, log2)) for p in seam.readers if p.weighted], lanes.count)
            step = (_OWN_RELAXATION if own else relaxation) * _step(front[used], back[used], alpha)
            step = np.where(np.abs(log2[used] + step) > np.log2(MAX_SCALE), 0.0, step)
            log2[used] += step
            largest = max(largest, float(np.abs(step).max(initial=0.0)))
        return largest

    relaxation, smallest = (_RELAXATION if maxima is None else 1.0), np.inf
    for _ in range(_SWEEPS):
        largest = sweep(relaxation)
        if largest < SETTLED:
            break
        if largest > 2 * smallest:  # it swings
            relaxation = 1.0
        smallest = min(smallest, largest)
    sweep(1.0)
    return log2 if np.abs(log2).max(initial=0.0) >= WORTHWHILE else np.zeros(lanes.count)


def _largest(ranges: Sequence[tuple[Array, Array]], count: int) -> Array:
    """The largest range of each lane, [count]; 0 for lanes of none."""
    found = np.zeros(count)
    for lanes, channels in ranges:
        np.maximum.at(found, lanes, channels)
    return found


def _step(front: Array, back: Array, alpha: float) -> Array:
    """The logarithm of front^α / back^(1−α), with ranges below FLOOR counted as that; 0 if both are below."""
    least, lowest = FLOOR * front.max(initial=0.0), FLOOR * back.max(initial=0.0)
    known = ((front > least) | (back > lowest)) & (least > 0) & (lowest > 0)
    front, back = np.where(known, np.maximum(front, least), 1.0), np.where(known, np.maximum(back, lowest), 1.0)
    return np.asarray(alpha * np.log2(front) - (1 - alpha) * np.log2(back))


def declined(seams: Sequence[Seam], pinned: Mapping[int, str]) -> list[Declined]:
    """The makers of seams none of whose lanes can be scaled, with the reason of the first."""
    return [
        Declined(layer_name(port.node), pinned[int(port.lanes[0])])
        for seam in seams
        for port in seam.makers
        if all(int(lane) in pinned for lane in port.lanes)
    ]


def rescale(lanes: Lanes, log2: Array) -> int:
    """Divide by the scales where channels are made and multiply where they are read; the number of nodes changed."""
    changed: set[ir.Node] = set()
    for port in lanes.makers:
        if np.any(log2[port.lanes]):
            _divide(port, np.exp2(-log2[port.lanes]))
            changed.add(port.node)
    for port in lanes.readers:
        if np.any(log2[port.lanes]):
            _multiply(port, np.exp2(log2[port.lanes]))
            changed.add(port.node)
    for item in lanes.carried:
        if np.any(log2[item.lanes]):
            _carry(item, np.exp2(-log2[item.lanes]), lanes.of)
            changed.add(item.node)
    return len(changed)


def _divide(port: Port, factor: Array) -> None:
    node = port.node
    if port.weighted:
        fold = fold_after(node, Affine(factor, np.zeros_like(factor)))
        if isinstance(fold, str):
            raise ValueError(fold)
        fold.apply()
    elif node.op_type == "Mul":
        _multiply(port, factor)
    else:  # LayerNormalization: scale and bias
        for index in range(1, len(node.inputs)):
            _multiply_constant(node, index, factor)


def _multiply(port: Port, factor: Array) -> None:
    node = port.node
    if port.weighted:
        fold = fold_before(node, Affine(factor, np.zeros_like(factor)))
        if isinstance(fold, str):
            raise ValueError(fold)
        fold.apply()
        return
    index = 0 if constant(node.inputs[0]) is not None else 1
    array = constant(node.inputs[index])
    _multiply_constant(node, index, factor.reshape(array.shape if array is not None else ()))


def _carry(item: Carried, factor: Array, tracked: Mapping[ir.Value, Array]) -> None:
    if item.node.op_type == "Clip":
        _split_bounds(item.node, factor)
        return
    for index, value in enumerate(item.node.inputs):
        if value is not None and value not in tracked and constant(value) is not None:
            _multiply_constant(item.node, index, factor)


def _multiply_constant(node: ir.Node, index: int, factor: Array) -> None:
    array = constant(node.inputs[index])
    if array is not None:
        product = array.astype(np.float64) * _stripped(factor, array.ndim)
        set_constant(node, index, product.astype(array.dtype))


def _stripped(factor: Array, rank: int) -> Array:
    """Without leading axes of size 1 beyond `rank`."""
    while factor.ndim > rank and factor.shape[0] == 1:
        factor = factor[0]
    return factor


def _split_bounds(clip: ir.Node, factor: Array) -> None:
    """Clip(x, low, high)·f = Min(Max(x·f, low·f), high·f), with Relu for Max where low is 0."""
    found, graph, dtype = bounds_of(clip), clip.graph, clip.outputs[0].dtype
    if found is None or not isinstance(graph, ir.Graph) or dtype is None:
        raise ValueError(f"Clip '{layer_name(clip)}' has no constant bounds")
    value, bounds = found
    output, constants = clip.outputs[0], list(clip.inputs[1:])
    base = f"{output.name}"
    factor = _stripped(factor, 0)
    for operator, bound in (("Max", bounds.low), ("Min", bounds.high)):
        if np.isinf(bound):
            continue
        relu = operator == "Max" and bound == 0
        name = f"{base}_{operator.lower()}"
        limits = [] if relu else [add_initializer(graph, name, (bound * factor).astype(dtype.numpy()))]
        node = ir.node("Relu" if relu else operator, [value, *limits])
        graph.insert_before(clip, node)
        node.outputs[0].type, node.outputs[0].shape = output.type, output.shape
        node.name = f"{clip.name}/{operator.lower()}"
        node.outputs[0].name = f"{base}/{operator.lower()}"
        value = node.outputs[0]
    output.replace_all_uses_with(value)
    graph.remove(clip, safe=True)
    for item in constants:
        if item is not None:
            remove_unused_constant(item)
