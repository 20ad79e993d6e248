"""What the lossy passes of a run cost: accuracy, held to the recipe's limit, and the noise of each quantized layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.accuracy import AccuracyDrop, measure_drop
from graphopt.analysis.layer_noise import layer_noise
from graphopt.analysis.quantization import FLOAT, precisions
from graphopt.analysis.samples import Samples
from graphopt.errors import DataError, ToleranceError
from graphopt.ir import clone
from graphopt.pipeline.base import Pass
from graphopt.pipeline.recipe import Recipe

_LAYER_SAMPLES = 8  # that the noise of each layer is measured on: it is a mean over many numbers of each


class LastFloats:
    """The model before the first pass that left float32: what the layers are compared with."""

    def __init__(self) -> None:
        self._model: ir.Model | None = None

    def keep(self, item: Pass, model: ir.Model) -> None:
        """Called before each pass."""
        if not item.exact and _in_floats(model):
            self._model = clone(model)

    def noise(self, rewritten: ir.Model, samples: Samples | None) -> dict[str, float]:
        """SQNR of the layers in low precision on a few samples; empty if there are none."""
        if self._model is None or samples is None or _in_floats(rewritten):
            return {}
        return layer_noise(self._model, rewritten, samples.first(_LAYER_SAMPLES))


def _in_floats(model: ir.Model) -> bool:
    return all(str(precision) == FLOAT for precision in precisions(model.graph).values())


def accuracy_drop(
    original: ir.Model,
    rewritten: ir.Model,
    samples: Samples | None,
    labels: np.ndarray[Any, Any] | None,
    recipe: Recipe,
    notices: list[str],
) -> AccuracyDrop | None:
    """What lossy passes cost, held to the recipe's max_drop; None where nothing is lossy or nothing can be measured."""
    if all(item.exact for item in recipe.passes):
        if recipe.max_drop is not None:
            notices.append("--max-drop has no effect: no lossy pass runs")
        return None
    if samples is None:
        notices.append("what the lossy passes cost is not measured: there is no calibration data")
        return None
    try:
        cost = measure_drop(original, rewritten, samples, labels)
    except DataError as error:
        if labels is not None or recipe.max_drop is not None:
            raise
        notices.append(error.what)
        return None
    lost = f"{100 * cost.drop:.2f} points of {cost.measure} on {cost.samples} samples"
    if recipe.max_drop is not None and cost.drop > recipe.max_drop:
        raise ToleranceError(
            f"the lossy passes cost {lost}, allowed were {100 * recipe.max_drop:.2f}",
            advice="remove less, or allow more with --max-drop",
        )
    if recipe.max_drop is None and cost.drop > 0.02:
        notices.append(f"the lossy passes cost {lost}")
    return cost
