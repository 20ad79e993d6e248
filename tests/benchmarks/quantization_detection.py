"""Boxes out of the detectors' outputs, as their authors decode them, and how good they are.

Detections of a picture are rows of class, score, x0, y0, x1, y1, the coordinates as fractions of the picture, by
falling score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Run = Mapping[str, Array]

_SURE = 0.3  # the score from which a detection counts as one when two networks are compared
_FEWEST = 0.01  # the score that a detection needs to be ranked
_MOST = 100  # detections of a picture, as in COCO's rules


def fastestdet(run: Run) -> Array:
    """dog-qiuqiu/FastestDet, utils/tool.py: score = objectness^0.6 class^0.4, offsets through tanh, sizes through the
    logistic function, on one grid.
    """
    output = run["758"][0].astype(np.float64)
    objectness, box, classes = output[0], output[1:5], output[5:]
    height, width = objectness.shape
    scores = np.maximum(objectness, 0) ** 0.6 * np.maximum(classes.max(axis=0), 0) ** 0.4
    row, column = np.mgrid[:height, :width]
    middle = np.stack([(np.tanh(box[0]) + column) / width, (np.tanh(box[1]) + row) / height])
    half = 1 / (1 + np.exp(-box[2:])) / 2
    corners = np.concatenate([middle - half, middle + half])
    flat = corners.reshape(4, -1).T
    return _suppressed(classes.argmax(axis=0).ravel(), scores.ravel(), flat, 0.45)


_NANODET = (("792", "795", 8), ("814", "817", 16), ("836", "839", 32))  # classes, distances, pixels between places


def nanodet(run: Run) -> Array:
    """RangiLyu/nanodet, gfl_head: each side's distance is the mean of a distribution over 0 to 7 strides."""
    classes, scores, corners = [], [], []
    for names, distances, stride in _NANODET:
        probability = run[names][0].astype(np.float64)
        logits = run[distances][0].astype(np.float64).reshape(len(probability), 4, 8)
        spread = np.exp(logits - logits.max(axis=2, keepdims=True))
        distance = spread @ np.arange(8) / spread.sum(axis=2) * stride
        side = 416 // stride
        row, column = np.divmod(np.arange(side * side), side)
        middle = (np.stack([column, row], axis=1) + 0.5) * stride
        place, kind = np.nonzero(probability > _FEWEST)
        classes.append(kind)
        scores.append(probability[place, kind])
        corners.append((np.concatenate([middle - distance[:, :2], middle + distance[:, 2:]], axis=1) / 416)[place])
    return _suppressed(np.concatenate(classes), np.concatenate(scores), np.concatenate(corners), 0.6)


def ultraface(run: Run) -> Array:
    """Linzaer's Ultra-Light-Fast-Generic-Face-Detector: scores of background and face, corners as they are."""
    scores = run["scores"][0, :, 1].astype(np.float64)
    return _suppressed(np.zeros(len(scores), np.int64), scores, run["boxes"][0].astype(np.float64), 0.3)


def _suppressed(classes: Array, scores: Array, corners: Array, limit: float) -> Array:
    """Without those that overlap a better one of the same class by more than `limit`."""
    order = [index for index in np.argsort(-scores, kind="stable") if scores[index] > _FEWEST]
    rows = np.column_stack([classes, scores, corners])[order]
    kept = np.zeros((0, 6))
    for row in rows:
        same = kept[kept[:, 0] == row[0]]
        if not len(same) or overlaps(row[None, 2:], same[:, 2:]).max() <= limit:
            kept = np.concatenate([kept, row[None]])
        if len(kept) == _MOST:
            break
    return kept


def overlaps(first: Array, second: Array) -> Array:
    """Intersection over union, [first, second]."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    common = np.prod(np.clip(high - low, 0, None), axis=2)
    areas = [np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1) for boxes in (first, second)]
    ratio: Array = common / np.maximum(areas[0][:, None] + areas[1][None] - common, 1e-12)
    return ratio


def average_precision(found: Sequence[Array], truth: Sequence[Array]) -> float:
    """AP50: the mean over classes of the precision at 101 recalls (COCO's rules, at an overlap of half)."""
    kinds = sorted({int(kind) for rows in truth for kind in rows[:, 0]})
    return float(np.mean([_precision_of(kind, found, truth) for kind in kinds]))


def _precision_of(kind: int, found: Sequence[Array], truth: Sequence[Array]) -> float:
    hits: list[tuple[float, bool]] = []
    total = 0
    for detections, known in zip(found, truth, strict=True):
        wanted = known[known[:, 0] == kind][:, 1:]
        total += len(wanted)
        rows = detections[detections[:, 0] == kind]
        hits += zip(rows[:, 1], _matched(rows[:, 2:], wanted), strict=True)
    right = np.array([hit for _, hit in sorted(hits, key=lambda pair: -pair[0])], bool)
    precision = np.cumsum(right) / (np.arange(len(right)) + 1)
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    places = np.searchsorted(np.cumsum(right) / total, np.linspace(0, 1, 101))
    return float(envelope[np.minimum(places, len(right))].mean())


def _matched(boxes: Array, wanted: Array) -> list[bool]:
    """Whether each box, in order, meets one of `wanted` that none before it met."""
    free = np.ones(len(wanted), bool)
    results = []
    for every in overlaps(boxes, wanted):
        ratios = np.where(free, every, 0)
        best = int(ratios.argmax()) if len(ratios) else -1
        hit = best >= 0 and bool(ratios[best] >= 0.5)
        if hit:
            free[best] = False
        results.append(hit)
    return results


def in_common(first: Sequence[Array], second: Sequence[Array]) -> float:
    """Detections of both, by class and an overlap of half, as a fraction (Dice) of those of each that are sure."""
    pairs = total = 0
    for one, other in zip(map(_sure, first), map(_sure, second), strict=True):
        total += len(one) + len(other)
        for kind in {*one[:, 0]} & {*other[:, 0]}:
            pairs += sum(_matched(other[other[:, 0] == kind][:, 2:], one[one[:, 0] == kind][:, 2:]))
    return 2 * pairs / total if total else 1.0


def _sure(rows: Array) -> Array:
    return rows[rows[:, 1] >= _SURE]
