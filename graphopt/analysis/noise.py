"""Noise that a rewrite adds to a signal, summed over samples without keeping them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass
class Noise:
    """Σ x² of a reference x, and Σ (x - x')² of what was found instead."""

    signal: float = 0.0
    noise: float = 0.0

    def add(self, reference: Array, found: Array) -> None:
        """Count one sample's arrays of numbers. Places where both are the same infinity, or NaN, count nothing; another
        shape, or NaN on one side, is noise without measure.
        """
        if reference.shape != found.shape:
            self.noise = math.inf
            return
        wide, other = reference.astype(np.float64).reshape(-1), found.astype(np.float64).reshape(-1)
        finite = np.isfinite(wide)
        if not np.array_equal(wide[~finite], other[~finite], equal_nan=True):
            self.noise = math.inf
            return
        wide, other = wide[finite], other[finite]
        self.signal += float(wide @ wide)
        with np.errstate(invalid="ignore", over="ignore"):
            lost = float(np.square(wide - other).sum())
        self.noise += lost if math.isfinite(lost) else math.inf

    @property
    def sqnr_db(self) -> float:
        """10 log10(Σ x² / Σ (x - x')²): infinite where nothing differs, minus infinity where nothing is left."""
        if self.noise == 0:
            return math.inf
        if self.signal == 0 or math.isinf(self.noise):
            return -math.inf
        return 10 * math.log10(self.signal / self.noise)
