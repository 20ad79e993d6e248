"""Products of two int8 activations, as in attention: the right factor is packed at run time, then as `integer_product`.

    Σ_k (a − z_a)(b − z_b)  =  Σ_k a b  −  z_a Σ_k b  −  z_b Σ_k a  +  K z_a z_b

The third sum depends on the row, the second on the column: both are made once, from b packed and from a. What is packed
is [batch][panel of 16 columns][k / 4][16][4], with zeros where there is no k or no column.

The factors are read where they lie: an `Operand` tells where each element is in the buffer of another tensor, so that
neither transpositions nor the heads cut from one matrix are copied.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.tvm.kernels.integer_product import GROUP, PANEL, IntegerProduct, Tile
from graphopt.targets.tvm.kernels.integer_tiles import Form
from graphopt.targets.tvm.kernels.requantize import (
    LANES,
    ROUNDER_BITS,
    Instructions,
    Range,
    index,
    splat,
    vector,
)
from graphopt.targets.tvm.kernels.shares import tiles
from graphopt.targets.tvm.kernels.window import Window

VECTOR = 16  # bytes
BLOCK = PANEL * GROUP  # packed bytes of four k
PARALLEL_MACS = 1 << 18


@dataclass(frozen=True)
class Operand:
    """Where (b, i, j) of [batch, rows, columns] is in a buffer: offset + Σ b · batch + i · row + j · column."""

    size: int
    offset: int
    batch: tuple[int, ...]
    row: int
    column: int


@dataclass(frozen=True)
class IntegerBatchProduct:
    """y [*batch, rows, columns] of a [*batch, rows, depth], whose elements of a row are neighbours, and b.

    Of b [*batch, depth, columns] either those of a row or of a column are neighbours. `multiplier`: a float32, of int8
    and of float32 results alike. `lifted`: sums begin at ROUNDER_BITS (`requantize`); for int8 alone.
    """

    batch: tuple[int, ...]
    rows: int
    depth: int
    columns: int
    a: Operand
    b: Operand
    zero_points: tuple[int, int]
    multiplier: float
    bounds: Range
    result: str = "int8"
    lifted: bool = False

    @property
    def batches(self) -> int:
        return math.prod(self.batch)

    @property
    def product(self) -> IntegerProduct:
        """One product of the batch. Two products of a factor, which may be -128, need not fit int16."""
        window = Window((1, 1, self.rows, self.depth))
        return IntegerProduct(window, self.columns, self.bounds, False, self.result, self.lifted)


def batch_product_kernel(kernel: IntegerBatchProduct, instructions: Instructions, form: Form) -> tirx.PrimFunc:
    """The kernel, in tiles of `form`. Parameters, all flat: a and b int8, y."""
    product, batches = kernel.product, kernel.batches
    groups, panels = product.run // GROUP, product.panels
    parallel = batches * product.macs >= PARALLEL_MACS
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"op_pattern": 8, "tirx.noalias": False})
        a = T.arg("a", T.buffer((kernel.a.size,), "int8", layout=None))
        b = T.arg("b", T.buffer((kernel.b.size,), "int8", layout=None))
        y = T.arg("y", T.buffer((batches * kernel.rows * kernel.columns,), product.result, layout=None))
        packed = _scratch("packed", batches * panels * groups * BLOCK, "int8")
        bias = _scratch("bias", batches * panels * PANEL, "int32")
        of_rows = _scratch("of_rows", batches * kernel.rows, "int32") if kernel.zero_points[1] else None
        source, place = a, kernel.a
        if kernel.depth % GROUP:  # the last row is read beyond its end
            source = _scratch("copy", batches * kernel.rows * kernel.depth + GROUP, "int8")
            place = _contiguous(kernel)
        with (T.parallel if parallel and batches > 1 else T.serial)(index(batches)) as number:
            if source is not a:
                _copy(kernel, number, a, source)
            if of_rows is not None:
                _sum_rows(kernel, number, a, of_rows, instructions)
            _Packing(kernel, number, b, packed, bias, instructions).emit()
        tile = _BatchTile(product, instructions, form, source, packed, bias, [], None, y, kernel, of_rows)
        _for_tiles(kernel, tile, place, parallel)
    return builder.get()


def _for_tiles(kernel: IntegerBatchProduct, tile: _BatchTile, place: Operand, parallel: bool) -> None:
    """Emit a loop over tasks, a panel of columns of a product each, and loops over tiles of rows of nearly one size."""
    panels, form = tile.product.panels, tile.form
    whole, rest = divmod(kernel.columns, PANEL)

    def rows_of(number: Any, panel: Any, columns: int) -> None:
        begin = T.Bind(_begin(kernel, number, place))
        for first, count, size in tiles(kernel.rows, form.rows, form.together):
            with T.serial(index(count)) as block:
                row = block * size + first
                start = begin + row * place.row
                tile.emit(start, place.row, number * kernel.rows + row, number * panels + panel, columns, size)

    with (T.parallel if parallel else T.serial)(index(kernel.batches * panels)) as task:
        number, panel = task // panels, task % panels
        if not rest or not whole:
            rows_of(number, panel, rest or PANEL)
        else:
            with T.If(panel < whole):
                with T.Then():
                    rows_of(number, panel, PANEL)
                with T.Else():
                    rows_of(number, index(whole), rest)


@dataclass(frozen=True)
class _BatchTile(Tile):
    """Tiles whose rows and panels are numbered through all products of the batch."""

    kernel: IntegerBatchProduct
    of_rows: Any

    def begun(self, row: Any, channel: Any, rows: int, vectors: int) -> list[Any]:
        of_columns = super().begun(row, channel, 1, vectors)
        if self.of_rows is None:
            return of_columns * rows
        sums = []
        for i in range(rows):
            more = splat(T.Bind(self.of_rows[row + i]), LANES)
            sums += [column + more for column in of_columns]
        return sums

    def of_columns(self, channel: Any, vectors: int) -> list[list[Any]]:
        multiplier, zero = (
            [splat(tirx.const(value, "float32"), LANES)] * vectors for value in (self.kernel.multiplier, 0.0)
        )
        return [multiplier, zero][: len(self.product.factors)]

    def place(self, row: Any, channel: Any) -> Any:
        """The panels before this product's have as many columns, padded, as `channel` is to be less."""
        number = channel // (self.product.panels * PANEL)
        return row * self.product.columns + (channel - number * (self.product.panels * PANEL))


