"""How far each layer goes: the ranks that pay, and the choice among them for a given saving.

A rank pays where the target computes the two factors sooner than the layer, and they lose no more of its output's
energy than is allowed. Ranks are shared out as in greedy solutions of a knapsack: the next step is taken by the layer
where it costs the model's output least for what it saves.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.passes.factorize.kernel_time import Kernels
from graphopt.passes.factorize.layers import Layer
from graphopt.passes.factorize.low_rank import Directions

Array = np.ndarray[Any, Any]

_MOST_RANKS = 24  # of a layer, that are compared


class Saving(enum.Enum):
    """What the fraction that goes is a fraction of."""

    MACS = "macs"
    BYTES = "bytes"
    TIME = "time"


@dataclass(frozen=True)
class Candidate:
    """A layer that may be factored, and the ranks that pay, falling.

    lost: by rank, the fraction of the energy of the layer's output. saved: by rank, of what is to be saved.
    """

    layer: Layer
    directions: Directions
    ranks: tuple[int, ...]
    lost: tuple[float, ...]
    saved: tuple[float, ...]


def cost(layer: Layer, rank: int | None, kernels: Kernels, saving: Saving) -> float:
    """Of the layer as it is (rank None), or of its two factors: MACs, bytes of the weight, or estimated cycles."""
    outputs, features = layer.matrix.shape
    elements: int = outputs * features if rank is None else rank * (outputs + features)
    if saving is Saving.MACS:
        return float(elements) * layer.places
    if saving is Saving.BYTES:
        return 4.0 * elements
    if rank is None:
        return kernels.window(layer.places, features, outputs, layer.line, winograd=layer.winograd)
    first = kernels.window(layer.places, features, rank, layer.line, winograd=layer.winograd)
    return first + kernels.cycles(layer.places, rank, outputs)


def candidate(
    layer: Layer, found: Directions, kernels: Kernels, saving: Saving, multiple: int, most_lost: float
) -> Candidate | str:
    """The ranks of a layer that pay, or why there is none."""
    step = multiple if layer.full_rank >= 2 * multiple else 1
    now, whole = (cost(layer, None, kernels, kind) for kind in (Saving.TIME, saving))
    cheaper = [
        rank
        for rank in range(step, layer.full_rank, step)
        if cost(layer, rank, kernels, Saving.TIME) < now and cost(layer, rank, kernels, saving) < whole
    ]
    if not cheaper:
        least = cost(layer, step, kernels, Saving.TIME)
        return f"two factors of rank {step} take an estimated {least:,.0f} cycles, and the layer {now:,.0f}"
    ranks = [rank for rank in reversed(cheaper) if found.lost(rank) <= most_lost]
    if not ranks:
        lost = 100 * found.lost(cheaper[-1])
        return (
            f"rank {cheaper[-1]}, the largest that takes less time, loses {lost:.1f} % of its output's energy, "
            f"more than {100 * most_lost:.1f} %"
        )
    ranks = [ranks[i] for i in sorted({round(i) for i in np.linspace(0, len(ranks) - 1, min(len(ranks), _MOST_RANKS))})]
    saved = tuple(whole - cost(layer, rank, kernels, saving) for rank in ranks)
    return Candidate(layer, found, tuple(ranks), tuple(map(found.lost, ranks)), saved)


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

    while reached() < wanted:
        best, step = np.inf, None
        for number, each in enumerate(candidates):
            loss, saved = state(number, at[number])
            for level in range(at[number] + 1, len(each.ranks)):
                more = state(number, level)
                price = (more[0] - loss) / (more[1] - saved) if more[1] > saved else np.inf
                if price < best:
                    best, step = price, (number, level)
        if step is None:
            break
        at[step[0]] = step[1]
    return [each.ranks[level] if level >= 0 else None for each, level in zip(candidates, at, strict=True)]


def by_energy(candidates: Sequence[Candidate], most_lost: float) -> list[int | None]:
    """The smallest rank of each candidate that loses at most the fraction `most_lost` of its output's energy."""
    return [
        min((rank for rank, lost in zip(each.ranks, each.lost, strict=True) if lost <= most_lost), default=None)
        for each in candidates
    ]
