"""The loops of a convolution by Winograd's F(4×4, 3×3): the image parted, transformed, multiplied, transformed back.

`winograd` has the algebra. Four tiles that lie side by side are transformed at once, a lane each. So the image is
copied with its columns parted by their remainder mod 4, with the padding around it: then what one place of four
neighbouring tiles reads are four neighbours. A block of rows of tiles passes through all steps while it is in cache:

    V[place, c, tile] = Bᵀ x B        M[place, o, tile] = Σ_c U[place, o, c] · V[place, c, tile]        Y = Aᵀ M A

Behind the last tile of a row a vector writes tiles that are none; the next row's overwrite them, or nothing reads them.
So does a place that is not computed for all tiles: rows follow one another in V and M without those.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.base import TargetDescription
from graphopt.targets.tvm.kernels.epilogue import PARALLEL_MACS, Epilogue, index, take_epilogue
from graphopt.targets.tvm.kernels.nchw import read_buffers
from graphopt.targets.tvm.kernels.rows import Row, clear, copy_row, for_each, local_buffer, vector
from graphopt.targets.tvm.kernels.winograd import GEOMETRY, LANES, PLACES, TILE, WEIGHTS, WINDOW, Tiles, Winograd
from graphopt.targets.tvm.kernels.winograd_products import Products

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
    def axes(self) -> tuple[Tiles, Tiles]:
        """The rows and the columns of tiles: rows do without places only where one block has them all."""
        rows, columns = self.of.result
        return Tiles(rows, trimmed=self.block == self.of.tiles[0]), Tiles(columns)

    @property
    def pitch(self) -> int:
        """Tiles of a block in V and M, with those that a vector writes behind the last."""
        columns = -(-self.block * self.of.tiles[1] // LANES) * LANES
        return max(columns, (self.block - 1) * self.of.tiles[1] + self.of.groups_of_tiles * LANES)

    @property
    def before(self) -> tuple[int, int]:
        """Rows and columns of padding before the image, with those of results in front of the first."""
        rows, columns = self.axes
        return self.of.pads[0] + rows.shift, self.of.pads[1] + columns.shift

    @property
    def rows(self) -> int:
        """Rows of the padded image."""
        return max(self.of.tiles[0] * TILE + 2, self.before[0] + self.of.image[0])

    @property
    def part(self) -> int:
        """Columns of a row in each of the four parts."""
        read = self.of.groups_of_tiles * LANES + 1
        return max(read, (self.before[1] + self.of.image[1] - 1) // TILE + 1)

    def slot(self, p: int, q: int, row: Any, group: Any) -> Any:
        """Where the tiles of a group lie among the block's at a place, in V and in M.

        The first tile of a row may be one that the place is not computed for: it lies one in front. Such rows lie
        where the next one does.
        """
        rows, columns = self.axes
        number = T.max(row - 1, index(0)) if rows.first(p) else row
        return number * (columns.count - columns.spared(q)) + group * LANES - columns.first(q) + LANES

    def write(self) -> None:
        of = self.of
        plane = TILE * self.rows * self.part
        parted = local_buffer("parted", of.channels * plane)
        entering = local_buffer("entering", LANES + PLACES * of.channels * self.pitch)
        products = local_buffer("products", LANES + PLACES * self.panels * self.panel * self.pitch)
        loop = T.parallel if of.macs >= PARALLEL_MACS else T.serial
        multiply = Products(
            self.weights, entering, products, of.channels, self.panels, self.panel, self.vectors, self.pitch, LANES
        )

        def image(b: Any) -> None:
            with loop(index(of.channels)) as c:
                self.copy(parted, (b, c), plane)

            def one_block(number: Any) -> None:
                first = number * self.block
                with loop(index(of.channels)) as c, T.serial(index(self.block)) as row:
                    self.enter_row(parted, entering, c, first, row, plane)
                multiply.write(*self.axes, self.block, loop)
                with loop(index(of.filters)) as o, T.serial(index(self.block)) as row:
                    self.leave_row(products, b, o, first, row)

            for_each(of.tiles[0] // self.block, one_block)

        for_each(of.batch, image)

    def copy(self, parted: Any, at: tuple[Any, Any], plane: int) -> None:
        """Copy a channel, parted, with the padding around it."""
        of = self.of
        start = at[1] * plane
        clear(parted, start, plane)
        with T.serial(index(min(of.image[0], self.rows - self.before[0]))) as y:

            def place(part: int, column: Any) -> Any:
                return start + (part * self.rows + y + self.before[0]) * self.part + column

            copy_row(Row(self.image, (*at, y), of.image[1], self.before[1]), parted, TILE, TILE, place)

    def enter_row(self, parted: Any, entering: Any, c: Any, first: Any, row: Any, plane: int) -> None:
        """V of a row of tiles."""

        def enter(group: Any, *, leading: bool = False) -> None:
            self.enter(parted, entering, (c, first, row), group, plane, leading=leading)

        leading = self.axes[1].shift
        if leading:
            enter(index(0), leading=True)
        if self.of.groups_of_tiles > leading:
            for_each(self.of.groups_of_tiles - leading, lambda g: enter(g + leading))

    def enter(
        self, parted: Any, entering: Any, at: tuple[Any, Any, Any], group: Any, plane: int, *, leading: bool
    ) -> None:
        """V of four tiles, Bᵀ x B; the `leading` ones of a row begin with one that column 0 is not computed for."""
        c, first, row = at
        corner = T.Bind(c * plane + (first + row) * (TILE * self.part) + group * LANES)
        half = [[None] * WINDOW for _ in range(WINDOW)]
        for s in range(WINDOW):
            pixels = [
                T.Bind(parted[_vector(corner + ((s % TILE) * self.rows + r) * self.part + s // TILE)])
                for r in range(WINDOW)
            ]
            for p, value in enumerate(_into(pixels)):
                half[p][s] = value
        for p in range(WINDOW):
            for q, value in enumerate(_into(half[p])):
                to = (p * WINDOW + q) * (self.of.channels * self.pitch) + c * self.pitch + self.slot(p, q, row, group)
                if leading and q == 0:
                    T.buffer_store(entering, _shuffled([value], [1, 2, 3, 3]), [_vector(to + 1)])
                else:
                    T.buffer_store(entering, value, [_vector(to)])

    def leave_row(self, products: Any, b: Any, o: Any, first: Any, row: Any) -> None:
        """The results of a row of tiles: groups that are stored whole, and the first and the last one."""
        columns = self.axes[1]
        groups, end = self.of.groups_of_tiles, self.of.result[1] + columns.shift

        def leave(group: Any, begin: int = 0, end: int = TILE * LANES) -> None:
            self.leave(products, b, o, (first, row), group, begin, end)

        last = end - (groups - 1) * TILE * LANES
        if groups == 1:
            leave(index(0), columns.shift, last)
            return
        leading, trailing = columns.shift, int(last < TILE * LANES)
        if leading:
            leave(index(0), columns.shift)
        if groups > leading + trailing:
            for_each(groups - leading - trailing, lambda g: leave(g + leading))
        if trailing:
            leave(index(groups - 1), 0, last)

    def leave(self, products: Any, b: Any, o: Any, at: tuple[Any, Any], group: Any, begin: int, end: int) -> None:
        """Y of four tiles, Aᵀ M A, of whose 16 columns those from `begin` to `end` are elements of the result."""
        first, row = at
        rows, columns = self.axes
        step = self.panels * self.panel * self.pitch
        half: list[list[Any]] = [[None] * WINDOW for _ in range(TILE)]
        for q in range(WINDOW):
            column = [
                T.Bind(products[_vector((p * WINDOW + q) * step + o * self.pitch + self.slot(p, q, row, group))])
                for p in range(WINDOW)
            ]
            for i, value in enumerate(_out_of(column)):
                half[i][q] = value
        line = local_buffer("line", TILE * LANES)
        x = group * (TILE * LANES) - columns.shift

        def store(i: int) -> None:
            y = T.Bind((first + row) * TILE + i - rows.shift)
            found = list(_out_of(half[i]))
            for k in range(TILE):
                T.buffer_store(line, _shuffled(found, [TILE * j + k for j in range(TILE)]), [_vector(index(k * TILE))])

            def finish(column: Any) -> None:
                coordinates = [b, o, y, x + column]
                self.epilogue.finish(coordinates, line[column] + self.epilogue.start(coordinates))

            whole = (end - begin) // LANES * LANES
            for column in range(begin, begin + whole, LANES):
                vector(LANES, partial(_shifted, finish, column))
            for column in range(begin + whole, end):
                finish(index(column))

        for i in range(TILE):
            inside = []
            if i < rows.shift:
                inside.append(first + row > 0)
            if i >= TILE - rows.beyond:
                inside.append(first + row < rows.count - 1)
            if not inside:
                store(i)
                continue
            with T.If(tirx.all(*inside)), T.Then():
                store(i)


def _vector(start: Any) -> Any:
    return tirx.Ramp(start, index(1), LANES)


def _shifted(body: Callable[[Any], None], first: int, lane: Any) -> None:
    body(first + lane)


def _shuffled(vectors: list[Any], lanes: list[int]) -> Any:
    return tirx.Shuffle(vectors, [tirx.const(lane, "int32") for lane in lanes])


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
