"""Normalization: what makes the scores of units of different groups comparable, for one threshold over all of them.

cumulated       what goes with a unit and those below it, of the sum over its group.
sum, mean, max  its own score by that of its group (as Torch-Pruning has them; sum spares wide groups least).
none            its own score.
isomorphic      its rank among all units of groups that are built alike, so that each class gives the same fraction
                (G. Fang and others, Isomorphic pruning for vision models, 2024).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from graphopt.analysis.channels import Group
from graphopt.passes.prune.importance import Ranking

Array = np.ndarray[Any, Any]


class Normalization(enum.Enum):
    """What units of different groups are compared by."""

    CUMULATED = "cumulated"
    SUM = "sum"
    MEAN = "mean"
    MAX = "max"
    NONE = "none"
    ISOMORPHIC = "isomorphic"


def comparable(groups: Sequence[Group], rankings: Sequence[Ranking], normalization: Normalization) -> list[Array]:
    """For each group the scores of its units in the order of its ranking, rising."""
    if normalization is Normalization.ISOMORPHIC:
        return _ranks(groups, rankings)
    if normalization is Normalization.CUMULATED:
        return [each.scores for each in rankings]
    size = _SIZES[normalization]
    return [each.own / max(size(each.own), 1e-30) for each in rankings]


_SIZES: Mapping[Normalization, Callable[[Array], float]] = {
    Normalization.SUM: lambda scores: float(scores.sum()),
    Normalization.MEAN: lambda scores: float(scores.mean()),
    Normalization.MAX: lambda scores: float(scores.max()),
    Normalization.NONE: lambda scores: 1.0,
}


def _ranks(groups: Sequence[Group], rankings: Sequence[Ranking]) -> list[Array]:
    """The share of units of the same class with no higher score."""
    kinds = [kind_of(group) for group in groups]
    pools = {
        kind: np.sort(np.concatenate([each.own for each, other in zip(rankings, kinds, strict=True) if other == kind]))
        for kind in dict.fromkeys(kinds)
    }
    return [
        np.searchsorted(pools[kind], each.own, side="right") / len(pools[kind])
        for each, kind in zip(rankings, kinds, strict=True)
    ]


def kind_of(group: Group) -> tuple[tuple[str, int, int, str], ...]:
    """What groups that are built alike have in common: the operators that they touch, where, and what for."""
    return tuple(sorted((slot.node.op_type, slot.index, slot.axis, slot.role.value) for slot in group.slots))
