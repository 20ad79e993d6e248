"""Depthwise convolutions in float32 and float16, NCHW: any kernel of constant weights, any padding, strides 1 and 2.

A channel is convolved in bands of rows. A band of its input is copied, with the padding around it, into a buffer that
stays in the L1 cache; with a stride of 2 along the rows the even and the odd columns are parted on the way. So every
tap of a vector of neighbouring outputs is a vector that lies side by side, at the edges as in the middle:

    y[i, j] = Σ w[u, v] · part(v mod s)[i·t + u, j + v div s]        s, t: strides along the row and down

The loops hold the sums of several rows of one vector in registers, and each input vector, once loaded, goes to all of
them; the weights are multiplied by lane. The last vector of a row overlaps with the one before where the row is no
whole number of vectors: some outputs are computed twice, and no loop of single columns is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax, te, tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.base import TargetDescription
from graphopt.targets.tvm.kernels.epilogue import PARALLEL_MACS, Epilogue, index, take_epilogue
from graphopt.targets.tvm.kernels.matmul import FUSABLE
from graphopt.targets.tvm.kernels.nchw import read_buffers, read_conv2d
from graphopt.targets.tvm.kernels.rows import (
    Row,
    clear,
    copy_row,
    dtype_of,
    for_each,
    for_tiles,
    for_vectors,
    lanes_for,
    local_buffer,
    vector,
)

GEOMETRY = "graphopt.depthwise"  # mark on the block: strides, pads before, kernel, channels made of one
BAND_BYTES = 14336  # on the stack of each thread, and half of a small L1 cache
UNROLLED = 112  # multiply-adds of a vector that are written out for one tile
MOST_ROWS = 8  # sums in registers: two pipes with a latency of 4 cycles are kept busy
_MANY, _FEW_TAPS = 8, 9  # results of one channel, and taps, with more of which another kernel takes fewer cycles
LEAST_TASKS = 16  # channels are shared among threads in at least that many parts, if there are as many


@dataclass(frozen=True)
class Depthwise:
    """The extents of a depthwise convolution; rows are the first of a pair, columns the second."""

    batch: int
    channels: int
    multiplier: int  # outputs of one channel
    image: tuple[int, int]
    result: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int]  # before the first row and column
    dtype: str = "float32"  # or float16

    @property
    def lanes(self) -> int:
        """Elements of a vector: of 128 bits, or of 64 where a row of float16 has no more."""
        return lanes_for(self.dtype, self.result[1])

    @property
    def bytes(self) -> int:
        return 2 if self.dtype == "float16" else 4

    @property
    def vector_columns(self) -> int:
        """Columns of a result's row that are computed: at least a vector."""
        return max(self.result[1], self.lanes)

    @property
    def parts(self) -> int:
        """Interleaved columns that are parted: as many as the stride, if there are taps for each."""
        return min(self.strides[1], self.kernel[1])

    @property
    def pitch(self) -> int:
        """Columns of a row in each part, with the padding."""
        read = self.vector_columns + (self.kernel[1] - 1) // self.strides[1]
        return max(read, (self.pads[1] + self.image[1] - 1) // self.strides[1] + 1)

    @property
    def macs(self) -> int:
        return self.batch * self.channels * self.multiplier * int(np.prod(self.result)) * int(np.prod(self.kernel))

    def rows_read(self, rows: int) -> int:
        """Input rows that `rows` of the result are computed from."""
        return (rows - 1) * self.strides[0] + self.kernel[0]

    def tile_rows(self, rows: int) -> int:
        """Rows of a tile for a band: those that leave no rest or the largest, and then the most."""
        most = max(1, min(MOST_ROWS, rows, UNROLLED // (self.kernel[0] * self.kernel[1])))
        return max(range(max(1, most // 2), most + 1), key=lambda tile: (-(-rows % tile), tile))

    def band(self) -> int:
        """Rows of the result in a band; 0 if not even one fits."""
        fitting = [
            r
            for r in range(1, self.result[0] + 1)
            if self.rows_read(r) * self.parts * self.pitch * self.bytes <= BAND_BYTES
        ]
        if not fitting:
            return 0
        if fitting[-1] == self.result[0]:
            return self.result[0]
        even = [r for r in fitting if 2 * r > fitting[-1]]
        return max(even, key=lambda r: (self.result[0] % r == 0, self.result[0] % self.tile_rows(r) == 0, r))


def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr | None:
    """relax.nn.conv2d as the kernel's block; None where the kernel does not apply."""
    data, weights = call.args
    found = _recognize(call)
    if found is None or found.band() == 0:
        return None
    taps = found.kernel[0] * found.kernel[1]
    flat = weights.value.numpy().reshape(-1, taps)
    packed = relax.const(tvm.runtime.tensor(np.pad(flat, ((0, 0), (0, -taps % lanes_for(found.dtype))))))
    (height, width), (down, along), (top, left) = found.image, found.strides, found.pads

    def depthwise(image: te.Tensor, packed: te.Tensor) -> te.Tensor:
        u, v = (te.reduce_axis((0, extent), name=name) for extent, name in zip(found.kernel, "uv", strict=True))

        def element(b: Any, c: Any, i: Any, j: Any) -> Any:
            y, x = i * down + u - top, j * along + v - left
            inside = tirx.all(y >= 0, y < height, x >= 0, x < width)
            pixel = tirx.if_then_else(inside, image[b, c // found.multiplier, y, x], tirx.const(0.0, found.dtype))
            return te.sum(pixel * packed[c, u * found.kernel[1] + v], axis=[u, v])

        shape = (found.batch, found.channels * found.multiplier, *found.result)
        marks = {GEOMETRY: [*found.strides, *found.pads, *found.kernel, found.multiplier]}
        return te.compute(shape, element, name="depthwise", attrs=marks)

    attributes = {"op_pattern": FUSABLE}
    return builder.call_te(depthwise, data, packed, primfunc_name_hint="depthwise", primfunc_attrs=attributes)


def _recognize(call: relax.Call) -> Depthwise | None:
    read = read_conv2d(call)
    if read is None or read.groups != read.channels or int(call.args[1].ty.shape[1]) != 1:
        return None
    if read.kernel == (1, 1) or read.dilations != (1, 1) or read.strides[1] > 2:
        return None
    multiplier = read.filters // read.channels
    if multiplier >= _MANY and math.prod(read.kernel) > _FEW_TAPS:
        return None  # `direct_convolution` reads a pixel once for eight results
    return Depthwise(
        read.batch, read.channels, multiplier, read.image, read.result, read.kernel, read.strides, read.pads, read.dtype
    )


def schedule(function: tirx.PrimFunc, _target: TargetDescription) -> tirx.PrimFunc | None:
    """`function` with the kernel's loops; None if it is no depthwise convolution, or reduces one further."""
    taken = take_epilogue(function, GEOMETRY)
    if taken is None:
        return None
    block, epilogue = taken
    buffers = read_buffers(block)
    if buffers is None:
        return None
    image, weights = buffers
    down, along, top, left, height, width, multiplier = (int(x) for x in block.annotations[GEOMETRY])
    (batch, channels, *size), (*_, rows, columns) = (
        [int(e) for e in buffer.ty.shape] for buffer in (image, epilogue.product)
    )
    found = Depthwise(
        batch,
        channels,
        multiplier,
        (size[0], size[1]),
        (rows, columns),
        (height, width),
        (down, along),
        (top, left),
        dtype_of(image),
    )
    return epilogue.rewrite(lambda: _Loops(found, image, weights, epilogue).write())


@dataclass(frozen=True)
class _Loops:
    """Emits the loops of one convolution."""

    of: Depthwise
    image: Any
    weights: Any
    epilogue: Epilogue

    def write(self) -> None:
        of = self.of
        chunks = (d for d in range(1, of.channels + 1) if of.channels % d == 0 and of.channels // d >= LEAST_TASKS)
        chunk = max(chunks, default=1)
        loop = T.parallel if of.macs >= PARALLEL_MACS else T.serial
        parts = of.channels // chunk
        with loop(index(of.batch * parts)) as task:
            lanes = lanes_for(of.dtype)
            padded = local_buffer(
                "padded", -(-of.parts * of.rows_read(of.band()) * of.pitch // lanes) * lanes, of.dtype
            )
            clear(padded, index(0), int(padded.ty.shape[0]))
            with T.serial(index(chunk)) as i:
                self.channel(padded, task // parts, task % parts * chunk + i)

    def channel(self, padded: Any, batch: Any, channel: Any) -> None:
        """All bands of one input channel."""
        rows, band = self.of.result[0], self.of.band()

        def one(first: Any, size: int) -> None:
            self.copy(padded, batch, channel, first, size)
            for_each(
                self.of.multiplier,
                lambda k: self.convolve(padded, batch, channel * self.of.multiplier + k, first, size),
            )

        for_tiles(rows, band, one)

    def copy(self, padded: Any, batch: Any, channel: Any, first: Any, rows: int) -> None:
        """Copy the input of the result's rows from `first` on; the padding around it is zero already."""
        of = self.of
        height, top = of.image[0], of.pads[0]
        read = of.rows_read(rows)

        def copy(y: Any, to: Any) -> None:
            row = Row(self.image, (batch, channel, y), of.image[1], of.pads[1])
            copy_row(row, padded, of.strides[1], of.parts, lambda part, column: self.at(part, to, column))

        if rows == of.result[0]:
            with T.serial(index(max(0, min(height, read - top)))) as y:
                copy(y, y + top)
            return
        with T.serial(index(read)) as i:
            y = T.Bind(first * of.strides[0] + i - top)
            with T.If(tirx.all(y >= 0, y < height)):
                with T.Then():
                    copy(y, i)
                with T.Else():
                    for part in range(of.parts):
                        clear(padded, self.at(part, i, 0), of.pitch)

    def at(self, part: int, row: Any, column: Any) -> Any:
        """Where an element lies in the padded buffer."""
        return (row + part * self.of.rows_read(self.of.band())) * self.of.pitch + column

    def convolve(self, padded: Any, batch: Any, channel: Any, first: Any, rows: int) -> None:
        """Rows of the result from `first` on, from a padded band."""
        taps = int(self.weights.ty.shape[1])
        read = lanes_for(self.of.dtype)
        weights = local_buffer("taps", taps, self.of.dtype)
        for i in range(0, taps, read):

            def load(lane: Any, i: int = i) -> None:
                T.buffer_store(weights, self.weights[channel, i + lane], [i + lane])

            vector(read, load)

        def row_tile(row: Any, size: int) -> None:
            def column_tile(column: Any, stored: int) -> None:
                self.tile(padded, weights, (batch, channel, first + row, column), row, size, stored)

            for_vectors(self.of.result[1], column_tile, whole=True, lanes=self.of.lanes)

        for_tiles(rows, self.of.tile_rows(rows), row_tile)

    def tile(self, padded: Any, weights: Any, corner: tuple[Any, ...], row: Any, rows: int, stored: int) -> None:
        """A vector of each of some rows of the result."""
        batch, channel, y, x = corner
        lanes = self.of.lanes
        down, along = self.of.strides
        height, width = self.of.kernel
        sums = local_buffer("sums", rows * lanes, self.of.dtype)
        for k in range(rows):

            def start(lane: Any, k: int = k) -> None:
                column = x + (lane if stored == lanes else T.min(lane, index(stored - 1)))  # none beyond the row
                T.buffer_store(sums, self.epilogue.start([batch, channel, y + k, column]), [k * lanes + lane])

            vector(lanes, start)
        for i in range(self.of.rows_read(rows)):
            uses = [(k, i - k * down) for k in range(rows) if 0 <= i - k * down < height]
            for v in range(width if uses else 0):

                def accumulate(lane: Any, i: int = i, v: int = v, uses: list[tuple[int, int]] = uses) -> None:
                    pixel = T.Bind(padded[self.at(v % along, row * down + i, x + v // along + lane)])
                    for k, u in uses:
                        at = k * lanes + lane
                        T.buffer_store(sums, sums[at] + pixel * weights[u * width + v], [at])

                vector(lanes, accumulate)
        for k in range(rows):

            def finish(lane: Any, k: int = k) -> None:
                self.epilogue.finish([batch, channel, y + k, x + lane], sums[k * lanes + lane])

            if stored == lanes:
                vector(lanes, finish)
            else:
                for lane in range(stored):
                    finish(lane)
