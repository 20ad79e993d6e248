"""The loops of a convolution by Winograd's F(4×4, 3×3): the image parted, transformed, multiplied, transformed back.

`winograd` has the algebra. Four tiles that lie side by side are transformed at once, a lane each. So the image is
copied with its columns parted by their remainder mod 4, with the padding around it: then what one place of four
neighbouring tiles reads are four neighbours. A block of rows of tiles passes through all steps while it is in cache:

    V[place, c, tile] = Bᵀ x B        M[place, o, tile] = Σ_c U[place, o, c] · V[place, c, tile]        Y = Aᵀ M A

Behind the last tile of a row a vector writes tiles that are none; the next row's overwrite them, or nothing reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.base import TargetDescription
from graphopt.targets.tvm.kernels.epilogue import PARALLEL_MACS, Epilogue, index, take_epilogue
from graphopt.targets.tvm.kernels.matmul import even_panel
from graphopt.targets.tvm.kernels.nchw import read_buffers
from graphopt.targets.tvm.kernels.rows import Row, clear, copy_row, for_each, for_tiles, local_buffer, vector
from graphopt.targets.tvm.kernels.winograd import GEOMETRY, LANES, PLACES, TILE, WEIGHTS, WINDOW, Winograd

LEAST_CACHE = 1 << 18
LEAST_COLUMNS = 48  # tiles in a block: with fewer, U passes through the cache too often


def schedule(function: tirx.PrimFunc, target: TargetDescription) -> tirx.PrimFunc | None:
    """`function` with the kernel's loops; None if it is no such convolution, or reduces one further."""
    taken = take_epilogue(function, GEOMETRY)
    if taken is None:
        return None
    block, epilogue = taken
    buffers = read_buffers(block)
    if buffers is None:
        return None
    image, weights = buffers
    (batch, channels, *size), (_, filters, *result) = (
        [int(e) for e in buffer.ty.shape] for buffer in (image, epilogue.product)
    )
    top, left, panel, vectors = (int(x) for x in block.annotations[GEOMETRY])
    of = Winograd(
        batch, channels, filters, 1, (size[0], size[1]), (result[0], result[1]), (3, 3), (1, 1), (1, 1), (top, left)
    )
    transformed = tirx.decl_buffer((PLACES * -(-filters // panel) * panel * channels,), "float32", "u", layout=None)
    loops = _Loops(of, image, transformed, epilogue, panel, vectors, max(target.l2_bytes, LEAST_CACHE))
    position = next(i for i, parameter in enumerate(function.params) if parameter.same_as(weights))
    return epilogue.rewrite(loops.write, ((weights, transformed),)).with_attr(
        WEIGHTS, [position, filters, channels, panel]
    )


def rows_in_block(tiles: tuple[int, int], row_bytes: int, cache: int) -> int:
    """Rows of tiles that pass through all steps together: a divisor of all, so that each block is whole.

    The most that the cache holds, but at least LEAST_COLUMNS tiles if there are so many.
    """
    rows, columns = tiles
    enough = [d for d in range(1, rows + 1) if rows % d == 0 and (d * columns >= LEAST_COLUMNS or d == rows)]
    return next((d for d in reversed(enough) if d * row_bytes <= cache), enough[0])


@dataclass(frozen=True)
class _Loops:
    """Emits the loops of one convolution."""

    of: Winograd
    image: Any
    weights: Any  # U, flat
    epilogue: Epilogue
    panel: int
    vectors: int  # of tiles in registers, at most
    cache: int  # bytes that V and the products of a block may take, about

    @property
    def panels(self) -> int:
        return -(-self.of.filters // self.panel)

    @property
    def block(self) -> int:
        """Rows of tiles in a block."""
        row = PLACES * 4 * (self.of.channels + self.panels * self.panel) * self.of.tiles[1]
        return rows_in_block(self.of.tiles, row, self.cache)

    @property
    def columns(self) -> int:
        """Tiles of a block that are multiplied, in whole vectors."""
        return -(-self.block * self.of.tiles[1] // LANES) * LANES

    @property
    def pitch(self) -> int:
        """Tiles of a block in V and M, with those that a vector writes behind the last."""
        return max(self.columns, (self.block - 1) * self.of.tiles[1] + self.of.groups_of_tiles * LANES)

    @property
    def rows(self) -> int:
        """Rows of the padded image."""
        return max(self.of.tiles[0] * TILE + 2, self.of.pads[0] + self.of.image[0])

    @property
    def part(self) -> int:
        """Columns of a row in each of the four parts."""
        read = self.of.groups_of_tiles * LANES + 1
        return max(read, (self.of.pads[1] + self.of.image[1] - 1) // TILE + 1)

    def write(self) -> None:
        of = self.of
        plane = TILE * self.rows * self.part
        parted = local_buffer("parted", of.channels * plane)
        entering = local_buffer("entering", PLACES * of.channels * self.pitch)
        products = local_buffer("products", PLACES * self.panels * self.panel * self.pitch)
        loop = T.parallel if of.macs >= PARALLEL_MACS else T.serial

        def image(b: Any) -> None:
            with loop(index(of.channels)) as c:
                self.copy(parted, (b, c), plane)

            def one_block(number: Any) -> None:
                first = number * self.block
                with loop(index(of.channels)) as c, T.serial(index(self.block)) as row:
                    for_each(of.groups_of_tiles, lambda g: self.enter(parted, entering, c, first, row, g, plane))
                self.multiply(entering, products, loop)
                with loop(index(of.filters)) as o, T.serial(index(self.block)) as row:
                    self.leave_row(products, b, o, first, row)

            for_each(of.tiles[0] // self.block, one_block)

        for_each(of.batch, image)

    def copy(self, parted: Any, at: tuple[Any, Any], plane: int) -> None:
        """Copy a channel, parted, with the padding around it."""
        of = self.of
        start = at[1] * plane
        clear(parted, start, plane)
        with T.serial(index(min(of.image[0], self.rows - of.pads[0]))) as y:

            def place(part: int, column: Any) -> Any:
                return start + (part * self.rows + y + of.pads[0]) * self.part + column

            copy_row(Row(self.image, (*at, y), of.image[1], of.pads[1]), parted, TILE, TILE, place)

    def enter(self, parted: Any, entering: Any, c: Any, first: Any, row: Any, group: Any, plane: int) -> None:
        """V of four tiles: Bᵀ x B."""
        corner = T.Bind(c * plane + (first + row) * (TILE * self.part) + group * LANES)
        half = [[None] * WINDOW for _ in range(WINDOW)]
        for s in range(WINDOW):
            pixels = [
                T.Bind(parted[_vector(corner + ((s % TILE) * self.rows + r) * self.part + s // TILE)])
                for r in range(WINDOW)
            ]
            for p, value in enumerate(_into(pixels)):
                half[p][s] = value
        to = T.Bind(c * self.pitch + row * self.of.tiles[1] + group * LANES)
        for p in range(WINDOW):
            for q, value in enumerate(_into(half[p])):
                T.buffer_store(entering, value, [_vector(to + (p * WINDOW + q) * (self.of.channels * self.pitch))])

    def multiply(self, entering: Any, products: Any, loop: Any) -> None:
        """M: the larger factor of each place is traversed once."""
        width = even_panel(self.columns, self.vectors * LANES, LANES)
        count = -(-self.columns // width)
        if self.panels * self.panel >= self.columns:
            with loop(index(PLACES * self.panels)) as task:
                place, panel = task // self.panels, task % self.panels
                for_tiles(self.columns, width, lambda n, size: self.product(entering, products, place, panel, n, size))
            return
        whole, rest = divmod(self.columns, width)
        with loop(index(PLACES * count)) as task:
            place, number = task // count, task % count

            def all_panels(n: Any, size: int) -> None:
                for_each(self.panels, lambda panel: self.product(entering, products, place, panel, n, size))

            if not rest:
                all_panels(number * width, width)
                return
            with T.If(number < whole):
                with T.Then():
                    all_panels(number * width, width)
                with T.Else():
                    all_panels(index(whole * width), rest)

    def product(self, entering: Any, products: Any, place: Any, panel: Any, n: Any, size: int) -> None:
        """A panel of channels by `size` tiles, in registers."""
        height, vectors, depth = self.panel, size // LANES, self.of.channels
        sums = local_buffer("sums", height * size)
        left = local_buffer("left", -(-height // LANES) * LANES)
        for i in range(height * vectors):
            T.buffer_store(sums, tirx.Broadcast(T.float32(0), LANES), [_vector(index(i * LANES))])
        u = T.Bind((place * self.panels + panel) * (depth * height))
        v = T.Bind(place * (depth * self.pitch) + n)
        with T.serial(index(depth)) as k:
            for i in range(0, height, LANES):

                def load(lane: Any, i: int = i) -> None:
                    T.buffer_store(left, self.weights[u + k * height + i + lane], [i + lane])

                vector(min(LANES, height - i), load)
            for j in range(vectors):

                def accumulate(lane: Any, j: int = j) -> None:
                    right = T.Bind(entering[v + k * self.pitch + j * LANES + lane])
                    for i in range(height):
                        at = (i * vectors + j) * LANES + lane
                        T.buffer_store(sums, sums[at] + left[i] * right, [at])

                vector(LANES, accumulate)
        to = T.Bind((place * (self.panels * height) + panel * height) * self.pitch + n)
        for i in range(height):
            for j in range(vectors):

                def store(lane: Any, i: int = i, j: int = j) -> None:
                    value = sums[(i * vectors + j) * LANES + lane]
                    T.buffer_store(products, value, [to + i * self.pitch + j * LANES + lane])

                vector(LANES, store)

    def leave_row(self, products: Any, b: Any, o: Any, first: Any, row: Any) -> None:
        """The results of a row of tiles."""
        whole, rest = divmod(self.of.result[0], TILE)
        if not rest:
            self.leave_tiles(products, b, o, first, row, TILE)
            return
        if not whole:
            self.leave_tiles(products, b, o, first, row, rest)
            return
        with T.If(first + row < whole):
            with T.Then():
                self.leave_tiles(products, b, o, first, row, TILE)
            with T.Else():
                self.leave_tiles(products, b, o, first, row, rest)

    def leave_tiles(self, products: Any, b: Any, o: Any, first: Any, row: Any, rows: int) -> None:
        whole = self.of.result[1] // (TILE * LANES)
        if whole:
            for_each(whole, lambda g: self.leave(products, b, o, first, row, g, rows, TILE * LANES))
        rest = self.of.result[1] - whole * TILE * LANES
        if rest:
            self.leave(products, b, o, first, row, index(whole), rows, rest)

    def leave(self, products: Any, b: Any, o: Any, first: Any, row: Any, group: Any, rows: int, columns: int) -> None:
        """Y of four tiles, Aᵀ M A, of which `rows` and `columns` are elements of the result."""
        step = self.panels * self.panel * self.pitch
        at = T.Bind(o * self.pitch + row * self.of.tiles[1] + group * LANES)
        half: list[list[Any]] = [[None] * WINDOW for _ in range(TILE)]
        for q in range(WINDOW):
            column = [T.Bind(products[_vector(at + (p * WINDOW + q) * step)]) for p in range(WINDOW)]
            for i, value in enumerate(_out_of(column)):
                half[i][q] = value
        line = local_buffer("line", TILE * LANES)
        for i in range(rows):
            found = list(_out_of(half[i]))
            y = (first + row) * TILE + i
            for k in range(-(-columns // TILE)):
                lanes = [tirx.const(TILE * j + k, "int32") for j in range(TILE)]
                T.buffer_store(line, tirx.Shuffle(found, lanes), [_vector(index(k * TILE))])
                x = group * (TILE * LANES) + k * TILE

                def finish(lane: Any, k: int = k, x: Any = x, y: Any = y) -> None:
                    coordinates = [b, o, y, x + lane]
                    self.epilogue.finish(coordinates, line[k * TILE + lane] + self.epilogue.start(coordinates))

                stored = min(TILE, columns - k * TILE)
                if stored == TILE:
                    vector(TILE, finish)
                else:
                    for lane in range(stored):
                        finish(lane)


def _vector(start: Any) -> Any:
    return tirx.Ramp(start, index(1), LANES)


def _times(factor: float, value: Any) -> Any:
    return tirx.Broadcast(tirx.const(factor, "float32"), LANES) * value


def _into(x: list[Any]) -> list[Any]:
    """Bᵀ x of six vectors."""
    sum_1, sum_2 = T.Bind(x[4] - _times(4, x[2])), T.Bind(x[3] - _times(4, x[1]))
    difference_1, difference_2 = T.Bind(x[4] - x[2]), T.Bind(x[3] - x[1])
    return [
        T.Bind(value)
        for value in (
            _times(4, x[0]) - _times(5, x[2]) + x[4],
            sum_1 + sum_2,
            sum_1 - sum_2,
            difference_1 + _times(2, difference_2),
            difference_1 - _times(2, difference_2),
            _times(4, x[1]) - _times(5, x[3]) + x[5],
        )
    ]


def _out_of(m: list[Any]) -> list[Any]:
    """Aᵀ m of six vectors."""
    sum_1, difference_1 = T.Bind(m[1] + m[2]), T.Bind(m[1] - m[2])
    sum_2, difference_2 = T.Bind(m[3] + m[4]), T.Bind(m[3] - m[4])
    return [
        T.Bind(value)
        for value in (
            m[0] + sum_1 + sum_2,
            difference_1 + _times(2, difference_2),
            sum_1 + _times(4, sum_2),
            difference_1 + _times(8, difference_2) + m[5],
        )
    ]
