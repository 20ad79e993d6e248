"""Calibration: run the float model on samples and keep a histogram of each tensor that is asked for.

Memory is bounded by one sample's tensors, of which GROUP_BYTES are kept at a time, whatever the number of samples:
where a model has more, it runs over the samples once for each group. The result depends on nothing but the model and
the samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.execution import Session
from graphopt.analysis.observers import Histogram
from graphopt.analysis.samples import Samples
from graphopt.errors import DataError

Array = np.ndarray[Any, Any]
Progress = Callable[[int, int, str], None]

GROUP_BYTES = 512 << 20
_UNKNOWN_DIMENSION = 64  # stands for a dimension that only the run tells
_UNKNOWN_SHAPE = (_UNKNOWN_DIMENSION,) * 3


def histograms(model: ir.Model, names: Sequence[str], samples: Samples, progress: Progress) -> dict[str, Histogram]:
    """A histogram of each value in `names`, float tensors of the main graph, over all samples.

    Raises DataError if there is no sample, and what running the model raises.
    """
    found = {name: Histogram() for name in names}

    def update(tensors: Mapping[str, Array]) -> None:
        for name, array in tensors.items():
            found[name].update(array)

    each_run(model, names, samples, update, progress)
    return found


def each_run(
    model: ir.Model,
    names: Sequence[str],
    samples: Samples,
    receive: Callable[[Mapping[str, Array]], None],
    progress: Progress,
) -> None:
    """Call `receive` with the tensors `names` of each sample, in groups of bounded size.

    Raises DataError if there is no sample.
    """
    if not len(samples):
        raise DataError("there is no calibration sample", advice="give one at least; a hundred serve well")
    groups = list(_groups(model, names))
    steps = len(groups) * len(samples)
    done = 0
    for group in groups:
        with Session(model, outputs=group) as session:
            for feeds in samples:
                progress(done, steps, "calibrate")
                receive(session.run(feeds))
                done += 1
    progress(done, steps, "calibrate")


def _groups(model: ir.Model, names: Sequence[str]) -> Iterator[list[str]]:
    """The names in the given order, cut where the tensors of a sample exceed GROUP_BYTES."""
    values = {value.name: value for value in model.graph.inputs}
    values |= {value.name: value for node in model.graph for value in node.outputs}
    group: list[str] = []
    size = 0
    for name in names:
        more = _bytes(values[name])
        if group and size + more > GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(name)
        size += more
    if group:
        yield group


def _bytes(value: ir.Value) -> int:
    dims = value.shape.dims if value.shape is not None else _UNKNOWN_SHAPE
    return 4 * math.prod(dim if isinstance(dim, int) else _UNKNOWN_DIMENSION for dim in dims)
