"""Outputs that are indices of a largest or smallest score, judged by the scores and not by the indices.

Where two scores are equal up to rounding, either index is right, and the distance between the indices says nothing:
of a segmentation's pixels a few in a million lie so. What counts is how much worse the score at the other index is.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.comparison import OutputComparison

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class Choice:
    """An output of indices: the value whose elements it chooses from, and along which axis."""

    output: str
    scores: str
    axis: int
    keeps_axis: bool  # whether the output has the axis too, with size 1


def choices(model: ir.Model) -> tuple[Choice, ...]:
    """The outputs of `model` that ArgMax or ArgMin makes."""
    found = []
    for value in model.graph.outputs:
        node = value.producer()
        if node is None or node.domain not in ("", "ai.onnx") or node.op_type not in ("ArgMax", "ArgMin"):
            continue
        axis, keeps = node.attributes.get("axis"), node.attributes.get("keepdims")
        found.append(
            Choice(
                output=str(value.name),
                scores=str(node.inputs[0].name) if node.inputs[0] is not None else "",
                axis=0 if axis is None else axis.as_int(),
                keeps_axis=keeps is None or bool(keeps.as_int()),
            )
        )
    return tuple(found)


def judge(output: OutputComparison, choice: Choice, runs: Iterable[tuple[Array, Array, Array]]) -> OutputComparison:
    """`output` with another `relative`: the largest loss of score over the scores' range; and a note with the counts.

    runs: of each run the scores, the expected and the found indices.
    """
    unlike, total, losses, low, high = 0, 0, [0.0], 0.0, 0.0
    for scores, expected, found in runs:
        if expected.shape != found.shape or (found.size and not _within(found, scores.shape[choice.axis])):
            return output
        wide = scores.astype(np.float64)
        differ = expected != found
        losses.extend(np.abs(_chosen(wide, expected, choice) - _chosen(wide, found, choice)).ravel()[differ.ravel()])
        unlike += int(np.count_nonzero(differ))
        total += expected.size
        finite = wide[np.isfinite(wide)]
        low, high = min(low, finite.min(initial=0.0)), max(high, finite.max(initial=0.0))
    loss = float(np.max(losses))  # NaN if a chosen score is
    if unlike == 0 or not math.isfinite(loss):
        return output
    relative = 0.0 if loss == 0 else loss / float(high - low)
    note = f"{unlike} of {total} indices differ; their scores, by {relative:.2g} of the scores' range"
    return dataclasses.replace(output, relative=relative, note=note)


def judge_all(
    outputs: Sequence[OutputComparison],
    chosen: Sequence[Choice],
    expected: Sequence[dict[str, Array]],
    found: Sequence[dict[str, Array]],
) -> tuple[OutputComparison, ...]:
    """`outputs` with each choice judged by its scores, which `expected` holds beside the outputs."""
    by_name = {choice.output: choice for choice in chosen}
    return tuple(
        judge(
            output,
            choice,
            (
                (run[choice.scores], run[output.name], other[output.name])
                for run, other in zip(expected, found, strict=True)
            ),
        )
        if (choice := by_name.get(output.name)) is not None
        else output
        for output in outputs
    )


def _within(indices: Array, size: int) -> bool:
    return bool(indices.min() >= 0 and indices.max() < size)


def _chosen(scores: Array, indices: Array, choice: Choice) -> Array:
    places = indices if choice.keeps_axis else np.expand_dims(indices, choice.axis)
    return np.take_along_axis(scores, places, choice.axis)
