"""Calibration: run the float model on samples and keep a histogram of each tensor that is asked for.

Memory is bounded whatever the number of samples: GROUP_BYTES of tensors are kept at a time, those of a sample that is
looked at and of others that are computed meanwhile, a thread for each. Where a sample has too many, the model runs over
the samples once for each group of them. The result depends on nothing but the model and the samples.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.execution import Session, processors
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
    """Call `receive` with the tensors `names` of each sample, in order, in groups of bounded size.

    Raises DataError if there is no sample.
    """
    if not len(samples):
        raise DataError("there is no calibration sample", advice="give one at least; a hundred serve well")
    groups = list(_groups(model, names))
    steps = len(groups) * len(samples)
    done = 0
    for group, size in groups:
        at_once = max(1, min(processors(), GROUP_BYTES // max(size, 1) - 1))
        with (
            Session(model, outputs=group, threads=0 if at_once == 1 else 1) as session,
            contextlib.closing(side_by_side(session, samples, at_once)) as runs,
        ):
            for tensors in runs:
                progress(done, steps, "calibrate")
                receive(tensors)
                done += 1
    progress(done, steps, "calibrate")


def side_by_side(
    session: Session, samples: Iterable[Mapping[str, Array]], at_once: int
) -> Generator[Mapping[str, Array]]:
    """The outputs of each sample, in order; `at_once` are computed in threads while one is looked at."""
    with ThreadPoolExecutor(at_once) as pool:
        ahead: deque[Future[dict[str, Array]]] = deque()
        try:
            for feeds in samples:
                ahead.append(pool.submit(session.run, feeds))
                if len(ahead) > at_once:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for run in ahead:
                run.cancel()


def _groups(model: ir.Model, names: Sequence[str]) -> Iterator[tuple[list[str], int]]:
    """The names in the given order, cut where the tensors of a sample exceed half of GROUP_BYTES; with their bytes."""
    values = {value.name: value for value in model.graph.inputs}
    values |= {value.name: value for node in model.graph for value in node.outputs}
    group: list[str] = []
    size = 0
    for name in names:
        more = _bytes(values[name])
        if group and size + more > GROUP_BYTES // 2:
            yield group, size
            group, size = [], 0
        group.append(name)
        size += more
    if group:
        yield group, size


def _bytes(value: ir.Value) -> int:
    dims = value.shape.dims if value.shape is not None else _UNKNOWN_SHAPE
    return 4 * math.prod(dim if isinstance(dim, int) else _UNKNOWN_DIMENSION for dim in dims)
