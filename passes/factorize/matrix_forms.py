"""W ≈ U V: the one form that every layer has. Of an embedding, V is the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.passes.factorize import splitting
from graphopt.passes.factorize.costs import Product
from graphopt.passes.factorize.form import Method
from graphopt.passes.factorize.layers import Layer
from graphopt.passes.factorize.low_rank import Directions, directions
from graphopt.passes.quantize.patches import RECURRENT

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Svd:
    """W ≈ U V."""

    method: ClassVar[Method] = Method.SVD

    layer: Layer
    directions: Directions

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

    def products(self, rank: int, use: Layer) -> Sequence[Product]:
        outputs, features = use.matrix.shape
        first = Product(rank, features, use.places, use.line, use.winograd, use.lookup)
        return (first, Product(outputs, rank, use.places))

    def split(self, graph: ir.Graph, node: ir.Node, rank: int) -> None:
        if node.op_type == "Gather":
            splitting.split_embedding(graph, node, rank)
        elif node.op_type in RECURRENT:
            splitting.split_recurrent(graph, node, rank)
        else:
            splitting.split(graph, node, rank)
