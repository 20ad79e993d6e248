"""Samples in two parts: some that a pass fits to, and others between them that judge what was made of these.

Users' data are often in the order of their classes, so neither part may be the first or the last ones. Of as many equal
stretches as there are samples to choose, each gives one. Its place in the stretch moves on by the golden ratio, so that
data whose classes take turns are not met in step with the turns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.analysis.samples import Samples
from graphopt.errors import DataError

Array = np.ndarray[Any, Any]

_GOLDEN = (5**0.5 - 1) / 2


def spread(total: int, count: int) -> Array:
    """`count` of the indices up to `total`, rising, evenly over all; all if there are fewer."""
    count = min(count, total)
    numbers = np.arange(count)
    starts, ends = numbers * total // max(count, 1), (numbers + 1) * total // max(count, 1)
    places: Array = starts + ((numbers * _GOLDEN % 1) * (ends - starts)).astype(int)
    return places


@dataclass(frozen=True)
class Parts:
    """Two parts of `samples`: places of those that a pass may fit to, and of those apart; they rise.

    labels: one for each row of scores of all samples, or None.
    """

    samples: Samples
    fitting_places: Array
    apart_places: Array
    labels: Array | None = None

    @property
    def fitting(self) -> Samples:
        """Those that a pass may fit to."""
        return self.samples.at(self.fitting_places)

    @property
    def apart(self) -> Samples:
        """Those that judge."""
        return self.samples.at(self.apart_places)

    @property
    def fitting_labels(self) -> Array | None:
        """Raises DataError if there are not as many labels for each sample."""
        return None if self.labels is None else self.entries(self.labels, self.fitting_places)

    @property
    def apart_labels(self) -> Array | None:
        """Raises DataError as `fitting_labels`."""
        return None if self.labels is None else self.entries(self.labels, self.apart_places)

    def entries(self, array: Array, places: Array) -> Array:
        """What belongs to the samples at `places`, of one or more entries for each of all samples.

        Raises DataError if there are not as many for each.
        """
        count = len(self.samples)
        if len(array) % max(count, 1):
            raise DataError(f"there are {len(array)} labels for {count} samples, expected one for each")
        found: Array = array.reshape(count, -1)[places].reshape(-1)
        return found


def parted(samples: Samples, fitting: int, apart: int, labels: Array | None = None) -> Parts:
    """`fitting` samples, and `apart` others spread between them: all together, or spread over more."""
    both = spread(len(samples), fitting + apart)
    judging = np.zeros(len(both), bool)
    judging[spread(len(both), apart)] = True
    return Parts(samples, both[~judging], both[judging], labels)
