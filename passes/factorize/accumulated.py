"""What all factored layers together cost the model, on samples that nothing was fitted to.

Each layer loses little of its own output, but losses add up, and in nets of depthwise convolutions a single one may be
too much. So the whole model is looked at: of each output

    E‖y − y'‖² / E‖y − E[y]‖²

is the fraction of its energy about the mean that is lost. Where a last axis may hold the scores of classes, energy says
little of them: a language model's scores have most of theirs in tokens that never come. There the divergence of their
softmax, the mean of Σ p log (p / p') in nats, counts where it is more: 0.05 nats are about a point of top-1. An output
that is shaped as an input is a signal or a state, and holds no scores. The worst output counts; of outputs that are no
floats it is the fraction of places that differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.accuracy import divergence, log_scores
from graphopt.analysis.sample_parts import Parts, spread
from graphopt.passes.prune.held_out import Judged
from graphopt.passes.prune.sensitivity import runs_of

Array = np.ndarray[Any, Any]

_NOTHING = 1e-12  # of its energy: an output that varies by less is constant
_MOST = 256  # samples that judge
_MOST_AXES = 3  # of scores
_NEVER = -1e30  # the score of a class that is masked


@dataclass(frozen=True)
class Accumulated:
    """The losses of variants of a model.

    original: what is compared with. parts: of the samples; where none is apart, the single one judges too.
    limit: of what may be lost.
    """

    original: ir.Model
    parts: Parts
    limit: float

    def lost(self, model: ir.Model) -> float:
        """What the worst output of `model` loses."""
        apart = self.parts.apart if len(self.parts.apart_places) else self.parts.samples
        judging = apart.at(spread(len(apart), _MOST))
        runs = (runs_of(each, judging) for each in (self.original, model))
        outputs = {
            str(value.name): _Loss(_may_be_scores(value, self.original)) for value in self.original.graph.outputs
        }
        for expected, found in zip(*runs, strict=True):
            for name, array in expected.items():
                outputs[name].add(array, found[name])
        return max((each.lost for each in outputs.values()), default=0.0)

    def judge(self, model: ir.Model) -> Judged:
        """Whether the limit holds, for `largest`."""
        lost = self.lost(model)
        return Judged(
            lost <= self.limit, {"held-out-samples": len(self.parts.apart_places), "output-lost": round(lost, 4)}
        )


def _may_be_scores(value: ir.Value, model: ir.Model) -> bool:
    """[classes], [batch, classes] or [batch, sequence, classes], unlike all inputs."""
    shape = value.shape
    if shape is None or not 1 <= len(shape) <= _MOST_AXES or shape[-1] == 1:
        return False
    return all(each.shape != shape for each in model.graph.inputs)


class _Loss:
    """Of one output: sums over samples, and over rows of scores."""

    def __init__(self, may_be_scores: bool) -> None:
        self._may_be_scores = may_be_scores
        self._total: Array | None = None  # Σ y of each place, None where places are not the same in all samples
        self._sum = self._energy = self._noise = 0.0
        self._runs = self._places = 0
        self._floats = True
        self._divergence, self._rows = 0.0, 0

    def add(self, expected: Array, found: Array) -> None:
        """One sample's. What is not finite in both alike is lost altogether."""
        self._floats = expected.dtype.kind == "f"
        self._runs += 1
        self._places += expected.size
        if expected.shape != found.shape:
            self._noise = np.inf
        elif not self._floats:
            self._noise += float(np.count_nonzero(expected != found))
        else:
            self._add(expected.astype(np.float64), found.astype(np.float64))

    def _add(self, expected: Array, found: Array) -> None:
        finite = np.isfinite(expected)
        if not np.array_equal(np.isfinite(found), finite):
            self._noise = np.inf
            return
        known, made = np.where(finite, expected, 0), np.where(finite, found, 0)
        self._noise += float(np.square(known - made).sum())
        self._energy += float(np.square(known).sum())
        self._sum += float(known.sum())
        if self._may_be_scores and expected.size:
            scores = (np.where(finite, each, _NEVER).reshape(-1, each.shape[-1]) for each in (expected, found))
            rows = divergence(*map(log_scores, scores))
            self._divergence += float(rows.sum())
            self._rows += len(rows)
        if self._runs == 1:
            self._total = known
        else:
            same = self._total is not None and self._total.shape == known.shape
            self._total = self._total + known if same else None

    @property
    def lost(self) -> float:
        if not self._floats:
            return self._noise / max(self._places, 1)
        if self._noise == 0:
            return 0.0
        if self._total is None or self._runs == 1:
            common = self._sum**2 / max(self._places, 1)
        else:
            common = float(np.square(self._total).sum()) / self._runs
        varying = self._energy - common
        scale = varying if varying > _NOTHING * self._energy else self._energy
        return max(self._noise / scale, self._divergence / max(self._rows, 1)) if scale > 0 else np.inf
