"""Importance: in which order the units of a group should go, the least important first.

What a unit is worth is reduced over everything that is coupled in it.

l1, l2      the norm of the weights that make it (H. Li and others, Pruning filters for efficient convnets, 2017).
fpgm        their distance to those of all other units (Y. He and others, Filter pruning via geometric median, 2019).
lamp        ‖W_u‖² / Σ ‖W_v‖² over the units v of the group with ‖W_v‖ ≥ ‖W_u‖, which can be compared across groups: the
            last unit of each has 1 (J. Lee and others, Layer-adaptive sparsity, 2021, by units). Within a group, as l2.
scale       |γ| of the batch normalizations behind it (Z. Liu and others, Network slimming, 2017). Clean-up folds them
            into the weights, so that the pass has to come before it.
variance    of what the readers get: a channel that is constant can become a bias.
magnitude   E|x| of what the readers get (A. Polyak and L. Wolf, Channel-level acceleration, 2015).
activation  weight times norm of the input (M. Sun and others, Wanda, 2024).
surgeon     what the readers miss when they are refitted, one unit after the other (`readers`).
taylor, fisher   what the gradients of a classifier's loss say (`gradients`).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.channels import Channels, Group, Role, Slot
from graphopt.ir.reading import constant, is_standard
from graphopt.passes.prune.readers import Reader, blocks
from graphopt.passes.prune.surgeon import eliminate

Array = np.ndarray[Any, Any]


class Importance(enum.Enum):
    """What a unit is judged by."""

    L1 = "l1"
    L2 = "l2"
    FPGM = "fpgm"
    LAMP = "lamp"
    SCALE = "scale"
    VARIANCE = "variance"
    MAGNITUDE = "magnitude"
    ACTIVATION = "activation"
    SURGEON = "surgeon"
    TAYLOR = "taylor"
    FISHER = "fisher"
    RANDOM = "random"


NEEDS_GRADIENTS = frozenset({Importance.TAYLOR, Importance.FISHER})
_NEEDS_READERS = frozenset({Importance.VARIANCE, Importance.MAGNITUDE, Importance.ACTIVATION, Importance.SURGEON})
NEEDS_DATA = NEEDS_GRADIENTS | _NEEDS_READERS


@dataclass(frozen=True)
class Ranking:
    """Of a group.

    order: its units, [width], the least important first.
    scores: of each in that order, rising: what is lost with it and those before it, relative to what the group does; of
        lamp the unit's own score, which has those above it in it.
    own: of each in that order, rising: its own score, relative to nothing.
    """

    order: Array
    scores: Array
    own: Array


def rank(
    group: Group,
    found: Channels,
    readers: Mapping[ir.Node, Reader],
    importance: Importance,
    rng: np.random.Generator,
    gradients: Array | None = None,
) -> Ranking:
    """The ranking of a group's units; by l2 where readers count and most cannot be measured.

    Args:
        gradients: the score of each unit, [found.count], where importance needs gradients.
    """
    if importance is Importance.RANDOM:
        return _ranked(group, rng.random(group.width))
    if importance in NEEDS_GRADIENTS:
        if gradients is None:
            raise ValueError(f"{importance.value} needs gradients")
        return _ranked(group, gradients[group.units])
    if importance in _NEEDS_READERS:
        nodes = dict.fromkeys(slot.node for slot in group.weights(Role.IN))
        mine = [readers[node] for node in nodes if node in readers]
        enough = 2 * len(mine) > len(nodes)
        if enough and importance is Importance.SURGEON:
            return _surgeon(group, mine)
        if enough:
            return _ranked(group, _by_features(group, mine, _OF_FEATURES[importance]))
        importance = Importance.L2
    if importance is Importance.SCALE:
        return _ranked(group, _by_constants(group, found, _scales(group), _norm(1)))
    slots = group.weights(Role.OUT) or group.slots
    if importance is Importance.LAMP:
        return _lamp(group, np.square(_by_constants(group, found, slots, _norm(2))))
    return _ranked(group, _by_constants(group, found, slots, _OF_WEIGHTS[importance]))


def why_not(group: Group, importance: Importance) -> str:
    """Why the units of a group cannot be judged; nothing if they can."""
    if importance is Importance.SCALE and not _scales(group):
        return "no batch normalization behind them has a scale; clean-up folds it, so prune before"
    return ""


def _scales(group: Group) -> tuple[Slot, ...]:
    return tuple(slot for slot in group.slots if is_standard(slot.node, "BatchNormalization") and slot.index == 1)


def _ranked(group: Group, scores: Array) -> Ranking:
    """By the share of each in the sum."""
    shares = scores / max(float(scores.sum()), 1e-30)
    order = np.argsort(shares, kind="stable")
    return Ranking(group.units[order], np.cumsum(shares[order]), scores[order])


def _by_constants(
    group: Group, found: Channels, slots: tuple[Slot, ...], score: Callable[[Array, Array, int], Array]
) -> Array:
    """The mean over the constants of the scores of each relative to their mean, times the mean of all scores."""
    total, means = np.zeros(group.width), [0.0]
    place = {int(unit): number for number, unit in enumerate(group.units)}
    for slot in slots:
        array, units = constant(slot.value), found.units_of(slot.value, slot.axis)
        if array is None or units is None or array.dtype.kind != "f":
            continue
        numbers = np.array([place.get(int(unit), -1) for unit in units])
        rows = np.moveaxis(array, slot.axis, 0).reshape(len(units), -1).astype(np.float64)[numbers >= 0]
        scores = score(rows, numbers[numbers >= 0], group.width)
        means.append(float(scores.mean()))
        total += scores / max(means[-1], 1e-30)
    count = max(len(means) - 1, 1)
    return total / count * (sum(means) / count)


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


def _lamp(group: Group, squares: Array) -> Ranking:
    order = np.argsort(squares, kind="stable")
    left = np.cumsum(squares[order][::-1])[::-1]
    scores = squares[order] / np.maximum(left, 1e-30)
    return Ranking(group.units[order], scores, scores)


_OF_WEIGHTS: Mapping[Importance, Callable[[Array, Array, int], Array]] = {
    Importance.L1: _norm(1),
    Importance.L2: _norm(2),
    Importance.FPGM: _fpgm,
}


def _by_features(group: Group, readers: list[Reader], score: Callable[[Reader], Array]) -> Array:
    """The sum over the features of a unit, [groups, features] of each reader, relative to the sum of all, times the
    mean over the readers of these sums.
    """
    total = np.zeros(group.width)
    powers = [score(reader) for reader in readers]
    for reader, power in zip(readers, powers, strict=True):
        for number, part, features in blocks(reader, group.units):
            total[number] += power[part, features].sum() / max(float(power.sum()), 1e-30)
    return total * float(np.mean([power.sum() for power in powers]))


def _activation(reader: Reader) -> Array:
    """‖column of W‖² E[x²]."""
    power: Array = np.square(reader.matrix).sum(axis=1) * np.diagonal(reader.gram, axis1=1, axis2=2)
    return power


def _variance(reader: Reader) -> Array:
    squares = np.diagonal(reader.moments, axis1=1, axis2=2) / max(reader.count, 1)
    found: Array = np.maximum(squares - np.square(reader.mean), 0)
    return found


def _magnitude(reader: Reader) -> Array:
    found: Array = reader.magnitudes / max(reader.count, 1)
    return found


_OF_FEATURES: Mapping[Importance, Callable[[Reader], Array]] = {
    Importance.ACTIVATION: _activation,
    Importance.VARIANCE: _variance,
    Importance.MAGNITUDE: _magnitude,
}


def _surgeon(group: Group, readers: list[Reader]) -> Ranking:
    order, scores, energy = eliminate(group, readers)
    return Ranking(group.units[order], np.maximum.accumulate(np.cumsum(scores)), np.maximum.accumulate(scores) * energy)
