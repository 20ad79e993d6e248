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

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from graphopt.ir.reading import constant, static_shape
from graphopt.passes.factorize import splitting
from graphopt.passes.factorize.costs import Product
from graphopt.passes.factorize.layers import Layer
from graphopt.passes.factorize.low_rank import Directions, directions

Array = np.ndarray[Any, Any]


class Method(enum.Enum):
    """Which form; auto: of each layer the one that saves most time within what it may lose."""

    AUTO = "auto"
    SVD = "svd"
    SPATIAL = "spatial"
    TUCKER2 = "tucker2"
    DECOUPLED = "decoupled"


class Form(Protocol):
    """A form of one layer. Matrices are [outputs, features], as `Layer.matrix`."""

    @property
    def method(self) -> Method: ...

    @property
    def full_rank(self) -> int: ...

    @property
    def lowered(self) -> Array:
        """W as the matrix of which the form takes a low rank."""

    def lost(self, rank: int) -> float:
        """The energy of the layer's output that the rank loses, as a fraction of what varies; about, but for svd."""

    def projected(self, matrix: Array, rank: int) -> Array:
        """`matrix` along the directions of this form."""

    def nearest(self, matrix: Array, covariance: Array, rank: int) -> Array:
        """The nearest of the rank to another matrix of the layer."""

    def products(self, rank: int) -> Sequence[Product]:
        """What the layer becomes."""

    def split(self, graph: ir.Graph, node: ir.Node, rank: int) -> None:
        """Rewrite `node`, whose weight has the rank."""


@dataclass(frozen=True)
class Svd:
    """W ≈ U V."""

    layer: Layer
    directions: Directions

    @property
    def method(self) -> Method:
        return Method.SVD

    @property
    def full_rank(self) -> int:
        return self.layer.full_rank

    @property
    def lowered(self) -> Array:
        return self.layer.matrix

    def lost(self, rank: int) -> float:
        return self.directions.lost(rank)

    def projected(self, matrix: Array, rank: int) -> Array:
        return self.directions.projected(matrix, rank)

    def nearest(self, matrix: Array, covariance: Array, rank: int) -> Array:
        return directions(matrix, covariance).projected(matrix, rank)

    def products(self, rank: int) -> Sequence[Product]:
        layer = self.layer
        outputs, features = layer.matrix.shape
        first = Product(rank, features, layer.places, layer.line, layer.winograd)
        return (first, Product(outputs, rank, layer.places))

    def split(self, graph: ir.Graph, node: ir.Node, rank: int) -> None:
        splitting.split(graph, node, rank)


