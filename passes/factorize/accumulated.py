"""What all factored layers together cost the model, on samples that nothing was fitted to.

Each layer loses little of its own output, but losses add up, and in nets of depthwise convolutions a single one may be
too much. So the whole model is looked at: of each output

    E‖y − y'‖² / E‖y − E[y]‖²

is the fraction of its energy about the mean that is lost, and the worst output counts. Of outputs that are no floats
it is the fraction of places that differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.samples import Samples
from graphopt.passes.prune.held_out import Judged, held_out_count
from graphopt.passes.prune.sensitivity import runs_of

Array = np.ndarray[Any, Any]

_NOTHING = 1e-12  # of its energy: an output that varies by less is constant
_MOST = 256  # samples that judge


@dataclass(frozen=True)
class Accumulated:
    """The losses of variants of a model.

    original: what is compared with. samples: the last of them judge; a single one has to be fitted to as well.
    wanted: to how many samples a pass would like to fit. limit: of the fraction that may be lost.
    """

    original: ir.Model
    samples: Samples
    wanted: int
    limit: float

    @property
    def held_out(self) -> int:
        """Samples that nothing is fitted to."""
        return held_out_count(len(self.samples), self.wanted)

    @property
    def fitting(self) -> Samples:
        """Those that a pass may fit to, from the first on."""
        return self.samples.first(len(self.samples) - self.held_out)

    def lost(self, model: ir.Model) -> float:
        """The fraction that the worst output of `model` loses."""
        judging = min(max(self.held_out, 1), _MOST)
        start = len(self.samples) - judging
        runs = (runs_of(each, islice(self.samples, start, None)) for each in (self.original, model))
        outputs: dict[str, _Loss] = {}
        for expected, found in zip(*runs, strict=True):
            for name, array in expected.items():
                outputs.setdefault(name, _Loss()).add(array, found[name])
        return max((each.fraction for each in outputs.values()), default=0.0)

    def judge(self, model: ir.Model) -> Judged:
        """Whether the limit holds, for `largest`."""
        lost = self.lost(model)
        return Judged(lost <= self.limit, {"held-out-samples": self.held_out, "output-lost": round(lost, 4)})


class _Loss:
    """Of one output: sums over samples."""

    def __init__(self) -> None:
        self._total: Array | None = None  # Σ y of each place, None where places are not the same in all samples
        self._sum = self._energy = self._noise = 0.0
        self._runs = self._places = 0
        self._floats = True

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
        if self._runs == 1:
            self._total = known
        else:
            same = self._total is not None and self._total.shape == known.shape
            self._total = self._total + known if same else None

    @property
    def fraction(self) -> float:
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
        return self._noise / scale if scale > 0 else np.inf
