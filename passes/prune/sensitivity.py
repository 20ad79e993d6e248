"""Sensitivity: what the model's outputs lose when one group alone is narrowed.

The layers that read the group's channels get zeros in place of the columns of the units that go, and are refitted to
the second moments of their inputs, as reconstruction will refit them.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.accuracy import (
    are_probabilities,
    cross_entropy,
    divergence,
    log_probabilities,
    scores_output,
)
from graphopt.analysis.calibration import side_by_side
from graphopt.analysis.channels import Channels, Group, Role
from graphopt.analysis.execution import Session, processors
from graphopt.analysis.noise import Noise
from graphopt.analysis.sample_arrays import Feeds
from graphopt.analysis.samples import Samples
from graphopt.errors import UsageError
from graphopt.ir import clone
from graphopt.ir.reading import constant
from graphopt.passes.cleanup.constants import set_constant
from graphopt.passes.prune.allocation import Candidate
from graphopt.passes.prune.readers import Reader
from graphopt.passes.quantize.patches import from_matrix
from graphopt.pipeline.base import Progress

Array = np.ndarray[Any, Any]

_KEPT_BYTES = 256 << 20  # of samples: more are read again each time
_MEASURED = 6  # levels of a group; between them losses are interpolated


class Sensitivity(enum.Enum):
    """What is measured: noise in the outputs, or what becomes of a classifier's probabilities."""

    OUTPUT = "output"
    DIVERGENCE = "divergence"
    LABELS = "labels"


def measure_of(
    model: ir.Model, samples: Samples, sensitivity: Sensitivity, labels: Array | None
) -> Callable[[ir.Model], float]:
    """The loss of a variant of `model`, 0 if it is the same.

    output      Σ (y − y')² / Σ y², added up over outputs.
    divergence  mean of Σ p log (p / p') over classes, in nats, p being the model's probabilities.
    labels      what the mean of −log p' of the right classes has gained.

    Args:
        samples: kept in memory, if they are not too many.
        labels: of each row of scores; of samples behind these, too.

    Raises:
        UsageError: the loss is of labels, and there are none.
        DataError: it is of probabilities, and the model has no class scores, or labels do not fit.
    """
    samples = samples.in_memory(_KEPT_BYTES)
    if sensitivity is Sensitivity.OUTPUT:
        reference = outputs_of(model, samples)
        return lambda variant: noise_of(reference, variant, samples)
    known = log_probabilities(model, samples)
    if sensitivity is Sensitivity.DIVERGENCE:
        return lambda variant: float(divergence(known, log_probabilities(variant, samples)).mean())
    if labels is None:
        raise UsageError("sensitivity=labels: there are no labels", advice="give class indices with --labels")
    mine = labels[: len(known)]
    before = cross_entropy(known, mine)
    return lambda variant: cross_entropy(log_probabilities(variant, samples), mine) - before


def unbounded(model: ir.Model, samples: Samples, sensitivity: Sensitivity) -> Sensitivity:
    """Divergence in place of noise where the outputs are probabilities of classes: their noise is bounded, so that one
    group which is ruined seems to cost little for what it saves.
    """
    if sensitivity is not Sensitivity.OUTPUT:
        return sensitivity
    outputs = outputs_of(model, samples.first(1))[0]
    scores = outputs.get(scores_output(outputs))
    probable = scores is not None and are_probabilities(scores.reshape(-1, scores.shape[-1]))
    return Sensitivity.DIVERGENCE if probable else sensitivity


def losses(
    model: ir.Model,
    found: Channels,
    groups: Sequence[Group],
    candidates: Sequence[Candidate],
    readers: Mapping[ir.Node, Reader],
    measure: Callable[[ir.Model], float],
    progress: Progress,
) -> list[Array]:
    """For each candidate, the loss at each of its levels.

    Args:
        model: left as it is.
        groups: of the candidates.
        readers: with moments, which are refitted; one that is not among them only loses columns.
        measure: the loss of a variant of the model.
    """
    chosen = [_spread(len(each.levels)) for each in candidates]
    total, done = sum(map(len, chosen)), 0
    lost = []
    for group, each, levels in zip(groups, candidates, chosen, strict=True):
        measured = [0.0]
        for level in levels:
            progress(done, total, f"sensitivity of {group.name}")
            variant = _narrowed(model, found, group, each.gone(level), readers)
            measured.append(measure(variant))
            done += 1
        rising = np.maximum.accumulate(measured)
        lost.append(
            np.interp([each.levels[i] for i in range(len(each.levels))], [0, *(each.levels[i] for i in levels)], rising)
        )
    progress(total, total, "sensitivity")
    return lost


def _spread(count: int) -> list[int]:
    """Some of the levels but 0, the last among them."""
    return sorted({round(i) for i in np.linspace(1, count - 1, min(_MEASURED, count - 1))}) if count > 1 else []


def outputs_of(model: ir.Model, samples: Samples) -> list[Mapping[str, Array]]:
    """Of each sample, by name."""
    return list(runs_of(model, samples))


def noise_of(reference: Sequence[Mapping[str, Array]], variant: ir.Model, samples: Samples) -> float:
    """Σ (y − y')² / Σ y² of the outputs of floats, added up over them."""
    noises: dict[str, Noise] = {}
    for expected, outputs in zip(reference, runs_of(variant, samples), strict=True):
        for name, array in outputs.items():
            if array.dtype.kind == "f":
                noises.setdefault(name, Noise()).add(expected[name], array)
    return sum(each.noise / max(each.signal, 1e-30) for each in noises.values())


def runs_of(model: ir.Model, samples: Iterable[Feeds]) -> Iterator[Mapping[str, Array]]:
    """The outputs of each sample; as many samples at once as there are processors."""
    at_once = processors()
    with Session(model, threads=1) as session, contextlib.closing(side_by_side(session, samples, at_once)) as runs:
        yield from runs


def _narrowed(
    model: ir.Model, found: Channels, group: Group, gone: Array, readers: Mapping[ir.Node, Reader]
) -> ir.Model:
    """A copy whose readers do without the units."""
    copy = clone(model)
    places = {node: number for number, node in enumerate(model.graph)}
    nodes = list(copy.graph)
    for slot in group.weights(Role.IN):
        node, reader = nodes[places[slot.node]], readers.get(slot.node)
        weight, units = constant(node.inputs[slot.index]), found.units_of(slot.value, slot.axis)
        if weight is None or units is None:
            continue
        if reader is not None:
            weight = from_matrix(slot.node, without(reader, gone), weight.shape).astype(np.float32)
        else:
            weight = np.where(np.isin(units, gone).reshape(-1, *(1,) * (weight.ndim - 1 - slot.axis)), 0, weight)
        set_constant(node, slot.index, weight)
    return copy


def without(reader: Reader, gone: Array) -> Array:
    """W with zeros in the columns of the units that go, and the others refitted: W G_:R (G_RR)⁻¹."""
    refitted = np.zeros_like(reader.matrix)
    gram = reader.gram
    for part, units in enumerate(reader.units):
        rest = np.flatnonzero(~np.isin(units, gone))
        if rest.size:
            wanted = reader.matrix[part] @ gram[part][:, rest]
            refitted[part][:, rest] = np.linalg.solve(gram[part][np.ix_(rest, rest)], wanted.T).T
    return refitted
