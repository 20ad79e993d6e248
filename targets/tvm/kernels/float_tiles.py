"""Into which tiles a product in floating point is cut: all that fit the registers, ranked by the model of the core.

A packed factor gives its side of a tile, a panel; the other side is chosen. What is left at the end of an axis is a
tile of its own, or is added to the last whole one: 49 columns are five tiles of 8 and one of 9, in place of four of 12
and one whose single column waits for its own sums.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from graphopt.targets.base import TargetDescription
from graphopt.targets.tvm.kernels.fused_product import Plan
from graphopt.targets.tvm.kernels.issue_model import Loop
from graphopt.targets.tvm.kernels.requantize import instructions_of

REGISTERS = 31
MOST_ROWS = 12
MOST_VECTORS = 9  # a lone row has three panels, whose sums hide their latency
LATENCY = 8  # independent sums that hide the latency of a multiply-add: 4 cycles, 2 a cycle
OF_LOOP = 3  # instructions that are neither arithmetic nor loads
OF_TILE = 24  # and around the loop of a tile


@dataclass(frozen=True)
class Cut:
    """An axis in `count` tiles of `size`, and one of `last` behind them, if that is not 0."""

    size: int
    count: int
    last: int

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(size, how many tiles have it)."""
        return tuple((size, count) for size, count in ((self.size, self.count), (self.last, 1)) if size and count)

    @property
    def tiles(self) -> int:
        return self.count + (self.last > 0)


def cut(extent: int, size: int) -> Cut:
    """Tiles of `size`, and the rest."""
    return Cut(size, *divmod(extent, size))


def tilings(plan: Plan, steps: int, target: TargetDescription) -> list[tuple[Cut, Cut]]:
    """Cuts of rows and columns, those first that take fewest cycles on the target.

    Args:
        steps: of k that the loop takes at a time; a left factor in row-major order is then read along k.
    """
    usual = _usual(plan)
    if not instructions_of(target).is_aarch64:
        return [usual]
    found = [
        (rows, columns)
        for rows, columns in itertools.product(_rows(plan), _columns(plan))
        if all(_registers(plan, r, c, steps) <= REGISTERS for (r, _), (c, _) in _tiles(rows, columns))
    ]
    found = sorted(found, key=lambda cuts: cycles(plan, steps, cuts, target))
    return [*found, usual] if usual not in found else found


def cycles(plan: Plan, steps: int, cuts: tuple[Cut, Cut], target: TargetDescription) -> float:
    """What all tiles of a product take by the model, without what is the same for all cuts."""
    total = 0.0
    for (r, of_rows), (c, of_columns) in _tiles(*cuts):
        products = loop_of(plan, r, c, steps).cycles(target.issue) * plan.depth / steps
        total += of_rows * of_columns * (products + OF_TILE / target.issue.width)
    return total


def _usual(plan: Plan) -> tuple[Cut, Cut]:
    """As the marks of the product say; several panels at once where there are few rows."""
    rows = min(plan.rows.size, plan.tile_rows)
    columns = plan.tile_columns
    while rows * columns < LATENCY * plan.lanes:
        columns += plan.tile_columns
    return cut(plan.rows.size, rows), cut(plan.columns.size, columns)


def _rows(plan: Plan) -> Iterator[Cut]:
    extent = plan.rows.size
    if plan.packed_left:
        yield cut(extent, min(extent, plan.tile_rows))
        return
    yield from _cuts(extent, range(1, min(extent, MOST_ROWS) + 1))


def _columns(plan: Plan) -> Iterator[Cut]:
    extent = plan.columns.size
    panel = plan.tile_columns if plan.packed_right else plan.lanes
    most = max(panel, MOST_VECTORS * plan.lanes)
    widths = range(panel, min(most, -(-extent // panel) * panel) + 1, panel)
    if plan.packed_right:
        yield from (cut(extent, width) for width in widths)
    else:
        yield from _cuts(extent, widths)


def _cuts(extent: int, sizes: range) -> Iterator[Cut]:
    """Each size with a rest of its own, and with the rest added to the last tile."""
    for size in sizes:
        count, rest = divmod(extent, size)
        yield Cut(size, count, rest)
        if count > 1 and rest:
            yield Cut(size, count - 1, size + rest)


def _tiles(rows: Cut, columns: Cut) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    return itertools.product(rows.sizes, columns.sizes)


def _parts(plan: Plan, rows: int, columns: int) -> tuple[int, int, int]:
    """Vectors of a tile's columns, columns that are computed one by one, and rows of L that are read as one vector."""
    whole, rest = divmod(columns, plan.lanes)
    height = plan.lanes if plan.packed_left and rows % plan.lanes == 0 else 1
    return (whole + (rest > 0), 0, height) if plan.packed_right else (whole, rest, height)


def _registers(plan: Plan, rows: int, columns: int, steps: int) -> int:
    """That sums and both factors take; at most 32, and one that passes."""
    vectors, singles, height = _parts(plan, rows, columns)
    sums = rows * vectors + singles * rows // height
    if steps > 1:
        return sums + steps * (vectors + singles) + 1
    return sums + vectors + singles + rows // height


def loop_of(plan: Plan, rows: int, columns: int, steps: int) -> Loop:
    """The innermost loop: `steps` of k."""
    vectors, singles, height = _parts(plan, rows, columns)
    arithmetic = steps * (rows * vectors + singles * rows // height)
    wide = steps * vectors + (rows // height if height > 1 else 0)
    narrow = steps * singles + (rows if height == 1 else 0)
    return Loop(arithmetic, wide, narrow, OF_LOOP, steps)
