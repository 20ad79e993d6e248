"""Allocation: how many units each group gives, so that a given budget of MACs, weights or time is left.

uniform      the same fraction of each.
global       all units are compared by their scores: a group goes as far as a common threshold lets it.
sensitivity  by what the model's output loses, measured group by group at several widths: as in greedy solutions of a
             knapsack, the next units come from the group where they cost least for what they save.

A group keeps at least a fraction of its units; where it is wide enough, a multiple of what the target's kernels like.
"""

from __future__ import annotations

import bisect
import enum
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.analysis.channels import Channels
from graphopt.passes.prune.budget import Budget
from graphopt.passes.prune.importance import Ranking

Array = np.ndarray[Any, Any]

_BISECTIONS = 40
_FAR = 0.1  # of the whole: by so much a step that is too large misses the target


class Allocation(enum.Enum):
    """How the units that go are shared out among the groups."""

    UNIFORM = "uniform"
    GLOBAL = "global"
    SENSITIVITY = "sensitivity"


@dataclass(frozen=True)
class Candidate:
    """A group that may lose units: its ranking, and the numbers of units that it may lose, rising from 0."""

    ranking: Ranking
    levels: tuple[int, ...]

    def gone(self, level: int) -> Array:
        """The units that go at the `level`-th of its levels."""
        return self.ranking.order[: self.levels[level]]


def levels(width: int, *, least: float, multiple: int, before: int | None = None) -> tuple[int, ...]:
    """How many units of `width` may go.

    Args:
        least: the fraction of `before` that stays, of 1 unit at least.
        multiple: of which what stays is one, where the group is at least twice as wide.
        before: the width that the group had before it was pruned first; `width` without.
    """
    floor = max(1, int(np.ceil(least * (width if before is None else before))))
    step = multiple if width >= 2 * multiple else 1
    return (0, *sorted(width - kept for kept in range(floor, width) if kept % step == 0))


def closest(attempts: Iterable[Array], budget: Budget, target: float) -> Array:
    """Of what stays by each attempt, made in turn, the first that leaves not far less than `target`, or else the most
    that meets it.
    """
    best: Array | None = None
    for stays in attempts:
        left = budget.left(stays)
        if best is None or budget.left(best) < left <= target:
            best = stays
        if left >= target - _FAR * budget.total:
            break
    if best is None:
        raise ValueError("there are no attempts")
    return best


def uniform(
    candidates: Sequence[Candidate], widths: Sequence[int], budget: Budget, kept: Array, target: float
) -> Array:
    """What stays, bool [count]: the smallest common fraction goes that leaves at most `target`."""

    def chosen(fraction: float) -> list[int]:
        return [
            max(i for i, level in enumerate(each.levels) if level <= fraction * width + 1e-9)
            for each, width in zip(candidates, widths, strict=True)
        ]

    return _least(candidates, budget, kept, target, chosen, 1.0)


def by_threshold(
    candidates: Sequence[Candidate], scores: Sequence[Array], budget: Budget, kept: Array, target: float
) -> Array:
    """What stays, bool [count]: the smallest common threshold of the scores that leaves at most `target`.

    Args:
        scores: of each candidate's units in the order of its ranking, rising.
    """

    def chosen(threshold: float) -> list[int]:
        return [
            max(i for i, n in enumerate(each.levels) if n == 0 or mine[n - 1] <= threshold)
            for each, mine in zip(candidates, scores, strict=True)
        ]

    highest = max((float(mine[-1]) for mine in scores), default=1.0)
    return _least(candidates, budget, kept, target, chosen, highest)


def keep_one(found: Channels, kept: Array, rankings: Sequence[Ranking]) -> Array:
    """`kept`, where no axis loses all: the most important unit that it would lose stays."""
    worth = np.zeros(found.count)
    for each in rankings:
        worth[each.order] = np.arange(len(each.order))
    for axes in found.axes.values():
        for units in axes.values():
            if units.size and not kept[units].any():
                kept[units[int(np.argmax(worth[units]))]] = True
    return kept


def _least(
    candidates: Sequence[Candidate],
    budget: Budget,
    kept: Array,
    target: float,
    chosen: Callable[[float], list[int]],
    high: float,
) -> Array:
    """What stays with the smallest argument of `chosen` that meets the target."""
    low = 0.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if budget.left(_after(candidates, kept, chosen(middle))) > target:
            low = middle
        else:
            high = middle
    at, steps = chosen(low), dict(enumerate(chosen(high)))
    while steps and budget.left(_after(candidates, kept, at)) > target:  # many take a step at once: only those needed
        left = {
            number: budget.left(_after(candidates, kept, [*at[:number], level, *at[number + 1 :]]))
            for number, level in steps.items()
        }
        enough = [number for number in left if left[number] <= target]
        number = max(enough, key=left.__getitem__) if enough else min(left, key=left.__getitem__)
        at[number] = steps.pop(number)
    return _after(candidates, kept, at)


def by_loss(
    candidates: Sequence[Candidate], losses: Sequence[Array], budget: Budget, kept: Array, target: float
) -> Array:
    """What stays, bool [count], with the least sum of losses that greed finds for at most `target`.

    Args:
        losses: of each candidate, at each of its levels: the noise that it adds to the model's output.
    """
    at = [0] * len(candidates)
    stays = kept.copy()
    touched = [budget.touched(each.ranking.order) for each in candidates]
    offers: dict[int, tuple[float, int]] = {}  # of each group, the lowest price, and the level that has it
    stale = set(range(len(candidates)))
    while budget.left(stays) > target:
        for number in stale:
            each, loss = candidates[number], losses[number]
            offers[number] = (np.inf, 0)
            for level in range(at[number] + 1, len(each.levels)):
                saved = budget.saved(stays, each.gone(level), touched[number])
                price = (loss[level] - loss[at[number]]) / saved if saved > 0 else np.inf
                if price < offers[number][0]:
                    offers[number] = (price, level)
        price, number = min(((price, number) for number, (price, _) in offers.items()), default=(np.inf, 0))
        if price == np.inf:
            return stays
        at[number] = offers[number][1]
        stays[candidates[number].gone(at[number])] = False
        stale = {other for other, places in enumerate(touched) if not set(places).isdisjoint(touched[number])}
    _give_back(candidates, losses, budget, kept, target, at)
    return _after(candidates, kept, at)


def _give_back(
    candidates: Sequence[Candidate],
    losses: Sequence[Array],
    budget: Budget,
    kept: Array,
    target: float,
    at: list[int],
) -> None:
    """Lower levels of `at` while the target stays met, in each turn that of the group which recovers most: units that
    seem to cost nothing stay, too.
    """

    touched = [budget.touched(each.ranking.order) for each in candidates]

    def met(number: int, level: int) -> bool:
        other = stays.copy()
        other[candidates[number].ranking.order] = kept[candidates[number].ranking.order]
        other[candidates[number].gone(level)] = False
        return left - budget.left(stays, touched[number]) + budget.left(other, touched[number]) <= target

    while True:
        stays = _after(candidates, kept, at)
        left = budget.left(stays)
        best, step = -1.0, None
        for number, loss in enumerate(losses):
            level = bisect.bisect_left(range(at[number]), True, key=functools.partial(met, number))
            if level < at[number] and loss[at[number]] - loss[level] > best:
                best, step = loss[at[number]] - loss[level], (number, level)
        if step is None:
            return
        at[step[0]] = step[1]


def _after(candidates: Sequence[Candidate], kept: Array, at: Sequence[int]) -> Array:
    stays = kept.copy()
    for each, level in zip(candidates, at, strict=True):
        stays[each.gone(level)] = False
    return stays
