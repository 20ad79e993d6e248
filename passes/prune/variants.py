"""Variants of a pruned model: refitted, or as it is; whichever loses less on samples that nothing was fitted to.

Each layer that is refitted lowers its own error on samples apart, and still the model may lose by all of them together,
where few samples show little of what it knows.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.accuracy import scores_output
from graphopt.analysis.sample_parts import Parts, parted
from graphopt.analysis.samples import Samples
from graphopt.passes.prune.sensitivity import Sensitivity, outputs_of
from graphopt.pipeline.base import Declined

Array = np.ndarray[Any, Any]

REFITTED, AS_IT_IS = "refitted", "as-it-is"  # how names of variants end
_MOST = 0.2  # of the samples are held out
_ENOUGH = 0.5
_CLEARLY = 1.1  # by so much the loss of a refitted variant has to be less: few samples judge


def few_apart(samples: Samples, wanted: int, judging: int, labels: Array | None = None) -> Parts:
    """Up to `judging` samples apart, a fifth at most, of up to `wanted` others; a single one is both parts."""
    if len(samples) == 1:
        return Parts(samples, np.arange(1), np.arange(1), labels)
    apart = min(judging, int(np.ceil(_MOST * len(samples))))
    return parted(samples, min(wanted, len(samples) - apart), apart, labels)


@dataclass(frozen=True)
class Variant:
    """What a pass could make of a model.

    kept: the units that are left, bool [count]. plain: without refitting. refused: layers that were left as they are.
    """

    name: str
    model: ir.Model
    kept: Array
    plain: bool
    refused: tuple[Declined, ...] = ()


def least(
    first: Variant, others: Iterable[Variant], loss: Callable[[ir.Model], float]
) -> tuple[Variant, dict[str, float]]:
    """The variant that loses least, and what each loses, for a report.

    One that is refitted has to win clearly. Where it loses less than half of what the same units cost as they are,
    others are not made.
    """
    made, losses = [], []
    for each in itertools.chain([first], others):
        made.append(each)
        losses.append(float(np.nan_to_num(loss(each.model), nan=np.inf)))
        if each.plain and min(losses) < _ENOUGH * losses[-1]:
            break
    report = {f"loss-{each.name}": float(f"{found:.4g}") for each, found in zip(made, losses, strict=True)}
    handicapped = [found * (1 if each.plain else _CLEARLY) for each, found in zip(made, losses, strict=True)]
    return made[int(np.argmin(handicapped))], report


def refusal(best: Variant, losses: Mapping[str, float], samples: int) -> tuple[Declined, ...]:
    """Why the variant that was chosen is not refitted; nothing if it is."""
    refitted = [loss for name, loss in losses.items() if name.endswith(REFITTED)]
    if not best.plain or not refitted:
        return ()
    reason = f"on {samples} samples apart it loses {min(refitted)} refitted, {losses[f'loss-{best.name}']} as it is"
    return (Declined("model", f"it is not refitted: {reason}"),)


def judging(model: ir.Model, samples: Samples, sensitivity: Sensitivity) -> Sensitivity:
    """What judges: of class scores their divergence, which sees what noise does to the classes, in place of noise."""
    if sensitivity is not Sensitivity.OUTPUT:
        return sensitivity
    scores = scores_output(outputs_of(model, samples.first(1))[0])
    return Sensitivity.DIVERGENCE if scores else sensitivity