@dataclass(frozen=True)
class Spatial:
    """k×1 and 1×k."""

    layer: Layer
    window: tuple[int, int]
    directions: Directions  # of rows (o, v) and columns (c, u)

    @property
    def method(self) -> Method:
        return Method.SPATIAL

    @property
    def full_rank(self) -> int:
        outputs, features = self.layer.matrix.shape
        return int(min(outputs * self.window[1], features // self.window[1]))

    @property
    def lowered(self) -> Array:
        return folded(self.layer.matrix, self.window)

    def lost(self, rank: int) -> float:
        return self.directions.lost(rank)

    def projected(self, matrix: Array, rank: int) -> Array:
        return unfolded(self.directions.projected(folded(matrix, self.window), rank), self.window)

    def nearest(self, matrix: Array, covariance: Array, rank: int) -> Array:
        rows = folded(matrix, self.window)
        found = directions(rows, _of_columns(covariance, self.window))
        return unfolded(found.projected(rows, rank), self.window)

    def products(self, rank: int) -> Sequence[Product]:
        outputs, features = self.layer.matrix.shape
        batch, _, _, width = _shape(self.layer.node.inputs[0])
        _, _, height, line = _shape(self.layer.node.outputs[0])
        wide = self.window[1]
        return (
            Product(rank, features // wide, batch * height * width, width),
            Product(outputs, rank * wide, self.layer.places, line),
        )

    def split(self, graph: ir.Graph, node: ir.Node, rank: int) -> None:
        splitting.split_spatial(graph, node, rank)


@dataclass(frozen=True)
class Tucker2:
    """1×1, the window, 1×1."""

    layer: Layer
    window: tuple[int, ...]
    outputs: Directions
    inputs: Directions  # of input channels

    @property
    def method(self) -> Method:
        return Method.TUCKER2

    @property
    def full_rank(self) -> int:
        return self.layer.full_rank

    @property
    def lowered(self) -> Array:
        return self.layer.matrix

    def inner(self, rank: int) -> int:
        """Channels that the window reads."""
        bound = self.outputs.lost(rank)
        channels = len(self.inputs.energy)
        return next((r for r in range(1, channels) if self.inputs.lost(r) <= bound), channels)

    def lost(self, rank: int) -> float:
        return self.outputs.lost(rank) + self.inputs.lost(self.inner(rank))

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

    def products(self, rank: int) -> Sequence[Product]:
        layer, inner = self.layer, self.inner(rank)
        outputs = len(layer.matrix)
        batch, channels, *size = _shape(layer.node.inputs[0])
        return (
            Product(inner, channels, batch * math.prod(size)),
            Product(rank, inner * math.prod(self.window), layer.places, layer.line, layer.winograd),
            Product(outputs, rank, layer.places),
        )

    def split(self, graph: ir.Graph, node: ir.Node, rank: int) -> None:
        splitting.split_tucker2(graph, node, rank, self.inner(rank))


@dataclass(frozen=True)
class Decoupled:
    """Depthwise windows, and 1×1."""

    layer: Layer
    window: tuple[int, ...]
    channels: tuple[Directions, ...]  # of W[:, c], for each input channel

    @property
    def method(self) -> Method:
        return Method.DECOUPLED

    @property
    def full_rank(self) -> int:
        return int(min(len(self.layer.matrix), math.prod(self.window)))

    @property
    def lowered(self) -> Array:
        return self.layer.matrix[:, : math.prod(self.window)]  # of the first channel, for all

    def lost(self, rank: int) -> float:
        varying = sum(each.varying for each in self.channels)
        outside = sum(float(each.energy[rank:].sum()) for each in self.channels)
        return outside / varying if varying > 0 else float(outside > 0)

    def projected(self, matrix: Array, rank: int) -> Array:
        return _each_channel(self.channels, matrix, rank)

    def nearest(self, matrix: Array, covariance: Array, rank: int) -> Array:
        return _each_channel(_channel_directions(matrix, covariance, self.window), matrix, rank)

    def products(self, rank: int) -> Sequence[Product]:
        layer = self.layer
        made = len(self.channels) * rank
        return (
            Product(made, math.prod(self.window), layer.places, layer.line),
            Product(len(layer.matrix), made, layer.places),
        )

    def split(self, graph: ir.Graph, node: ir.Node, rank: int) -> None:
        splitting.split_decoupled(graph, node, rank)


def forms_of(layer: Layer, method: Method, covariance: Array | None, found: Directions) -> list[Form]:
    """The forms that the method allows; none where it has no form for such a layer.

    found: directions of the layer's output. covariance: of its columns.
    """
    forms: list[Form] = []
    if method in (Method.AUTO, Method.SVD):
        forms.append(Svd(layer, found))
    window = _window(layer.node)
    if window is None:
        return forms
    if method in (Method.AUTO, Method.SPATIAL) and len(window) == 2 and min(window) > 1:
        rows = folded(layer.matrix, (window[0], window[1]))
        spread = None if covariance is None else _of_columns(covariance, (window[0], window[1]))
        forms.append(Spatial(layer, (window[0], window[1]), directions(rows, spread)))
    if method in (Method.AUTO, Method.TUCKER2):
        forms.append(Tucker2(layer, window, found, directions(_by_channel(layer.matrix, window), None)))
    if method in (Method.AUTO, Method.DECOUPLED):
        forms.append(Decoupled(layer, window, _channel_directions(layer.matrix, covariance, window)))
    return forms


def folded(matrix: Array, window: tuple[int, int]) -> Array:
    """[o, (c, u, v)] as [(o, v), (c, u)]."""
    high, wide = window
    parts = matrix.reshape(len(matrix), -1, high, wide).transpose(0, 3, 1, 2)
    result: Array = parts.reshape(len(matrix) * wide, -1)
    return result


def unfolded(rows: Array, window: tuple[int, int]) -> Array:
    """The inverse of `folded`."""
    high, wide = window
    parts = rows.reshape(-1, wide, rows.shape[1] // high, high).transpose(0, 2, 3, 1)
    result: Array = parts.reshape(len(rows) // wide, -1)
    return result


def _of_columns(covariance: Array, window: tuple[int, int]) -> Array:
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


def _window(node: ir.Node) -> tuple[int, ...] | None:
    """The window of a Conv that covers several places, and whose padding is written down."""
    weight = constant(node.inputs[1]) if node.op_type == "Conv" else None
    if weight is None or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return None
    window = tuple(int(size) for size in weight.shape[2:])
    return window if math.prod(window) > 1 else None


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    found = static_shape(value) if value is not None else None
    if found is None:
        raise ValueError("a layer of unknown shape was taken")  # `layers` declines those
    return found
