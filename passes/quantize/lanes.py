"""Lanes: which channels of which values must be scaled by one number, so that a network computes the same.

Relu, pooling, reshaping, concatenation and the like commute with a positive scale of each channel: f(x/s) = f(x)/s.
Between the nodes that can take a scale into their weights lie such operators; a channel that comes through them keeps
its lane, an Add makes two lanes one, and whatever cannot take part (a sigmoid, an output of the graph) pins the lanes
that it reads. Each value holds an integer array of its lanes that broadcasts to its shape, so that Split, Concat,
Gather and channel shuffles act on it as they act on the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.passes.cleanup.constants import layer_name

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Port:
    """One side of a node whose constants take a scale: lanes [channels] of its result or of its operand.

    weighted: the node is a Conv, ConvTranspose, Gemm or MatMul; others multiply each channel by a number.
    """

    node: ir.Node
    lanes: Array
    weighted: bool


@dataclass(frozen=True)
class Carried:
    """A node between ports, one of whose constants is scaled with the numbers: `lanes` of the node's result."""

    node: ir.Node
    lanes: Array


@dataclass(frozen=True)
class Lanes:
    """The lanes of a graph.

    count: lanes are the numbers below it.
    makers: results that can be divided by a scale, in the order of the graph.
    readers: operands that can be multiplied by it.
    carried: Add, Sub, Min, Max and Clip with constants, which are divided too.
    pinned: the lanes that keep the scale 1, and why.
    of: the lanes of each value that has any, in an array that broadcasts to the value's shape.
    """

    count: int
    makers: tuple[Port, ...]
    readers: tuple[Port, ...]
    carried: tuple[Carried, ...]
    pinned: Mapping[int, str]
    of: Mapping[ir.Value, Array]


@dataclass
class Tracks:
    """Lanes while a graph is walked: joined ones still have numbers of their own."""

    count: int = 0
    of: dict[ir.Value, Array] = field(default_factory=dict)
    makers: list[Port] = field(default_factory=list)
    readers: list[Port] = field(default_factory=list)
    carried: list[Carried] = field(default_factory=list)
    pinned: dict[int, str] = field(default_factory=dict)
    _joined: list[tuple[Array, Array]] = field(default_factory=list)

    def fresh(self, channels: int) -> Array:
        """New lanes, [channels]."""
        lanes = np.arange(self.count, self.count + channels)
        self.count += channels
        return lanes

    def read(self, node: ir.Node, index: int = 0) -> Array | None:
        """The lanes of an input of `node`, if it has any."""
        value = node.inputs[index] if index < len(node.inputs) else None
        return self.of.get(value) if value is not None else None

    def join(self, one: Array, other: Array) -> None:
        """Let both share their scales; the arrays broadcast."""
        first, second = np.broadcast_arrays(one, other)
        self._joined.append((first.reshape(-1), second.reshape(-1)))

    def pin(self, lanes: Array, reason: str) -> None:
        """Keep the scale of these lanes 1; the first reason counts."""
        for lane in np.unique(lanes).tolist():
            self.pinned.setdefault(lane, reason)

    def pin_inputs(self, node: ir.Node, reason: str = "") -> None:
        """Pin all that `node` reads."""
        for value in node.inputs:
            if value is not None and value in self.of:
                self.pin(self.of[value], reason or f"{node.op_type} '{layer_name(node)}' reads it as it is")

    def is_pinned(self, lanes: Array) -> bool:
        """Whether some are known to be pinned already."""
        return any(lane in self.pinned for lane in np.unique(lanes).tolist())

    def settled(self) -> Lanes:
        """With one number for lanes that were joined."""
        roots = np.arange(self.count)
        one = np.concatenate([first for first, _ in self._joined]) if self._joined else roots[:0]
        other = np.concatenate([second for _, second in self._joined]) if self._joined else roots[:0]
        while np.any(roots[one] != roots[other]):
            lowest = np.minimum(roots[one], roots[other])
            np.minimum.at(roots, roots[one], lowest)
            np.minimum.at(roots, roots[other], lowest)
            roots = roots[roots]
        while np.any(roots[roots] != roots):
            roots = roots[roots]
        pinned: dict[int, str] = {}
        for lane, reason in self.pinned.items():
            pinned.setdefault(int(roots[lane]), reason)
        return Lanes(
            self.count,
            tuple(Port(port.node, roots[port.lanes], port.weighted) for port in self.makers),
            tuple(Port(port.node, roots[port.lanes], port.weighted) for port in self.readers),
            tuple(Carried(item.node, roots[item.lanes]) for item in self.carried),
            pinned,
            {value: roots[lanes] for value, lanes in self.of.items()},
        )


def rank_of(value: ir.Value | None) -> int | None:
    """The number of axes, if it is known."""
    return len(value.shape) if value is not None and value.shape is not None else None


def aligned(lanes: Array, rank: int) -> Array:
    """With axes of size 1 in front, as operands broadcast."""
    return lanes.reshape((1,) * (rank - lanes.ndim) + lanes.shape)
