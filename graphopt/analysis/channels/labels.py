"""Labels of channels: which positions of which axes must be removed together.

An axis of a value carries an array of labels, one number for each position. Positions with equal or linked labels go
together. Labels begin at the output axis of a weight and run forward through the graph; a rule for each operator says
how. An axis without labels stays whole.

A rule must *claim* each labelled axis of its inputs. What nobody claims, because the operator mixes the channels or is
not known, is protected at the end: so an edit that no rule vouches for cannot be made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.ir.reading import constant

Labels = np.ndarray[Any, np.dtype[np.int64]]


class Role(Enum):
    """What a constant's axis does with the channels that it is labelled with."""

    OUT = "out"  # a weight makes them: a row of a matrix for each
    IN = "in"  # a weight sums over them
    ALONG = "along"  # one parameter for each: bias, scale, slope


@dataclass(frozen=True)
class Slot:
    """`axis` of the constant that is input `index` of `node`."""

    node: ir.Node
    index: int
    axis: int
    role: Role

    @property
    def value(self) -> ir.Value:
        value = self.node.inputs[self.index]
        if value is None:
            raise ValueError(f"input {self.index} of '{self.node.name}' is missing")
        return value


class Labelling:
    """The labels of a graph while rules run over it.

    axes: by value, by axis: labels, [size of the axis].
    slots: the axes of constants that hold channels.
    links: pairs of arrays of labels that go together.
    protected: labels that must stay, and why.
    hidden_width: whether normalizations over the channels may lose some of them.
    """

    def __init__(self, *, hidden_width: bool = False) -> None:
        self.axes: dict[ir.Value, dict[int, Labels]] = {}
        self.slots: dict[tuple[ir.Node, int, int], Slot] = {}
        self.links: list[tuple[Labels, Labels]] = []
        self.protected: list[tuple[Labels, str]] = []
        self.count = 0
        self.hidden_width = hidden_width
        self._claimed: set[tuple[ir.Node, int, int]] = set()

    def fresh(self, size: int) -> Labels:
        """Labels that nothing has yet."""
        self.count += size
        return np.arange(self.count - size, self.count)

    def link(self, one: Labels, other: Labels) -> None:
        """The positions of both go together, one by one. They broadcast."""
        if one is not other:
            self.links.append((one, other))

    def protect(self, labels: Labels, reason: str) -> None:
        """Let them stay."""
        self.protected.append((labels.reshape(-1), reason))

    def of(self, value: ir.Value | None, axis: int) -> Labels | None:
        """The labels of an axis that some rule wrote."""
        return self.axes.get(value, {}).get(axis) if value is not None else None

    def write(self, value: ir.Value, axis: int, labels: Labels | None) -> None:
        """Say what an output carries."""
        if labels is not None:
            self.axes.setdefault(value, {})[axis] = labels

    def claim(self, node: ir.Node, index: int, axis: int) -> Labels | None:
        """The labels of a computed input's axis, which the rule vouches for; None if it stays whole."""
        self._claimed.add((node, index, axis))
        return self.of(node.inputs[index], axis)

    def label(self, node: ir.Node, index: int, axis: int, role: Role) -> Labels:
        """The labels of a constant's axis, new ones where it has none."""
        value = node.inputs[index]
        array = constant(value)
        if value is None or array is None:
            raise ValueError(f"input {index} of '{node.name}' is no constant")
        self._claimed.add((node, index, axis))
        self.slots.setdefault((node, index, axis), Slot(node, index, axis, role))
        known = self.of(value, axis)
        if known is None:
            known = self.fresh(array.shape[axis])
            self.write(value, axis, known)
        return known

    def tie(self, node: ir.Node, index: int, axis: int, labels: Labels, role: Role = Role.ALONG) -> None:
        """Let an input's axis go with `labels`; where the input is computed and stays whole, they are protected."""
        value = node.inputs[index]
        if constant(value) is not None:
            self.link(self.label(node, index, axis, role), labels)
            return
        known = self.claim(node, index, axis)
        if known is not None:
            self.link(known, labels)
        else:
            self.protect(labels, f"{node.op_type} '{node.name}' joins them with '{_name(value)}', which stays whole")

    def protect_unclaimed(self, values: Iterator[ir.Value]) -> None:
        """Protect what nobody vouches for: outputs of the graph, and uses that no rule claimed."""
        for value in values:
            for axis, labels in self.axes.get(value, {}).items():
                if value.is_graph_output():
                    self.protect(labels, f"they reach the output '{value.name}'")
                for use in value.uses():
                    if (use.node, use.idx, axis) not in self._claimed:
                        self.protect(labels, f"{use.node.op_type} '{use.node.name}' computes across axis {axis}")


def _name(value: ir.Value | None) -> str:
    return "nothing" if value is None or value.name is None else value.name
