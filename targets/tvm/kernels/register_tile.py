"""The loops of a matrix product: tiles of sums in registers, and what follows the product element by element.

`schedule` takes a function that FuseTIR made of a product (`matmul`) and element-wise operators behind it: bias,
activation, residual. It writes the loops anew. The sums of a tile stay in registers over all of k, and each of them
goes through the element-wise operators on its way to memory: the product itself is never stored. What does not fill a
tile at the edges gets loops of its own, of the exact size (`float_tiles`): nothing is read out of bounds, and no
activation is padded.

On AArch64 the innermost loop is, for a packed left factor, 24 `fmla` by lane, 3 loads (`ldp`, `ldp`, `ldr` of vectors)
and 3 instructions of the loop. A Cortex-A76 issues two `fmla` a cycle: it takes 12 cycles and a little. A left factor
in row-major order is read by pairs of k: 48 `fmla`, 11 loads, and with 24 sums, 6 vectors of R and a pair all registers
are taken. One k at a time took 11 loads for 24 `fmla`; LLVM made one a `ld1r`, which takes the place of an `fmla`.
For a core that issues in order LLVM moves the loads of a pair so far ahead that sums leave the registers: 1.9 cycles an
`fmla` of a Cortex-A55, and 1.5 one k at a time.

The larger factor is traversed once, in the outermost loop; a panel of it stays in the L1 cache while the smaller factor
passes, from the L2 cache. There is no blocking over k: for k up to about 600 a panel of 12 columns fits 32 KB.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.base import TargetDescription
from graphopt.targets.tvm.kernels.epilogue import PARALLEL_MACS, index, substitute
from graphopt.targets.tvm.kernels.float_tiles import Cut, tilings
from graphopt.targets.tvm.kernels.fused_product import Plan, take_apart
from graphopt.targets.tvm.kernels.requantize import Instructions, instructions_of, keep_in_memory
from graphopt.targets.tvm.kernels.rows import for_each
from graphopt.targets.tvm.kernels.summation import sum_in_blocks

STEPS = 2  # of k, of which a left factor in row-major order is read as a vector


def schedule(function: tirx.PrimFunc, target: TargetDescription, place: int = 0) -> tirx.PrimFunc | None:
    """`function` with the kernel's loops; None if it is no product, or reduces the product further.

    place: of the cut into tiles among those that fit, the best by the model first; the last of fewer.
    """
    plan = take_apart(function)
    if plan is None:
        return None
    steps = steps_of(plan, target)
    found = tilings(plan, steps, target)
    rows, columns = found[min(place, len(found) - 1)]
    made = plan.epilogue.rewrite(lambda: _write_tiles(plan, rows, columns, steps))
    return made if steps == 1 else made.with_attr("tirx.noalias", False)  # for `keep_in_memory`


def tile_count(function: tirx.PrimFunc, target: TargetDescription) -> int | None:
    """Among how many cuts into tiles `schedule` chooses; None if `function` is no product."""
    plan = take_apart(function)
    return None if plan is None else len(tilings(plan, steps_of(plan, target), target))


def steps_of(plan: Plan, target: TargetDescription) -> int:
    """Of k that the innermost loop takes at a time."""
    pairs = instructions_of(target).is_aarch64 and not target.issue.in_order
    return STEPS if pairs and _has_rows(plan) else 1


def _has_rows(plan: Plan) -> bool:
    """Whether the left factor is float32 and read where it lies, with k along its last axis."""
    indices = getattr(plan.left, "indices", None)  # of a load
    if plan.packed_left or not indices or plan.dtype != "float32":
        return False  # lanes of float16 are taken from the lower half of the registers only
    shape = plan.left.source.shape
    last = max(i for i, extent in enumerate(shape) if i == 0 or int(extent) > 1)
    return bool(indices[last].same_as(plan.k))


def _write_tiles(plan: Plan, rows: Cut, columns: Cut, steps: int) -> None:
    work = plan.batch.size * plan.rows.size * plan.columns.size * plan.depth
    loop = T.parallel if work >= PARALLEL_MACS else T.serial
    by_rows = plan.rows.size >= plan.columns.size
    outer, inner = (rows, columns) if by_rows else (columns, rows)
    with loop(index(plan.batch.size * outer.tiles)) as task:
        batch = plan.batch.unravel(task // outer.tiles)

        def outer_tile(first: Any, size: int) -> None:
            def inner_tile(second: Any, other: int) -> None:
                if by_rows:
                    write_tile(plan, batch, first, size, second, other, steps)
                else:
                    write_tile(plan, batch, second, other, first, size, steps)

            for_tiles_of(inner, inner_tile)

        choose_tile(task % outer.tiles, outer, outer_tile)


def choose_tile(number: Any, of: Cut, body: Callable[[Any, int], None]) -> None:
    """Emit `body(first, size)` for one tile of an axis, given its number."""
    if not of.last or not of.count:
        body(number * of.size, of.last or of.size)
        return
    with T.If(number < of.count):
        with T.Then():
            body(number * of.size, of.size)
        with T.Else():
            body(index(of.count * of.size), of.last)


def for_tiles_of(of: Cut, body: Callable[[Any, int], None]) -> None:
    """Emit `body(first, size)` for all tiles of an axis: a loop over the equal ones, then the last."""
    if of.count:
        with T.serial(index(of.count)) as number:
            body(number * of.size, of.size)
    if of.last:
        body(index(of.count * of.size), of.last)


@dataclass(frozen=True)
class Sums:
    """A vector of sums of a tile: `width` of them at `start` of the tile's buffer, for C[row, column] and on.

    They run along the row of C, or down its column.
    """

    start: int
    width: int
    row: int
    column: int
    down: bool

    def offsets(self, lane: Any) -> tuple[Any, Any]:
        """Row and column in the tile of one of the sums."""
        return (self.row + lane, self.column) if self.down else (self.row, self.column + lane)


@dataclass(frozen=True)
class Factors:
    """The elements that a tile is the product of: L of its row and k, R of its column and k."""

    left: Callable[[Any, Any], Any]
    right: Callable[[Any, Any], Any]


def factors_of(plan: Plan, batch: list[Any], m: Any, n: Any, k: Any = 0) -> Factors:
    """Those of the tile that begins at C[m, n], from `k` on."""
    return Factors(
        lambda row, step: _factor(plan, plan.left, batch, m + row, n, k + step),
        lambda column, step: _factor(plan, plan.right, batch, m, n + column, k + step),
    )


def layout_of(plan: Plan, rows: int, columns: int) -> list[Sums]:
    """The sums of a tile.

    The columns that do not fill a vector are computed with the padding of a packed right factor; otherwise one by one,
    as vectors down the column where a packed left factor has its rows side by side.
    """
    whole, rest = divmod(columns, plan.lanes)
    vectors, singles = (whole + (rest > 0), 0) if plan.packed_right else (whole, rest)
    height = _height(plan, rows)
    places = [(plan.lanes, i, j * plan.lanes, False) for i in range(rows) for j in range(vectors)]
    places += [(height, i, whole * plan.lanes + j, True) for j in range(singles) for i in range(0, rows, height)]
    starts = [0, *itertools.accumulate(width for width, *_ in places)]
    return [Sums(start, *place) for start, place in zip(starts, places, strict=False)]


def _height(plan: Plan, rows: int) -> int:
    """How many rows of the left factor can be read as a vector."""
    return plan.lanes if plan.packed_left and rows % plan.lanes == 0 else 1


def write_tile(plan: Plan, batch: list[Any], m: Any, rows: int, n: Any, columns: int, steps: int) -> None:
    """Emit one tile: C[m + i, n + j] for i < rows and j < columns."""
    layout = layout_of(plan, rows, columns)
    tile = _registers("tile", sum(sums.width for sums in layout), plan.dtype)
    for sums in layout:
        stored = _stored(sums, columns)

        def start(lane: Any, sums: Sums = sums, stored: int = stored) -> None:
            row, column = sums.offsets(lane if stored == sums.width else T.min(lane, index(stored - 1)))
            initial = plan.epilogue.start(coordinates_of(plan, batch, m + row, n + column))
            T.buffer_store(tile, initial, [sums.start + lane])

        _vector(sums.width, start)

    accumulate(plan, factors_of(plan, batch, m, n), plan.depth, rows, layout, tile, steps)
    for sums in layout:

        def finish(lane: Any, sums: Sums = sums) -> None:
            row, column = sums.offsets(lane)
            plan.epilogue.finish(coordinates_of(plan, batch, m + row, n + column), tile[sums.start + lane])

        stored = _stored(sums, columns)
        if stored == sums.width:
            _vector(stored, finish)
        else:  # without the padding
            for lane in range(stored):
                finish(lane)


def accumulate(plan: Plan, factors: Factors, depth: int, rows: int, layout: list[Sums], tile: Any, steps: int) -> None:
    """Add the products of all k to the sums."""

    def multiply(k: Any) -> None:
        _multiply(plan, factors, rows, layout, tile, k)

    whole, rest = divmod(depth, steps)
    if steps == 1:
        sum_in_blocks(tile, plan.dtype, depth, 1, [(sums.start, sums.width) for sums in layout], multiply)
        return
    with T.serial(index(whole)) as number:
        _multiply_by_rows(plan, factors, layout, tile, number * steps)
    if rest:
        for_each(rest, lambda number: multiply(number + whole * steps))


def _multiply(plan: Plan, factors: Factors, rows: int, layout: list[Sums], tile: Any, k: Any) -> None:
    """Add the products of one k to the sums."""
    left = _left_column(plan, factors, rows, k)
    for sums in layout:

        def accumulate(lane: Any, sums: Sums = sums) -> None:
            row, column = sums.offsets(lane)
            at = sums.start + lane
            T.buffer_store(tile, tile[at] + left(row) * factors.right(column, k), [at])

        _vector(sums.width, accumulate)


def _multiply_by_rows(plan: Plan, factors: Factors, layout: list[Sums], tile: Any, k: Any) -> None:
    """Add the products of STEPS k to the sums, row by row, of which each is read as a vector along k."""
    first = [sums for sums in layout if sums.row == 0]
    columns = sum(sums.width for sums in first)
    right = _registers("right", STEPS * columns, plan.dtype)
    for step, sums in itertools.product(range(STEPS), first):

        def read_right(lane: Any, sums: Sums = sums, step: int = step) -> None:
            value = factors.right(sums.column + lane, k + step)
            T.buffer_store(right, value, [step * columns + sums.column + lane])

        _vector(sums.width, read_right)
    for row, group in itertools.groupby(sorted(layout, key=lambda sums: sums.row), lambda sums: sums.row):
        left = _registers("left", STEPS, plan.dtype)
        if row % 2 == 0:  # else LLVM reads all rows at once, for which there are no registers
            keep_in_memory(Instructions.NEON)

        def read_left(lane: Any, row: int = row, left: Any = left) -> None:
            T.buffer_store(left, factors.left(row, k + lane), [lane])

        _vector(STEPS, read_left)
        for sums, step in itertools.product(group, range(STEPS)):

            def accumulate(lane: Any, sums: Sums = sums, step: int = step, left: Any = left) -> None:
                at = sums.start + lane
                product = left[step] * right[step * columns + sums.column + lane]
                T.buffer_store(tile, tile[at] + product, [at])

            _vector(sums.width, accumulate)


def _stored(sums: Sums, columns: int) -> int:
    """How many of the sums are elements of C, and not of the padding of its last columns."""
    return sums.width if sums.down else min(sums.width, columns - sums.column)


def _left_column(plan: Plan, factors: Factors, rows: int, k: Any) -> Callable[[Any], Any]:
    """L[m + i, k] as a function of i < rows.

    Rows that lie side by side are read as vectors here, and then multiplied by lane; LLVM would read them one by one.
    """
    height = _height(plan, rows)
    if height == 1:
        return lambda i: factors.left(i, k)
    column = _registers("left", rows, plan.dtype)
    for i in range(0, rows, height):

        def read(lane: Any, i: int = i) -> None:
            T.buffer_store(column, factors.left(i + lane, k), [i + lane])

        _vector(height, read)
    return lambda i: column[i]


def _registers(name: str, extent: int, dtype: str) -> Any:
    """A buffer that LLVM keeps in registers: all indices are constants once vectors are made."""
    return IRBuilder.name(name, T.alloc_buffer((extent,), dtype, scope="local", layout=None))


def _vector(width: int, body: Callable[[Any], None]) -> None:
    """Emit `body(lane)` for a vector of lanes."""
    if width == 1:
        body(0)
        return
    with T.vectorized(index(width)) as lane:
        body(lane)


def _factor(plan: Plan, load: Any, batch: list[Any], m: Any, n: Any, k: Any) -> Any:
    """A factor's element for the given m, n and k."""
    coordinates = coordinates_of(plan, batch, m, n)
    return substitute(load, [*zip(plan.variables, coordinates, strict=True), (plan.k, k)])


def coordinates_of(plan: Plan, batch: list[Any], m: Any, n: Any) -> list[Any]:
    return [*batch, *plan.rows.unravel(m), *plan.columns.unravel(n)]
