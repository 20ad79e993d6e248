"""How much of what is to be saved is left when units go, without building the graph."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.channels import Channels
from graphopt.passes.factorize.kernel_time import Kernels
from graphopt.passes.prune import terms

Array = np.ndarray[Any, Any]


class Saving(enum.Enum):
    """What the fraction that goes is a fraction of."""

    MACS = "macs"
    PARAMS = "params"
    BYTES = "bytes"
    CHANNELS = "channels"
    TIME = "time"


_TERMS: Mapping[Saving, Callable[[ir.Model, Channels], Iterator[terms.Term]]] = {
    Saving.MACS: terms.of_macs,
    Saving.PARAMS: terms.of_params,
    Saving.BYTES: terms.of_bytes,
    Saving.CHANNELS: terms.of_channels,
}


class Budget:
    """What the main part of a model costs, as a function of the units that stay.

    Args:
        model: with static shapes.
        found: its channels.
        saving: what is counted.
        kernels: of the target, for the estimate of time.
    """

    def __init__(
        self, model: ir.Model, found: Channels, saving: Saving = Saving.MACS, kernels: Kernels | None = None
    ) -> None:
        if saving is Saving.TIME:
            made = terms.of_time(model, found, kernels or Kernels())
        else:
            made = _TERMS[saving](model, found)
        self._terms, self._count = list(made), found.count
        self.total = self.left(np.ones(found.count, bool))

    def left(self, kept: Array, places: Iterable[int] | None = None) -> float:
        """The cost when the units of `kept`, bool [count], stay; of the terms at `places` alone, of all by default."""
        terms = self._terms if places is None else (self._terms[place] for place in places)
        return float(sum(term.left(kept) for term in terms))

    def touched(self, units: Array) -> tuple[int, ...]:
        """Places of the terms that depend on any of `units`."""
        mask = np.zeros(self._count, bool)
        mask[units] = True
        return tuple(place for place, term in enumerate(self._terms) if term.touches(mask))

    def saved(self, kept: Array, units: Array, places: Iterable[int] | None = None) -> float:
        """What the removal of `units` saves beside what is gone already; `places`: what they touch, if known."""
        without = kept.copy()
        without[units] = False
        touched = [self._terms[place] for place in (self.touched(units) if places is None else places)]
        return float(sum(term.left(kept) - term.left(without) for term in touched))
