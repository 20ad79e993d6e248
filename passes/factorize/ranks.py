"""How far each layer goes: the ranks that pay, and the choice among them for a given saving.

A rank pays where the target computes the two factors sooner than the layer, and they lose no more of its output's
energy than is allowed. Ranks are shared out as in greedy solutions of a knapsack: the next step is taken by the layer
where it costs the model's output least for what it saves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.passes.factorize.costs import Saving, cost_of
from graphopt.passes.factorize.forms import Form
from graphopt.passes.factorize.kernel_time import Kernels
from graphopt.passes.factorize.layers import Layer
from graphopt.passes.factorize.vbmf import evbmf_rank

Array = np.ndarray[Any, Any]

_MOST_RANKS = 24  # of a layer, that are compared
_ALIKE, _NOTHING = 1.05, 1e-6  # losses that are as good as the least


@dataclass(frozen=True)
class Candidate:
    """A layer that may be factored, and the ranks that pay, falling.

    lost: by rank, the fraction of the energy of the layer's output. saved: by rank, of what is to be saved.
    """

    layer: Layer
    form: Form
    ranks: tuple[int, ...]
    lost: tuple[float, ...]
    saved: tuple[float, ...]


def candidate(
    layer: Layer, form: Form, kernels: Kernels, saving: Saving, multiple: int, most_lost: float
) -> Candidate | str:
    """The ranks of a layer that pay, or why there is none."""
    step = multiple if form.full_rank >= 2 * multiple else 1
    now, whole = (cost_of([layer.product], kernels, kind) for kind in (Saving.TIME, saving))

    def cost(rank: int, kind: Saving) -> float:
        return cost_of(form.products(rank), kernels, kind)

    cheaper = [
        rank
        for rank in range(step, form.full_rank, step)
        if cost(rank, Saving.TIME) < now and cost(rank, saving) < whole
    ]
    if not cheaper:
        least, factors = cost(step, Saving.TIME), len(form.products(step))
        count = {2: "two", 3: "three"}[factors]
        return f"{count} factors of rank {step} take an estimated {least:,.0f} cycles, and the layer {now:,.0f}"
    ranks = [rank for rank in reversed(cheaper) if form.lost(rank) <= most_lost]
    if not ranks:
        lost = 100 * form.lost(cheaper[-1])
        return (
            f"rank {cheaper[-1]}, the largest that takes less time, loses {lost:.1f} % of its output's energy, "
            f"more than {100 * most_lost:.1f} %"
        )
    ranks = [ranks[i] for i in sorted({round(i) for i in np.linspace(0, len(ranks) - 1, min(len(ranks), _MOST_RANKS))})]
    saved = tuple(whole - cost(rank, saving) for rank in ranks)
    return Candidate(layer, form, tuple(ranks), tuple(map(form.lost, ranks)), saved)


def best_candidate(
    layer: Layer, forms: Sequence[Form], kernels: Kernels, saving: Saving, multiple: int, most_lost: float
) -> Candidate | str:
    """Of the form that saves most within `most_lost`; why there is none, as the first form says."""
    found = [candidate(layer, form, kernels, saving, multiple, most_lost) for form in forms]
    paying = [each for each in found if isinstance(each, Candidate)]
    if paying:
        return max(paying, key=lambda each: each.saved[-1])
    return found[0] if found else "the method has no form for such a layer"


def by_loss(candidates: Sequence[Candidate], losses: Sequence[Array], wanted: float) -> list[int | None]:
    """The rank of each candidate, None where it stays, so that `wanted` is saved, or as much as there is.

    Args:
        losses: of each candidate, at each of its ranks: the noise that it adds to the model's output.
    """
    at = [-1] * len(candidates)

    def state(number: int, level: int) -> tuple[float, float]:
        return (0.0, 0.0) if level < 0 else (float(losses[number][level]), candidates[number].saved[level])

    def reached() -> float:
        return sum(state(number, level)[1] for number, level in enumerate(at))

    while (short := wanted - reached()) > 0:
        steps = []  # layer, level, what it costs and saves more
        for number, each in enumerate(candidates):
            loss, saved = state(number, at[number])
            for level in range(at[number] + 1, len(each.ranks)):
                more = state(number, level)
                if more[1] > saved:
                    steps.append((number, level, more[0] - loss, more[1] - saved))
        if not steps:
            break
        number, level, _, saves = min(steps, key=lambda step: step[2] / step[3])
        if saves > short:  # the last step need not be so large
            enough = [step for step in steps if step[3] >= short]
            least = min(step[2] for step in enough)
            alike = [step for step in enough if step[2] <= least * _ALIKE + _NOTHING]
            number, level, *_ = max(alike, key=lambda step: step[3])
        at[number] = level
    return [each.ranks[level] if level >= 0 else None for each, level in zip(candidates, at, strict=True)]


def by_noise(candidates: Sequence[Candidate]) -> list[int | None]:
    """The smallest rank of each candidate that holds all directions of its weight that are more than noise (`vbmf`)."""
    told = [evbmf_rank(each.form.lowered) for each in candidates]
    return [
        min((rank for rank in each.ranks if rank >= least), default=None) if least else None
        for each, least in zip(candidates, told, strict=True)
    ]


def by_energy(candidates: Sequence[Candidate], most_lost: float) -> list[int | None]:
    """The smallest rank of each candidate that loses at most the fraction `most_lost` of its output's energy."""
    return [
        min((rank for rank, lost in zip(each.ranks, each.lost, strict=True) if lost <= most_lost), default=None)
        for each in candidates
    ]
