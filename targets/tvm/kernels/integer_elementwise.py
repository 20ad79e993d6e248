"""Sums, products, means and functions of int8 tensors.

A sum of two tensors of different scales is computed in fixed point, which no compiler can round otherwise:

    a_int · A + b_int · B + C,    A ≈ (s_a / s_y) · 2^k,  B ≈ (s_b / s_y) · 2^k,  C = -(z_a · A + z_b · B)

with k such that the larger of |A| and |B| is in [2^20, 2^21): the sum fits int32, and each ratio is off by 2^-21 of the
larger one at most. Then the int32 becomes an int8 by the multiplier 2^-k (`requantize`). A product of two tensors is
exact, and its multiplier s_a s_b / s_y. So is the sum of a mean. A function of one tensor is a table of 256 results.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.tvm.kernels.integer_depthwise import blocks
from graphopt.targets.tvm.kernels.requantize import (
    Instructions,
    Range,
    in_vectors,
    index,
    lanes_of,
    requantize,
    splat,
    store,
    vector,
    wide,
)

VECTOR = 16  # int8 at a time
PARALLEL_ELEMENTS = 1 << 15
PARALLEL_PARTS = 4  # of a table's input
BITS = 21  # of the fixed-point factors of a sum


@dataclass(frozen=True)
class IntegerBinary:
    """y over [batch, pixels, channels] of a, and of b, which may have one pixel for all.

    "add": a · factors[0] + b · factors[1] + offset. "multiply": (a - factors[0]) · (b - factors[1]). The result is
    requantized by `multiplier`, a float32.
    """

    operation: str
    shape: tuple[int, int, int]
    b_spread: bool
    factors: tuple[int, int]
    offset: int
    multiplier: float
    bounds: Range


@dataclass(frozen=True)
class IntegerMean:
    """The mean over pixels of [batch, pixels, channels]: (Σ x + offset), requantized by `multiplier`, a float32."""

    shape: tuple[int, int, int]
    offset: int
    multiplier: float
    bounds: Range


@dataclass(frozen=True)
class IntegerTable:
    """y = table[x + 128] for `size` elements."""

    size: int


def fixed_point(ratios: tuple[float, float]) -> tuple[tuple[int, int], int]:
    """(A, B) and k of two ratios s / s_y, of which one is not 0."""
    k = BITS - math.frexp(max(abs(ratio) for ratio in ratios))[1]
    first, second = (round(math.ldexp(ratio, k)) for ratio in ratios)
    return (first, second), k


def binary_kernel(binary: IntegerBinary, instructions: Instructions) -> tirx.PrimFunc:
    """The kernel. Parameters, flat: a, b and y int8."""
    batch, pixels, channels = binary.shape
    size = batch * pixels * channels
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"op_pattern": 8, "tirx.noalias": True})
        a = T.arg("a", T.buffer((size,), "int8", layout=None))
        b = T.arg("b", T.buffer((batch * channels if binary.b_spread else size,), "int8", layout=None))
        y = T.arg("y", T.buffer((size,), "int8", layout=None))

        def part(a_at: Any, b_at: Any, lanes: int) -> None:
            store(y, a_at, combined(binary, a[vector(a_at, lanes)], b[vector(b_at, lanes)], instructions), lanes)

        if not binary.b_spread:
            _for_vectors(size, lambda at, lanes: part(at, at, lanes))
        else:
            with T.serial(index(batch)) as image, T.serial(index(pixels)) as pixel:
                start, other = T.Bind((image * pixels + pixel) * channels), T.Bind(image * channels)
                for_channels(channels, lambda first, lanes: part(start + first, other + first, lanes))
    return builder.get()


def combined(binary: IntegerBinary, a: Any, b: Any, instructions: Instructions) -> Any:
    """y of a and b, vectors of int8 alike."""
    first, second = (tirx.Cast(wide("int32", lanes_of(a)), value) for value in (a, b))
    return _narrowed(_combined(binary, first, second), binary.multiplier, binary.bounds, instructions)


def mean_kernel(mean: IntegerMean, instructions: Instructions) -> tirx.PrimFunc:
    """The kernel. Parameters, flat: x and y int8."""
    batch, pixels, channels = mean.shape
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"op_pattern": 8, "tirx.noalias": True})
        x = T.arg("x", T.buffer((batch * pixels * channels,), "int8", layout=None))
        y = T.arg("y", T.buffer((batch * channels,), "int8", layout=None))

        # Of the function's block: TVM looks for a copy in what has one input, and into a block for that.
        total = IRBuilder.name("total", T.sblock_alloc_buffer((VECTOR,), "int32", layout=None))

        def part(image: Any, first: Any, lanes: int) -> None:
            here = vector(0, lanes)
            T.buffer_store(total, splat(tirx.const(mean.offset, "int32"), lanes), [here])
            start = T.Bind(image * (pixels * channels) + first)
            with T.serial(index(pixels)) as pixel:
                read = tirx.Cast(wide("int32", lanes), x[vector(start + pixel * channels, lanes)])
                T.buffer_store(total, total[here] + read, [here])
            result = _narrowed(total[here], mean.multiplier, mean.bounds, instructions)
            store(y, image * channels + first, result, lanes)

        with T.serial(index(batch)) as image:
            for_channels(channels, lambda first, lanes: part(image, first, lanes))
    return builder.get()


def table_kernel(table: IntegerTable, instructions: Instructions) -> tirx.PrimFunc:
    """The kernel. Parameters, flat: x int8, the table of 256 int8, y int8."""
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"op_pattern": 8, "tirx.noalias": True})
        x = T.arg("x", T.buffer((table.size,), "int8", layout=None))
        results = T.arg("results", T.buffer((256,), "int8", layout=None))
        y = T.arg("y", T.buffer((table.size,), "int8", layout=None))

        def single(at: Any) -> None:
            T.buffer_store(y, results[tirx.Cast("int64", x[at]) + 128], [at])

        if not instructions.is_aarch64:
            with T.serial(index(table.size)) as i:
                single(i)
        else:
            whole = table.size // VECTOR
            if whole:
                _look_up_vectors(x, results, y, whole, PARALLEL_PARTS if table.size >= PARALLEL_ELEMENTS else 1)
            for i in range(whole * VECTOR, table.size):
                single(index(i))
    return builder.get()


def _look_up_vectors(x: Any, results: Any, y: Any, whole: int, parts: int) -> None:
    with (T.parallel if parts > 1 else T.serial)(index(parts)) as part:
        table = [T.Bind(results[vector(first, VECTOR)]) for first in range(0, 256, VECTOR)]
        begin = T.Bind(part * whole // parts)
        with T.serial(T.Bind((part + 1) * whole // parts) - begin) as block:
            at = vector((begin + block) * VECTOR, VECTOR)
            T.buffer_store(y, _looked_up(table, x[at]), [at])


def _looked_up(table: list[Any], x: Any) -> Any:
    """tbl and three tbx of 64 bytes each: what an index is too large for, as an unsigned one, tbx leaves alone."""

    def number(value: int) -> Any:
        return splat(tirx.const(value, "int8"), VECTOR)

    at = T.Bind(x ^ number(-128))
    found = T.call_llvm_pure_intrin("int8x16", "llvm.aarch64.neon.tbl4.v16i8", *table[:4], at)
    for quarter in range(1, 4):
        four = table[4 * quarter : 4 * quarter + 4]
        moved = at - number(64 * quarter if quarter < 2 else 64 * quarter - 256)
        found = T.call_llvm_pure_intrin("int8x16", "llvm.aarch64.neon.tbx4.v16i8", found, *four, moved)
    return found


def _combined(binary: IntegerBinary, a: Any, b: Any) -> Any:
    lanes = lanes_of(a)

    def number(value: int) -> Any:
        return splat(tirx.const(value, "int32"), lanes)

    first, second = binary.factors
    if binary.operation == "add":
        return a * number(first) + b * number(second) + number(binary.offset)
    return (a - number(first)) * (b - number(second))


def _narrowed(total: Any, multiplier: float, bounds: Range, instructions: Instructions) -> Any:
    sums = in_vectors(T.Bind(total))
    by = splat(tirx.const(multiplier, "float32"), lanes_of(sums[0]))
    return requantize(sums, [by] * len(sums), bounds, instructions)


def for_channels(channels: int, body: Callable[[Any, int], None]) -> None:
    """Emit `body(first, lanes)` for the channels of a pixel: a loop over vectors, then fewer."""
    if channels >= VECTOR:
        with T.serial(index(channels // VECTOR)) as block:
            body(block * VECTOR, VECTOR)
    for first, lanes in blocks(channels):
        if lanes < VECTOR:
            body(index(first), lanes)


def _for_vectors(size: int, body: Any) -> None:
    """Emit `body(first, lanes)` for all elements, VECTOR at a time, then fewer."""
    whole = size // VECTOR
    loop = T.parallel if size >= PARALLEL_ELEMENTS else T.serial
    if whole:
        with loop(index(whole)) as block:
            body(block * VECTOR, VECTOR)
    for first, lanes in blocks(size % VECTOR):
        body(index(whole * VECTOR + first), lanes)
