"""Dense and grouped convolutions in floating point, NCHW, without im2col: any constant kernel, strides 1 to 4.

The image is copied once, with the padding around it, and with its columns parted by their remainders for a stride of 2
or more; without padding and stride it is read where it lies. A tile of sums in registers, up to 8 channels of the
result by 3 vectors along a row, then reads for each tap the vectors of its pixels, side by side, and the weights of its
channels:

    y[o, i, j] = Σ w[o, c, u, v] · part(v·d mod s)[c, i·t + u·e, j + v·d div s]      s, t: strides; d, e: dilations

The weights are packed in the order in which the tile reads them: [group, panel of o, c, u, v, o in the panel].
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax, te, tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.base import TargetDescription
from graphopt.targets.tvm.kernels.epilogue import PARALLEL_MACS, Epilogue, index, take_epilogue
from graphopt.targets.tvm.kernels.matmul import FUSABLE, even_panel
from graphopt.targets.tvm.kernels.nchw import Conv2d, read_buffers, read_conv2d
from graphopt.targets.tvm.kernels.rows import Row, clear, copy_row, dtype_of, for_each, lanes_for, local_buffer, vector
from graphopt.targets.tvm.kernels.summation import sum_in_blocks

GEOMETRY = "graphopt.direct_convolution"  # mark on the block: strides, pads before, kernel, dilations, groups
PANEL = 8  # channels of the result in a tile
MOST_STRIDE = 4  # along a row
MOST_VECTORS = 3  # of a row in a tile: with 8 channels 24 sums, and registers are left for pixels and weights


@dataclass(frozen=True)
class Convolution(Conv2d):
    """What the kernel makes of a convolution."""

    @property
    def depth(self) -> int:
        """Channels that are summed over."""
        return self.channels // self.groups

    @property
    def width(self) -> int:
        """Channels of the result in a group."""
        return self.filters // self.groups

    @property
    def panel(self) -> int:
        return even_panel(self.width, PANEL, 1)

    @property
    def panels(self) -> int:
        """In a group; the last may have fewer channels."""
        return -(-self.width // self.panel)

    @property
    def reach(self) -> tuple[int, int]:
        """From the first tap of the kernel to the last."""
        rows, columns = ((self.kernel[i] - 1) * self.dilations[i] for i in range(2))
        return rows, columns

    @property
    def in_place(self) -> bool:
        """Whether the image can be read where it lies."""
        rows = (self.result[0] - 1) * self.strides[0] + self.reach[0] < self.image[0]
        columns = self.result[1] >= self.lanes and self.result[1] + self.reach[1] <= self.image[1]
        return self.strides[1] == 1 and self.pads == (0, 0) and rows and columns

    @property
    def parts(self) -> int:
        return self.strides[1]

    @property
    def rows(self) -> int:
        """Rows of the padded image."""
        return (self.result[0] - 1) * self.strides[0] + self.reach[0] + 1

    @property
    def pitch(self) -> int:
        """Columns of a row in each part, with the padding."""
        read = max(self.result[1], self.lanes) + self.reach[1] // self.strides[1]
        return max(read, (self.pads[1] + self.image[1] - 1) // self.strides[1] + 1)

    @property
    def plane(self) -> int:
        """Elements of a padded channel."""
        return self.parts * self.rows * self.pitch

    @property
    def macs(self) -> int:
        return self.batch * self.filters * self.depth * math.prod(self.result) * math.prod(self.kernel)


def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr | None:
    """relax.nn.conv2d as the kernel's block; None where the kernel does not apply."""
    data, weights = call.args
    found = _recognize(call)
    if found is None:
        return None
    packed = relax.const(tvm.runtime.tensor(pack(weights.value.numpy(), found.groups, found.panel)))

    def convolution(image: te.Tensor, packed: te.Tensor) -> te.Tensor:
        extents = (found.depth, *found.kernel)
        c, u, v = (te.reduce_axis((0, extent), name=name) for extent, name in zip(extents, "cuv", strict=True))

        def element(b: Any, o: Any, i: Any, j: Any) -> Any:
            y, x = (
                position * found.strides[axis] + tap * found.dilations[axis] - found.pads[axis]
                for axis, (position, tap) in enumerate([(i, u), (j, v)])
            )
            group, within = o // found.width, o % found.width
            inside = tirx.all(y >= 0, y < found.image[0], x >= 0, x < found.image[1])
            pixel = tirx.if_then_else(inside, image[b, group * found.depth + c, y, x], tirx.const(0.0, found.dtype))
            return te.sum(pixel * packed[group, within // found.panel, c, u, v, within % found.panel], axis=[c, u, v])

        marks = {GEOMETRY: [*found.strides, *found.pads, *found.kernel, *found.dilations, found.groups]}
        return te.compute((found.batch, found.filters, *found.result), element, name="convolution", attrs=marks)

    attributes = {"op_pattern": FUSABLE}
    return builder.call_te(convolution, data, packed, primfunc_name_hint="convolution", primfunc_attrs=attributes)


def pack(weights: np.ndarray, groups: int, panel: int) -> np.ndarray:
    """[o, c, u, v] as [group, panel of o, c, u, v, o in the panel]; panels are padded to whole vectors."""
    filters, depth, height, width = weights.shape
    grouped = weights.reshape(groups, filters // groups, depth, height, width)
    padded = np.pad(grouped, ((0, 0), (0, -(filters // groups) % panel), (0, 0), (0, 0), (0, 0)))
    panels = padded.reshape(groups, -1, panel, depth, height, width).transpose(0, 1, 3, 4, 5, 2)
    return np.ascontiguousarray(np.pad(panels, ((0, 0),) * 5 + ((0, -panel % lanes_for(str(weights.dtype))),)))


def _recognize(call: relax.Call) -> Convolution | None:
    read = read_conv2d(call)
    if read is None or read.strides[1] > MOST_STRIDE:
        return None
    product = read.kernel == (1, 1) and read.groups == 1 and not any(call.attrs.padding)  # taken by the matrix product
    return None if product else Convolution(**asdict(read))


def schedule(function: tirx.PrimFunc, _target: TargetDescription) -> tirx.PrimFunc | None:
    """`function` with the kernel's loops; None if it is no such convolution, or reduces one further."""
    taken = take_epilogue(function, GEOMETRY)
    if taken is None:
        return None
    block, epilogue = taken
    buffers = read_buffers(block)
    if buffers is None:
        return None
    image, weights = buffers
    down, along, top, left, height, width, dilation, across, groups = (int(x) for x in block.annotations[GEOMETRY])
    (batch, channels, *size), (_, filters, *result) = (
        [int(e) for e in buffer.ty.shape] for buffer in (image, epilogue.product)
    )
    found = Convolution(
        batch,
        channels,
        filters,
        groups,
        (size[0], size[1]),
        (result[0], result[1]),
        (height, width),
        (down, along),
        (dilation, across),
        (top, left),
        dtype_of(image),
    )
    return epilogue.rewrite(lambda: _Loops(found, image, weights, epilogue).write())


def copy_padded(of: Convolution, image: Any, padded: Any, plane: Any, outside: float = 0.0) -> None:
    """Copy channel `plane` of all images to `padded`, its columns parted, with `outside` around it."""
    start = plane * of.plane
    clear(padded, start, of.plane, outside)
    with T.serial(index(max(0, min(of.image[0], of.rows - of.pads[0])))) as y:
        row = Row(image, (plane // of.channels, plane % of.channels, y), of.image[1], of.pads[1])

        def place(part: int, column: Any) -> Any:
            return start + (part * of.rows + y + of.pads[0]) * of.pitch + column

        copy_row(row, padded, of.strides[1], of.parts, place)


@dataclass(frozen=True)
class _Loops:
    """Emits the loops of one convolution."""

    of: Convolution
    image: Any
    weights: Any
    epilogue: Epilogue

    def write(self) -> None:
        of = self.of
        padded = None
        if not of.in_place:
            padded = local_buffer("padded", of.batch * of.channels * of.plane, of.dtype)
            copying = T.parallel if of.batch * of.channels * of.plane >= PARALLEL_MACS else T.serial
            with copying(index(of.batch * of.channels)) as plane:
                copy_padded(of, self.image, padded, plane)
        loop = T.parallel if of.macs >= PARALLEL_MACS else T.serial
        with loop(index(of.batch * of.groups * of.panels * of.result[0])) as task:
            y, panel = task % of.result[0], task // of.result[0] % of.panels
            group, batch = (
                task // (of.result[0] * of.panels) % of.groups,
                task // (of.result[0] * of.panels * of.groups),
            )
            whole, rest = divmod(of.width, of.panel)
            if not rest:
                self.row(padded, (batch, group, panel, y), of.panel)
                return
            with T.If(panel < whole):
                with T.Then():
                    self.row(padded, (batch, group, panel, y), of.panel)
                with T.Else():
                    self.row(padded, (batch, group, index(whole), y), rest)

    def pixel(self, padded: Any, batch: Any, channel: Any, row: Any, part: int, column: Any) -> Any:
        of = self.of
        if padded is None:
            return self.image[batch, channel, row, column]
        return padded[(batch * of.channels + channel) * of.plane + (part * of.rows + row) * of.pitch + column]

    def row(self, padded: Any, at: tuple[Any, ...], filters: int) -> None:
        """One row of a panel's channels."""
        columns, lanes = self.of.result[1], self.of.lanes
        if columns < lanes:
            self.tile(padded, at, index(0), filters, [0], columns)
            return
        count = -(-columns // lanes)
        vectors = next((v for v in (MOST_VECTORS, 2) if count % v == 0), MOST_VECTORS)
        whole, rest = divmod(columns, vectors * lanes)
        if whole:
            offsets = [v * lanes for v in range(vectors)]
            for_each(whole, lambda i: self.tile(padded, at, i * vectors * lanes, filters, offsets, lanes))
        if rest:
            size = max(rest, lanes)  # one vector at least, overlapping with the tile before
            offsets = [min(first, size - lanes) for first in range(0, size, lanes)]
            self.tile(padded, at, index(columns - size), filters, offsets, lanes)

    def tile(self, padded: Any, at: tuple[Any, ...], x: Any, filters: int, offsets: list[int], stored: int) -> None:
        """The vectors at `offsets` from x, for some channels of a panel; of a vector only `stored` elements."""
        vectors = range(len(offsets))
        of, lanes = self.of, self.of.lanes
        read = lanes_for(of.dtype)  # weights
        batch, group, panel, y = at
        down, along = of.strides
        sums = local_buffer("sums", filters * len(offsets) * lanes, of.dtype)
        weights = local_buffer("taps", -(-filters // read) * read, of.dtype)
        first = group * of.width + panel * of.panel

        def position(o: int, v: int) -> int:
            return (o * len(offsets) + v) * lanes

        for o in range(filters):
            for v in vectors:

                def start(lane: Any, o: int = o, v: int = v) -> None:
                    column = x + offsets[v] + (lane if stored == lanes else T.min(lane, index(stored - 1)))
                    initial = self.epilogue.start([batch, first + o, y, column])
                    T.buffer_store(sums, initial, [position(o, v) + lane])

                vector(lanes, start)

        def add_channel(c: Any) -> None:
            with T.serial(index(of.kernel[0])) as u:
                add_taps(c, u)

        def add_taps(c: Any, u: Any) -> None:
            row = y * down + u * of.dilations[0]
            for tap in range(of.kernel[1]):
                for i in range(0, filters, read):

                    def load(lane: Any, i: int = i, tap: int = tap) -> None:
                        T.buffer_store(weights, self.weights[group, panel, c, u, tap, i + lane], [i + lane])

                    vector(read, load)
                part, shift = tap * of.dilations[1] % along, tap * of.dilations[1] // along
                for v in vectors:

                    def accumulate(lane: Any, v: int = v, part: int = part, shift: int = shift) -> None:
                        column = x + offsets[v] + shift + lane
                        pixel = T.Bind(self.pixel(padded, batch, group * of.depth + c, row, part, column))
                        for o in range(filters):
                            k = position(o, v) + lane
                            T.buffer_store(sums, sums[k] + pixel * weights[o], [k])

                    vector(lanes, accumulate)

        places = [(position(o, v), lanes) for o in range(filters) for v in vectors]
        sum_in_blocks(sums, of.dtype, of.depth, math.prod(of.kernel), places, add_channel)
        for o in range(filters):
            for v in vectors:

                def finish(lane: Any, o: int = o, v: int = v) -> None:
                    self.epilogue.finish([batch, first + o, y, x + offsets[v] + lane], sums[position(o, v) + lane])

                if stored == lanes:
                    vector(lanes, finish)
                else:
                    for lane in range(stored):
                        finish(lane)
