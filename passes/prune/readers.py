"""Layers that sum over channels, and the second moments of what they read.

A reader computes y = W x. How much it misses a unit follows from W and the moments of x alone:

    min over W' of E‖W x − W' x'‖²,    x' = x without the unit's columns S   →   tr(W_S ([G⁻¹]_SS)⁻¹ W_Sᵀ),  G = E[x xᵀ]

with W' refitted (B. Hassibi and D. Stork, Second order derivatives for network pruning: optimal brain surgeon, 1993; in
blocks as in E. Kurtic and others, ZipLM, 2023), and tr(W_S G_SS W_Sᵀ) without.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.calibration import Progress, each_run
from graphopt.analysis.channels import Channels, Group, Role
from graphopt.analysis.samples import Samples
from graphopt.ir.reading import constant
from graphopt.passes.quantize.patches import columns, places_of, to_matrix, why_not

Array = np.ndarray[Any, Any]

MOST_FEATURES = 2400  # of one output: with more, the inverses take minutes
_DAMPING = 1e-3  # of the mean of the diagonal: what the inverse is kept away from zero by


@dataclass
class Reader:
    """A node with a constant weight that sums over channels.

    matrix: W, [groups, outputs, features], float64.
    units: the unit of each feature, [groups, features].
    moments: Σ x xᵀ, [groups, features, features], and `count` of the columns.
    totals, magnitudes: Σ x and Σ |x|, [groups, features].
    """

    node: ir.Node
    matrix: Array
    units: Array
    moments: Array
    count: int = 0
    totals: Array = field(init=False)
    magnitudes: Array = field(init=False)

    def __post_init__(self) -> None:
        self.totals, self.magnitudes = np.zeros(self.moments.shape[:2]), np.zeros(self.moments.shape[:2])

    @property
    def mean(self) -> Array:
        """E[x], [groups, features]."""
        found: Array = self.totals / max(self.count, 1)
        return found

    @property
    def gram(self) -> Array:
        """G, damped, [groups, features, features]."""
        found = self.moments / max(self.count, 1)
        size = found.shape[-1]
        spread = np.trace(found, axis1=1, axis2=2)[:, None, None] / size
        damped: Array = found + np.eye(size) * np.maximum(_DAMPING * spread, 1e-12)
        return damped


def readers(groups: Sequence[Group], found: Channels) -> tuple[dict[ir.Node, Reader], dict[ir.Node, str]]:
    """The readers of the groups' channels, and those whose moments cannot be taken, with the reason."""
    made: dict[ir.Node, Reader] = {}
    refused: dict[ir.Node, str] = {}
    for slot in dict.fromkeys(slot for group in groups for slot in group.weights(Role.IN)):
        node = slot.node
        array = constant(slot.value)
        units = found.units_of(node.inputs[0], _channel_axis(node))
        if node in made or node in refused or array is None:
            continue
        reason = why_not(node, slot.index, array)
        if reason or units is None:
            refused[node] = reason or "its channels are not known by their place in its input"
            continue
        matrix = to_matrix(node, array).astype(np.float64)
        if matrix.shape[-1] > MOST_FEATURES:
            refused[node] = f"it sums over {matrix.shape[-1]} numbers, more than {MOST_FEATURES}"
            continue
        kernel = matrix.shape[0] * matrix.shape[-1] // len(units)
        spread = units.repeat(kernel).reshape(matrix.shape[0], -1)
        made[node] = Reader(node, matrix, spread, np.zeros((matrix.shape[0], matrix.shape[-1], matrix.shape[-1])))
    return made, refused


def _channel_axis(node: ir.Node) -> int:
    if node.op_type == "Conv":
        return 1
    if node.op_type == "Gemm" and node.attributes.get_int("transA", 0) != 0:
        return 0
    value = node.inputs[0]
    return len(value.shape) - 1 if value is not None and value.shape is not None else 1


def observe(
    model: ir.Model, found: Mapping[ir.Node, Reader], samples: Samples, patches: int, seed: int, progress: Progress
) -> None:
    """Sum up the moments of every reader over the samples, at `patches` places of each sample, chosen at random."""
    rng = np.random.default_rng(seed)
    by_name: dict[str, list[Reader]] = {}
    for reader in found.values():
        value = reader.node.inputs[0]
        by_name.setdefault(str(value.name if value is not None else ""), []).append(reader)

    def receive(tensors: Mapping[str, Array]) -> None:
        for name, array in tensors.items():
            for reader in by_name[name]:
                weight = constant(reader.node.inputs[1])
                if weight is None:
                    continue
                total = places_of(reader.node, weight, array)
                places = np.arange(total) if total <= patches else rng.choice(total, patches, replace=False)
                read = columns(reader.node, weight, array, places).astype(np.float32)
                reader.moments += read.swapaxes(1, 2) @ read
                reader.totals += read.sum(axis=1, dtype=np.float64)
                reader.magnitudes += np.abs(read).sum(axis=1, dtype=np.float64)
                reader.count += read.shape[1]

    if by_name:
        each_run(model, list(by_name), samples, receive, progress)


def blocks(reader: Reader, units: Array) -> Iterator[tuple[int, int, Array]]:
    """For each unit that the reader reads: its place in `units`, the group, and its features in the group."""
    place = {int(unit): number for number, unit in enumerate(units)}
    for group, features in enumerate(reader.units):
        order = np.argsort(features, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(features[order]) != 0])
        for start, end in zip(starts, np.r_[starts[1:], len(order)], strict=True):
            number = place.get(int(features[order[start]]))
            if number is not None:
                yield number, group, order[start:end]
