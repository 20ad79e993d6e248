"""What a form of low rank is: a kind of product that a layer's weight may become, at each rank."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from graphopt.passes.factorize.costs import Product, Saving, cost_of
from graphopt.passes.factorize.kernel_time import Kernels
from graphopt.passes.factorize.layers import Layer

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
    def layer(self) -> Layer: ...

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

    def products(self, rank: int, use: Layer) -> Sequence[Product]:
        """What becomes of one of the layer's uses."""

    def split(self, graph: ir.Graph, node: ir.Node, rank: int) -> None:
        """Rewrite `node`, whose weight has the rank."""


def now_costs(layer: Layer, kernels: Kernels, saving: Saving) -> float:
    """Of all uses of the layer; a weight that they share counts once."""
    uses = layer.uses[:1] if saving is Saving.BYTES else layer.uses
    return cost_of([each.product for each in uses], kernels, saving)


def would_cost(form: Form, rank: int, kernels: Kernels, saving: Saving) -> float:
    """The same of what becomes of the layer."""
    uses = form.layer.uses[:1] if saving is Saving.BYTES else form.layer.uses
    return cost_of([product for each in uses for product in form.products(rank, each)], kernels, saving)
