"""Scores of a task, and agreement with the float model: each takes the runs' outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tests.benchmarks.quantization_data import UNKNOWN
from tests.benchmarks.quantization_detection import average_precision, in_common

Array = np.ndarray[Any, Any]
Runs = Sequence[Mapping[str, Array]]


def _first(run: Mapping[str, Array]) -> Array:
    return next(iter(run.values()))


def _largest(runs: Runs) -> Array:
    return np.array([_first(run).argmax() for run in runs])


def top1(runs: Runs, truth: Sequence[Any]) -> float:
    """The fraction of samples whose largest output is that of the class."""
    return float(np.mean(_largest(runs) == np.array(truth)))


def same_class(reference: Runs, runs: Runs) -> float:
    """The fraction of samples with the same largest output."""
    return float(np.mean(_largest(reference) == _largest(runs)))


def cross_entropy(runs: Runs, truth: Sequence[Any]) -> float:
    """Nats per token, of logits [1, tokens, vocabulary]."""
    logits = np.concatenate([_first(run)[0] for run in runs]).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    right = logits[np.arange(len(logits)), np.concatenate(truth)]
    return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - right))


def same_token(reference: Runs, runs: Runs) -> float:
    """The fraction of places with the same likeliest token, or of pixels with the same class."""
    return float(np.mean([_first(a).argmax(-1) == _first(b).argmax(-1) for a, b in zip(reference, runs, strict=True)]))


def mean_overlap(runs: Runs, truth: Sequence[Any]) -> float:
    """mIoU over the classes of VOC that occur, pixels of all pictures together; unknown ones are left out."""
    pairs = np.zeros((21, 21))
    for run, mask in zip(runs, truth, strict=True):
        known = mask != UNKNOWN
        np.add.at(pairs, (mask[known], _first(run).reshape(mask.shape)[known].astype(int)), 1)
    present = pairs.sum(axis=1) > 0
    union = pairs.sum(axis=0) + pairs.sum(axis=1) - np.diag(pairs)
    return float(np.mean(np.diag(pairs)[present] / union[present]))


def same_pixel(reference: Runs, runs: Runs) -> float:
    """The fraction of equal numbers."""
    return float(np.mean([np.mean(_first(a) == _first(b)) for a, b in zip(reference, runs, strict=True)]))


def psnr(runs: Runs, truth: Sequence[Any]) -> float:
    """Mean over pictures, in dB, of numbers in 0 to 1; the pictures' rims of 6 pixels are left out."""
    values = []
    for run, wanted in zip(runs, truth, strict=True):
        error = np.clip(_first(run).reshape(wanted.shape), 0, 1) - wanted
        values.append(-10 * np.log10(np.mean(np.square(error[6:-6, 6:-6], dtype=np.float64))))
    return float(np.mean(values))


def sound_snr(runs: Runs, truth: Sequence[Any]) -> float:
    """dB of the sound that frames' spectra [1, 257, 1, 2] come to, against the published one."""
    window = np.sqrt(np.hanning(513)[:-1])
    spectra = np.stack([_first(run)[0, :, 0] for run in runs]).astype(np.float64)
    frames = np.fft.irfft(spectra[..., 0] + 1j * spectra[..., 1]) * window
    made = frames[1:, :256] + frames[:-1, 256:]
    wanted = np.stack([frame[:256] for frame in truth[1:]])
    return float(10 * np.log10(np.square(wanted).sum() / np.square(wanted - made).sum()))


def same_side(reference: Runs, runs: Runs) -> float:
    """The fraction of samples whose first output lies on the same side of one half."""
    sides = [(_first(a) >= 0.5) == (_first(b) >= 0.5) for a, b in zip(reference, runs, strict=True)]
    return float(np.mean(sides))


def precision_by(decode: Callable[[Mapping[str, Array]], Array]) -> Callable[[Runs, Sequence[Any]], float]:
    """AP50 of a detector."""
    return lambda runs, truth: average_precision([decode(run) for run in runs], truth)


def common_by(decode: Callable[[Mapping[str, Array]], Array]) -> Callable[[Runs, Runs], float]:
    """Detections in common with the float model's."""
    return lambda reference, runs: in_common([decode(run) for run in reference], [decode(run) for run in runs])
