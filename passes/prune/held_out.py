"""Held-out samples: what a limit on the loss is judged by, which nothing was fitted to.

Layers that were refitted to few samples do better on these than on others. So a pass that has to hold a limit fits to
some of the samples and looks at the rest, a fifth at least, spread between them. The limit of the whole run is of all
samples: a variant has to hold it there too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.accuracy import drop_between, predictions
from graphopt.analysis.sample_parts import Parts, parted
from graphopt.analysis.samples import Samples
from graphopt.pipeline.base import PassResult

Array = np.ndarray[Any, Any]

_TRIALS = 5  # of ratios
_LEAST = 0.2  # of the samples, judge at least


@dataclass(frozen=True)
class Loss:
    """Accuracy, or agreement, that is lost: on held-out samples, or on all if there are none, and on all."""

    held_out: float
    overall: float

    @property
    def worst(self) -> float:
        """The larger of both."""
        return max(self.held_out, self.overall)


@dataclass(frozen=True)
class Held:
    """What a pass made of a model at a ratio that holds the limit; `result` says how that was judged."""

    ratio: float
    model: ir.Model
    result: PassResult


@dataclass(frozen=True)
class Judged:
    """Whether a limit holds, and what the report says of it."""

    holds: bool
    statistics: Mapping[str, int | float | str]


def held_out(samples: Samples, wanted: int, labels: Array | None = None) -> Parts:
    """The samples that judge a pass which would like to fit to `wanted`, apart; none of a single one."""
    count = len(samples)
    apart = min(max(count - wanted, int(np.ceil(_LEAST * count))), count - 1)
    return parted(samples, count - apart, apart, labels)


def largest(
    asked: float,
    attempt: Callable[[float], tuple[ir.Model, PassResult]],
    judge: Callable[[ir.Model], Judged],
    trials: int = _TRIALS,
) -> Held | float:
    """What holds at the largest ratio up to `asked`, by bisection; the least ratio tried if none does."""
    low, high = 0.0, asked
    best: Held | None = None
    for trial in range(trials):
        ratio = high if trial == 0 else (low + high) / 2
        model, result = attempt(ratio)
        judged = judge(model)
        if not judged.holds:
            high = ratio
            continue
        statistics = {**result.statistics, "ratio-held": round(ratio, 4), **judged.statistics}
        low, best = ratio, Held(ratio, model, replace(result, statistics=statistics))
        if trial == 0:
            break
    return high if best is None else best


class HeldOut:
    """Samples in two parts.

    Args:
        original: what is compared with.
        samples: a single one has to serve as both parts.
        labels: of all samples, or None for agreement.
        wanted: to how many samples a pass would like to fit.

    Raises DataError if the model has no class scores.
    """

    def __init__(self, original: ir.Model, samples: Samples, labels: Array | None, wanted: int) -> None:
        self.parts = held_out(samples, wanted, labels)
        self._expected, self._output = predictions(original, samples)

    @property
    def count(self) -> int:
        """Samples that nothing is fitted to."""
        return len(self.parts.apart_places)

    def loss(self, model: ir.Model) -> Loss:
        """What `model` loses. Raises DataError if the labels do not fit."""
        found, _ = predictions(model, self.parts.samples)
        overall = drop_between(self._expected, found, self._output, self.parts.labels).drop
        if not self.count:
            return Loss(overall, overall)
        expected, apart = (self.parts.entries(each, self.parts.apart_places) for each in (self._expected, found))
        return Loss(drop_between(expected, apart, self._output, self.parts.apart_labels).drop, overall)

    def judge(self, model: ir.Model, limit: float) -> Judged:
        """Whether `model` loses no more than the limit."""
        loss = self.loss(model)
        statistics = {
            "held-out-samples": self.count,
            "samples-fitted": len(self.parts.fitting_places),
            "drop-held-out": round(loss.held_out, 4),
        }
        return Judged(loss.worst <= limit, statistics)

    def largest(
        self, asked: float, limit: float, attempt: Callable[[float], tuple[ir.Model, PassResult]]
    ) -> Held | float:
        """What holds the limit at the largest ratio up to `asked`; the least ratio tried if none does."""
        return largest(asked, attempt, lambda model: self.judge(model, limit))
