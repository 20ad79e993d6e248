"""Offsets in one arena for buffers with known lifetimes.

Greedy by size (Pisarchyk and Lee, "Efficient memory management for deep neural net inference", 2020, section 5.2):
the largest buffer first, each at the lowest gap that fits between the buffers placed so far that live at the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Lifetime:
    """A buffer of `bytes` bytes that holds data from call `first` through call `last`, both included."""

    bytes: int
    first: int
    last: int


def plan(lifetimes: Sequence[Lifetime], alignment: int) -> tuple[list[int], int]:
    """Offset of each buffer, and the arena's size, in bytes; offsets are multiples of `alignment`."""
    sizes = [-(-max(life.bytes, 1) // alignment) * alignment for life in lifetimes]
    offsets = [0] * len(lifetimes)
    placed: list[int] = []
    for i in sorted(range(len(lifetimes)), key=lambda i: (-sizes[i], lifetimes[i].first, i)):
        offset = 0
        for j in sorted((j for j in placed if _overlap(lifetimes[i], lifetimes[j])), key=lambda j: offsets[j]):
            if offset + sizes[i] <= offsets[j]:
                break
            offset = max(offset, offsets[j] + sizes[j])
        offsets[i] = offset
        placed.append(i)
    return offsets, max((offset + size for offset, size in zip(offsets, sizes, strict=True)), default=0)


def lower_bound(lifetimes: Sequence[Lifetime]) -> int:
    """The most bytes that live at the same time: no plan is smaller."""
    calls = range(max((life.last for life in lifetimes), default=-1) + 1)
    return max((sum(life.bytes for life in lifetimes if life.first <= i <= life.last) for i in calls), default=0)


def _overlap(a: Lifetime, b: Lifetime) -> bool:
    return a.first <= b.last and b.first <= a.last
