"""The forms that a layer of low rank can take: what each is nearest to W, what it loses, and the products it becomes.

svd      W ≈ U V: the window to r channels, and 1×1 (`low_rank`).
spatial  W[o, c, u, v] ≈ Σ_k H[o, k, v] V[k, c, u]: k×1 to r channels, then 1×k (M. Jaderberg and others, Speeding up
         convolutional neural networks with low rank expansions, 2014). For W as a matrix of rows (o, v) and columns
         (c, u) that is a product of rank r.
tucker2  W ≈ U_o C U_c: 1×1 to s channels, the window from s to r, and 1×1 (Y. Kim and others, Compression of deep
         convolutional neural networks for fast and low power mobile applications, 2016). Both U have orthonormal
         columns, the leading directions of the output and of the input channels; r names the rank, and s is the least
         that loses no more of W than r does.

decoupled W[:, c] ≈ U_c V_c: for each input channel, t depthwise windows, and 1×1 from all of them (J. Guo and others,
         Network decoupling: from regular to depthwise separable convolutions, 2018). t is the rank.

Each direction is one of the layer's output where there are data (`low_rank`): for spatial with the covariance of a
column of the window, averaged over its columns; for decoupled with that of each channel by itself; the input side of
tucker2 goes by W alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.passes.factorize import splitting
from graphopt.passes.factorize.costs import Product
from graphopt.passes.factorize.form import Method
from graphopt.passes.factorize.layers import Layer, shape_of
from graphopt.passes.factorize.low_rank import Directions, OutputEnergy, directions

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class WindowForm:
    """What forms of a layer's window have in common; `output` tells what an error costs."""

    layer: Layer
    window: tuple[int, ...]
    output: OutputEnergy

    @property
    def lowered(self) -> Array:
        """See `Form`."""
        return self.layer.matrix

    def projected(self, matrix: Array, rank: int) -> Array:
        """See `Form`."""
        raise NotImplementedError

    def lost(self, rank: int) -> float:
        """See `Form`."""
        return self.output.lost(self.layer.matrix, self.projected(self.layer.matrix, rank))


