"""Convolutions and products with constant weights in int8: tiles of int32 sums in registers.

The sums become int8 (`requantize`), or float32 by a multiplier and an addend for each column, or are the result.

The input is int8 with channels last, so that the elements which one output pixel reads are a few contiguous runs: the
whole row of the kernel's window, or one pixel of it where the window is dilated. A product is

    C[m, n] = Σ over runs r, k in the run:  X[start(m) + offset(r) + k] · W[n, r, k]

X is read where it lies, or from a copy with padding around it. The padding holds the input's zero point z, and
Σ W·(x - z) = Σ W·x - z Σ W, whose last term is constant: it is in the bias that the caller gives.

Weights are packed at compile time as [panel of 16 n][run][k / 4][16][4], each run padded with zeros to a multiple of
four. Sixteen bytes are then four k for each of four n, which `integer_sums` multiplies with what a pixel has. For a
core with `smmla` they are packed by eight k, [k / 8][16][8], but for the last four of an odd number of fours.
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

from graphopt.targets.tvm.kernels.integer_depthwise import blocks
from graphopt.targets.tvm.kernels.integer_elementwise import IntegerBinary, combined
from graphopt.targets.tvm.kernels.integer_sums import GROUP, PANEL, PanelWeights
from graphopt.targets.tvm.kernels.integer_tiles import Extents, Form
from graphopt.targets.tvm.kernels.requantize import (
    LANES,
    Instructions,
    Range,
    cut,
    index,
    keep_in_memory,
    requantize,
    store,
    vector,
    wide,
)
from graphopt.targets.tvm.kernels.shares import equal_parts, tiles
from graphopt.targets.tvm.kernels.window import Window, padded_input

PARALLEL_MACS = 1 << 18  # below, waking a thread costs more than it saves


@dataclass(frozen=True)
class IntegerProduct:
    """What a kernel is made for: a convolution over `window`, of `columns` output channels in each of its groups.

    A product of matrices is a convolution with a window of one pixel over an image of as many pixels as it has rows.
    `pairs`: whether two products of a weight fit int16 together, which they do unless one is -128.
    `result`: int8, float32 or int32. `lifted`: the bias has ROUNDER_BITS in it (`requantize`); for int8 alone.
    `octets`: weights are packed by eight k. `combination`: of an int8 result with a residual, if there is one.
    """

    window: Window
    columns: int
    bounds: Range
    pairs: bool = True
    result: str = "int8"
    lifted: bool = False
    octets: bool = False
    combination: IntegerBinary | None = None

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

    @property
    def row(self) -> tuple[int, int]:
        """How many rows of pixels there are, and pixels in each: pixels at one distance of each other are one row."""
        height, width = self.window.output[0] * self.window.output[1], self.window.output[2]
        return (1, height * width) if self.window.contiguous else (height, width)

    @property
    def extents(self) -> Extents:
        """Of a row of pixels, for the choice of tiles."""
        return Extents(self.row[1], self.columns, len(self.window.runs), self.run, self.pairs, self.octets)

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


def in_octets(packed: np.ndarray) -> np.ndarray:
    """Packed weights with each two groups of k as one of eight; the shape stays, and an odd last group as it is."""
    groups = packed.shape[2] // 2 * 2
    pairs = packed[:, :, :groups].reshape(*packed.shape[:2], -1, 2, PANEL, GROUP)
    octets = pairs.swapaxes(3, 4).reshape(packed[:, :, :groups].shape)
    return np.concatenate([octets, packed[:, :, groups:]], axis=2)


def product_kernel(product: IntegerProduct, instructions: Instructions, form: Form) -> tirx.PrimFunc:
    """The kernel, in tiles of `form`.

    Parameters, all flat: x int8, packed weights int8, bias int32, `product.factors`, a residual like y if there is one,
    y.
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
        size = math.prod(window.output) * product.all_columns
        residual = T.arg("residual", T.buffer((size,), "int8", layout=None)) if product.combination else None
        y = T.arg("y", T.buffer((size,), product.result, layout=None))
        source, pixel = padded_input(window, x, overrun=product.run - window.run)
        tile = Tile(product, instructions, form, source, weights, bias, factors, residual, y)
        _for_tiles(tile, *product.row, pixel)
    return builder.get()


