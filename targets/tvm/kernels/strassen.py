"""Large matrix products with seven products of halves in place of eight: Strassen's algorithm in Winograd's form.

Of C = A B in quadrants (V. Strassen, Gaussian elimination is not optimal, 1969; the form with 15 additions is in
N. Higham, Accuracy and Stability of Numerical Algorithms, 2002, chapter 23):

    S₁ = A₂₁ + A₂₂   S₂ = S₁ − A₁₁   S₃ = A₁₁ − A₂₁   S₄ = A₁₂ − S₂
    T₁ = B₁₂ − B₁₁   T₂ = B₂₂ − T₁   T₃ = B₂₂ − B₁₂   T₄ = B₂₁ − T₂

    M = A₁₁ B₁₁               C₁₁ = M + A₁₂ B₂₁
    U = M + S₂ T₂             V = U + S₃ T₃             C₂₁ = V + A₂₂ T₄
    W = U + S₁ T₁             C₁₂ = W + S₄ B₂₂          C₂₂ = V + (W − U)

A tile of each quadrant stays in registers through all seven, so that of the additions those of S and T alone are work:
the inner factor's are made once, the outer one's for each tile, and neither is stored with the weights. Rounding errors
are of the size of the largest numbers of A and of B, and not of a row and a column (Higham, section 23.2): 2.4 times
those of sums in order, of 384 random products. So an infinity in a factor makes more than its row or column NaN. What
does not fill tiles of two halves is computed by `register_tile`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.base import TargetDescription
from graphopt.targets.tvm.kernels import register_tile
from graphopt.targets.tvm.kernels.epilogue import PARALLEL_MACS, index
from graphopt.targets.tvm.kernels.float_tiles import Cut, cut, cycles, loop_of, tilings
from graphopt.targets.tvm.kernels.fused_product import Plan, take_apart
from graphopt.targets.tvm.kernels.register_tile import Factors, factors_of
from graphopt.targets.tvm.kernels.requantize import instructions_of
from graphopt.targets.tvm.kernels.rows import for_each, local_buffer, vector

SUMS = 4  # of a factor's quadrants
SCRATCH = 1 << 19  # bytes of the outer factor's sums that are in memory at once, if those are of THREADS tiles
THREADS = 4  # that share them evenly, or fewer
LEAST_GAIN = 0.97  # of the time of the plain product
_OF_SUMS = 16  # instructions, or their time, for a vector of four sums: loads, additions, stores
# Cycles beyond the plain product's, in the width of the core's instructions, as counted in the code for a Cortex-A76:
_OF_PRODUCT = 80  # around the loop of one of the seven products
_OF_RESULT = 24  # for a vector of each of the four results
_FLOAT = 4  # bytes
_MOST_SUMS = 24  # vectors of sums in registers


@dataclass(frozen=True)
class Halves:
    """An axis of C: two halves of `count` tiles of `size`, and what is behind them."""

    extent: int
    size: int

    @property
    def count(self) -> int:
        return self.extent // (2 * self.size)

    @property
    def half(self) -> int:
        return self.count * self.size


def schedule(function: tirx.PrimFunc, target: TargetDescription, place: int = 0) -> tirx.PrimFunc | None:
    """`function` with the kernel's loops; None if it is no product, or does not gain by it.

    place: 0 for this kernel, which is the first choice where it gains; beyond, those of `register_tile`.
    """
    plan = _taken(function, target)
    if plan is None:
        return None
    if place:
        return register_tile.schedule(function, target, place - 1)
    steps = register_tile.steps_of(plan, target)
    made = plan.epilogue.rewrite(_Loops(plan, steps).write)
    return made if steps == 1 else made.with_attr("tirx.noalias", False)  # for `keep_in_memory`


def tile_count(function: tirx.PrimFunc, target: TargetDescription) -> int | None:
    """Among how many kinds of loops `schedule` chooses; None if the product is not the kernel's own."""
    if _taken(function, target) is None:
        return None
    return 1 + (register_tile.tile_count(function, target) or 0)


