"""Softmax along the last axis from int8 to int8, by a table of the exponentials of all differences.

With d = max q − q, which is 0 … 255, and E(d) = rint(2^k e^(−d s_x)), made at compile time,

    y = min(max(rint(float32(E(d_i)) · m) + z, low), high)        m = float32(1 / s_y) / float32(Σ_j E(d_j))

Sums are exact: k is such that they fit int32. The results are those of `requantize`, as of any sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.tvm.kernels.requantize import (
    LANES,
    ROUNDER_BITS,
    Instructions,
    Range,
    index,
    requantize,
    splat,
    vector,
)

VECTOR = 16
LONGEST = 1 << 12  # of a row: beyond, the integers get too few bits
BITS = 21  # of an exponential: lifted sums may have 22
PARALLEL_ELEMENTS = 1 << 14


@dataclass(frozen=True)
class IntegerSoftmax:
    """y of `rows` rows of `length` elements; `scale` is 1 / s_y."""

    rows: int
    length: int
    scale: float
    bounds: Range


def exponentials(length: int, scale: float) -> np.ndarray:
    """int32 [256]: E(255), E(254) … E(0), so that 255 + q − max q is an index, each with ROUNDER_BITS added."""
    bits = min(BITS, 30 - (length - 1).bit_length())
    made = np.rint(np.ldexp(np.exp(-np.arange(255, -1, -1) * float(scale)), bits))
    return np.asarray(made.astype(np.int32) + np.int32(ROUNDER_BITS))


def softmax_kernel(softmax: IntegerSoftmax, instructions: Instructions) -> tirx.PrimFunc:
    """The kernel. Parameters, all flat: x int8, `exponentials`, y int8."""
    size = softmax.rows * softmax.length
    parallel = softmax.rows > 1 and size >= PARALLEL_ELEMENTS
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"op_pattern": 8, "tirx.noalias": True})
        x = T.arg("x", T.buffer((size,), "int8", layout=None))
        table = T.arg("table", T.buffer((256,), "int32", layout=None))
        y = T.arg("y", T.buffer((size,), "int8", layout=None))
        with T.sblock("root"), (T.parallel if parallel else T.serial)(index(softmax.rows)) as row:
            _row(softmax, instructions, x, table, y, T.Bind(row * softmax.length))
    return builder.get()


def _row(softmax: IntegerSoftmax, instructions: Instructions, x: Any, table: Any, y: Any, start: Any) -> None:
    length = softmax.length
    whole = length // VECTOR
    place = T.Bind(tirx.const(255, "int64") - tirx.Cast("int64", _largest(x, start, length)))
    looked_up = IRBuilder.name("looked_up", T.alloc_buffer((length,), "int32", scope="local", layout=None))
    total = IRBuilder.name("total", T.alloc_buffer((VECTOR,), "int32", scope="local", layout=None))

    def found(at: Any) -> Any:
        return table[tirx.Cast("int64", x[at]) + place]

    if whole:
        for j in range(0, VECTOR, LANES):
            T.buffer_store(total, splat(tirx.const(0, "int32"), LANES), [vector(j, LANES)])
        with T.serial(index(whole)) as block:
            for j in range(0, VECTOR, LANES):
                first = block * VECTOR + j
                four = [found(start + first + lane) for lane in range(LANES)]
                made = T.Bind(tirx.Shuffle(four, [tirx.const(lane, "int32") for lane in range(LANES)]))
                T.buffer_store(looked_up, made, [vector(first, LANES)])
                T.buffer_store(total, total[vector(j, LANES)] + made, [vector(j, LANES)])
    # Each exponential brings ROUNDER_BITS into the sum: multiples of 2³² − what they come to are taken off.
    sums = tirx.const(_wrapped(-ROUNDER_BITS * length), "int32")
    if whole:
        vectors = [total[vector(j, LANES)] for j in range(0, VECTOR, LANES)]
        T.buffer_store(total, vectors[0] + vectors[1] + (vectors[2] + vectors[3]), [vector(0, LANES)])
        for lane in range(LANES):
            sums = sums + total[index(lane)]
    for i in range(whole * VECTOR, length):
        T.buffer_store(looked_up, found(start + i), [index(i)])
        sums = sums + looked_up[index(i)]
    by = T.Bind(tirx.const(softmax.scale, "float32") / tirx.Cast("float32", T.Bind(sums)))

    if whole:
        with T.serial(index(whole)) as block:
            fours = [looked_up[vector(block * VECTOR + j, LANES)] for j in range(0, VECTOR, LANES)]
            made = requantize(fours, [splat(by, LANES)] * len(fours), softmax.bounds, instructions, lifted=True)
            T.buffer_store(y, made, [vector(start + block * VECTOR, VECTOR)])
    for i in range(whole * VECTOR, length):
        one = requantize([looked_up[index(i)]], [by], softmax.bounds, instructions, lifted=True)
        T.buffer_store(y, one, [start + i])


def _wrapped(value: int) -> int:
    return (value + (1 << 31)) % (1 << 32) - (1 << 31)


def _largest(x: Any, start: Any, length: int) -> Any:
    """The largest of `length` int8, as an int32."""
    if length < VECTOR:
        largest = x[start]
        for i in range(1, length):
            largest = T.Bind(tirx.Max(largest, x[start + i]))
        return largest
    most = IRBuilder.name("most", T.alloc_buffer((VECTOR,), "int8", scope="local", layout=None))
    here = vector(0, VECTOR)
    T.buffer_store(most, x[vector(start + (length - VECTOR), VECTOR)], [here])
    with T.serial(index(length // VECTOR)) as block:
        T.buffer_store(most, tirx.Max(most[here], x[vector(start + block * VECTOR, VECTOR)]), [here])
    half = VECTOR // 2
    wide = most[here]
    while half:
        low, high = (
            tirx.Shuffle([T.Bind(wide)], [tirx.const(lane, "int32") for lane in range(first, first + half)])
            for first in (0, half)
        )
        wide, half = tirx.Max(low, high), half // 2
    return wide


__all__ = ["LONGEST", "IntegerSoftmax", "exponentials", "softmax_kernel"]
