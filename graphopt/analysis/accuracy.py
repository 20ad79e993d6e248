"""What rewriting a classifier cost: top-1 accuracy on labelled samples, or agreement with the original without."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.calibration import side_by_side
from graphopt.analysis.execution import Session, processors
from graphopt.analysis.samples import Samples
from graphopt.errors import DataError

LEAST_PROBABILITY = 1e-12  # of a class, where softmax has rounded to 0


@dataclass(frozen=True)
class AccuracyDrop:
    """Top-1 before and after, as fractions of `samples`; `measure` is "accuracy", or "agreement" with the original."""

    measure: str
    output: str
    before: float  # 1.0 for agreement
    after: float
    samples: int

    @property
    def drop(self) -> float:
        """What was lost; negative if the rewritten model is better."""
        return self.before - self.after


def load_labels(path: str | Path) -> np.ndarray[Any, Any]:
    """Class indices from an .npy file: integers, one a sample. Raises DataError."""
    try:
        labels = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"labels {path} cannot be read: {error}", advice="write them with numpy.save") from error
    if not isinstance(labels, np.ndarray) or labels.ndim != 1 or labels.dtype.kind not in "iu":
        found = f"{labels.dtype}{list(labels.shape)}" if isinstance(labels, np.ndarray) else "several arrays"
        raise DataError(f"labels {path} hold {found}, expected one axis of class indices as integers")
    return labels


def measure_drop(
    original: ir.Model, rewritten: ir.Model, samples: Samples, labels: np.ndarray[Any, Any] | None = None
) -> AccuracyDrop:
    """Run both models on all samples and compare the places of their largest scores.

    The scores are the first output of floats with classes on its last axis and nothing but the batch before it.
    Raises DataError if there is no such output, or if the labels do not fit.
    """
    expected, name = predictions(original, samples)
    found, _ = predictions(rewritten, samples)
    return drop_between(expected, found, name, labels)


def drop_between(
    expected: np.ndarray[Any, Any],
    found: np.ndarray[Any, Any],
    output: str,
    labels: np.ndarray[Any, Any] | None = None,
) -> AccuracyDrop:
    """What was lost between the classes that two models give, as `predictions` has them, by their output `output`.

    Raises DataError if there is not one label for each class.
    """
    if labels is None:
        return AccuracyDrop("agreement", output, 1.0, float(np.mean(expected == found)), len(expected))
    if len(labels) != len(expected):
        raise DataError(f"there are {len(labels)} labels for {len(expected)} samples, expected one for each")
    before, after = float(np.mean(expected == labels)), float(np.mean(found == labels))
    return AccuracyDrop("accuracy", output, before, after, len(labels))


def predictions(model: ir.Model, samples: Samples) -> tuple[np.ndarray[Any, Any], str]:
    """The class that the model gives each sample, and the output that says so.

    Raises DataError if no output looks like class scores.
    """
    found = [(classes_of(array), name) for array, name in _scores(model, samples)]
    return np.concatenate([classes for classes, _ in found]), found[0][1] if found else ""


def _scores(model: ir.Model, samples: Samples) -> Iterator[tuple[np.ndarray[Any, Any], str]]:
    """The class scores of each sample, and the output that they are."""
    name = ""
    with (
        Session(model, threads=1) as session,
        contextlib.closing(side_by_side(session, samples, processors())) as runs,
    ):
        for outputs in runs:
            name = name or scores_output(outputs)
            if not name:
                raise DataError(
                    "accuracy cannot be measured: no output looks like class scores (floats, classes on the last axis)",
                    advice="leave --labels and --max-drop out",
                )
            yield outputs[name], name


def log_probabilities(model: ir.Model, samples: Samples) -> np.ndarray[Any, Any]:
    """Natural logarithms of what the model gives each class, [rows, classes] of all samples, in float64.

    Scores are probabilities (`are_probabilities`), or else the input of a softmax.
    Raises DataError if no output looks like class scores.
    """
    return log_scores(np.concatenate([array.reshape(-1, array.shape[-1]) for array, _ in _scores(model, samples)]))


def log_scores(scores: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Natural logarithms of what scores [rows, classes], as in `log_probabilities`, give each class, in float64."""
    scores = scores.astype(np.float64)
    if are_probabilities(scores):
        return np.asarray(np.log(np.maximum(scores, LEAST_PROBABILITY)))
    scores -= scores.max(axis=1, keepdims=True)
    return np.asarray(scores - np.log(np.exp(scores).sum(axis=1, keepdims=True)))


def divergence(known: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Σ p (log p − log p') of each row, in nats, of logarithms [rows, classes]; [rows]."""
    return np.asarray((np.exp(known) * (known - found)).sum(axis=1))


def are_probabilities(scores: np.ndarray[Any, Any]) -> bool:
    """Whether scores [rows, classes] are at least 0 and add up to 1 in each row."""
    return bool(np.all(scores >= 0) and np.allclose(scores.sum(axis=1), 1, atol=1e-3))


def cross_entropy(known: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
    """Mean of −log p of the labels, in nats.

    Args:
        known: `log_probabilities`, [rows, classes].
        labels: the class index of each row.

    Raises DataError if there is not one label for each row, or one is no class.
    """
    rows, classes = known.shape
    if len(labels) != rows:
        raise DataError(f"there are {len(labels)} labels for {rows} rows of scores, expected one for each")
    outside = labels[(labels < 0) | (labels >= classes)]
    if len(outside):
        raise DataError(f"found label {outside[0]}, expected 0 to {classes - 1}: the model has {classes} classes")
    return -float(known[np.arange(rows), labels].mean())


def scores_output(outputs: Mapping[str, np.ndarray[Any, Any]]) -> str:
    """The first output of floats with classes on its last axis and nothing but the batch before it; empty if none."""
    return next((name for name, array in outputs.items() if _is_scores(array)), "")


def classes_of(scores: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The places of the largest scores, one for each row of the last axis."""
    places: np.ndarray[Any, Any] = scores.reshape(-1, scores.shape[-1]).argmax(axis=-1)
    return places


def _is_scores(array: np.ndarray[Any, Any]) -> bool:
    return (
        array.dtype.kind not in "iubcOUS"
        and array.ndim >= 1
        and array.shape[-1] >= 2
        and all(size == 1 for size in array.shape[1:-1])
    )
