"""Coupled groups of channels: what can leave a graph, and what must leave with it.

After the rules have run over the graph, linked labels form *units*: the smallest sets of positions that can go by
themselves (one channel of a layer, with everything that belongs to it). Units that touch the same axes of the same
constants form a *group*: its units are alike, any number of them can go, and they can be compared with each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
import onnx_ir as ir

from graphopt.analysis.channels.labels import Labelling, Labels, Role, Slot
from graphopt.analysis.channels.rules import RULES
from graphopt.ir.reading import is_standard

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Group:
    """Units that are alike.

    units: their numbers, in the order of the first axis that they touch.
    slots: axes of constants that they touch; for each, `Channels.units_of` tells the unit of each position.
    protection: why no unit may go; empty if any may.
    """

    units: Labels
    slots: tuple[Slot, ...]
    protection: tuple[str, ...]

    @property
    def width(self) -> int:
        """How many units there are."""
        return len(self.units)

    def weights(self, role: Role) -> tuple[Slot, ...]:
        """The slots with that role."""
        return tuple(slot for slot in self.slots if slot.role is role)

    @property
    def name(self) -> str:
        """The first layer that makes the channels."""
        made = self.weights(Role.OUT) or self.slots
        return made[0].node.name or made[0].node.op_type


@dataclass(frozen=True)
class Channels:
    """The channels of a graph.

    groups: in the order of the graph.
    axes: by value and axis, the unit of each position; also of computed values.
    count: how many units there are; they are numbered from 0.
    """

    groups: tuple[Group, ...]
    axes: Mapping[ir.Value, Mapping[int, Labels]]
    count: int

    def units_of(self, value: ir.Value | None, axis: int) -> Labels | None:
        """The unit of each position of an axis; None if it stays whole."""
        return self.axes.get(value, {}).get(axis) if value is not None else None


def channels(graph: ir.Graph, *, hidden_width: bool = False) -> Channels:
    """Which channels of `graph` must go together.

    Args:
        graph: with shapes. What its values are to If, Loop and Scan is not followed: they are protected there.
        hidden_width: whether channels that a LayerNormalization sums over may go. Its result then changes, even if
            they held nothing.
    """
    state = Labelling(hidden_width=hidden_width)
    for node in graph:
        rule = RULES.get(node.op_type) if is_standard(node) else None
        if rule is not None:
            rule(node, state)
    state.protect_unclaimed(iter(tuple(state.axes)))
    unit_of, count = _components(state)
    reasons = _reasons(state, unit_of)
    axes = {value: {axis: unit_of[labels] for axis, labels in found.items()} for value, found in state.axes.items()}
    return Channels(tuple(_groups(state, axes, reasons, count)), axes, count)


def _components(state: Labelling) -> tuple[Labels, int]:
    """The unit of each label."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs = [np.broadcast_arrays(one, other) for one, other in state.links]
    rows = np.concatenate([np.zeros(0, np.int64), *(one.reshape(-1) for one, _ in pairs)])
    columns = np.concatenate([np.zeros(0, np.int64), *(other.reshape(-1) for _, other in pairs)])
    size = (state.count, state.count)
    count, found = connected_components(coo_array((np.ones(len(rows), np.int8), (rows, columns)), size), directed=False)
    return found.astype(np.int64), int(count)


def _reasons(state: Labelling, unit_of: Labels) -> dict[int, dict[str, None]]:
    """By unit, why it must stay."""
    reasons: dict[int, dict[str, None]] = {}
    for labels, reason in state.protected:
        for unit in np.unique(unit_of[labels]):
            reasons.setdefault(int(unit), {})[reason] = None
    return reasons


def _groups(
    state: Labelling,
    axes: Mapping[ir.Value, Mapping[int, Labels]],
    reasons: Mapping[int, Mapping[str, None]],
    count: int,
) -> Iterator[Group]:
    slots = list(state.slots.values())
    touched: list[list[int]] = [[] for _ in range(count)]
    for number, slot in enumerate(slots):
        for unit in dict.fromkeys(axes[slot.value][slot.axis].tolist()):
            touched[unit].append(number)
    alike: dict[tuple[tuple[int, ...], tuple[str, ...]], list[int]] = {}
    for unit, numbers in enumerate(touched):
        if numbers:
            alike.setdefault((tuple(numbers), tuple(reasons.get(unit, ()))), []).append(unit)
    for (places, protection), units in alike.items():
        held = tuple(slots[place] for place in places)
        first = axes[held[0].value][held[0].axis]
        order = {unit: place for place, unit in reversed(list(enumerate(first.tolist())))}
        yield Group(np.array(sorted(units, key=lambda unit: order[unit])), held, protection)


def connections(found: Channels) -> nx.Graph[int]:
    """Groups, by their index, that share a layer: a node for each group, and an edge where one's channels enter, and
    another's leave, the same node. The edge's `layers` are the names of those nodes.
    """
    graph: nx.Graph[int] = nx.Graph()
    graph.add_nodes_from(range(len(found.groups)))
    by_node: dict[ir.Node, list[int]] = {}
    for index, group in enumerate(found.groups):
        for node in dict.fromkeys(slot.node for slot in group.slots):
            by_node.setdefault(node, []).append(index)
    for node, indices in by_node.items():
        for position, one in enumerate(indices):
            for other in indices[position + 1 :]:
                if not graph.has_edge(one, other):
                    graph.add_edge(one, other, layers=[])
                graph.edges[one, other]["layers"].append(node.name)
    return graph
