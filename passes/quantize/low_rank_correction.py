"""Coarser blocks and a correction of low rank, W ≈ R + U V, in place of finer blocks: where bytes and error both win.

Bytes are those of the weights, and what a correction takes beside them, more than small layers save: in the model's
file nodes and names, in the compiled library the code of two more kernels, whichever is more.

R is integers in blocks, U V what they lose, in turns (Y. Li and others, LoftQ, 2023), with the covariance G of what the
layer reads as the measure (C. Zhang and others, LQER, 2024), G = I without data:

    R ← quantize(W − U V)        U V ← P Pᵀ (W − R),    P the leading eigenvectors of (W − R) G (W − R)ᵀ

U and V are integers of 8 bits in blocks themselves. The rank is the largest whose bytes, with those of R, are fewer
than the finer blocks take; it is kept if tr(E G Eᵀ) of its error E is less than theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.passes.factorize.low_rank import directions, energy_of, factors
from graphopt.passes.quantize.blocks import Blocks, dequantize_blocks, quantize_blocks
from graphopt.passes.quantize.patches import from_matrix, to_matrix

Array = np.ndarray[Any, Any]

_COARSER = (2, 4, 8)  # times the block that is asked for
_ROUNDS = 4
_FACTOR_BITS, _FACTOR_BLOCK = 8, 32
_RANKS = 8  # kernels store a rank that is no multiple of this as the next one
# Of the kernels of a correction: 1,540 to 6,784 bytes for six layers, ranks 4 to 24 and five targets (ADR 14).
KERNEL_BYTES = 7000


@dataclass(frozen=True)
class Correction:
    """residual: R, as the weight lies. first: [features, rank]. second: [rank, outputs]. error: E‖E x‖² of all."""

    residual: Blocks
    first: Blocks
    second: Blocks
    error: float

    @property
    def rank(self) -> int:
        """Inner channels."""
        return int(self.first.integers.shape[1])

    @property
    def nbytes(self) -> int:
        """Of all three."""
        return self.residual.nbytes + self.first.nbytes + self.second.nbytes


def error_of(node: ir.Node, weight: Array, made: Array, covariance: Array | None) -> float:
    """E‖(W − W') x‖² of a MatMul or Gemm that has `made` in place of `weight`; of G = I without a covariance."""
    return energy_of((to_matrix(node, weight)[0] - to_matrix(node, made)[0]).astype(np.float64), covariance)


def correct(
    node: ir.Node,
    weight: Array,
    plain: Blocks,
    covariance: Array | None,
    more: int,
    *,
    bits: int,
    symmetric: bool,
) -> Correction | str:
    """What takes fewer bytes than `plain` and loses less; why there is no such, if there is none.

    Args:
        weight: of a MatMul or Gemm, float32, a matrix.
        covariance: [features, features].
        more: bytes that a correction takes beside its weights, of the model's file or of the library.
    """
    lost = error_of(node, weight, dequantize_blocks(plain), covariance)
    found = [
        made
        for times in _COARSER
        if (made := _at(node, weight, plain, times * plain.block, covariance, more, bits=bits, symmetric=symmetric))
    ]
    if not found:
        return f"coarser blocks leave no bytes for a correction, whose nodes or kernels take {more}"
    best = min(found, key=lambda each: each.error)
    if best.error < lost:
        return best
    times = best.error / max(lost, 1e-30)
    return (
        f"blocks of {best.residual.block} with one of rank {best.rank} lose {times:.2f} times as much as "
        f"blocks of {plain.block}"
    )


def _at(
    node: ir.Node,
    weight: Array,
    plain: Blocks,
    block: int,
    covariance: Array | None,
    more: int,
    *,
    bits: int,
    symmetric: bool,
) -> Correction | None:
    """The best of some rounds, at the largest rank that takes fewer bytes."""

    def blocks(array: Array) -> Blocks:
        return quantize_blocks(array.astype(np.float32), plain.axis, block, bits=bits, symmetric=symmetric)

    matrix = to_matrix(node, weight)[0].astype(np.float64)
    rank = _largest_rank(plain.nbytes - blocks(weight).nbytes - more, matrix.shape)
    if rank == 0:
        return None
    correction, best = np.zeros_like(matrix), None
    for _ in range(_ROUNDS):
        residual = blocks(from_matrix(node, (matrix - correction)[None], weight.shape))
        left_over = matrix - to_matrix(node, dequantize_blocks(residual))[0]
        wanted = directions(left_over, covariance).projected(left_over, rank)
        left, right = factors(wanted, rank)
        first, second = _factor(right.T), _factor(left.T)
        correction = (dequantize_blocks(first).astype(np.float64) @ dequantize_blocks(second)).T
        error = energy_of(left_over - correction, covariance)
        if best is None or error < best.error:
            best = Correction(residual, first, second, error)
    return best


def zero_correction(plain: Blocks) -> Correction:
    """One of rank 1 that corrects nothing, of a weight that lies as `plain`."""
    features, outputs = (plain.integers.shape[axis] for axis in (plain.axis, 1 - plain.axis))
    return Correction(plain, _factor(np.zeros((features, 1))), _factor(np.zeros((1, outputs))), 0.0)


def _factor(array: Array) -> Blocks:
    return quantize_blocks(np.ascontiguousarray(array, np.float32), 0, _FACTOR_BLOCK, bits=_FACTOR_BITS, symmetric=True)


def _largest_rank(spare: int, shape: tuple[int, ...]) -> int:
    """Of factors that take fewer than `spare` bytes, as kernels store them."""
    outputs, features = shape
    scale = np.dtype(np.float32).itemsize

    def taken(rank: int) -> int:
        rank = -(-rank // _RANKS) * _RANKS
        scales = -(-features // _FACTOR_BLOCK) * rank + -(-rank // _FACTOR_BLOCK) * outputs
        return rank * (outputs + features) + scale * scales

    rank = 0
    while rank + 1 < min(shape) and taken(rank + 1) < spare:
        rank += 1
    return rank
