"""Mixed precision: leave in float as few layers as hold a limit on what quantization costs.

Layers are ranked by the noise that each brings to the outputs (`sensitivity`) over what it costs in float: its
multiply-accumulates and the numbers that are converted around it. That is the greedy order of a knapsack whose gains
add up, as the noise of independent roundings does. How many of the ranking's first layers stay in float is found by
trials of what counts, the whole quantized model's accuracy or SQNR on all samples: first of 1, 2, 3, 5, 8, 12, …
layers, half as many more each time, because few are enough more often than many, and because a class that hangs by a
hair may come back with any of them; then by bisection down to the last number that failed. A model that holds the limit
fully quantized is not ranked at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.analysis.accuracy import drop_between, predictions
from graphopt.analysis.samples import Samples
from graphopt.errors import DataError, ToleranceError
from graphopt.ir import clone
from graphopt.passes.quantize.sensitivity import LayerSensitivity, output_noise
from graphopt.pipeline.base import PassContext

Refused = Mapping[str, str]  # names of first outputs of nodes that stay in float, with reasons


@dataclass(frozen=True)
class Limit:
    """What the quantized model must hold on the calibration samples, against the original; None does not count.

    max_drop: accuracy, or agreement without labels, that may be lost, as a fraction.
    min_sqnr: signal over noise of the worst output, in dB.
    """

    max_drop: float | None = None
    min_sqnr: float | None = None

    def __bool__(self) -> bool:
        return self.max_drop is not None or self.min_sqnr is not None


@dataclass(frozen=True)
class BackOff:
    """refused: what stays in float; statistics: for the pass's result."""

    refused: Refused
    statistics: Mapping[str, int | float | str]


def back_off(
    model: ir.Model,
    limit: Limit,
    context: PassContext,
    quantized: Callable[[ir.Model, Refused], object],
    ranking: Callable[[], Sequence[LayerSensitivity]],
) -> BackOff:
    """Find the layers that have to stay in float.

    Args:
        model: in float; left as it is.
        context: its samples, labels and original.
        quantized: quantizes a model in place, but what is refused.
        ranking: measures the layers; called if needed.

    Raises:
        ToleranceError: `model` itself, with nothing quantized, does not hold the limit.
        DataError: the accuracy is limited, and no output looks like class scores.
    """
    samples = context.calibration
    if samples is None:
        raise DataError("a limit on what quantization costs needs samples", advice="give them with --calib")
    gauge = _Gauge(limit, context.original or model, samples, context.labels)
    trials: dict[int, _Figure] = {}
    order: list[LayerSensitivity] = []

    def holds(count: int) -> bool:
        context.progress(len(trials), 0, f"quantize all but {count} layers" if count else "quantize all layers")
        candidate = clone(model)
        quantized(candidate, dict.fromkeys((layer.key for layer in order[:count]), "left in float"))
        trials[count] = gauge.measure(candidate)
        return trials[count].within(limit)

    if holds(0):
        return BackOff({}, _statistics(trials[0], 0, 0.0, len(trials)))
    untouched = gauge.measure(model)
    if not untouched.within(limit):
        raise ToleranceError(
            f"{untouched.text()} before anything is quantized, {_allowed(limit)}",
            advice="leaving layers in float cannot hold that: let the passes before remove less, or allow more",
        )
    order += sorted(ranking(), key=lambda layer: (-layer.noise / _cost(layer), layer.key))
    trials[len(order)] = untouched  # with all of them refused, nothing is quantized
    fails, enough = 0, min(1, len(order))
    while enough < len(order) and not holds(enough):
        fails, enough = enough, min(enough + (enough + 1) // 2, len(order))
    while enough - fails > 1:
        middle = (fails + enough) // 2
        fails, enough = (fails, middle) if holds(middle) else (middle, enough)
    kept = order[:enough]
    macs = sum(layer.macs or 0 for layer in order)
    share = sum(layer.macs or 0 for layer in kept) / macs if macs else 0.0
    reasons = {layer.key: _reason(layer, limit, macs) for layer in kept}
    return BackOff(reasons, _statistics(trials[enough], enough, share, len(trials)))


@dataclass(frozen=True)
class _Figure:
    """What a candidate costs: the fraction lost of `measure`, and dB; None where it does not matter."""

    measure: str
    drop: float | None
    sqnr_db: float | None

    def within(self, limit: Limit) -> bool:
        lost = limit.max_drop is None or (self.drop is not None and self.drop <= limit.max_drop)
        return lost and (limit.min_sqnr is None or (self.sqnr_db is not None and self.sqnr_db >= limit.min_sqnr))

    def text(self) -> str:
        parts = [] if self.drop is None else [f"{100 * self.drop:.2f} points of {self.measure} are lost"]
        parts += [] if self.sqnr_db is None else [f"the outputs are at {self.sqnr_db:.1f} dB"]
        return " and ".join(parts)


class _Gauge:
    """Measures candidates against the original, whose classes and outputs are computed once."""

    def __init__(
        self, limit: Limit, original: ir.Model, samples: Samples, labels: npt.NDArray[np.integer] | None
    ) -> None:
        self._limit, self._original, self._samples, self._labels = limit, original, samples, labels
        if limit.max_drop is not None:
            try:
                self._expected, self._output = predictions(original, samples)
            except DataError as error:
                raise DataError(
                    error.what, advice="leave --max-drop out, or hold the outputs with quantize{min_sqnr=…}"
                ) from error

    def measure(self, model: ir.Model) -> _Figure:
        lost, decibels = None, None
        measure = "agreement" if self._labels is None else "accuracy"
        if self._limit.max_drop is not None:
            found, _ = predictions(model, self._samples)
            lost = drop_between(self._expected, found, self._output, self._labels).drop
        if self._limit.min_sqnr is not None:
            decibels = output_noise(self._original, model, self._samples)
        return _Figure(measure, lost, decibels)


def _cost(layer: LayerSensitivity) -> int:
    """Of computing it in float, in operations."""
    return (layer.macs or 0) + layer.converted + 1


def _allowed(limit: Limit) -> str:
    parts = [] if limit.max_drop is None else [f"allowed are {100 * limit.max_drop:.2f} points"]
    parts += [] if limit.min_sqnr is None else [f"wanted are {limit.min_sqnr:.1f} dB"]
    return " and ".join(parts)


def _reason(layer: LayerSensitivity, limit: Limit, macs: int) -> str:
    held = [] if limit.max_drop is None else [f"a loss of {100 * limit.max_drop:g} points"]
    held += [] if limit.min_sqnr is None else [f"{limit.min_sqnr:g} dB"]
    share = f", with {100 * layer.macs / macs:.1f} % of the MACs" if layer.macs and macs else ""
    alone = "no noise" if math.isinf(layer.sqnr_db) else f"noise at {layer.sqnr_db:.1f} dB"
    return f"it stays in float to hold {' and '.join(held)}: alone it brings {alone}{share}"


def _statistics(figure: _Figure, count: int, share: float, trials: int) -> dict[str, int | float | str]:
    found: dict[str, int | float | str] = {"layers-back-in-float": count, "macs-back-in-float": round(share, 4)}
    if figure.drop is not None:
        found[f"{figure.measure}-drop"] = round(figure.drop, 6)
    if figure.sqnr_db is not None:
        found["sqnr-db"] = round(figure.sqnr_db, 2) if math.isfinite(figure.sqnr_db) else figure.sqnr_db
    return found | {"trials": trials}
