"""3×3 convolutions of stride 1 in float32 by Winograd's F(4×4, 3×3): 36 products for 16 outputs instead of 144.

A tile of 4×4 outputs is Aᵀ[(G w Gᵀ) ⊙ (Bᵀ x B)]A of its 6×6 inputs (A. Lavin, S. Gray: Fast Algorithms for
Convolutional Neural Networks, 2015; the matrices are those for the points 0, ±1, ±2, ∞). Summed over the channels, each
of the 36 elements is a matrix product, [filters, channels] × [channels, tiles]. G w Gᵀ is made at compile time, and
packed as [element, panel of filters, channel, filter in the panel]; it is four times as large as w.

The loops are those of four steps: a copy with padding whose columns are parted by four, so that four neighbouring tiles
are read as vectors; Bᵀ x B; the products, in tiles of sums in registers; Aᵀ m A and what is fused behind it.

Rounding is larger than that of a direct sum, since the transforms subtract numbers of up to 100 times the result. On
uniformly random weights and inputs the largest error is 2⁻¹⁹ of Σ|w|·|x|, the mean 2⁻²⁴; tests hold it below 2⁻¹⁸.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax, te, tirx
from tvm.ir import GenericConst
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.base import TargetDescription
from graphopt.targets.tvm.kernels.epilogue import PARALLEL_MACS, Epilogue, index, take_epilogue
from graphopt.targets.tvm.kernels.matmul import FUSABLE, is_static_float32
from graphopt.targets.tvm.kernels.rows import LANES, Row, clear, copy_row, for_each, for_vectors, local_buffer, vector

GEOMETRY = "graphopt.winograd"  # mark on the block: pads before
OUT, IN = 4, 6  # rows and columns of a tile of outputs, and of its inputs
PANEL = 8  # filters in a tile of sums
MOST_VECTORS = 3
TRANSFORM = 140  # cycles of one transform of four tiles, in or out: about 330 instructions
GAIN = 1.1  # how much better than a direct sum the estimate has to be

G = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)
A_T = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])
B_T = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)


@dataclass(frozen=True)
class Winograd:
    """The extents of a convolution; rows are the first of a pair, columns the second."""

    batch: int
    channels: int
    filters: int
    image: tuple[int, int]
    result: tuple[int, int]
    pads: tuple[int, int]  # before the first row and column

    @property
    def tiles(self) -> tuple[int, int]:
        rows, columns = (-(-extent // OUT) for extent in self.result)
        return rows, columns

    @property
    def vectors(self) -> int:
        """Vectors of all tiles of the batch."""
        return -(-self.batch * self.tiles[0] * self.tiles[1] // LANES)

    @property
    def tile_pitch(self) -> int:
        """Elements from one channel's tiles to the next's: a row of tiles may end in the middle of a vector."""
        return (self.vectors + 1) * LANES

    @property
    def panel(self) -> int:
        return PANEL if self.vectors > 1 else 2 * PANEL

    @property
    def panels(self) -> int:
        return -(-self.filters // self.panel)

    @property
    def rows(self) -> int:
        return self.tiles[0] * OUT + IN - OUT

    @property
    def pitch(self) -> int:
        """Columns of a row in each part of the padded image."""
        return max(max(self.tiles[1], LANES) + 1, (self.pads[1] + self.image[1] - 1) // OUT + 1)

    @property
    def plane(self) -> int:
        return OUT * self.rows * self.pitch

    def wins(self) -> bool:
        """Whether fewer cycles are estimated than for a direct sum."""
        products = IN * IN * self.channels * self.panels * self.panel * self.vectors / 2
        groups = self.batch * self.tiles[0] * -(-self.tiles[1] // LANES)
        transforms = TRANSFORM * groups * (self.channels + self.filters)
        direct = 9 * self.batch * self.channels * self.filters * self.result[0] * -(-self.result[1] // LANES) / 2
        return (products + transforms) * GAIN < direct


def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr | None:
    """relax.nn.conv2d as the kernel's block; None where the kernel does not apply."""
    data, weights = call.args
    found = _recognize(call)
    if found is None or not found.wins():
        return None
    packed = relax.const(tvm.runtime.tensor(pack(weights.value.numpy(), found.panel)))

    def convolution(image: te.Tensor, packed: te.Tensor) -> te.Tensor:
        extents = {"c": found.channels, "i": IN, "j": IN, "u": IN, "v": IN}
        c, i, j, u, v = (te.reduce_axis((0, extent), name=name) for name, extent in extents.items())

        def element(b: Any, o: Any, y: Any, x: Any) -> Any:
            row, column = y // OUT * OUT + u - found.pads[0], x // OUT * OUT + v - found.pads[1]
            inside = tirx.all(row >= 0, row < found.image[0], column >= 0, column < found.image[1])
            pixel = tirx.if_then_else(inside, image[b, c, row, column], tirx.const(0.0, "float32"))
            down = _entry(A_T, y % OUT, i) * _entry(B_T, i, u)
            across = _entry(A_T, x % OUT, j) * _entry(B_T, j, v)
            weight = packed[i * IN + j, o // found.panel, c, o % found.panel]
            return te.sum(pixel * (down * across * weight), axis=[c, i, j, u, v])

        shape = (found.batch, found.filters, *found.result)
        return te.compute(shape, element, name="winograd", attrs={GEOMETRY: list(found.pads)})

    attributes = {"op_pattern": FUSABLE}
    return builder.call_te(convolution, data, packed, primfunc_name_hint="winograd", primfunc_attrs=attributes)


def _entry(matrix: np.ndarray, row: Any, column: Any) -> Any:
    """An entry of a constant matrix, as an expression."""
    found = tirx.const(0.0, "float32")
    for (i, j), value in np.ndenumerate(matrix):
        if value:
            found = tirx.Select(tirx.all(row == i, column == j), tirx.const(float(value), "float32"), found)
    return found


def pack(weights: np.ndarray, panel: int) -> np.ndarray:
    """[o, c, 3, 3] as [element of the transform, panel of o, c, o in the panel], padded with zeros."""
    filters, channels = weights.shape[:2]
    transformed = np.einsum("iu,ocuv,jv->ijoc", G, weights.astype(np.float64), G).astype(np.float32)
    padded = np.pad(transformed.reshape(IN * IN, filters, channels), ((0, 0), (0, -filters % panel), (0, 0)))
    return np.ascontiguousarray(padded.reshape(IN * IN, -1, panel, channels).transpose(0, 1, 3, 2))


def _recognize(call: relax.Call) -> Winograd | None:
    data, weights = call.args
    attributes = call.attrs
    layouts = (attributes.data_layout, attributes.kernel_layout, attributes.out_layout)
    if layouts != ("NCHW", "OIHW", "NCHW") or not is_static_float32(call) or not isinstance(weights, GenericConst):
        return None
    (batch, channels, *image), (filters, _, *kernel), (_, _, *result) = (
        [int(extent) for extent in ty.shape] for ty in (data.ty, weights.ty, call.ty)
    )
    steps = [int(item) for item in (*attributes.strides, *attributes.dilation, attributes.groups)]
    pads = [int(item) for item in attributes.padding]
    if kernel != [3, 3] or steps != [1] * 5 or min(pads) < 0:
        return None
    return Winograd(batch, channels, filters, (image[0], image[1]), (result[0], result[1]), (pads[0], pads[1]))


def schedule(function: tirx.PrimFunc, _target: TargetDescription) -> tirx.PrimFunc | None:
    """`function` with the kernel's loops; None if it is no such convolution, or reduces one further."""
    taken = take_epilogue(function, GEOMETRY)
    if taken is None:
        return None
    block, epilogue = taken
    image, weights = block.body.value.b.a.args[1].source, block.body.value.b.b.b.source
    (batch, channels, *size), (_, filters, *result) = (
        [int(e) for e in buffer.ty.shape] for buffer in (image, epilogue.product)
    )
    top, left = (int(pad) for pad in block.annotations[GEOMETRY])
    found = Winograd(batch, channels, filters, (size[0], size[1]), (result[0], result[1]), (top, left))
    return epilogue.rewrite(lambda: _Loops(found, image, weights, epilogue).write())


@dataclass(frozen=True)
class _Loops:
    """Emits the loops of one convolution."""

    of: Winograd
    image: Any
    weights: Any
    epilogue: Epilogue

    def write(self) -> None:
        of = self.of
        padded = local_buffer("padded", of.batch * of.channels * of.plane)
        inputs = local_buffer("inputs", IN * IN * of.channels * of.tile_pitch)
        outputs = local_buffer("outputs", IN * IN * of.panels * of.panel * of.tile_pitch)
        macs = IN * IN * of.channels * of.panels * of.panel * of.vectors * LANES
        loop = T.parallel if macs >= PARALLEL_MACS else T.serial
        with loop(index(of.channels)) as c, T.serial(index(of.batch)) as b:
            self.copy(padded, b, c)
            self.transform_inputs(padded, inputs, b, c)
        with loop(index(IN * IN * of.panels)) as task:
            self.multiply(inputs, outputs, task // of.panels, task % of.panels)
        with loop(index(of.batch * of.filters)) as task:
            self.transform_outputs(outputs, task // of.filters, task % of.filters)

    def copy(self, padded: Any, batch: Any, channel: Any) -> None:
        of = self.of
        start = (batch * of.channels + channel) * of.plane
        clear(padded, start, of.plane)
        with T.serial(index(min(of.image[0], of.rows - of.pads[0]))) as y:
            row = Row(self.image, (batch, channel, y), of.image[1], of.pads[1])

            def place(part: int, column: Any) -> Any:
                return start + (part * of.rows + y + of.pads[0]) * of.pitch + column

            copy_row(row, padded, OUT, OUT, place)

    def tile_index(self, batch: Any, row: Any, column: Any) -> Any:
        return (batch * self.of.tiles[0] + row) * self.of.tiles[1] + column

    def transform_inputs(self, padded: Any, inputs: Any, batch: Any, channel: Any) -> None:
        of = self.of
        plane = (batch * of.channels + channel) * of.plane

        def vector_of_tiles(row: Any, column: Any) -> None:
            def one(lane: Any) -> None:
                def pixel(i: int, j: int) -> Any:
                    at = plane + (j % OUT * of.rows + row * OUT + i) * of.pitch + column + j // OUT + lane
                    return T.Bind(padded[at])

                columns = [_input_transform([pixel(i, j) for i in range(IN)]) for j in range(IN)]
                for i in range(IN):
                    for j, value in enumerate(_input_transform([columns[k][i] for k in range(IN)])):
                        at = ((i * IN + j) * of.channels + channel) * of.tile_pitch
                        T.buffer_store(inputs, value, [at + self.tile_index(batch, row, column) + lane])

            vector(LANES, one)

        with T.serial(index(of.tiles[0])) as row:
            for_vectors(of.tiles[1], lambda column, _: vector_of_tiles(row, column), whole=True)

    def multiply(self, inputs: Any, outputs: Any, element: Any, panel: Any) -> None:
        """One element of all tiles, for a panel of filters."""
        count = self.of.vectors
        parts = -(-count // MOST_VECTORS)
        larger = count - count // parts * parts  # tiles with a vector more than the others
        size = count // parts
        for first, tiles, vectors in ((0, larger, size + 1), (larger * (size + 1), parts - larger, size)):
            if tiles:
                with T.serial(index(tiles)) as i:
                    self.product(inputs, outputs, element, panel, (first + i * vectors) * LANES, vectors)

    def product(self, inputs: Any, outputs: Any, element: Any, panel: Any, tile: Any, vectors: int) -> None:
        of = self.of
        sums = local_buffer("sums", of.panel * vectors * LANES)
        weights = local_buffer("weights", of.panel)
        places = [(o, v, (o * vectors + v) * LANES) for v in range(vectors) for o in range(of.panel)]
        for _, _, at in places:
            vector(LANES, lambda lane, at=at: T.buffer_store(sums, T.float32(0), [at + lane]))  # type: ignore[misc]
        with T.serial(index(of.channels)) as c:
            for i in range(0, of.panel, LANES):

                def load(lane: Any, i: int = i) -> None:
                    T.buffer_store(weights, self.weights[element, panel, c, i + lane], [i + lane])

                vector(LANES, load)
            for v in range(vectors):

                def accumulate(lane: Any, v: int = v) -> None:
                    value = T.Bind(inputs[(element * of.channels + c) * of.tile_pitch + tile + v * LANES + lane])
                    for o, _, at in places[v * of.panel : (v + 1) * of.panel]:
                        T.buffer_store(sums, sums[at + lane] + value * weights[o], [at + lane])

                vector(LANES, accumulate)
        for o, v, at in places:

            def store(lane: Any, o: int = o, v: int = v, at: int = at) -> None:
                to = (element * of.panels * of.panel + panel * of.panel + o) * of.tile_pitch + tile + v * LANES
                T.buffer_store(outputs, sums[at + lane], [to + lane])

            vector(LANES, store)

    def transform_outputs(self, outputs: Any, batch: Any, channel: Any) -> None:
        of = self.of
        whole, rest = divmod(of.result[0], OUT)

        def row_of_tiles(row: Any, rows: int) -> None:
            last = max(0, of.tiles[1] - LANES)  # its tiles may reach beyond the result

            def one(column: Any, width: int) -> None:
                self.finish(outputs, (batch, channel, row, column), rows, width)

            if last:
                for_each((of.tiles[1] - 1) // LANES, lambda i: one(i * LANES, OUT * LANES))
            one(index(last), of.result[1] - last * OUT)

        if whole:
            with T.serial(index(whole)) as row:
                row_of_tiles(row, OUT)
        if rest:
            row_of_tiles(index(whole), rest)

    def finish(self, outputs: Any, at: tuple[Any, ...], rows: int, width: int) -> None:
        """Four tiles side by side, of which `rows` rows and `width` columns are elements of the result."""
        of = self.of
        batch, channel, row, column = at
        wide = OUT * LANES
        pixels = local_buffer("pixels", rows * wide)
        start = self.tile_index(batch, row, column)

        def element(i: int, j: int) -> Any:
            first = ((i * IN + j) * of.panels * of.panel + channel) * of.tile_pitch + start
            return T.Bind(outputs[tirx.Ramp(first, index(1), LANES)])

        columns = [_output_transform([element(i, j) for i in range(IN)], _splat) for j in range(IN)]
        order = [tirx.const(part * LANES + lane, "int32") for lane in range(LANES) for part in range(OUT)]
        for i in range(rows):
            parts = _output_transform([columns[j][i] for j in range(IN)], _splat)
            T.buffer_store(pixels, tirx.Shuffle(parts, order), [tirx.Ramp(index(i * wide), index(1), wide)])
        starts = sorted({max(0, min(first, width - LANES)) for first in range(0, width, LANES)})
        for i in range(rows):
            for first in starts:

                def one(lane: Any, i: int = i, first: int = first) -> None:
                    place = [batch, channel, row * OUT + i, column * OUT + first + lane]
                    start = self.epilogue.start(place)
                    self.epilogue.finish(place, pixels[i * wide + first + lane] + start)

                if width >= LANES:
                    vector(LANES, one)
                else:
                    for lane in range(width):
                        one(lane)


def _splat(value: float) -> Any:
    return tirx.Broadcast(T.float32(value), LANES)


def _input_transform(d: list[Any]) -> list[Any]:
    """Bᵀ d."""
    four, five, two = (T.float32(x) for x in (4, 5, 2))
    a, b = T.Bind(d[4] - d[2] * four), T.Bind(d[3] - d[1] * four)
    c, e = T.Bind(d[4] - d[2]), T.Bind((d[3] - d[1]) * two)
    outer = [d[0] * four - d[2] * five + d[4], d[1] * four - d[3] * five + d[5]]
    return [T.Bind(x) for x in (outer[0], a + b, a - b, c + e, c - e, outer[1])]


def _output_transform(m: list[Any], constant: Any) -> list[Any]:
    """Aᵀ m."""
    p, q, r, s = (T.Bind(x) for x in (m[1] + m[2], m[1] - m[2], m[3] + m[4], m[3] - m[4]))
    sums = (m[0] + p + r, q + s * constant(2), p + r * constant(4), q + s * constant(8) + m[5])
    return [T.Bind(x) for x in sums]
