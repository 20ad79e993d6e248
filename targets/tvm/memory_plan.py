"""Offsets in one arena for buffers with known lifetimes.

Greedy by size (Pisarchyk and Lee, "Efficient memory management for deep neural net inference", 2020, section 5.2):
the largest buffer first, each at the lowest gap that fits between the buffers placed so far that live at the same time.
Where that takes more than what lives at once, single buffers are moved in the order, by chance and with a fixed seed,
and a move stays if the arena does not grow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random

MOST_MOVES = 200
MOST_WORK = 2_000_000  # pairs of buffers looked at: about a second


@dataclass(frozen=True)
class Lifetime:
    """A buffer of `bytes` bytes that holds data from call `first` through call `last`, both included."""

    bytes: int
    first: int
    last: int


def plan(lifetimes: Sequence[Lifetime], alignment: int) -> tuple[list[int], int]:
    """Offset of each buffer, and the arena's size, in bytes; offsets are multiples of `alignment`."""
    sizes = [-(-max(life.bytes, 1) // alignment) * alignment for life in lifetimes]
    bound = lower_bound([Lifetime(size, life.first, life.last) for size, life in zip(sizes, lifetimes, strict=True)])
    beside = [
        frozenset(j for j, other in enumerate(lifetimes) if j != i and _overlap(life, other))
        for i, life in enumerate(lifetimes)
    ]
    order = sorted(range(len(lifetimes)), key=lambda i: (-sizes[i], lifetimes[i].first, i))
    offsets, arena = _placed(order, sizes, beside)
    random = Random(0)
    for _ in range(min(MOST_MOVES, MOST_WORK // (len(order) ** 2 + 1))):
        if arena <= bound:
            break
        moved = list(order)
        moved.insert(random.randrange(len(order)), moved.pop(random.randrange(len(order))))
        found, size = _placed(moved, sizes, beside)
        if size <= arena:  # equal ones too: they lead on
            order, offsets, arena = moved, found, size
    return offsets, arena


def _placed(order: Sequence[int], sizes: Sequence[int], beside: Sequence[frozenset[int]]) -> tuple[list[int], int]:
    """Offsets of buffers placed in this order, each at the lowest gap, and the size of the arena."""
    offsets = [0] * len(order)
    placed: set[int] = set()
    for i in order:
        offset = 0
        for j in sorted(placed & beside[i], key=lambda j: offsets[j]):
            if offset + sizes[i] <= offsets[j]:
                break
            offset = max(offset, offsets[j] + sizes[j])
        offsets[i] = offset
        placed.add(i)
    return offsets, max((offset + size for offset, size in zip(offsets, sizes, strict=True)), default=0)


def lower_bound(lifetimes: Sequence[Lifetime]) -> int:
    """The most bytes that live at the same time: no plan is smaller."""
    changes: dict[int, int] = {}
    for life in lifetimes:
        changes[life.first] = changes.get(life.first, 0) + life.bytes
        changes[life.last + 1] = changes.get(life.last + 1, 0) - life.bytes
    return max(accumulate(changes[call] for call in sorted(changes)), default=0)


def _overlap(a: Lifetime, b: Lifetime) -> bool:
    return a.first <= b.last and b.first <= a.last