def _taken(function: tirx.PrimFunc, target: TargetDescription) -> Plan | None:
    """The product of a function that is the kernel's own."""
    plan = take_apart(function)
    return plan if plan is not None and fits(plan) and pays(plan, target) else None


def fits(plan: Plan) -> bool:
    """Whether the product has two halves along each axis, of whole tiles and vectors."""
    rows, columns = _halves(plan)
    vectors = plan.tile_columns % plan.lanes == 0 and not (plan.packed_left and plan.tile_rows % plan.lanes)
    return plan.dtype == "float32" and plan.depth % 2 == 0 and vectors and rows.count > 0 and columns.count > 0


def pays(plan: Plan, target: TargetDescription) -> bool:
    """Whether a product that fits takes less time so, by the model of the core; never with 32-bit ARM's registers."""
    if not instructions_of(target).is_aarch64:
        return False
    rows, columns = _halves(plan)
    steps = register_tile.steps_of(plan, target)
    issue, depth, batch = target.issue, plan.depth // 2, plan.batch.size
    plain = cycles(plan, steps, tilings(plan, steps, target)[0], target)
    loop = loop_of(plan, rows.size, columns.size, steps).cycles(issue) * depth / steps
    tile = 7 * (loop + _OF_PRODUCT / issue.width) + _OF_RESULT * rows.size * columns.size / plan.lanes / issue.width
    sums = _OF_SUMS * depth * (rows.half + columns.half) / plan.lanes / issue.width
    rest = sum(cycles(plan, steps, cuts, target) / batch for _, cuts in _rest(plan))
    return batch * (rows.count * columns.count * tile + sums + rest) < LEAST_GAIN * plain


def _halves(plan: Plan) -> tuple[Halves, Halves]:
    return Halves(plan.rows.size, plan.tile_rows), Halves(plan.columns.size, plan.tile_columns)


