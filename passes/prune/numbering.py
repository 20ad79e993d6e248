"""Names of groups, and numbers of units, that stay the same when units go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.channels import Channels, Group, Labels, channels

Array = np.ndarray[Any, Any]


def keys(groups: Sequence[Group]) -> list[str]:
    """A name for each group that stays the same when units go: its layer, and the how-manieth of that layer it is."""
    seen: Counter[str] = Counter()
    keys = []
    for group in groups:
        keys.append(f"{group.name}#{seen[group.name]}")
        seen[group.name] += 1
    return keys


def numbers_in(whole: Channels, kept: Array, found: Channels) -> Labels:
    """The number in `whole` of each unit of `found`, which is what is left of it, matched by place."""
    values = {value.name: value for value in whole.axes}
    numbers = np.full(found.count, -1)
    for value, axes in found.axes.items():
        for axis, units in axes.items():
            before = whole.units_of(values.get(value.name), axis)
            if before is not None:
                numbers[units] = before[kept[before]]
    return numbers


def narrowed(graph: ir.Graph, widths: Mapping[str, int], *, hidden_width: bool) -> dict[str, int]:
    """The `widths` before, by `keys`, of groups that are narrower now."""
    groups = channels(graph, hidden_width=hidden_width).groups
    now = {key: group.width for key, group in zip(keys(groups), groups, strict=True)}
    return {key: width for key, width in widths.items() if now.get(key) != width}
