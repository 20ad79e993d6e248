"""Convolutions and products with constant weights in int8: tiles of int32 sums in registers.

The sums become int8 (`requantize`), or float32 by a multiplier and an addend for each column, or are the result.

The input is int8 with channels last, so that the elements which one output pixel reads are a few contiguous runs: the
whole row of the kernel's window, or one pixel of it where the window is dilated. A product is

    C[m, n] = Σ over runs r, k in the run:  X[start(m) + offset(r) + k] · W[n, r, k]

X is read where it lies, or from a copy with padding around it. The padding holds the input's zero point z, and
Σ W·(x - z) = Σ W·x - z Σ W, whose last term is constant: it is in the bias that the caller gives.

Weights are packed at compile time as [panel of 16 n][run][k / 4][16][4], each run padded with zeros to a multiple of
four. Sixteen bytes are then what `sdot` takes: four k for each of four n, against four k of a pixel, by lane. Without
the dot product two pairs of `smull` and `smlal` sum eight k into int16, which `sadalp` adds to int32 in pairs; that is
exact as long as no weight is -128: 2 · 127 · 128 < 2¹⁵.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.tvm.kernels.requantize import (
    LANES,
    Instructions,
    Range,
    index,
    keep_in_memory,
    requantize,
    splat,
    store,
    vector,
    wide,
)
from graphopt.targets.tvm.kernels.shares import equal_parts
from graphopt.targets.tvm.kernels.window import Window, padded_input

PANEL = 16  # columns that lie side by side in the packed weights: as many int8 results as a vector holds
GROUP = 4  # k that a lane of 32 bits holds
CHUNK = 16  # bytes of a vector of weights: four k for each of four columns
# k of a pixel that are loaded at a time. Half a vector for sdot: a core that issues in order does nothing else during a
# load of 128 bits, and registers are left for six pixels. Four for the portable form: less code, it is slow anyway.
CHUNKS = {Instructions.PORTABLE: GROUP, Instructions.NEON: 16, Instructions.DOTPROD: 8}
PARALLEL_MACS = 1 << 18  # below, waking a thread costs more than it saves


@dataclass(frozen=True)
class IntegerProduct:
    """What a kernel is made for: a convolution over `window`, of `columns` output channels in each of its groups.

    A product of matrices is a convolution with a window of one pixel over an image of as many pixels as it has rows.
    `pairs`: whether two products of a weight fit int16 together, which they do unless one is -128.
    `result`: int8, float32 or int32. `lifted`: the bias has ROUNDER_BITS in it (`requantize`); for int8 alone.
    """

    window: Window
    columns: int
    bounds: Range
    pairs: bool = True
    result: str = "int8"
    lifted: bool = False

    @property
    def factors(self) -> tuple[str, ...]:
        """What the sums become the result by: float32 vectors that are parameters of the kernel."""
        return {"int8": ("multipliers",), "float32": ("multipliers", "addends"), "int32": ()}[self.result]

    @property
    def run(self) -> int:
        """The length of a run, rounded up to whole groups."""
        return -(-self.window.run // GROUP) * GROUP

    @property
    def panels(self) -> int:
        """Of each group: a panel has columns of one group."""
        return -(-self.columns // PANEL)

    @property
    def all_panels(self) -> int:
        return self.window.groups * self.panels

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.all_panels, len(self.window.runs), self.run // GROUP, PANEL, GROUP)

    @property
    def macs(self) -> int:
        return math.prod(self.window.output) * self.all_columns * len(self.window.runs) * self.run

    @property
    def all_columns(self) -> int:
        return self.window.groups * self.columns

    def padded(self, of_columns: np.ndarray) -> np.ndarray:
        """Elements for all columns, those of each group padded to whole panels."""
        grouped = of_columns.reshape(self.window.groups, self.columns)
        return np.pad(grouped, ((0, 0), (0, self.panels * PANEL - self.columns))).reshape(-1)


def pack_weights(weights: np.ndarray, window: Window) -> np.ndarray:
    """int8 [columns, height, width, channels of a group] as [panel][run][k / 4][16][4]."""
    columns = weights.shape[0] // window.groups
    runs = weights.reshape(window.groups, columns, len(window.runs), window.run)
    padded = np.pad(runs, ((0, 0), (0, -columns % PANEL), (0, 0), (0, -window.run % GROUP)))
    padded = padded.reshape(-1, *padded.shape[2:])
    grouped = padded.reshape(-1, PANEL, len(window.runs), padded.shape[2] // GROUP, GROUP)
    return np.ascontiguousarray(grouped.transpose(0, 2, 3, 1, 4))


def product_kernel(product: IntegerProduct, instructions: Instructions) -> tirx.PrimFunc:
    """The kernel. Parameters, all flat: x int8, packed weights int8, bias int32, `product.factors`, y.

    Bias and factors are padded to whole panels.
    """
    window = product.window
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"op_pattern": 8, "tirx.noalias": False})
        x = T.arg("x", T.buffer((window.input_size,), "int8", layout=None))
        weights = T.arg("weights", T.buffer((math.prod(product.weight_shape),), "int8", layout=None))
        bias = T.arg("bias", T.buffer((product.all_panels * PANEL,), "int32", layout=None))
        factors = [
            T.arg(name, T.buffer((product.all_panels * PANEL,), "float32", layout=None)) for name in product.factors
        ]
        y = T.arg("y", T.buffer((math.prod(window.output) * product.all_columns,), product.result, layout=None))
        source, image = padded_input(window, x, overrun=product.run - window.run)
        tile = Tile(product, instructions, source, weights, bias, factors, y)
        rows, height = most_rows(instructions), window.output[0] * window.output[1]
        width = window.output[2]
        if image.contiguous:  # pixels follow each other at a fixed distance: one long row
            height, width = 1, height * width
        _for_tiles(product, height, width, rows, image.pixel, tile.emit)
    return builder.get()


def most_rows(instructions: Instructions) -> int:
    """Pixels a tile: 5×16 sums, with sdot, take 20 of 32 registers, pixels 5; 4×8 take 16, as pairs, without.

    With six pixels every register is taken, and LLVM spills some for a core that issues in order. Where two sdot issue
    in a cycle there is time for the loads of either.
    """
    return 5 if instructions is Instructions.DOTPROD else 4


def _for_tiles(
    product: IntegerProduct,
    height: int,
    width: int,
    most: int,
    pixel: Callable[[Any, Any], Any],
    emit: Callable[[Any, int, Any, Any, int, int], None],
) -> None:
    """Emit loops over tasks, which are panels of a row of pixels, and over tiles, which differ in size by at most one.

    A single long row is cut into parts, so that threads get equal shares whatever the number of panels.
    """
    whole, rest = divmod(product.columns, PANEL)
    parallel = product.macs >= PARALLEL_MACS
    parts = equal_parts(width, most, _costs(product.columns) * product.window.groups) if parallel and height == 1 else 1
    part = width // parts
    tiles = -(-part // most)
    small, more = divmod(part, tiles)  # the first `more` tiles have one pixel more
    step = product.window.pixel_step

    def rows_of(panel: Any, columns: int, y_row: Any, begin: Any) -> None:
        def run_tiles(first: int, count: int, size: int) -> None:
            if count == 0:
                return
            with T.serial(index(count)) as number:
                column = begin + (number * size + first)
                start = pixel(y_row, column)
                if product.window.groups > 1:
                    start = start + panel // product.panels * (product.window.image[3] // product.window.groups)
                emit(start, step, y_row * width + column, panel, columns, size)

        run_tiles(0, more, small + 1)
        run_tiles(more * (small + 1), tiles - more, small)

    with (T.parallel if parallel else T.serial)(index(height * parts * product.all_panels)) as task:
        row, panel = task // product.all_panels, task % product.all_panels
        y_row, begin = (row, index(0)) if parts == 1 else (index(0), row * part)
        if not rest or not whole:
            rows_of(panel, rest or PANEL, y_row, begin)
        else:
            with T.If(panel % product.panels < whole if product.window.groups > 1 else panel < whole):
                with T.Then():
                    rows_of(panel, PANEL, y_row, begin)
                with T.Else():
                    rows_of(panel if product.window.groups > 1 else index(whole), rest, y_row, begin)


def _costs(columns: int) -> list[int]:
    """The columns of each panel."""
    return [min(PANEL, columns - first) for first in range(0, columns, PANEL)]


@dataclass(frozen=True)
class Tile:
    product: IntegerProduct
    instructions: Instructions
    x: Any
    weights: Any
    bias: Any
    factors: list[Any]
    y: Any

    def emit(self, start: Any, step: int, row: Any, panel: Any, columns: int, rows: int) -> None:
        """One tile: `rows` pixels from output pixel `row` on, whose input starts at `start`, `step` bytes apart."""
        vectors = -(-columns // LANES)
        width = 2 if self.instructions is Instructions.NEON else 4  # vectors of columns at a time
        for first in range(0, vectors, width):
            self._block(start, step, row, panel, columns, rows, first, min(width, vectors - first))

    def _block(
        self, start: Any, step: int, row: Any, panel: Any, columns: int, rows: int, first: int, vectors: int
    ) -> None:
        start, row = T.Bind(start), T.Bind(row)
        keep_in_memory(self.instructions)
        sums = ARITHMETIC[self.instructions](rows, vectors, self.product.pairs)
        channel = panel * PANEL + first * LANES
        sums.start(self.begun(row, channel, rows, vectors))
        run_bytes = self.product.run * PANEL
        for number, offset in enumerate(self.product.window.run_offsets):
            weights = T.Bind((panel * len(self.product.window.runs) + number) * run_bytes + first * CHUNK)
            self._run(sums, start + offset, step, weights)
        factors = self.of_columns(channel, vectors)
        for i in range(rows):
            totals = [sums.total(i, j) for j in range(vectors)]
            self._store(self.place(row + i, channel), totals, factors, columns - first * LANES)

    def begun(self, row: Any, channel: Any, rows: int, vectors: int) -> list[Any]:
        """What the sums of a tile begin at: vectors of columns, row by row."""
        return [T.Bind(self.bias[vector(channel + j * LANES, LANES)]) for j in range(vectors)] * rows

    def of_columns(self, channel: Any, vectors: int) -> list[list[Any]]:
        """The factors of a tile's columns."""
        return [[T.Bind(f[vector(channel + j * LANES, LANES)]) for j in range(vectors)] for f in self.factors]

    def place(self, row: Any, channel: Any) -> Any:
        """Where a result lies in y; `channel` counts the padding of the groups' last panels."""
        product = self.product
        padding = product.panels * PANEL - product.columns
        if product.window.groups > 1 and padding:
            channel = channel - channel // (product.panels * PANEL) * padding
        return row * product.all_columns + channel

    def _store(self, at: Any, totals: list[Any], factors: list[list[Any]], columns: int) -> None:
        """One row of results, as vectors of LANES, of which `columns` are elements of y."""
        if self.product.result == "int8":
            made = requantize(totals, factors[0], self.product.bounds, self.instructions, self.product.lifted)
            store(self.y, at, made, min(len(totals) * LANES, columns))
            return
        for j, total in enumerate(totals):
            made = total
            if factors:
                made = tirx.Cast(wide("float32", LANES), total) * factors[0][j] + factors[1][j]
            store(self.y, at + j * LANES, made, min(LANES, columns - j * LANES))

    def _run(self, sums: Any, start: Any, step: int, weights: Any) -> None:
        chunk = CHUNKS[self.instructions]
        whole, rest = divmod(self.product.run, chunk)
        if whole:
            with T.serial(index(whole)) as k:
                self._chunk(sums, start + k * chunk, step, weights + k * (chunk * PANEL), chunk // GROUP)
        done, groups = whole * chunk, rest // GROUP
        while groups:  # vectors of two groups, and of one
            size = 2 if groups >= 2 else 1
            self._chunk(sums, start + done, step, weights + done * PANEL, size)
            done += size * GROUP
            groups -= size

    def _chunk(self, sums: Any, start: Any, step: int, weights: Any, groups: int) -> None:
        keep_in_memory(self.instructions)  # else the loads of the next chunks move up here, and sums to the stack
        pixels = []
        for i in range(sums.rows):
            loaded = self.x[vector(start + i * step, groups * GROUP)]
            name = "int32" if groups == 1 else f"int32x{groups}"
            pixels.append(T.Bind(tirx.reinterpret(name, loaded)))

        def group(i: int, g: int) -> Any:
            """Four k of pixel i, in each lane: int32x4."""
            if groups == 1:
                return splat(pixels[i], LANES)
            twice = [pixels[i]] * (LANES // groups)  # a shuffle has no more lanes than it is given
            return tirx.Shuffle(twice, [tirx.const(g, "int32")] * LANES)

        def weight(j: int, g: int) -> Any:
            return self.weights[vector(weights + (g * PANEL * GROUP + j * CHUNK), CHUNK)]

        sums.accumulate(group, weight, groups)


class _Sums:
    """A tile of sums in registers: a vector for four columns."""

    def __init__(self, rows: int, vectors: int, pairs: bool) -> None:
        self.rows, self.vectors = rows, vectors
        self.sums = _registers(rows * vectors)

    def start(self, begun: list[Any]) -> None:
        for i, sums in enumerate(begun):
            T.buffer_store(self.sums, sums, [vector(i * LANES, LANES)])

    def total(self, i: int, j: int) -> Any:
        return self.sums[vector((i * self.vectors + j) * LANES, LANES)]


class _Dotprod(_Sums):
    """`sdot` by lane."""

    def accumulate(self, group: Callable[..., Any], weight: Callable[..., Any], groups: int) -> None:
        for g in range(groups):
            for j in range(self.vectors):
                factor = T.Bind(weight(j, g))
                for i in range(self.rows):
                    at = vector((i * self.vectors + j) * LANES, LANES)
                    pixel = tirx.reinterpret("int8x16", group(i, g))
                    name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
                    made = T.call_llvm_pure_intrin("int32x4", name, self.sums[at], factor, pixel)
                    T.buffer_store(self.sums, made, [at])


class _Neon:
    """`smull`, `smlal`, `sadalp`: two vectors of sums for four columns, two partial sums each."""

    def __init__(self, rows: int, vectors: int, pairs: bool) -> None:
        self.rows, self.vectors, self.pairs = rows, vectors, pairs
        self.sums = _registers(rows * vectors * 2)

    def start(self, begun: list[Any]) -> None:
        zero = splat(tirx.const(0, "int32"), LANES)
        for i, sums in enumerate(begun):
            for half in range(2):  # the partial sums of columns 0 and 1, then of 2 and 3: the bias in the first of each
                lanes = [tirx.const(lane, "int32") for lane in (2 * half, 4, 2 * half + 1, 4)]
                parted = tirx.Shuffle([sums, zero], lanes)
                T.buffer_store(self.sums, parted, [vector((2 * i + half) * LANES, LANES)])

    def accumulate(self, group: Callable[..., Any], weight: Callable[..., Any], groups: int) -> None:
        together = 2 if self.pairs else 1
        for g in range(0, groups, together):
            span = range(g, min(g + together, groups))
            factors = {(j, h): T.Bind(weight(j, h)) for h in span for j in range(self.vectors)}
            for i in range(self.rows):
                pixels = {h: T.Bind(tirx.reinterpret("int8x16", group(i, h))) for h in span}
                for j in range(self.vectors):
                    for half in range(2):
                        products = [_smull(_half(factors[j, h], half), _half(pixels[h], half)) for h in span]
                        self._add_pairs((i * self.vectors + j) * 2 + half, products)

    def _add_pairs(self, number: int, products: list[Any]) -> None:
        at = vector(number * LANES, LANES)
        product = products[0] if len(products) == 1 else products[0] + products[1]
        longer = T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.saddlp.v4i32.v8i16", product)
        T.buffer_store(self.sums, self.sums[at] + longer, [at])

    def total(self, i: int, j: int) -> Any:
        first = (i * self.vectors + j) * 2
        low, high = (self.sums[vector((first + half) * LANES, LANES)] for half in range(2))
        return T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.addp.v4i32", low, high)


class _Portable(_Sums):
    """Products of int32, the bytes of a lane taken out by shifts: what any vector unit can do."""

    def accumulate(self, group: Callable[..., Any], weight: Callable[..., Any], groups: int) -> None:
        for g in range(groups):
            pixels = [T.Bind(group(i, g)) for i in range(self.rows)]
            factors = [T.Bind(tirx.reinterpret("int32x4", weight(j, g))) for j in range(self.vectors)]
            for byte in range(GROUP):
                shifted = [T.Bind(_byte(pixel, byte)) for pixel in pixels]
                for j in range(self.vectors):
                    factor = T.Bind(_byte(factors[j], byte))
                    for i in range(self.rows):
                        at = vector((i * self.vectors + j) * LANES, LANES)
                        T.buffer_store(self.sums, self.sums[at] + shifted[i] * factor, [at])


ARITHMETIC: dict[Instructions, Callable[[int, int, bool], Any]] = {
    Instructions.DOTPROD: _Dotprod,
    Instructions.NEON: _Neon,
    Instructions.PORTABLE: _Portable,
}


def _registers(vectors: int) -> Any:
    return IRBuilder.name("sums", T.alloc_buffer((vectors * LANES,), "int32", scope="local", layout=None))


def _half(value: Any, half: int) -> Any:
    return tirx.Shuffle([value], [tirx.const(half * 8 + lane, "int32") for lane in range(8)])


def _smull(a: Any, b: Any) -> Any:
    return T.call_llvm_pure_intrin("int16x8", "llvm.aarch64.neon.smull.v8i16", a, b)


def _byte(lanes: Any, byte: int) -> Any:
    """Byte number `byte` of each lane of an int32x4, with its sign."""
    up = splat(tirx.const(24 - 8 * byte, "int32"), LANES)
    return (lanes << up) >> splat(tirx.const(24, "int32"), LANES)


__all__ = ["GROUP", "PANEL", "IntegerProduct", "Tile", "most_rows", "pack_weights", "product_kernel"]
