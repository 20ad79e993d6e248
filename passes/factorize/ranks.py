"""How far each layer goes: the ranks that pay, and the choice among them for a given saving.

A rank pays where the target computes the two factors sooner than the layer, and they lose no more of its output's
energy than is allowed. Ranks are shared out as in greedy solutions of a knapsack: the next step is taken by the layer
where it costs the model's output least for what it saves.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.passes.factorize.costs import Saving
from graphopt.passes.factorize.form import Form, Method, now_costs, would_cost
from graphopt.passes.factorize.kernel_time import Kernels
from graphopt.passes.factorize.layers import Layer
from graphopt.passes.factorize.vbmf import evbmf_rank

Array = np.ndarray[Any, Any]

_MOST_RANKS = 24  # of a form, that are compared
_CLEARLY = 1.3  # times as much lost: the model's output may see it the other way round
_ALIKE, _NOTHING = 1.05, 1e-6  # losses that are as good as the least


@dataclass(frozen=True)
class Choice:
    """What a layer may become.

    lost: fraction of the energy of the layer's output. saved: of what is to be saved.
    """

    form: Form
    rank: int
    lost: float
    saved: float


@dataclass(frozen=True)
class Candidate:
    """A layer that may be factored, and the choices that pay, rising in what they save."""

    layer: Layer
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Limits:
    """What a choice must keep to.

    multiple: of which the ranks of wide layers are. most_lost: fraction of the energy of the layer's output.
    slower: cycles that it may take more than the layer.
    """

    multiple: int
    most_lost: float
    slower: float = 0.0


def candidate(layer: Layer, forms: Sequence[Form], kernels: Kernels, saving: Saving, limits: Limits) -> Candidate | str:
    """The choices of a layer that pay, of all forms, or why there is none, as the first form says."""
    choices: list[Choice] = []
    reasons = ["the method has no form for such a layer"][len(forms[:1]) :]
    for form in forms:
        found = _choices(layer, form, kernels, saving, limits)
        if isinstance(found, str):
            reasons.append(found)
        else:
            choices += found
    return Candidate(layer, _frontier(choices)) if choices else reasons[0]


def _choices(layer: Layer, form: Form, kernels: Kernels, saving: Saving, limits: Limits) -> list[Choice] | str:
    step = limits.multiple if form.full_rank >= 2 * limits.multiple else 1
    most_lost = limits.most_lost
    now, whole = (now_costs(layer, kernels, kind) for kind in (Saving.TIME, saving))

    def cost(rank: int, kind: Saving) -> float:
        return would_cost(form, rank, kernels, kind)

    cheaper = [
        rank
        for rank in range(step, form.full_rank, step)
        if cost(rank, Saving.TIME) < now + limits.slower and cost(rank, saving) < whole
    ]
    if not cheaper:
        least, factors = cost(step, Saving.TIME), len(form.products(step, layer))
        count = {2: "two", 3: "three", 4: "four"}[factors]
        return f"{count} factors of rank {step} take an estimated {least:,.0f} cycles, and the layer {now:,.0f}"
    if (lost := form.lost(cheaper[-1])) > most_lost:
        return (
            f"rank {cheaper[-1]}, the largest that pays, loses {100 * lost:.1f} % of its output's energy, "
            f"more than {100 * most_lost:.1f} %"
        )
    close = cheaper[bisect_left(cheaper, -most_lost, key=lambda rank: -form.lost(rank)) :]
    ranks = [close[i] for i in sorted({round(i) for i in np.linspace(0, len(close) - 1, min(len(close), _MOST_RANKS))})]
    found = (Choice(form, rank, form.lost(rank), whole - cost(rank, saving)) for rank in reversed(ranks))
    return [each for each in found if each.lost <= most_lost]


def _frontier(choices: Sequence[Choice]) -> tuple[Choice, ...]:
    """Those that no other beats clearly: it would save as much and lose less."""
    kept: list[Choice] = []
    least = np.inf
    for each in sorted(choices, key=lambda choice: (-choice.saved, choice.lost)):
        if each.lost <= _CLEARLY * least:
            kept.append(each)
        least = min(least, each.lost)
    return tuple(reversed(kept))


def by_loss(candidates: Sequence[Candidate], losses: Sequence[Array], wanted: float) -> list[Choice | None]:
    """The choice of each candidate, None where it stays, so that `wanted` is saved, or as much as there is.

    Args:
        losses: of each candidate, at each of its choices: the noise that it adds to the model's output.
    """
    at = [-1] * len(candidates)

    def state(number: int, level: int) -> tuple[float, float]:
        return (0.0, 0.0) if level < 0 else (float(losses[number][level]), candidates[number].choices[level].saved)

    def reached() -> float:
        return sum(state(number, level)[1] for number, level in enumerate(at))

    while (short := wanted - reached()) > 0:
        steps = []  # layer, level, what it costs and saves more
        for number, each in enumerate(candidates):
            loss, saved = state(number, at[number])
            for level in range(at[number] + 1, len(each.choices)):
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
    return [each.choices[level] if level >= 0 else None for each, level in zip(candidates, at, strict=True)]


def by_noise(candidates: Sequence[Candidate]) -> list[Choice | None]:
    """Of each candidate what saves most and holds all directions of its weight that are more than noise (`vbmf`)."""
    return [_above_noise(each) for each in candidates]


def _above_noise(each: Candidate) -> Choice | None:
    told: dict[Method, int] = {}
    for choice in each.choices:
        if choice.form.method not in told:
            told[choice.form.method] = evbmf_rank(choice.form.lowered)
    enough = [choice for choice in each.choices if choice.rank >= (told[choice.form.method] or math.inf)]
    return enough[-1] if enough else None


def by_energy(candidates: Sequence[Candidate], most_lost: float) -> list[Choice | None]:
    """Of each candidate what saves most and loses at most the fraction `most_lost` of its output's energy."""
    close = ([choice for choice in each.choices if choice.lost <= most_lost] for each in candidates)
    return [choices[-1] if choices else None for choices in close]
