"""Floors: which fraction of its channels a group keeps at least, as a whole and by the names of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from graphopt.analysis.channels import Group
from graphopt.errors import UsageError


def named(group: Group, pattern: str) -> bool:
    """Whether a layer that makes or reads the group's channels has a name that fits the pattern, with * and ?."""
    return any(fnmatchcase(str(slot.node.name), pattern) for slot in group.slots)


def parse_floors(texts: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """Patterns with their fractions, of "PATTERN:FRACTION". Raises UsageError."""
    floors = []
    for text in texts:
        pattern, _, number = text.rpartition(":")
        try:
            fraction = float(number)
        except ValueError:
            fraction = -1.0
        if not pattern or not 0 <= fraction <= 1:
            raise UsageError(f"floor '{text}': expected PATTERN:FRACTION, as in 'conv1:0.5'")
        floors.append((pattern, fraction))
    return tuple(floors)


def floor_of(group: Group, least: float, floors: Sequence[tuple[str, float]]) -> float:
    """The largest of `least` and the floors whose patterns fit a layer of the group."""
    return max([least, *(fraction for pattern, fraction in floors if named(group, pattern))])
