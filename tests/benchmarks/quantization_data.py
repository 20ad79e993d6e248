"""Real data with classes, boxes, masks or reference sounds, split as SOURCES.md says.

Each function takes the folder REAL (models/, data/, SOURCES.md) and gives all samples of a task in a fixed order, and
which of them calibrate and which evaluate.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.inputs import CASES, IMAGENET_MEAN, IMAGENET_STD, _centre, _normalized, _picture, _recording

Array = np.ndarray[Any, Any]

_CIFAR_CALIBRATING, _CIFAR_EVALUATING = 200, 2000
_FRAME, _HOP = 512, 256  # of the speech enhancement's spectra
_WINDOWS = 900  # of 512 samples, of the recording for voice activity
_LARGE = 48  # photographs where outputs are as large as pictures


@dataclass(frozen=True)
class Data:
    """arrays: by input, samples along a new first axis; truth: one entry a sample, None where nothing is known.

    calibrating, evaluating: indices of samples; no index is in both. carried: by input that holds the state of a
    network that streams, the output it comes from; its samples must run in order, from the first.
    """

    arrays: dict[str, Array]
    truth: Sequence[Any] | None
    calibrating: Array
    evaluating: Array
    carried: dict[str, str]

    def within_calibration(self) -> Data:
        """Even samples of the calibration split calibrate, odd ones evaluate; halves where samples must be in order."""
        inner = self.calibrating
        half = len(inner) // 2
        pair = (inner[:half], inner[half:]) if self.carried else (inner[::2], inner[1::2])
        return replace(self, calibrating=pair[0], evaluating=pair[1])


def _thirds(arrays: dict[str, Array], truth: Sequence[Any] | None, carried: dict[str, str] | None = None) -> Data:
    """The first third calibrates."""
    count = len(next(iter(arrays.values())))
    return Data(arrays, truth, np.arange(count // 3), np.arange(count // 3, count), carried or {})


def imagenet(real: Path, entry: str, size: int, *, bgr: bool = False, background: int = 1) -> Data:
    """100 pictures whose class is divisible by 10 calibrate, the other 400 evaluate."""
    with (real / "data" / "imagenet_labels.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    classes = np.array([int(row["class_index"]) for row in rows])
    pictures = [_centre(real / "data" / "imagenet" / row["file"], size) for row in rows]
    scale: tuple[Any, Any] = ((104, 117, 123), (1, 1, 1)) if bgr else ((128,) * 3, (128,) * 3)
    tenth = classes % 10 == 0
    array = _normalized(pictures, *scale, bgr=bgr)
    return Data({entry: array}, list(classes + background), np.flatnonzero(tenth), np.flatnonzero(~tenth), {})


def _cifar(real: Path) -> tuple[Array, Array, Array, Array]:
    """Pictures, classes, and what calibrates (of the training set) and evaluates (of the test set)."""
    train, test = (np.load(real / "data" / f"cifar10_{name}_u8.npz") for name in ("train", "test"))
    pictures = np.concatenate([train["x"][:_CIFAR_CALIBRATING], test["x"][:_CIFAR_EVALUATING]])
    classes = np.concatenate([train["y"][:_CIFAR_CALIBRATING], test["y"][:_CIFAR_EVALUATING]])
    return pictures, classes, np.arange(_CIFAR_CALIBRATING), np.arange(_CIFAR_CALIBRATING, len(pictures))


def cifar(real: Path) -> Data:
    """Normalized, NCHW."""
    pictures, classes, calibrating, evaluating = _cifar(real)
    mean, std = 255 * np.array(IMAGENET_MEAN), 255 * np.array(IMAGENET_STD)
    return Data({"input": _normalized(list(pictures), mean, std)}, list(classes), calibrating, evaluating, {})


def cifar_bytes(real: Path) -> Data:
    """From 0 to 255, NHWC."""
    pictures, classes, calibrating, evaluating = _cifar(real)
    return Data({"input_1": pictures[:, None].astype(np.float32)}, list(classes), calibrating, evaluating, {})


def unlabelled(real: Path, name: str, count: int) -> Data:
    """`count` inputs of the model `name` as in `inputs`, without truth."""
    prepare = CASES[name].inputs
    if prepare is None:
        raise ValueError(f"'{name}' has no inputs")
    return _thirds(prepare(real / "data", real / "models" / f"{name}.onnx", count), None)


def words(real: Path) -> Data:
    """Spoken words that the network knows."""
    archive = np.load(real / "data" / "words_tts_mfcc12.npz")
    known = archive["label35"] >= 0
    return _thirds({"mfcc": archive["mfcc"][known][:, None]}, list(archive["label35"][known].astype(int)))


def stories(real: Path) -> Data:
    """128 tokens, and the 128 that follow each of them."""
    tokens = np.load(real / "data" / "stories_tokens.npz")["sampled"].astype(np.int64)
    return _thirds({"tokens": tokens[:, None, :-1]}, list(tokens[:, 1:]))


def _photographs(real: Path) -> list[Path]:
    return sorted((real / "data" / "coco" / "images").glob("*.jpg"))


def boxes(real: Path, size: int, mean: Any, std: Any) -> Data:
    """Photographs in BGR, stretched; truth: [boxes, 5] of class and x0, y0, x1, y1 as fractions of the picture."""
    files = _photographs(real)
    truth = []
    for file in files:
        labels = real / "data" / "coco" / "labels" / f"{file.stem}.txt"  # missing where there is no object
        lines = labels.read_text(encoding="utf-8").splitlines() if labels.is_file() else []
        rows = np.array([line.split() for line in lines], np.float64).reshape(-1, 5)
        middle, extent = rows[:, 1:3], rows[:, 3:5] / 2
        truth.append(np.concatenate([rows[:, :1], middle - extent, middle + extent], axis=1))
    return _thirds({"input.1": _normalized([_picture(f, size, size) for f in files], mean, std, bgr=True)}, truth)


# COCO's ids of the classes of Pascal VOC, in the order of these.
_VOC = (5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72)
UNKNOWN = 255


def masks(real: Path) -> Data:
    """Photographs that have a mask; truth: [513, 513] classes of VOC, 0 elsewhere, UNKNOWN where nobody looked."""
    from PIL import Image

    files = [file for file in _photographs(real) if _mask_of(real, file).is_file()][:_LARGE]
    table = np.zeros(256, np.uint8)
    table[list(_VOC)] = np.arange(1, 21)
    table[0] = UNKNOWN
    truth = []
    for file in files:
        with Image.open(_mask_of(real, file)) as image:
            truth.append(table[np.asarray(image.resize((513, 513), Image.Resampling.NEAREST))])
    pictures = [_picture(file, 513, 513) for file in files]
    return _thirds({"input": _normalized(pictures, (128,) * 3, (128,) * 3)}, truth)


def _mask_of(real: Path, file: Path) -> Path:
    return real / "data" / "coco" / "masks" / f"{file.stem}.png"


def luma(real: Path) -> Data:
    """Y of photographs made three times smaller; truth: what they were made of, [672, 672] in 0 to 1."""
    from PIL import Image

    large, small = [], []
    for file in _photographs(real)[:_LARGE]:
        with Image.open(file) as image:
            y = image.convert("YCbCr").getchannel("Y").resize((672, 672), Image.Resampling.BICUBIC)
            large.append(np.asarray(y, np.float32) / 255)
            small.append(np.asarray(y.resize((224, 224), Image.Resampling.BICUBIC), np.float32) / 255)
    return _thirds({"y": np.stack(small)[:, None, None]}, large)


def files(real: Path) -> Data:
    """Beginnings and ends of files of many kinds: REAL's and this repository's, as many of a kind as 30."""
    roots = [
        real / "data",
        real / "models",
        *(Path(__file__).parents[2] / name for name in ("docs", "tests", "targets")),
    ]
    found = [file for root in roots for file in sorted(root.rglob("*.*")) if file.is_file() and file.suffix != ".pyc"]
    taken: dict[str, list[Path]] = {}
    for file in found:
        taken.setdefault(file.suffix, []).append(file)
    rows = []
    for file in (file for kind in sorted(taken) for file in taken[kind][:30]):
        content = file.read_bytes()
        head, tail = content.lstrip()[:512], content.rstrip()[-512:]
        rows.append([*head, *[256] * (512 - len(head)), *[256] * (512 - len(tail)), *tail])
    array = np.array(rows, np.int32)[:, None]
    turns = np.arange(len(array))
    return Data({"bytes": array}, None, turns[turns % 3 == 0], turns[turns % 3 != 0], {})


def noisy_speech(real: Path, name: str) -> Data:
    """Spectra, streamed; truth: 512 samples of the published result around each frame."""
    prepare = CASES[name].inputs
    if prepare is None:
        raise ValueError(f"'{name}' has no inputs")
    reference = np.pad(_recording(real / "data" / "gtcrn_enh_stream_ref.wav"), _HOP)
    count = (len(reference) - _FRAME) // _HOP + 1
    arrays = prepare(real / "data", real / "models" / f"{name}.onnx", count)
    truth = [reference[start : start + _FRAME] for start in range(0, _HOP * count, _HOP)]
    return _thirds(arrays, truth, {key: f"{key}_out" for key in ("conv_cache", "tra_cache", "inter_cache")})


def voices(real: Path, name: str) -> Data:
    """Windows of speech, streamed."""
    prepare = CASES[name].inputs
    if prepare is None:
        raise ValueError(f"'{name}' has no inputs")
    return _thirds(prepare(real / "data", real / "models" / f"{name}.onnx", _WINDOWS), None, {"state": "stateN"})
