"""Which tiles an integer product is computed in: all that fit the registers, ranked by the model of the core.

A tile of `rows` pixels by `vectors` of four columns takes `chunk` k of each pixel at a time. Large tiles load less for
each product; what bounds them is that sums, pixels and weights stay in 32 registers. Few rows and many columns suit a
core that loads beside its arithmetic, many rows and few columns one that stops for each load of 128 bits, since pixels
are loaded by halves of that and weights are not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from graphopt.targets.base import TargetDescription
from graphopt.targets.tvm.kernels.integer_sums import GROUP, PANEL, Armv7, Dotprod, Mmla, Neon, Portable
from graphopt.targets.tvm.kernels.issue_model import VECTOR, Loop, from_l2
from graphopt.targets.tvm.kernels.requantize import LANES, Instructions
from graphopt.targets.tvm.kernels.shares import tiles

REGISTERS = 30  # of 32: LLVM wants some between
FEW = 15  # of 16
MOST_ROWS = 8  # pixels whose addresses stay in registers
OF_LOOP = 4  # instructions that are neither arithmetic nor loads
OF_TILE = 24  # and around the loops of a tile
FILL = 8  # cycles until the first sums of a loop are there, which nothing hides at its end


@dataclass(frozen=True)
class Form:
    """A tile: the most pixels, of which `together` are an operand, the most vectors of columns, and k at a time.

    sums: of some rows and vectors of columns, and whether two products of a weight fit int16 together.
    """

    sums: Callable[[int, int, bool], Any]
    rows: int
    together: int
    vectors: int
    chunk: int


@dataclass(frozen=True)
class Extents:
    """What the tiles of a product cover: rows of pixels, columns, and `depth` k in each of some runs."""

    rows: int
    columns: int
    runs: int
    depth: int
    pairs: bool  # two products of a weight fit int16 together
    octets: bool  # weights are packed by eight k


def forms(extents: Extents, instructions: Instructions, target: TargetDescription | None) -> list[Form]:
    """The tiles for instructions, the one that takes fewest cycles on the target first; portable ones for no target."""
    if target is None or instructions is Instructions.PORTABLE:
        return [Form(Portable, 4, 1, 4, GROUP)]  # little code: it is slow anyway
    kind = _KINDS[instructions]
    fitting = [
        Form(kind.sums, rows, kind.together, vectors, chunk)
        for rows, vectors, chunk in itertools.product(
            range(MOST_ROWS, 0, -kind.together), kind.widths, (2 * GROUP, 4 * GROUP)
        )
        if kind.registers(rows, vectors, extents) <= kind.available and chunk <= kind.most_k
    ]
    return sorted(fitting, key=lambda form: cycles(form, extents, instructions, target))


def cycles(form: Form, extents: Extents, instructions: Instructions, target: TargetDescription) -> float:
    """What all tiles of a product take by the model, without what is the same for all forms."""
    total = 0.0
    for columns, panels in ((PANEL, extents.columns // PANEL), (extents.columns % PANEL, 1)):
        vectors = -(-columns // LANES)
        blocks = [min(form.vectors, vectors - first) for first in range(0, vectors, form.vectors)]
        for _, count, rows in tiles(extents.rows, form.rows, form.together):
            total += panels * count * sum(_block(form, rows, width, extents, instructions, target) for width in blocks)
    return total


def _block(
    form: Form, rows: int, vectors: int, extents: Extents, instructions: Instructions, target: TargetDescription
) -> float:
    """Cycles of a tile, for as many vectors of columns as are summed at once."""
    loop = _KINDS[instructions].loop(rows, vectors, form.chunk // GROUP, extents)
    panel_bytes = extents.runs * extents.depth * PANEL  # all cache lines of it, whatever columns are read
    streamed = from_l2(panel_bytes, target)
    products = loop.cycles(target.issue) * extents.runs * extents.depth / form.chunk
    whole, rest = divmod(extents.depth, form.chunk)
    # What does not loop is one block. Else a run is a loop, and its rest goes by two groups of k and by one.
    loops = 1 if whole <= 1 else extents.runs * (1 + -(-rest // (2 * GROUP)))
    lone = extents.runs * (extents.depth // GROUP % 2) * rows  # an odd group of k is put into each lane by `ld1r`
    around = (OF_TILE + 6 * vectors) / target.issue.width + loops * FILL + lone / target.issue.vectors
    return around + (products + streamed if target.issue.in_order else max(products, streamed))


@dataclass(frozen=True)
class _Kind:
    """Tiles of an instruction set: registers that one takes, and its innermost loop for some groups of four k."""

    sums: Callable[[int, int, bool], Any]
    registers: Callable[[int, int, Extents], int]
    loop: Callable[[int, int, int, Extents], Loop]
    together: int = 1
    most_k: int = 4 * GROUP
    available: int = REGISTERS
    widths: tuple[int, ...] = (4, 2)  # vectors of columns; single ones are narrowed and stored alone


def _loads(rows: int, vectors: int, groups: int) -> tuple[int, int]:
    """Of 128 bits, and of fewer: those of weights, and of pixels if they are as long."""
    whole = groups * GROUP == VECTOR
    return vectors * groups + rows * whole, rows * (not whole)


def _dotprod_loop(rows: int, vectors: int, groups: int, _extents: Extents) -> Loop:
    return Loop(rows * vectors * groups, *_loads(rows, vectors, groups), OF_LOOP, groups)


def _mmla_loop(rows: int, vectors: int, groups: int, extents: Extents) -> Loop:
    operands, zips = -(-rows // 2), 0 if extents.octets else 2 * vectors
    arithmetic = (operands * vectors * 2 + operands + zips) * groups / 2
    return Loop(arithmetic, vectors * groups, rows, OF_LOOP, groups / 2)


def _neon_loop(rows: int, vectors: int, groups: int, extents: Extents) -> Loop:
    """`smull`, `smlal` and `sadalp` for two groups, or `smull` and `sadalp` for each; and a pixel's k in each lane."""
    long = 2 * rows * vectors * groups  # multiplications
    of_group = 1.5 if extents.pairs else 2
    loads = _loads(rows, vectors, groups)
    return Loop(long * of_group + rows * groups, *loads, OF_LOOP, groups * of_group / 2, long)


def _neon_registers(rows: int, vectors: int, extents: Extents) -> int:
    return 2 * rows * vectors + rows + vectors * (2 if extents.pairs else 1) + 2


_KINDS = {
    Instructions.DOTPROD: _Kind(Dotprod, lambda r, v, _: r * v + r + v, _dotprod_loop),
    Instructions.I8MM: _Kind(
        Mmla, lambda r, v, e: -(-r // 2) * 2 * v + -(-r // 2) + (2 if e.octets else 6), _mmla_loop, 2, 2 * GROUP
    ),  # with 16 k at a time LLVM spills some
    Instructions.NEON: _Kind(Neon, _neon_registers, _neon_loop),
    Instructions.ARMV7: _Kind(Armv7, _neon_registers, _neon_loop, most_k=2 * GROUP, available=FEW, widths=(2, 1)),
}
