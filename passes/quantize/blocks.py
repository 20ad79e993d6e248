"""Weights as small integers in blocks: neighbours along one axis share a scale and, where it is not 0, a zero point.

    w' = (q - z) s,        q = saturate(round_half_even(w / s) + z)

Symmetric integers are signed with z = 0: [-127, 127] of 8 bits, [-8, 7] of 4. Asymmetric ones are unsigned, and z is
the one that stands for exactly 0. Of several scales the one with the smallest squared error is taken, for each block.
The last block of an axis may be shorter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.passes.quantize.arithmetic import MIN_SCALE

Array = np.ndarray[Any, Any]

BITS = (4, 8)
# How many steps the largest magnitude is tried to be. Weights that lie on a grid of at most 127 (or 7) steps are met
# without an error: each number of steps has a multiple among these.
_STEPS = {8: tuple(range(127, 63, -1)), 4: (7.0, 6.0, 5.0, 4.0, 6.5, 7.25, 7.5, 7.75, 8.0, 8.5, 9.0, 9.5)}
_SHRINKS = np.linspace(1.0, 0.6, 17)  # fractions of both ends that are tried for asymmetric integers
_LIMITS = {(8, True): (-127, 127), (4, True): (-8, 7), (8, False): (0, 255), (4, False): (0, 15)}
_INT8, _INT4, _UINT8, _UINT4 = ir.DataType.INT8, ir.DataType.INT4, ir.DataType.UINT8, ir.DataType.UINT4
_TYPES = {(8, True): _INT8, (4, True): _INT4, (8, False): _UINT8, (4, False): _UINT4}
_PIECE = 1 << 16  # elements at a time: they stay in the cache


@dataclass(frozen=True)
class Blocks:
    """`integers` of the weight's shape; float32 `scale` and `zero_point` (None: 0) with one entry for each block."""

    integers: Array
    scale: Array
    zero_point: Array | None
    axis: int
    block: int

    @property
    def nbytes(self) -> int:
        """Bytes of all three as ONNX stores them, two integers of 4 bits in a byte."""
        parts = [self.integers, *([] if self.zero_point is None else [self.zero_point])]
        halves = sum(2 * part.size if part.dtype.name in ("int8", "uint8") else part.size for part in parts)
        return self.scale.nbytes + -(-halves // 2)


def quantize_blocks(weights: Array, axis: int, block: int, *, bits: int, symmetric: bool) -> Blocks:
    """Quantize float32 `weights` of any rank, `block` neighbours along `axis` together; 0 takes the whole axis."""
    moved = np.moveaxis(weights, axis, -1)
    extent = moved.shape[-1]
    size = block or extent
    count = -(-extent // size)
    padded = np.pad(moved, [(0, 0)] * (moved.ndim - 1) + [(0, count * size - extent)])  # zeros are met exactly
    rows = np.ascontiguousarray(padded, np.float32).reshape(-1, size)
    integers = np.empty(rows.shape, np.int16)
    scale, zero_point = np.empty(len(rows), np.float32), np.zeros(len(rows), np.int16)
    for piece in _pieces(rows):
        scale[piece], zero_point[piece] = _search(rows[piece], bits, symmetric)
        integers[piece] = _rounded(rows[piece], scale[piece], zero_point[piece], bits, symmetric)
    kind, outer = _TYPES[bits, symmetric].numpy(), moved.shape[:-1]

    def placed(array: Array, last: int) -> Array:
        return np.ascontiguousarray(np.moveaxis(array.reshape(*outer, -1)[..., :last], -1, axis))

    return Blocks(
        placed(integers, extent).astype(kind),
        placed(scale, count),
        None if symmetric else placed(zero_point, count).astype(kind),
        axis,
        size,
    )


def dequantize_blocks(blocks: Blocks) -> Array:
    """What a blocked DequantizeLinear gives: float32."""
    extent = blocks.integers.shape[blocks.axis]

    def spread(array: Array) -> Array:
        return np.repeat(array, blocks.block, axis=blocks.axis).take(np.arange(extent), axis=blocks.axis)

    integers = blocks.integers.astype(np.int32)
    if blocks.zero_point is not None:
        integers = integers - spread(blocks.zero_point.astype(np.int32))
    floats: Array = integers.astype(np.float32) * spread(blocks.scale)
    return floats


def _pieces(rows: Array) -> Iterator[slice]:
    step = max(1, _PIECE // rows.shape[1]) if rows.size else 1
    return (slice(start, start + step) for start in range(0, len(rows), step))


def _search(rows: Array, bits: int, symmetric: bool) -> tuple[Array, Array]:
    """The scale and the zero point of each row with the smallest squared error."""
    found = np.ones(len(rows), np.float32), np.zeros(len(rows), np.int16)
    least = np.full(len(rows), np.inf)
    for scale, zero_point in _candidates(rows, bits, symmetric):
        steps = _rounded(rows, scale, zero_point, bits, symmetric)
        error = rows - (steps - zero_point[:, None]).astype(np.float32) * scale[:, None]
        squares = np.einsum("ij,ij->i", error, error, dtype=np.float64)
        better = squares < least * (1 - 1e-6)
        least = np.where(better, squares, least)
        found = np.where(better, scale, found[0]), np.where(better, zero_point, found[1])
    return found


def _candidates(rows: Array, bits: int, symmetric: bool) -> Iterator[tuple[Array, Array]]:
    if symmetric:
        largest = np.abs(rows).max(axis=1, initial=0).astype(np.float64)
        for steps in _STEPS[bits]:
            yield _scale(largest / steps), np.zeros(len(rows), np.int16)
        return
    low, high = (np.float64(ends) for ends in (rows.min(axis=1, initial=0), rows.max(axis=1, initial=0)))
    top = _LIMITS[bits, False][1]
    for shrink in _SHRINKS:
        scale = _scale((high - low) * shrink / top)
        yield scale, np.clip(np.rint(-low * shrink / scale), 0, top).astype(np.int16)


def _scale(wanted: Array) -> Array:
    made: Array = np.where(wanted > 0, np.clip(wanted, MIN_SCALE, np.finfo(np.float32).max), 1).astype(np.float32)
    return made


def _rounded(rows: Array, scale: Array, zero_point: Array, bits: int, symmetric: bool) -> Array:
    low, high = _LIMITS[bits, symmetric]
    steps: Array = np.clip(np.rint(rows / scale[:, None]) + zero_point[:, None], low, high)
    return steps