def _contiguous(kernel: IntegerBatchProduct) -> Operand:
    """a once it is copied."""
    matrix = kernel.rows * kernel.depth
    strides = [matrix * math.prod(kernel.batch[i + 1 :]) for i in range(len(kernel.batch))]
    return Operand(kernel.batches * matrix + GROUP, 0, tuple(strides), kernel.depth, 1)


def _begin(kernel: IntegerBatchProduct, number: Any, operand: Operand) -> Any:
    """Where product `number` of the batch has its factor."""
    begin, below = index(operand.offset), kernel.batches
    for extent, stride in zip(kernel.batch, operand.batch, strict=True):
        below //= extent
        if stride and extent > 1:
            begin = begin + number // below % extent * stride
    return begin


def _copy(kernel: IntegerBatchProduct, number: Any, a: Any, copy: Any) -> None:
    begin = T.Bind(_begin(kernel, number, kernel.a))
    with T.serial(index(kernel.rows)) as row, T.serial(index(kernel.depth)) as k:
        T.buffer_store(copy, a[begin + row * kernel.a.row + k], [(number * kernel.rows + row) * kernel.depth + k])


def _sum_rows(kernel: IntegerBatchProduct, number: Any, a: Any, of_rows: Any, instructions: Instructions) -> None:
    """Emit −z_b Σ_k a for each row."""
    begin = T.Bind(_begin(kernel, number, kernel.a))
    whole = kernel.depth // VECTOR
    with T.serial(index(kernel.rows)) as row:
        start = T.Bind(begin + row * kernel.a.row)
        total = tirx.const(0, "int32")
        if whole:
            sums = _registers("row", LANES)
            here = vector(0, LANES)
            T.buffer_store(sums, splat(tirx.const(0, "int32"), LANES), [here])
            with T.serial(index(whole)) as block:
                added = _add_bytes(sums[here], a[vector(start + block * VECTOR, VECTOR)], instructions)
                T.buffer_store(sums, added, [here])
            for lane in range(LANES):
                total = total + sums[index(lane)]
        for k in range(whole * VECTOR, kernel.depth):
            total = total + tirx.Cast("int32", a[start + k])
        T.buffer_store(of_rows, total * tirx.const(-kernel.zero_points[1], "int32"), [number * kernel.rows + row])


