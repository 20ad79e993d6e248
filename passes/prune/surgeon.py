"""The surgeon's ranking: one unit after the other goes, the one that the readers miss least when they are refitted.

W and G⁻¹ of each reader follow (`readers`). Of wide groups several units go at once, a 64th of those that are left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.analysis.channels import Group
from graphopt.passes.prune.readers import Reader, blocks

Array = np.ndarray[Any, Any]

_AT_ONCE = 64  # 1 of so many


def eliminate(group: Group, readers: Sequence[Reader]) -> tuple[Array, Array, float]:
    """The order in which the units go, as places in the group; what each costs then, of the readers' outputs' energy;
    and the mean of these energies.
    """
    states = [_State(reader, group) for reader in readers]
    left = np.ones(group.width, bool)
    order: list[int] = []
    scores: list[float] = []
    while left.any():
        losses = np.zeros(group.width)
        for state in states:
            losses += state.losses(left)
        losses[~left] = np.inf
        numbers = np.argsort(losses, kind="stable")[: max(1, int(left.sum()) // _AT_ONCE)]
        left[numbers] = False
        for state in states:
            state.remove(numbers)
        order += numbers.tolist()
        scores += (losses[numbers] / len(states)).tolist()
    return np.array(order), np.array(scores), float(np.mean([state.energy for state in states]))


@dataclass(frozen=True)
class _Blocks:
    """Units that a reader reads in one of its groups: their places, and their features, [units, as many of each]."""

    part: int
    numbers: Array
    features: Array


class _State:
    """Of one reader while units go: W, and G⁻¹, by group."""

    def __init__(self, reader: Reader, group: Group) -> None:
        gram = reader.gram
        self._weights = reader.matrix.copy()
        self._inverse = np.linalg.inv(gram)
        self.energy = max(float(np.einsum("gof,gfh,goh->", reader.matrix, gram, reader.matrix, optimize=True)), 1e-30)
        self._blocks = list(_equal(reader, group))

    def losses(self, left: Array) -> Array:
        """tr(W_S ([G⁻¹]_SS)⁻¹ W_Sᵀ) of each unit, of the energy of the output."""
        found = np.zeros(len(left))
        for each in self._blocks:
            here = left[each.numbers]
            if not here.any():
                continue
            features = each.features[here]
            weights = self._weights[each.part][:, features].transpose(1, 2, 0)
            block = self._inverse[each.part][features[:, :, None], features[:, None, :]]
            lost = np.einsum("ufo,ufo->u", weights, np.linalg.solve(block, weights))
            np.add.at(found, each.numbers[here], lost)
        return found / self.energy

    def remove(self, numbers: Array) -> None:
        """Refit W without the units, and take their rows and columns out of G⁻¹."""
        gone: dict[int, list[Array]] = {}
        for each in self._blocks:
            here = np.isin(each.numbers, numbers)
            gone.setdefault(each.part, []).append(each.features[here].ravel())
        for part, parts in gone.items():
            features = np.concatenate(parts)
            if not features.size:
                continue
            inverse, weights = self._inverse[part], self._weights[part]
            gain = np.linalg.solve(inverse[np.ix_(features, features)], inverse[features])
            weights -= weights[:, features] @ gain
            inverse -= inverse[:, features] @ gain
            weights[:, features] = 0
            inverse[features], inverse[:, features] = 0, 0
            inverse[features, features] = 1  # so that nothing divides by zero


def _equal(reader: Reader, group: Group) -> Iterator[_Blocks]:
    found: dict[tuple[int, int], list[tuple[int, Array]]] = {}
    for number, part, features in blocks(reader, group.units):
        found.setdefault((part, len(features)), []).append((number, features))
    for (part, _), each in found.items():
        yield _Blocks(part, np.array([number for number, _ in each]), np.stack([features for _, features in each]))
