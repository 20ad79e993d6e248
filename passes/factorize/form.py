"""What a form of low rank is: a kind of product that a layer's weight may become, at each rank."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from graphopt.passes.factorize.costs import Product

Array = np.ndarray[Any, Any]


class Method(enum.Enum):
    """Which form; auto: of each layer the one that loses least of the model's output for what it saves."""

    AUTO = "auto"
    SVD = "svd"
    SPATIAL = "spatial"
    TUCKER2 = "tucker2"
    DECOUPLED = "decoupled"
    CP = "cp"


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
        """The energy of the layer's output that the rank loses, as a fraction of what varies."""

    def projected(self, matrix: Array, rank: int) -> Array:
        """`matrix` along the directions of this form."""

    def nearest(self, matrix: Array, covariance: Array, rank: int) -> Array:
        """The nearest of the rank to another matrix of the layer."""

    def products(self, rank: int) -> Sequence[Product]:
        """What the layer becomes."""

    def split(self, graph: ir.Graph, node: ir.Node, rank: int) -> None:
        """Rewrite `node`, whose weight has the rank."""