@dataclass(frozen=True)
class Spatial(WindowForm):
    """k×1 and 1×k."""

    method: ClassVar[Method] = Method.SPATIAL

    directions: Directions  # of rows (o, v) and columns (c, u)

    @property
    def full_rank(self) -> int:
        outputs, features = self.layer.matrix.shape
        return int(min(outputs * self.window[1], features // self.window[1]))

    @property
    def lowered(self) -> Array:
        return folded(self.layer.matrix, self.window)

    def projected(self, matrix: Array, rank: int) -> Array:
        return unfolded(self.directions.projected(folded(matrix, self.window), rank), self.window)

    def nearest(self, matrix: Array, covariance: Array, rank: int) -> Array:
        rows = folded(matrix, self.window)
        found = directions(rows, _of_columns(covariance, self.window))
        return unfolded(found.projected(rows, rank), self.window)

    def products(self, rank: int, use: Layer) -> Sequence[Product]:
        outputs, features = self.layer.matrix.shape
        batch, _, _, width = shape_of(use.node.inputs[0])
        _, _, height, line = shape_of(use.node.outputs[0])
        wide = self.window[1]
        return (
            Product(rank, features // wide, batch * height * width, width),
            Product(outputs, rank * wide, use.places, line),
        )

    def split(self, graph: ir.Graph, node: ir.Node, rank: int) -> None:
        splitting.split_spatial(graph, node, rank)


@dataclass(frozen=True)
class Tucker2(WindowForm):
    """1×1, the window, 1×1."""

    method: ClassVar[Method] = Method.TUCKER2

    outputs: Directions
    inputs: Directions  # of input channels

    @property
    def full_rank(self) -> int:
        return self.layer.full_rank

    def inner(self, rank: int) -> int:
        """Channels that the window reads."""
        bound = self.outputs.lost(rank)
        channels = len(self.inputs.energy)
        return next((r for r in range(1, channels) if self.inputs.lost(r) <= bound), channels)

    def projected(self, matrix: Array, rank: int) -> Array:
        lowered = self.outputs.projected(matrix, rank)
        return self._inputs_projected(self.inputs, lowered, self.inner(rank))

    def nearest(self, matrix: Array, covariance: Array, rank: int) -> Array:
        lowered = directions(matrix, covariance).projected(matrix, rank)
        return self._inputs_projected(directions(_by_channel(lowered, self.window), None), lowered, self.inner(rank))

    def _inputs_projected(self, found: Directions, matrix: Array, count: int) -> Array:
        rows = _by_channel(matrix, self.window)
        kept = found.projected(rows, count).reshape(len(rows), len(matrix), -1)
        result: Array = kept.transpose(1, 0, 2).reshape(matrix.shape)
        return result

    def products(self, rank: int, use: Layer) -> Sequence[Product]:
        layer, inner = self.layer, self.inner(rank)
        outputs = len(layer.matrix)
        batch, channels, *size = shape_of(use.node.inputs[0])
        return (
            Product(inner, channels, batch * math.prod(size)),
            Product(rank, inner * math.prod(self.window), use.places, use.line, use.winograd),
            Product(outputs, rank, use.places),
        )

    def split(self, graph: ir.Graph, node: ir.Node, rank: int) -> None:
        splitting.split_tucker2(graph, node, rank, self.inner(rank))


@dataclass(frozen=True)
class Decoupled(WindowForm):
    """Depthwise windows, and 1×1."""

    method: ClassVar[Method] = Method.DECOUPLED

    channels: tuple[Directions, ...]  # of W[:, c], for each input channel

    @property
    def full_rank(self) -> int:
        return int(min(len(self.layer.matrix), math.prod(self.window)))

    @property
    def lowered(self) -> Array:
        return self.layer.matrix[:, : math.prod(self.window)]  # of the first channel, for all

    def projected(self, matrix: Array, rank: int) -> Array:
        return _each_channel(self.channels, matrix, rank)

    def nearest(self, matrix: Array, covariance: Array, rank: int) -> Array:
        return _each_channel(_channel_directions(matrix, covariance, self.window), matrix, rank)

    def products(self, rank: int, use: Layer) -> Sequence[Product]:
        layer = self.layer
        made = len(self.channels) * rank
        return (
            Product(made, math.prod(self.window), use.places, use.line, depthwise=len(self.channels)),
            Product(len(layer.matrix), made, use.places),
        )

    def split(self, graph: ir.Graph, node: ir.Node, rank: int) -> None:
        splitting.split_decoupled(graph, node, rank)


def spatial(layer: Layer, window: tuple[int, ...], output: OutputEnergy) -> Spatial:
    """The form of a layer, with its directions."""
    spread = None if output.covariance is None else _of_columns(output.covariance, window)
    return Spatial(layer, window, output, directions(folded(layer.matrix, window), spread))


def tucker2(layer: Layer, window: tuple[int, ...], output: OutputEnergy, outputs: Directions) -> Tucker2:
    """The form of a layer; `outputs` are the directions of what it gives."""
    return Tucker2(layer, window, output, outputs, directions(_by_channel(layer.matrix, window), None))


def decoupled(layer: Layer, window: tuple[int, ...], output: OutputEnergy) -> Decoupled:
    """The form of a layer, with its directions."""
    return Decoupled(layer, window, output, _channel_directions(layer.matrix, output.covariance, window))


def folded(matrix: Array, window: tuple[int, ...]) -> Array:
    """[o, (c, u, v)] as [(o, v), (c, u)]."""
    high, wide = window
    parts = matrix.reshape(len(matrix), -1, high, wide).transpose(0, 3, 1, 2)
    result: Array = parts.reshape(len(matrix) * wide, -1)
    return result


def unfolded(rows: Array, window: tuple[int, ...]) -> Array:
    """The inverse of `folded`."""
    high, wide = window
    parts = rows.reshape(-1, wide, rows.shape[1] // high, high).transpose(0, 2, 3, 1)
    result: Array = parts.reshape(len(rows) // wide, -1)
    return result


def _of_columns(covariance: Array, window: tuple[int, ...]) -> Array:
    """G of (c, u), of the mean column of the window, from G of (c, u, v)."""
    wide = window[1]
    features = len(covariance) // wide
    split = covariance.reshape(features, wide, features, wide)
    result: Array = np.einsum("avbv->ab", split) / wide
    return result


def _by_channel(matrix: Array, window: tuple[int, ...]) -> Array:
    """[o, (c, window)] as [c, (o, window)]."""
    parts = matrix.reshape(len(matrix), -1, math.prod(window)).transpose(1, 0, 2)
    result: Array = parts.reshape(len(parts), -1)
    return result


def _channel_directions(matrix: Array, covariance: Array | None, window: tuple[int, ...]) -> tuple[Directions, ...]:
    size = math.prod(window)
    starts = range(0, matrix.shape[1], size)
    spreads = [None if covariance is None else covariance[at : at + size, at : at + size] for at in starts]
    return tuple(directions(matrix[:, at : at + size], spread) for at, spread in zip(starts, spreads, strict=True))


def _each_channel(found: Sequence[Directions], matrix: Array, rank: int) -> Array:
    parts = np.split(matrix, len(found), axis=1)
    result: Array = np.concatenate(
        [each.projected(part, rank) for each, part in zip(found, parts, strict=True)], axis=1
    )
    return result
