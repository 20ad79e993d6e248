"""How far two sets of outputs are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class OutputComparison:
    """The difference of one output between a reference and a candidate.

    max_abs: largest absolute difference; infinite where `note` tells of a difference that no number measures.
    relative: max_abs / (max(reference, 0) - min(reference, 0)). Zero belongs to the range because float rounding is
        relative to the size of a number: an output that stays near 0.5 is not held to the width of its variation.
    sqnr_db: 10 log10(Σ reference² / Σ (reference - candidate)²) in dB; infinite for equal outputs.
    top1_agreement: the fraction of samples whose largest value is at the same place, where the output looks like
        class scores; None elsewhere.
    note: what numbers do not say, such as another shape or NaN on one side; empty otherwise.
    """

    name: str
    max_abs: float
    relative: float
    sqnr_db: float
    top1_agreement: float | None = None
    note: str = ""


def compare(reference: Mapping[str, Array], candidate: Mapping[str, Array]) -> tuple[OutputComparison, ...]:
    """Compare outputs by name, in the reference's order; outputs that only the candidate has come last.

    NaN at the same places is equal, and so are infinities of the same sign; at other places they differ without
    measure. Strings and booleans are equal or not. The first axis counts samples or the batch.
    """
    compared = [
        _compare(name, array, candidate[name]) if name in candidate else _different(name, "missing in the candidate")
        for name, array in reference.items()
    ]
    surplus = [_different(name, "missing in the reference") for name in candidate if name not in reference]
    return (*compared, *surplus)


def compare_runs(
    reference: Sequence[Mapping[str, Array]], candidate: Sequence[Mapping[str, Array]]
) -> tuple[OutputComparison, ...]:
    """Compare the outputs of several runs as one: the maximum, the range and the sums are over all of them.

    Raises ValueError if the numbers of runs differ.
    """
    if len(reference) != len(candidate):
        raise ValueError(f"{len(reference)} runs against {len(candidate)}")
    if not _aligned(reference, candidate):
        # Outputs whose shape depends on the data: one entry a run, under the name of output and run.
        return compare(
            {f"{name} (sample {i})": array for i, run in enumerate(reference) for name, array in run.items()},
            {f"{name} (sample {i})": array for i, run in enumerate(candidate) for name, array in run.items()},
        )
    return compare(_stack(reference), _stack(candidate))


def _aligned(reference: Sequence[Mapping[str, Array]], candidate: Sequence[Mapping[str, Array]]) -> bool:
    shapes = [{name: array.shape for name, array in run.items()} for runs in (reference, candidate) for run in runs]
    half = len(reference)
    return all(s == shapes[0] for s in shapes[:half]) and all(s == shapes[half] for s in shapes[half:])


def _stack(runs: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    return {name: np.stack([run[name] for run in runs]) for name in runs[0]} if runs else {}


def _compare(name: str, reference: Array, candidate: Array) -> OutputComparison:
    if reference.shape != candidate.shape:
        return _different(name, f"shape {list(candidate.shape)} instead of {list(reference.shape)}")
    if _is_number(reference) != _is_number(candidate):
        return _different(name, f"type {candidate.dtype} instead of {reference.dtype}")
    if not _is_number(reference):
        unequal = int(np.count_nonzero(reference.astype(str) != candidate.astype(str)))
        return _different(name, f"{unequal} of {reference.size} values differ") if unequal else _equal(name)
    wide = np.complex128 if np.iscomplexobj(reference) else np.float64
    expected, found = reference.astype(wide), candidate.astype(wide)
    finite = np.isfinite(expected) & np.isfinite(found)
    same = np.where(np.isnan(expected), np.isnan(found), expected == found)
    unlike = int(np.count_nonzero(~finite & ~same))
    if unlike:
        return _different(name, f"{unlike} of {reference.size} values are NaN or infinite on one side only")
    expected, found = expected[finite], found[finite]
    agreement = _top1_agreement(reference, candidate)
    if expected.size == 0:
        return _equal(name, agreement)
    error = np.abs(expected - found)
    max_abs = float(error.max())
    noise = float(np.square(error).sum())
    signal = float(np.square(np.abs(expected)).sum())
    return OutputComparison(name, max_abs, _ratio(max_abs, _range(expected)), _decibel(signal, noise), agreement)


def _range(values: Array) -> float:
    if np.iscomplexobj(values):
        return float(np.abs(values).max())
    return float(max(values.max(), 0.0) - min(values.min(), 0.0))


def _ratio(error: float, scale: float) -> float:
    if error == 0:
        return 0.0
    return error / scale if scale > 0 else math.inf


def _decibel(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def _top1_agreement(reference: Array, candidate: Array) -> float | None:
    """For floats with samples on the first axis, scores on the last, and nothing between."""
    scores = reference.ndim >= 2 and reference.shape[-1] >= 2 and all(d == 1 for d in reference.shape[1:-1])
    if not scores or reference.shape[0] == 0 or reference.dtype.kind in "iubcOUS":
        return None
    first, second = (array.astype(np.float64).argmax(axis=-1) for array in (reference, candidate))
    return float(np.mean(first == second))


def _is_number(array: Array) -> bool:
    return array.dtype.kind not in "bOUST"


def _equal(name: str, agreement: float | None = None) -> OutputComparison:
    return OutputComparison(name, 0.0, 0.0, math.inf, agreement)


def _different(name: str, note: str) -> OutputComparison:
    return OutputComparison(name, math.inf, math.inf, -math.inf, None, note)
