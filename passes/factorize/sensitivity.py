"""Sensitivity: what the model's outputs lose when one layer alone has a low rank.

The layer keeps its shape and gets P Pᵀ W, with the bias that takes up the mean of what is lost. Between the ranks that
are measured, losses are interpolated. The loss is the noise in the outputs by their energy, as pruning measures it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.samples import Samples
from graphopt.ir import clone
from graphopt.ir.reading import constant
from graphopt.passes.cleanup.constants import set_constant
from graphopt.passes.factorize.ranks import Candidate
from graphopt.passes.prune.sensitivity import noise_of, outputs_of
from graphopt.passes.quantize.patches import from_matrix
from graphopt.pipeline.base import Progress

Array = np.ndarray[Any, Any]

_MEASURED = 3  # ranks of a layer


def losses(
    model: ir.Model,
    candidates: Sequence[Candidate],
    means: Sequence[Array | None],
    samples: Samples,
    progress: Progress,
) -> list[Array]:
    """For each candidate, the loss at each of its ranks.

    Args:
        model: left as it is.
        means: of each candidate's columns, where its bias may take up what is lost of them.
        samples: to measure on.
    """
    reference = outputs_of(model, samples)
    places = {node: number for number, node in enumerate(model.graph)}
    chosen = [_spread(len(each.ranks)) for each in candidates]
    total, done, found = sum(map(len, chosen)), 0, []
    for each, mean, levels in zip(candidates, means, chosen, strict=True):
        measured = []
        for level in levels:
            progress(done, total, f"sensitivity of {each.layer.name}")
            variant = clone(model)
            lower(list(variant.graph)[places[each.layer.node]], each, each.ranks[level], mean)
            measured.append(noise_of(reference, variant, samples))
            done += 1
        rising = np.maximum.accumulate(measured)
        found.append(np.interp(np.arange(len(each.ranks)), levels, rising))
    progress(total, total, "sensitivity")
    return found


def _spread(count: int) -> list[int]:
    return sorted({round(i) for i in np.linspace(0, count - 1, min(_MEASURED, count))})


def lower(node: ir.Node, candidate: Candidate, rank: int, mean: Array | None) -> None:
    """Give `node`, which stands for the candidate's, the matrix of rank `rank`."""
    before = constant(node.inputs[1])
    if before is None:
        return
    matrix = candidate.layer.matrix
    lowered = candidate.form.projected(matrix, rank)
    set_constant(node, 1, from_matrix(node, lowered[None], before.shape).astype(np.float32))
    if mean is None:
        return
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    shift = (matrix - lowered) @ mean
    if bias is None:
        set_constant(node, 2, shift.astype(np.float32), base=f"{node.outputs[0].name}/bias")
    elif bias.size == shift.size:
        set_constant(node, 2, (bias + shift.reshape(bias.shape)).astype(np.float32))