def _rest(plan: Plan) -> list[tuple[tuple[int, int], tuple[Cut, Cut]]]:
    """Where what is behind the two halves of the columns, and of the rows, begins, and its tiles."""
    rows, columns = _halves(plan)
    down, across = rows.extent - 2 * rows.half, columns.extent - 2 * columns.half
    found = []
    if across:
        size = rows.size
        if plan.packed_left:  # few columns: more panels hide the latency of their sums
            size *= max(1, min(rows.count, _MOST_SUMS * plan.lanes // (size * min(across, columns.size))))
        found.append(((0, 2 * columns.half), (cut(rows.extent, size), cut(across, columns.size))))
    if down:
        found.append(((2 * rows.half, 0), (cut(down, rows.size), cut(2 * columns.half, columns.size))))
    return found


def _together(tiles: int, tile_bytes: int) -> int:
    """Of so many tiles of the outer factor, how many are computed between two waits for all threads."""
    most = max(THREADS, SCRATCH // tile_bytes)
    even = -(-tiles // -(-tiles // most))
    return min(tiles, -(-even // THREADS) * THREADS)


@dataclass(frozen=True)
class _Loops:
    """Emits the loops of one product."""

    plan: Plan
    steps: int  # of k that the innermost loop takes at a time

    @property
    def depth(self) -> int:
        return self.plan.depth // 2

    def write(self) -> None:
        plan = self.plan
        rows, columns = _halves(plan)
        by_rows = plan.rows.size >= plan.columns.size
        outer, inner = (rows, columns) if by_rows else (columns, rows)
        whole = SUMS * self.depth * inner.size
        part = SUMS * self.depth * outer.size
        work = plan.batch.size * plan.rows.size * plan.columns.size * plan.depth
        loop = T.parallel if work >= PARALLEL_MACS else T.serial
        together = _together(outer.count, part * _FLOAT)
        passing = local_buffer("inner_sums", whole * inner.count)
        staying = local_buffer("outer_sums", part * together)

        def of_batch(number: Any) -> None:
            batch = plan.batch.unravel(number)

            def sums(are_rows: bool, buffer: Any, at: Any, tile: Any, size: int) -> None:
                if are_rows:
                    self.sum_rows(buffer, at, batch, tile * size, rows.half)
                else:
                    self.sum_columns(buffer, at, batch, tile * size, columns.half)

            with loop(index(inner.count)) as tile:
                sums(not by_rows, passing, tile * whole, tile, inner.size)

            def some(chunk: Any) -> None:
                first = chunk * together
                even = outer.count % together == 0
                count = index(together) if even else T.min(index(together), outer.count - first)
                with loop(count) as slot:
                    tile = first + slot
                    sums(by_rows, staying, slot * part, tile, outer.size)
                    with T.serial(index(inner.count)) as other:
                        buffers = (staying, slot * part), (passing, other * whole)
                        of_rows, of_columns = buffers if by_rows else buffers[::-1]
                        m, n = (tile, other) if by_rows else (other, tile)
                        self.tile(batch, of_rows, of_columns, m * rows.size, n * columns.size)

            for_each(-(-outer.count // together), some)
            self.rest(batch, loop)

        for_each(plan.batch.size, of_batch)

    def quadrants(
        self, batch: list[Any], m: Any, n: Any, halves: tuple[int, int]
    ) -> Callable[[int, int, int], Factors]:
        """The factors' quadrants by the halves of the rows, of k and of the columns."""
        return lambda row, k, column: factors_of(
            self.plan, batch, m + row * halves[0], n + column * halves[1], index(k * self.depth)
        )

    def sum_rows(self, buffer: Any, at: Any, batch: list[Any], m: Any, half: int) -> None:
        """S₁ to S₄ of a tile's rows, each [k, row] as panels are, or [row, k]."""
        quadrant = self.quadrants(batch, m, index(0), (half, 0))

        def values(row: Any, k: Any) -> list[Any]:
            a11, a12, a21, a22 = (T.Bind(quadrant(i, j, 0).left(row, k)) for i in range(2) for j in range(2))
            first = T.Bind(a21 + a22)
            second = T.Bind(first - a11)
            return [first, second, a11 - a21, a12 - second]

        if self.plan.packed_left:
            self.by_panels(buffer, at, self.plan.tile_rows, values)
            return
        with T.serial(index(self.plan.tile_rows)) as row:
            start = at + row * self.depth
            whole, rest = divmod(self.depth, self.plan.lanes)
            size = self.plan.tile_rows * self.depth
            if whole:
                for_each(
                    whole, lambda i: self.store(buffer, start, size, i * self.plan.lanes, lambda k: values(row, k))
                )
            for k in range(self.depth - rest, self.depth):
                self.store(buffer, start, size, index(k), lambda k: values(row, k), lanes=1)

    def sum_columns(self, buffer: Any, at: Any, batch: list[Any], n: Any, half: int) -> None:
        """T₁ to T₄ of a tile's columns, each [k, column]."""
        quadrant = self.quadrants(batch, index(0), n, (0, half))

        def values(column: Any, k: Any) -> list[Any]:
            b11, b12, b21, b22 = (T.Bind(quadrant(0, i, j).right(column, k)) for i in range(2) for j in range(2))
            first = T.Bind(b12 - b11)
            second = T.Bind(b22 - first)
            return [first, second, b22 - b12, b21 - second]

        self.by_panels(buffer, at, self.plan.tile_columns, values)

    def by_panels(self, buffer: Any, at: Any, width: int, values: Callable[[Any, Any], list[Any]]) -> None:
        """The four sums of a tile, each [k, place in the panel]."""
        with T.serial(index(self.depth)) as k:
            for i in range(0, width, self.plan.lanes):
                self.store(buffer, at + k * width, self.depth * width, index(i), lambda place: values(place, k))

    def store(
        self, buffer: Any, start: Any, size: int, first: Any, values: Callable[[Any], list[Any]], lanes: int = 0
    ) -> None:
        """A vector of each of the four sums, `size` elements apart."""

        def one(lane: Any) -> None:
            for number, value in enumerate(values(first + lane)):
                T.buffer_store(buffer, value, [start + number * size + first + lane])

        vector(lanes or self.plan.lanes, one)

    def tile(self, batch: list[Any], of_rows: tuple[Any, Any], of_columns: tuple[Any, Any], m: Any, n: Any) -> None:
        """A tile of each quadrant of C."""
        plan = self.plan
        rows, columns = _halves(plan)
        quadrant = self.quadrants(batch, m, n, (rows.half, columns.half))
        layout = register_tile.layout_of(plan, rows.size, columns.size)
        size = rows.size * columns.size
        acc, product, sum_u, sum_v = (local_buffer(name, size) for name in ("acc", "product", "u", "v"))
        results = local_buffer("results", 4 * size)

        def assign(to: Any, value: Callable[[Any], Any], start: int = 0) -> None:
            for place in range(0, size, plan.lanes):
                vector(plan.lanes, partial(self.assign, to, value, place, start))

        def add(left: Callable[[Any, Any], Any], right: Callable[[Any, Any], Any]) -> None:
            register_tile.accumulate(plan, Factors(left, right), self.depth, rows.size, layout, acc, self.steps)

        def left_sum(number: int) -> Callable[[Any, Any], Any]:
            buffer, start = of_rows
            along = (self.depth, 1) if not plan.packed_left else (1, rows.size)
            begin = start + (number - 1) * self.depth * rows.size
            return lambda row, k: buffer[begin + row * along[0] + k * along[1]]

        def right_sum(number: int) -> Callable[[Any, Any], Any]:
            buffer, start = of_columns
            begin = start + (number - 1) * self.depth * columns.size
            return lambda column, k: buffer[begin + k * columns.size + column]

        assign(acc, lambda _: tirx.const(0, plan.dtype))
        add(quadrant(0, 0, 0).left, quadrant(0, 0, 0).right)
        assign(product, lambda at: acc[at])
        add(quadrant(0, 1, 0).left, quadrant(0, 1, 0).right)
        assign(results, lambda at: acc[at], 0)  # C₁₁
        assign(acc, lambda at: product[at])
        add(left_sum(2), right_sum(2))
        assign(sum_u, lambda at: acc[at])
        add(left_sum(3), right_sum(3))
        assign(sum_v, lambda at: acc[at])
        add(quadrant(1, 1, 0).left, right_sum(4))
        assign(results, lambda at: acc[at], 2 * size)  # C₂₁
        assign(acc, lambda at: sum_u[at])
        add(left_sum(1), right_sum(1))
        assign(results, lambda at: sum_v[at] + (acc[at] - sum_u[at]), 3 * size)  # C₂₂
        add(left_sum(4), quadrant(0, 1, 1).right)
        assign(results, lambda at: acc[at], size)  # C₁₂
        with T.serial(index(2)) as i, T.serial(index(2)) as j, T.serial(index(rows.size)) as row:
            for column in range(0, columns.size, plan.lanes):

                def finish(lane: Any, column: int = column) -> None:
                    place = register_tile.coordinates_of(
                        plan, batch, m + i * rows.half + row, n + j * columns.half + column + lane
                    )
                    total = results[((i * 2 + j) * rows.size + row) * columns.size + column + lane]
                    plan.epilogue.finish(place, total + plan.epilogue.start(place))

                vector(plan.lanes, finish)

    @staticmethod
    def assign(to: Any, value: Callable[[Any], Any], place: int, start: int, lane: Any) -> None:
        T.buffer_store(to, value(place + lane), [start + place + lane])

    def rest(self, batch: list[Any], loop: Any) -> None:
        """What is behind the two halves of the columns, and of the rows."""
        for (m, n), (down, across) in _rest(self.plan):

            def of_rows(row: Any, height: int, m: int = m, n: int = n, across: Cut = across) -> None:
                def of_columns(column: Any, width: int) -> None:
                    register_tile.write_tile(self.plan, batch, m + row, height, n + column, width, self.steps)

                register_tile.for_tiles_of(across, of_columns)

            with loop(index(down.tiles)) as number:
                register_tile.choose_tile(number, down, of_rows)