def _for_tiles(tile: Tile, height: int, width: int, pixel: Callable[[Any, Any], Any]) -> None:
    """Emit loops over tasks, which are panels of a row of pixels, and over tiles of nearly one size.

    A single long row is cut into parts, so that threads get equal shares whatever the number of panels.
    """
    product, form = tile.product, tile.form
    whole, rest = divmod(product.columns, PANEL)
    parallel = product.macs >= PARALLEL_MACS
    costs = _costs(product.columns) * product.window.groups
    parts = equal_parts(width, form.rows, costs) if parallel and height == 1 else 1
    part = width // parts
    step = product.window.pixel_step

    def rows_of(panel: Any, columns: int, y_row: Any, begin: Any) -> None:
        for first, count, size in tiles(part, form.rows, form.together):
            with T.serial(index(count)) as number:
                column = begin + (number * size + first)
                start = pixel(y_row, column)
                if product.window.groups > 1:
                    start = start + panel // product.panels * (product.window.image[3] // product.window.groups)
                tile.emit(start, step, y_row * width + column, panel, columns, size)

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
    form: Form
    x: Any
    weights: Any
    bias: Any
    factors: list[Any]
    residual: Any  # None if there is none
    y: Any

    def emit(self, start: Any, step: int, row: Any, panel: Any, columns: int, rows: int) -> None:
        """One tile: `rows` pixels from output pixel `row` on, whose input starts at `start`, `step` bytes apart."""
        vectors = -(-columns // LANES)
        width = self.form.vectors
        for first in range(0, vectors, width):
            self._block(start, step, row, panel, columns, rows, first, min(width, vectors - first))

    def _block(
        self, start: Any, step: int, row: Any, panel: Any, columns: int, rows: int, first: int, vectors: int
    ) -> None:
        start, row = T.Bind(start), T.Bind(row)
        keep_in_memory(self.instructions)
        sums = self.form.sums(rows, vectors, self.product.pairs)
        channel = panel * PANEL + first * LANES
        sums.start(self.begun(row, channel, rows, vectors))
        run_bytes = self.product.run * PANEL
        for number, offset in enumerate(self.product.window.run_offsets):
            weights = T.Bind((panel * len(self.product.window.runs) + number) * run_bytes)
            self._run(sums, start + offset, step, weights, first)
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
            self._store_int8(at, made, min(len(totals) * LANES, columns))
            return
        for j, total in enumerate(totals):
            made = total
            if factors:
                made = tirx.Cast(wide("float32", LANES), total) * factors[0][j] + factors[1][j]
            store(self.y, at + j * LANES, made, min(LANES, columns - j * LANES))

    def _store_int8(self, at: Any, made: Any, lanes: int) -> None:
        if self.product.combination is None:
            store(self.y, at, made, lanes)
            return
        made = T.Bind(made)
        for first, width in blocks(lanes):
            residual = self.residual[vector(at + first, width)]
            total = combined(self.product.combination, cut(made, first, width), residual, self.instructions)
            store(self.y, at + first, total, width)

    def _run(self, sums: Any, start: Any, step: int, weights: Any, first: int) -> None:
        chunk = max(self.form.chunk, 2 * GROUP if self.product.octets else GROUP)
        whole, rest = divmod(self.product.run, chunk)
        if whole:
            with T.serial(index(whole)) as k:
                self._chunk(sums, start + k * chunk, step, weights + k * (chunk * PANEL), first, chunk // GROUP)
        done, groups = whole * chunk, rest // GROUP
        while groups:  # vectors of two groups, and of one
            size = min(groups, 2)
            self._chunk(sums, start + done, step, weights + done * PANEL, first, size)
            done += size * GROUP
            groups -= size

    def _chunk(self, sums: Any, start: Any, step: int, weights: Any, first: int, groups: int) -> None:
        keep_in_memory(self.instructions)  # else the loads of the next chunks move up here, and sums to the stack
        pixels = []
        for i in range(sums.rows):
            loaded = self.x[vector(start + i * step, groups * GROUP)]
            name = "int32" if groups == 1 else f"int32x{groups}"
            pixels.append(T.Bind(tirx.reinterpret(name, loaded)))
        octets = self.product.octets and groups > 1
        sums.accumulate(pixels, PanelWeights(self.weights, weights, first, groups, octets))


__all__ = ["GROUP", "PANEL", "IntegerProduct", "Tile", "in_octets", "pack_weights", "product_kernel"]