@dataclass(frozen=True)
class _Packing:
    """b of one product into panels, and what the sums of its columns begin at."""

    kernel: IntegerBatchProduct
    number: Any
    b: Any
    packed: Any
    bias: Any
    instructions: Instructions

    def emit(self) -> None:
        kernel, product = self.kernel, self.kernel.product
        groups = product.run // GROUP
        begin = T.Bind(_begin(kernel, self.number, kernel.b))
        panels, columns = divmod(kernel.columns, PANEL)
        whole = kernel.depth // GROUP
        neighbours = self._columns if kernel.b.column == 1 else self._depths
        for first, count, fast in ((0, panels, True), (panels, int(columns > 0), False)):
            if not count:
                continue
            with T.serial(index(count)) as block:
                panel = block + first
                to = T.Bind((self.number * product.panels + panel) * (groups * BLOCK))
                start = T.Bind(begin + panel * (PANEL * kernel.b.column))
                if fast and whole:
                    with T.serial(index(whole)) as group:
                        neighbours(start + group * (GROUP * kernel.b.row), to + group * BLOCK)
                done = whole if fast else 0
                if done < groups:
                    self._single(start, to, done, groups - done, PANEL if fast else columns)
                self._begin_sums(to, self.number * product.panels + panel, groups)

    def _columns(self, start: Any, to: Any) -> None:
        """Four rows of 16 columns, zipped."""
        rows = [T.Bind(self.b[vector(start + k * self.kernel.b.row, PANEL)]) for k in range(GROUP)]
        lanes = [tirx.const(k * PANEL + column, "int32") for column in range(PANEL) for k in range(GROUP)]
        T.buffer_store(self.packed, tirx.Shuffle(rows, lanes), [vector(to, BLOCK)])

    def _depths(self, start: Any, to: Any) -> None:
        """Four neighbours of each of 16 columns."""
        for first in range(0, PANEL, LANES):
            columns = range(first, first + LANES)
            fours = [self.b[vector(start + column * self.kernel.b.column, GROUP)] for column in columns]
            lanes = [tirx.const(lane, "int32") for lane in range(VECTOR)]
            T.buffer_store(self.packed, tirx.Shuffle(fours, lanes), [vector(to + first * GROUP, VECTOR)])

    def _single(self, start: Any, to: Any, first: int, count: int, columns: int) -> None:
        """Byte by byte, with zeros for what is not there."""
        b = self.kernel.b
        with T.serial(index(count)) as group, T.serial(index(PANEL)) as column, T.serial(index(GROUP)) as byte:
            k = (group + first) * GROUP + byte
            inside = tirx.And(k < self.kernel.depth, column < columns)
            value = T.if_then_else(inside, self.b[start + k * b.row + column * b.column], tirx.const(0, "int8"))
            T.buffer_store(self.packed, value, [to + (group + first) * BLOCK + column * GROUP + byte])

    def _begin_sums(self, start: Any, panel: Any, groups: int) -> None:
        """K z_a z_b − z_a Σ_k b for each column, and ROUNDER_BITS."""
        za, zb = self.kernel.zero_points
        fixed = self.kernel.depth * za * zb + (ROUNDER_BITS if self.kernel.lifted else 0)
        vectors = PANEL // LANES
        sums = _registers("column", PANEL)
        if za:
            for j in range(vectors):
                T.buffer_store(sums, splat(tirx.const(0, "int32"), LANES), [vector(j * LANES, LANES)])
            with T.serial(index(groups)) as group:
                for j in range(vectors):
                    at = vector(j * LANES, LANES)
                    four = self.packed[vector(start + group * BLOCK + j * VECTOR, VECTOR)]
                    T.buffer_store(sums, _add_bytes(sums[at], four, self.instructions), [at])
        for j in range(vectors):
            begun = splat(tirx.const(fixed, "int32"), LANES)
            if za:
                begun = begun - sums[vector(j * LANES, LANES)] * splat(tirx.const(za, "int32"), LANES)
            T.buffer_store(self.bias, begun, [vector(panel * PANEL + j * LANES, LANES)])


def _add_bytes(sums: Any, sixteen: Any, instructions: Instructions) -> Any:
    """Sums, int32x4, with four neighbouring int8 of 16 added to each."""
    if instructions.has_sdot:
        ones = splat(tirx.const(1, "int8"), VECTOR)
        return T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.sdot.v4i32.v16i8", sums, sixteen, ones)
    if instructions is Instructions.NEON:
        pairs = T.call_llvm_pure_intrin("int16x8", "llvm.aarch64.neon.saddlp.v8i16.v16i8", sixteen)
        return sums + T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.saddlp.v4i32.v8i16", pairs)
    lanes = T.Bind(tirx.reinterpret("int32x4", sixteen))
    last = splat(tirx.const(24, "int32"), LANES)
    for byte in range(GROUP):
        sums = sums + ((lanes << splat(tirx.const(24 - 8 * byte, "int32"), LANES)) >> last)
    return sums


def _scratch(name: str, size: int, dtype: str) -> Any:
    return IRBuilder.name(name, T.sblock_alloc_buffer((size,), dtype, layout=None))


def _registers(name: str, size: int) -> Any:
    return IRBuilder.name(name, T.alloc_buffer((size,), "int32", scope="local", layout=None))
