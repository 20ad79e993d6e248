"""How one constant is coded: as it is, by planes of bytes, or as a palette and indices; whatever takes fewest bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.targets.tvm.storage import rans

Array = np.ndarray[Any, Any]

WIDTHS = (1, 2, 4)  # bytes of an element; that of a constant is not told, so each is tried
MAX_ENTRIES = 256
ROW_BYTES = 40  # of the driver's table: what a stream takes beside its bytes
_SAMPLE = 4096  # elements that show that there are too many values for a palette
_LEAST_PART = 4096  # bytes; statistics of fewer are not worth a table of their own
_DEPTH = 4  # how often a constant is halved, at most


@dataclass(frozen=True)
class Part:
    """Bytes of a constant and how they are coded."""

    begin: int
    end: int
    width: int  # bytes of an element
    entries: int  # of the palette; 0: planes, one for each byte of an element
    cost: float  # bytes that it takes, about


def choose(data: Array) -> tuple[Part, ...]:
    """The parts of a constant, uint8[n] with n > 0, that together take the fewest bytes.

    Parts are halves, quarters … as far as that is worth it: channels that have a palette of their own lie apart.
    """
    return _best(data, 0, len(data), _DEPTH)


def encode(data: Array, part: Part) -> bytes:
    """The bytes that decode.h turns into those of `part` of `data`."""
    piece = data[part.begin : part.end]
    if part.entries:
        values, indices = np.unique(_elements(piece, part.width), return_inverse=True)
        return values.tobytes() + rans.encode(indices.astype(np.uint8))
    return b"".join(rans.encode(np.ascontiguousarray(plane)) for plane in piece.reshape(-1, part.width).T)


def _best(data: Array, begin: int, end: int, depth: int) -> tuple[Part, ...]:
    whole = min(_candidates(data, begin, end), key=lambda part: part.cost)
    middle = (begin + end) // 2
    if depth == 0 or end - begin < 2 * _LEAST_PART or (middle - begin) % max(WIDTHS):
        return (whole,)
    halves = (*_best(data, begin, middle, depth - 1), *_best(data, middle, end, depth - 1))
    return halves if sum(part.cost for part in halves) < whole.cost else (whole,)


def _candidates(data: Array, begin: int, end: int) -> Iterator[Part]:
    piece = data[begin:end]
    for width in WIDTHS:
        if len(piece) % width:
            continue
        planes = (rans.estimate(np.bincount(plane, minlength=256)) for plane in piece.reshape(-1, width).T)
        yield Part(begin, end, width, 0, ROW_BYTES + sum(planes))
        elements = _elements(piece, width)
        if width == 1 or len(np.unique(elements[:_SAMPLE])) > MAX_ENTRIES:
            continue
        values, counts = np.unique(elements, return_counts=True)
        if len(values) <= MAX_ENTRIES:
            indices = rans.estimate(np.pad(counts, (0, 256 - len(counts))))
            yield Part(begin, end, width, len(values), ROW_BYTES + len(values) * width + indices)


def _elements(piece: Array, width: int) -> Array:
    return np.ascontiguousarray(piece).view(f"<u{width}")
