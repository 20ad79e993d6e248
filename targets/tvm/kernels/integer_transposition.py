"""Transposition of int8, and with it quantization to channels last, and dequantization to channels first.

    y[b, j, i] = x[b, i, j]        rows i, columns j

A tile is R vectors of W bytes each, R a power of 2, one of every row. Zipping vector k with vector k + R / 2 into its
lower and its upper half, log2 R times, leaves the tile's columns one after the other:

    a0 a1 a2 a3          a0 c0 a1 c1, a2 c2 a3 c3          a0 b0 c0 d0, a1 b1 c1 d1
    b0 b1 b2 b3    →     b0 d0 b1 d1, b2 d2 b3 d3    →     a2 b2 c2 d2, a3 b3 c3 d3
    c0 … d3

The last tile of an axis begins early enough to be whole: what it shares with the one before is written twice.

A quotient of QuantizeLinear is computed by multiply-adds, with the bits of a division (`dynamic_quantize`). Numbers are
first brought to where the integers of the result surely saturate, so that nothing overflows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.tvm.kernels.dynamic_quantize import corrected_quotient, has_reciprocal
from graphopt.targets.tvm.kernels.requantize import (
    LANES,
    Instructions,
    Range,
    cut,
    in_vectors,
    index,
    join,
    lanes_of,
    quantize,
    splat,
    vector,
    wide,
)

VECTOR = 16  # int8 at a time
HEIGHTS = (16, 8, 4, 2, 1)  # of a tile
INTERLEAVED = 3  # rows that AArch64 stores in turns (st3), though they are no power of 2
SATURATED = 1024.0  # steps from 0 at which every int8 is at an end, whatever its zero point
PARALLEL_BYTES = 1 << 17


@dataclass(frozen=True)
class IntegerTransposition:
    """int8 [batch, rows, columns] to [batch, columns, rows]."""

    shape: tuple[int, int, int]


@dataclass(frozen=True)
class QuantizeChannelsLast:
    """float32 [batch, channels, pixels] to int8 [batch, pixels, channels]: rint(x / scale) + zero point, saturated."""

    shape: tuple[int, int, int]
    scale: float
    zero_point: int


@dataclass(frozen=True)
class DequantizeChannelsFirst:
    """int8 [batch, pixels, channels] to float32 [batch, channels, pixels]: (x - zero point) · scale."""

    shape: tuple[int, int, int]
    scale: float
    zero_point: int


def transposition_kernel(transposition: IntegerTransposition, _instructions: Instructions) -> tirx.PrimFunc:
    """The kernel. Parameters, flat: x and y int8."""
    return _kernel(transposition.shape, "int8", "int8", lambda value: value, lambda value: value)


def quantize_channels_last_kernel(made: QuantizeChannelsLast, instructions: Instructions) -> tirx.PrimFunc:
    """The kernel. Parameters, flat: x float32, y int8."""
    scale, bounds = np.float32(made.scale), Range(made.zero_point)
    by_products = instructions.is_aarch64 and has_reciprocal(scale)

    def steps(number: Any) -> Any:
        lanes = lanes_of(number)
        if not by_products or lanes < LANES:
            return number / splat(tirx.const(float(scale), "float32"), lanes)
        end = splat(tirx.const(float(scale * np.float32(SATURATED)), "float32"), lanes)
        reciprocal, opposite = (splat(tirx.const(float(n), "float32"), lanes) for n in (1 / scale, -scale))
        return corrected_quotient(T.Bind(tirx.Min(tirx.Max(number, -end), end)), reciprocal, opposite)

    def quantized(numbers: Any) -> Any:
        parts = in_vectors(T.Bind(numbers))
        return quantize([steps(T.Bind(part)) for part in parts], bounds, instructions)

    return _kernel(made.shape, "float32", "int8", quantized, lambda value: value)


def dequantize_channels_first_kernel(made: DequantizeChannelsFirst, _instructions: Instructions) -> tirx.PrimFunc:
    """The kernel. Parameters, flat: x int8, y float32."""

    def dequantized(integers: Any) -> Any:
        lanes = lanes_of(integers)
        shifted = tirx.Cast(wide("int32", lanes), integers) - splat(tirx.const(made.zero_point, "int32"), lanes)
        return tirx.Cast(wide("float32", lanes), shifted) * splat(tirx.const(made.scale, "float32"), lanes)

    return _kernel(made.shape, "int8", "float32", lambda value: value, dequantized)


def _kernel(
    shape: tuple[int, int, int], source: str, result: str, into: Callable[[Any], Any], out_of: Callable[[Any], Any]
) -> tirx.PrimFunc:
    """A transposition of int8 that `into` makes of vectors of the source, and `out_of` turns into the result."""
    batch, rows, columns = shape if shape[2] > 1 else (shape[0], 1, shape[1])
    size = batch * rows * columns
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"op_pattern": 8, "tirx.noalias": True})
        x = T.arg("x", T.buffer((size,), source, layout=None))
        y = T.arg("y", T.buffer((size,), result, layout=None))

        def matrix(image: Any, loop: Callable[..., Any]) -> None:
            start = T.Bind(image * (rows * columns))

            def read(i: Any, j: Any, lanes: int) -> Any:
                return into(x[vector(start + i * columns + j, lanes)])

            def write(j: Any, i: Any, value: Any) -> None:
                lanes = lanes_of(value)
                T.buffer_store(y, out_of(value), [vector(start + j * rows + i, lanes)])

            _transpose(rows, columns, read, write, loop)

        large = size >= PARALLEL_BYTES
        with T.sblock("root"):  # TVM looks for one in a kernel of one input
            if batch == 1:
                matrix(index(0), T.parallel if large else T.serial)
            else:
                with (T.parallel if large else T.serial)(index(batch)) as image:
                    matrix(image, T.serial)
    return builder.get()


Read = Callable[[Any, Any, int], Any]  # (row, column, lanes) -> a vector of the row
Write = Callable[[Any, Any, Any], None]  # (column, row, a vector of the column)


def _transpose(rows: int, columns: int, read: Read, write: Write, loop: Callable[..., Any]) -> None:
    """Emit the transposition of one matrix; `loop` runs over tiles that write apart from each other."""
    if rows == 1:  # the same elements in the same order
        whole, rest = divmod(columns, VECTOR)
        if whole:
            with loop(index(whole)) as block:
                _copy(index(0), block * VECTOR, VECTOR, read, write)
        for at in range(rest):
            _copy(index(0), index(whole * VECTOR + at), 1, read, write)
        return
    width = VECTOR if columns >= VECTOR else VECTOR // 2
    if columns < width:
        _transpose_narrow(rows, columns, read, write, loop)
        return
    whole, rest = divmod(columns, width)
    with loop(index(whole)) as block:
        _tiles_of_columns(rows, block * width, width, read, write)
    if rest:
        _tiles_of_columns(rows, index(columns - width), width, read, write)


def _copy(i: Any, j: Any, lanes: int, read: Read, write: Write) -> None:
    write(j, i, read(i, j, lanes))


def _tiles_of_columns(rows: int, j: Any, width: int, read: Read, write: Write) -> None:
    """Emit the tiles of `width` columns from j on."""
    if rows == INTERLEAVED:
        vectors = [T.Bind(read(index(i), j, width)) for i in range(rows)]
        turns = [tirx.const(i * width + lane, "int32") for lane in range(width) for i in range(rows)]
        write(j, index(0), tirx.Shuffle(vectors, turns))
        return
    height = next(height for height in HEIGHTS if height <= rows)
    whole, rest = divmod(rows, height)

    def tile(i: Any) -> None:
        zipped = _zipped([T.Bind(read(i + r, j, width)) for r in range(height)])
        if rows == height <= width:  # columns follow each other without a gap
            for k, value in enumerate(zipped):
                write(j + k * width // height, i, value)
            return
        for column in range(width):
            write(j + column, i, _cut_of(zipped, column * height, height))

    if whole == 1:
        tile(index(0))
    else:
        with T.serial(index(whole)) as block:
            tile(block * height)
    if rest:
        tile(index(rows - height))


def _transpose_narrow(rows: int, columns: int, read: Read, write: Write, loop: Callable[..., Any]) -> None:
    """Emit the transposition of few columns: rows lie side by side, and VECTOR of them are taken apart."""
    whole = rows // VECTOR

    def tile(i: Any) -> None:
        vectors = [T.Bind(read(i, index(k * VECTOR), VECTOR)) for k in range(columns)]
        for j in range(columns):
            taken = [tirx.const(j + columns * lane, "int32") for lane in range(VECTOR)]
            write(index(j), i, tirx.Shuffle(vectors, taken))

    if whole:
        with loop(index(whole)) as block:
            tile(block * VECTOR)
    for i in range(whole * VECTOR, rows):
        for j in range(columns):
            _copy(index(i), index(j), 1, read, write)


def _zipped(vectors: list[Any]) -> list[Any]:
    """The elements of a tile column by column, in as many vectors."""
    width, half = lanes_of(vectors[0]), len(vectors) // 2
    stages = (len(vectors)).bit_length() - 1
    for _ in range(stages):
        made = []
        for k in range(half):
            for first in (0, width // 2):
                lanes = [n for lane in range(first, first + width // 2) for n in (lane, width + lane)]
                pair = tirx.Shuffle([vectors[k], vectors[k + half]], [tirx.const(n, "int32") for n in lanes])
                made.append(T.Bind(pair))
        vectors = made
    return vectors


def _cut_of(vectors: list[Any], start: int, lanes: int) -> Any:
    """`lanes` elements from `start` on of vectors that follow each other; whole vectors, or a part of one."""
    width = lanes_of(vectors[0])
    if lanes >= width:
        return join(vectors[start // width : (start + lanes) // width])
    return cut(vectors[start // width], start % width, lanes)
