"""Sensitivity: what the model's outputs lose when one layer alone has a low rank.

The layer keeps its shape and gets the nearest matrix of a form, and the bias that takes up the mean of what is lost. Of
each form some ranks are measured, and the others interpolated by what the layer's own output loses. The loss is one of
those that pruning measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.ir import clone
from graphopt.ir.reading import constant
from graphopt.passes.cleanup.constants import remove_unused_constant, set_constant
from graphopt.passes.factorize.form import Method
from graphopt.passes.factorize.layers import Layer, is_turned
from graphopt.passes.factorize.ranks import Candidate, Choice
from graphopt.passes.quantize.patches import from_matrix
from graphopt.pipeline.base import Progress

Array = np.ndarray[Any, Any]

_MEASURED = 3  # ranks of a form


def losses(
    model: ir.Model,
    candidates: Sequence[Candidate],
    means: Sequence[Sequence[Array | None]],
    measure: Callable[[ir.Model], float],
    progress: Progress,
) -> list[Array]:
    """For each candidate, the loss at each of its choices.

    Args:
        model: left as it is.
        means: of the columns of each candidate's uses, where a bias may take up what is lost of them.
        measure: the loss of a variant of the model.
    """
    places = {node: number for number, node in enumerate(model.graph)}
    chosen = [_measured(each) for each in candidates]
    total, done, found = sum(map(len, chosen)), 0, []
    for each, mean, levels in zip(candidates, means, chosen, strict=True):
        measured = {}
        for level in levels:
            progress(done, total, f"sensitivity of {each.layer.name}")
            variant = clone(model)
            nodes = list(variant.graph)
            lower([nodes[places[use.node]] for use in each.layer.uses], each.layer, each.choices[level], mean)
            measured[level] = measure(variant)
            done += 1
        found.append(_interpolated(each, measured))
    progress(total, total, "sensitivity")
    return found


def _by_form(each: Candidate) -> Iterable[list[int]]:
    """Levels of each form, rising in what the layer's output loses."""
    levels: dict[Method, list[int]] = {}
    for level in sorted(range(len(each.choices)), key=lambda level: each.choices[level].lost):
        levels.setdefault(each.choices[level].form.method, []).append(level)
    return levels.values()


def _measured(each: Candidate) -> list[int]:
    return [
        levels[place]
        for levels in _by_form(each)
        for place in sorted({round(i) for i in np.linspace(0, len(levels) - 1, min(_MEASURED, len(levels)))})
    ]


def _interpolated(each: Candidate, measured: Mapping[int, float]) -> Array:
    found = np.empty(len(each.choices))
    for levels in _by_form(each):
        known = [level for level in levels if level in measured]
        rising = np.maximum.accumulate([measured[level] for level in known])
        found[levels] = np.interp(
            [each.choices[level].lost for level in levels], [each.choices[level].lost for level in known], rising
        )
    return found


def lower(nodes: Sequence[ir.Node], layer: Layer, choice: Choice, means: Sequence[Array | None]) -> None:
    """Give `nodes`, which stand for the layer's uses, the matrix that is chosen: one weight for all."""
    index, matrix = layer.weight_index, layer.matrix
    turned = is_turned(nodes[0])
    before = constant(nodes[0].inputs[index])
    if before is None:
        return
    lowered = choice.form.projected(matrix, choice.rank)
    weight = lowered.T if layer.lookup else from_matrix(nodes[0], lowered[None], before.shape)
    set_constant(nodes[0], index, np.ascontiguousarray(weight, np.float32))
    old = nodes[-1].inputs[layer.uses[-1].weight_index]
    for node, use, mean in zip(nodes, layer.uses, means, strict=True):
        node.replace_input_with(use.weight_index, nodes[0].inputs[index])
        if mean is not None:
            lost = matrix - lowered
            _shift_bias(node, (lost if is_turned(node) == turned else lost.T) @ mean)
    if old is not None:
        remove_unused_constant(old)


def _shift_bias(node: ir.Node, shift: Array) -> None:
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if bias is None:
        set_constant(node, 2, shift.astype(np.float32), base=f"{node.outputs[0].name}/bias")
    elif bias.size == shift.size:
        set_constant(node, 2, (bias + shift.reshape(bias.shape)).astype(np.float32))
