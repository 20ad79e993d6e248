"""CP: a window as a sum of products of one number for each output, input channel, row and column.

    W[o, c, u, v] ≈ Σ_r O[o, r] C[c, r] U[u, r] V[v, r]

is 1×1 to r channels, depthwise k×1, depthwise 1×k, and 1×1 (V. Lebedev and others, Speeding-up convolutional neural
networks using fine-tuned CP-decomposition, 2015). The factors come from alternating least squares (T. Kolda and B.
Bader, Tensor decompositions and applications, 2009, figure 3.3): with three fixed the fourth solves a linear system.

CP is unstable: terms may grow without bound while they cancel (A. Phan and others, Stable low-rank tensor decomposition
for compression of convolutional neural network, 2020). Here a ridge limits the norms in every system, C, U and V are
kept at unit length, and of several starts the one counts that loses least of the layer's output. Channels are weighed
by how large they are in the data, and O is then fitted to the layer's output: with K the rows C ⊗ U ⊗ V and G the
covariance of the patches, O = W G Kᵀ (K G Kᵀ)⁺. Large windows are first brought to their leading channels, as Tucker-2
does, which CP then works on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.passes.factorize import splitting
from graphopt.passes.factorize.costs import Product
from graphopt.passes.factorize.form import Method
from graphopt.passes.factorize.layers import Layer, shape_of
from graphopt.passes.factorize.low_rank import rank_one_rows
from graphopt.passes.factorize.window_forms import WindowForm

Array = np.ndarray[Any, Any]

_STARTS, _ROUNDS = 2, 30
_RIDGE = 1e-4  # of the mean of a system's diagonal
_SETTLED = 1e-4  # change of the error in a round, as a fraction of it
_MOST_CHANNELS = 96  # that alternating least squares works on
_SUBSCRIPTS = ("cr,ur,vr->or", "or,ur,vr->cr", "or,cr,vr->ur", "or,cr,ur->vr")


@dataclass(frozen=True, eq=False)
class Cp(WindowForm):
    """1×1, k×1 and 1×k of each channel, 1×1. The middle three of each rank are found once, and kept in `found`."""

    method: ClassVar[Method] = Method.CP

    found: dict[int, tuple[Array, Array, Array]] = field(default_factory=dict)

    @property
    def full_rank(self) -> int:
        return int(self.layer.matrix.shape[1])

    def projected(self, matrix: Array, rank: int) -> Array:
        return _onto(matrix, self.output.covariance, rank_one_rows(*self.factors(rank)))

    def nearest(self, matrix: Array, covariance: Array, rank: int) -> Array:
        return _onto(matrix, covariance, rank_one_rows(*self.factors(rank)))

    def products(self, rank: int, use: Layer) -> Sequence[Product]:
        outputs = len(self.layer.matrix)
        batch, channels, height, width = shape_of(use.node.inputs[0])
        _, _, high, wide = shape_of(use.node.outputs[0])
        return (
            Product(rank, channels, batch * height * width),
            Product(rank, self.window[0], batch * high * width, width),
            Product(rank, self.window[1], batch * high * wide, wide),
            Product(outputs, rank, use.places),
        )

    def split(self, graph: ir.Graph, node: ir.Node, rank: int) -> None:
        splitting.split_cp(graph, node, self.factors(rank))

    def factors(self, rank: int) -> tuple[Array, Array, Array]:
        """C [channels, rank], U [rows, rank] and V [columns, rank], columns of unit length."""
        if rank not in self.found:
            self.found[rank] = self._best(rank)
        return self.found[rank]

    def _best(self, rank: int) -> tuple[Array, Array, Array]:
        matrix, covariance = self.layer.matrix, self.output.covariance
        tensor = matrix.reshape(len(matrix), -1, *self.window)
        size = math.prod(self.window)
        large = np.ones(tensor.shape[1]) if covariance is None else np.diag(covariance).reshape(-1, size).mean(axis=1)
        scale = np.sqrt(np.maximum(large, 1e-6 * max(large.max(), 1e-30)))[:, None]
        small, basis = _leading(tensor * scale.reshape(1, -1, 1, 1))
        tried = []
        for seed in range(_STARTS):
            channels, rows, columns = alternate(small, rank, np.random.default_rng(seed))
            channels = basis @ channels / scale
            tried.append((channels / np.maximum(np.linalg.norm(channels, axis=0), 1e-30), rows, columns))
        return min(tried, key=lambda each: self.output.lost(matrix, _onto(matrix, covariance, rank_one_rows(*each))))


def alternate(tensor: Array, rank: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
    """C, U and V of a tensor [outputs, channels, rows, columns], from a start chosen at random."""
    factors = [rng.normal(size=(size, rank)) for size in tensor.shape]
    factors[1:] = [factor / np.linalg.norm(factor, axis=0) for factor in factors[1:]]
    whole, error = float(np.square(tensor).sum()), math.inf
    for _ in range(_ROUNDS):
        for mode in (1, 2, 3, 0):
            others = [factor for number, factor in enumerate(factors) if number != mode]
            right = np.einsum(f"ocuv,{_SUBSCRIPTS[mode]}", tensor, *others, optimize=True)
            system = np.prod([factor.T @ factor for factor in others], axis=0)
            ridge = _RIDGE * max(np.trace(system) / rank, 1e-30) * np.eye(rank)
            solved = np.linalg.solve(system + ridge, right.T).T
            if mode:
                norms = np.maximum(np.linalg.norm(solved, axis=0), 1e-30)
                factors[0], solved = factors[0] * norms, solved / norms
            factors[mode] = solved
        gram = np.prod([factor.T @ factor for factor in factors], axis=0)
        now = whole - 2 * float((right * factors[0]).sum()) + float(gram.sum())
        if error - now < _SETTLED * max(now, 1e-12 * whole):
            break
        error = now
    return factors[1], factors[2], factors[3]


def _leading(tensor: Array) -> tuple[Array, Array]:
    """The tensor along its leading outputs and channels, and the basis of the channels."""
    outputs, channels = tensor.shape[:2]
    along = _basis(tensor.reshape(outputs, -1))
    across = _basis(tensor.transpose(1, 0, 2, 3).reshape(channels, -1))
    small: Array = np.einsum("ocuv,op,cq->pquv", tensor, along, across, optimize=True)
    return small, across


def _basis(unfolded: Array) -> Array:
    if len(unfolded) <= _MOST_CHANNELS:
        return np.eye(len(unfolded))
    vectors: Array = np.linalg.eigh(unfolded @ unfolded.T)[1][:, : -_MOST_CHANNELS - 1 : -1]
    return vectors


def _onto(matrix: Array, covariance: Array | None, rows: Array) -> Array:
    """O K that is nearest to W."""
    weighed = rows if covariance is None else rows @ covariance
    left: Array = (matrix @ weighed.T) @ np.linalg.pinv(weighed @ rows.T, rcond=1e-10, hermitian=True)
    result: Array = left @ rows
    return result
