"""Sensitivity: what the model's outputs lose when one group alone is narrowed.

The layers that read the group's channels get zeros in place of the columns of the units that go, and are refitted to
the second moments of their inputs, as reconstruction will refit them. The loss is the noise in the outputs by their
energy, Σ (y − y')² / Σ y².
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.channels import Group, Role
from graphopt.analysis.execution import Session
from graphopt.analysis.noise import Noise
from graphopt.analysis.samples import Samples
from graphopt.ir import clone
from graphopt.passes.cleanup.constants import set_constant
from graphopt.passes.prune.allocation import Candidate
from graphopt.passes.prune.readers import Reader
from graphopt.passes.quantize.patches import from_matrix
from graphopt.pipeline.base import Progress

Array = np.ndarray[Any, Any]

_MEASURED = 6  # levels of a group; between them losses are interpolated


def losses(
    model: ir.Model,
    groups: Sequence[Group],
    candidates: Sequence[Candidate],
    readers: Mapping[ir.Node, Reader],
    samples: Samples,
    progress: Progress,
    *,
    refit: bool,
) -> list[Array]:
    """For each candidate, the loss at each of its levels.

    Args:
        model: left as it is.
        groups: of the candidates.
        readers: with moments; a reader that is not among them only loses columns.
        samples: to measure on.
        refit: whether readers are refitted.
    """
    reference = outputs_of(model, samples)
    chosen = [_spread(len(each.levels)) for each in candidates]
    total, done = sum(map(len, chosen)), 0
    found = []
    for group, each, levels in zip(groups, candidates, chosen, strict=True):
        measured = [0.0]
        for level in levels:
            progress(done, total, f"sensitivity of {group.name}")
            variant = _narrowed(model, group, each.gone(level), readers, refit=refit)
            measured.append(noise_of(reference, variant, samples))
            done += 1
        rising = np.maximum.accumulate(measured)
        found.append(
            np.interp([each.levels[i] for i in range(len(each.levels))], [0, *(each.levels[i] for i in levels)], rising)
        )
    progress(total, total, "sensitivity")
    return found


def _spread(count: int) -> list[int]:
    """Some of the levels but 0, the last among them."""
    return sorted({round(i) for i in np.linspace(1, count - 1, min(_MEASURED, count - 1))}) if count > 1 else []


def outputs_of(model: ir.Model, samples: Samples) -> list[dict[str, Array]]:
    """Of each sample, by name."""
    with Session(model) as session:
        return [session.run(feeds) for feeds in samples]


def noise_of(reference: Sequence[Mapping[str, Array]], variant: ir.Model, samples: Samples) -> float:
    """Σ (y − y')² / Σ y² of the outputs of floats, added up over them."""
    noises: dict[str, Noise] = {}
    with Session(variant) as session:
        for expected, feeds in zip(reference, samples, strict=True):
            for name, array in session.run(feeds).items():
                if array.dtype.kind == "f":
                    noises.setdefault(name, Noise()).add(expected[name], array)
    return sum(each.noise / max(each.signal, 1e-30) for each in noises.values())


def _narrowed(
    model: ir.Model, group: Group, gone: Array, readers: Mapping[ir.Node, Reader], *, refit: bool
) -> ir.Model:
    """A copy whose readers do without the units."""
    copy = clone(model)
    places = {node: number for number, node in enumerate(model.graph)}
    nodes = list(copy.graph)
    for slot in group.weights(Role.IN):
        reader = readers.get(slot.node)
        tensor = slot.value.const_value
        if reader is None or tensor is None:
            continue
        matrix = without(reader, gone) if refit else np.where(np.isin(reader.units, gone)[:, None], 0, reader.matrix)
        weight = from_matrix(slot.node, matrix, tuple(tensor.numpy().shape)).astype(np.float32)
        set_constant(nodes[places[slot.node]], slot.index, weight)
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
