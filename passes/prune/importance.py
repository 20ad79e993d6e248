"""Importance: in which order the units of a group should go, the least important first.

What a unit is worth is reduced over everything that is coupled in it. `l1`, `l2` and `fpgm` look at the weights that
make the channels (H. Li and others, Pruning filters for efficient convnets, 2017; Y. He and others, Filter pruning via
geometric median, 2019), `lamp` divides their squares by what is left of the layer (J. Lee and others, Layer-adaptive
sparsity, 2021), `activation` at what the readers get: weight times norm of the input (M. Sun and others, Wanda, 2024),
`surgeon` at what the readers miss when they are refitted, one unit after the other (`readers`).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.channels import Channels, Group, Role
from graphopt.ir.reading import constant
from graphopt.passes.prune.readers import Reader, blocks

Array = np.ndarray[Any, Any]


class Importance(enum.Enum):
    """What a unit is judged by."""

    L1 = "l1"
    L2 = "l2"
    FPGM = "fpgm"
    LAMP = "lamp"
    ACTIVATION = "activation"
    SURGEON = "surgeon"
    RANDOM = "random"


NEEDS_DATA = frozenset({Importance.ACTIVATION, Importance.SURGEON})


@dataclass(frozen=True)
class Ranking:
    """Of a group.

    order: its units, [width], the least important first.
    scores: of each in that order: what is lost with it and those before it, relative to what the group does.
        Rising.
    """

    order: Array
    scores: Array


def rank(
    group: Group, found: Channels, readers: Mapping[ir.Node, Reader], importance: Importance, rng: np.random.Generator
) -> Ranking:
    """The ranking of a group's units; without readers that can be measured, by l2."""
    if importance is Importance.RANDOM:
        return _ranked(group, rng.random(group.width))
    if importance in NEEDS_DATA:
        mine = [readers[node] for node in dict.fromkeys(s.node for s in group.weights(Role.IN)) if node in readers]
        if mine:
            return _surgeon(group, mine) if importance is Importance.SURGEON else _activation(group, mine)
        importance = Importance.L2
    return _ranked(group, _by_weights(group, found, _OF_WEIGHTS[importance]))


def _ranked(group: Group, scores: Array) -> Ranking:
    """By the share of each in the sum."""
    shares = scores / max(float(scores.sum()), 1e-30)
    order = np.argsort(shares, kind="stable")
    return Ranking(group.units[order], np.cumsum(shares[order]))


def _by_weights(group: Group, found: Channels, score: Callable[[Array, Array, int], Array]) -> Array:
    """The mean over the weights that make the channels, each relative to its own mean."""
    total = np.zeros(group.width)
    slots = group.weights(Role.OUT) or group.slots
    place = {int(unit): number for number, unit in enumerate(group.units)}
    for slot in slots:
        array, units = constant(slot.value), found.units_of(slot.value, slot.axis)
        if array is None or units is None or array.dtype.kind != "f":
            continue
        numbers = np.array([place.get(int(unit), -1) for unit in units])
        rows = np.moveaxis(array, slot.axis, 0).reshape(len(units), -1).astype(np.float64)[numbers >= 0]
        scores = score(rows, numbers[numbers >= 0], group.width)
        total += scores / max(float(scores.mean()), 1e-30)
    return total / max(len(slots), 1)


def _norm(order: int) -> Callable[[Array, Array, int], Array]:
    def score(rows: Array, numbers: Array, width: int) -> Array:
        powers = np.bincount(numbers, (np.abs(rows) ** order).sum(axis=1), width)
        return powers ** (1 / order)

    return score


def _fpgm(rows: Array, numbers: Array, width: int) -> Array:
    """The sum of distances to all other filters: one in the middle can be replaced by the others."""
    squares = np.square(rows).sum(axis=1)
    distances = np.sqrt(np.maximum(squares[:, None] + squares - 2 * rows @ rows.T, 0))
    return np.bincount(numbers, distances.sum(axis=1), width)


def _lamp(rows: Array, numbers: Array, width: int) -> Array:
    squares = np.bincount(numbers, np.square(rows).sum(axis=1), width)
    order = np.argsort(squares, kind="stable")
    left = np.cumsum(squares[order][::-1])[::-1]
    scores = np.empty(width)
    scores[order] = squares[order] / np.maximum(left, 1e-30)
    return scores


_OF_WEIGHTS: Mapping[Importance, Callable[[Array, Array, int], Array]] = {
    Importance.L1: _norm(1),
    Importance.L2: _norm(2),
    Importance.FPGM: _fpgm,
    Importance.LAMP: _lamp,
}


def _activation(group: Group, readers: list[Reader]) -> Ranking:
    """Σ over the unit's features of ‖column of W‖² E[x²], relative to the sum."""
    total = np.zeros(group.width)
    for reader in readers:
        power = np.square(reader.matrix).sum(axis=1) * np.diagonal(reader.gram, axis1=1, axis2=2)
        for number, part, features in blocks(reader, group.units):
            total[number] += power[part, features].sum() / max(float(power.sum()), 1e-30)
    return _ranked(group, total)


def _surgeon(group: Group, readers: list[Reader]) -> Ranking:
    """One unit after the other goes, the one that the readers miss least; W and G⁻¹ follow."""
    states = [_State(reader, group) for reader in readers]
    left = np.ones(group.width, bool)
    order, scores = [], []
    for _ in range(group.width):
        losses = np.zeros(group.width)
        for state in states:
            losses += state.losses(left)
        losses[~left] = np.inf
        number = int(np.argmin(losses))
        left[number] = False
        for state in states:
            state.remove(number)
        order.append(number)
        scores.append(float(losses[number]) / len(states))
    return Ranking(group.units[np.array(order)], np.maximum.accumulate(np.cumsum(scores)))


class _State:
    """Of one reader while units go: W, and G⁻¹, by group."""

    def __init__(self, reader: Reader, group: Group) -> None:
        gram = reader.gram
        self._weights = reader.matrix.copy()
        self._inverse = np.linalg.inv(gram)
        self._energy = max(float(np.einsum("gof,gfh,goh->", reader.matrix, gram, reader.matrix, optimize=True)), 1e-30)
        self._blocks: dict[int, list[tuple[int, Array]]] = {}
        for number, part, features in blocks(reader, group.units):
            self._blocks.setdefault(number, []).append((part, features))

    def losses(self, left: Array) -> Array:
        """tr(W_S ([G⁻¹]_SS)⁻¹ W_Sᵀ) of each unit, of the energy of the output."""
        found = np.zeros(len(left))
        for number, parts in self._blocks.items():
            if left[number]:
                for part, features in parts:
                    weights = self._weights[part][:, features]
                    block = self._inverse[part][np.ix_(features, features)]
                    found[number] += float(np.sum(weights * np.linalg.solve(block, weights.T).T))
        return found / self._energy

    def remove(self, number: int) -> None:
        """Refit W without the unit, and take its rows and columns out of G⁻¹."""
        for part, features in self._blocks.get(number, ()):
            inverse, weights = self._inverse[part], self._weights[part]
            block = inverse[np.ix_(features, features)]
            gain = np.linalg.solve(block, inverse[features])
            weights -= weights[:, features] @ gain
            inverse -= inverse[:, features] @ gain
            weights[:, features] = 0
            inverse[features], inverse[:, features] = 0, 0
            inverse[features, features] = 1  # so that nothing divides by zero
