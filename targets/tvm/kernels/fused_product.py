"""A fused function taken apart: a matrix product, and what FuseTIR put behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx

from graphopt.targets.tvm.kernels.epilogue import Axis, Epilogue, take_epilogue
from graphopt.targets.tvm.kernels.matmul import COLUMN_AXES, PACKED, ROW_AXES, TILE
from graphopt.targets.tvm.kernels.rows import dtype_of


@dataclass(frozen=True)
class Plan:
    """A fused function, taken apart. `left` and `right` are the factors' elements at the block's `variables` and k."""

    epilogue: Epilogue  # its product is the buffer that C would have
    left: Any
    right: Any
    variables: tuple[Any, ...]
    k: Any
    batch: Axis
    rows: Axis
    columns: Axis
    depth: int
    tile_rows: int
    tile_columns: int
    lanes: int
    packed_left: bool  # rows of a panel are contiguous
    packed_right: bool  # panels are whole vectors, with padding

    @property
    def dtype(self) -> str:
        """Of the factors and the sums."""
        return dtype_of(self.epilogue.product)


def take_apart(function: tirx.PrimFunc) -> Plan | None:
    """The parts of a function whose first block is a marked product; None for any other, and if it reduces further."""
    taken = take_epilogue(function, TILE)
    if taken is None:
        return None
    block, epilogue = taken
    marks = block.annotations
    *spatial, reduction = block.iter_vars
    extents = [int(v.dom.extent) for v in spatial]
    second = len(extents) - int(marks[COLUMN_AXES])
    first = second - int(marks[ROW_AXES])
    rows, columns, lanes = (int(x) for x in marks[TILE])
    return Plan(
        epilogue=epilogue,
        left=block.body.value.b.a,
        right=block.body.value.b.b,
        variables=tuple(v.var for v in spatial),
        k=reduction.var,
        batch=Axis(tuple(extents[:first])),
        rows=Axis(tuple(extents[first:second])),
        columns=Axis(tuple(extents[second:])),
        depth=int(reduction.dom.extent),
        tile_rows=rows,
        tile_columns=columns,
        lanes=lanes,
        packed_left=int(marks[PACKED][0]) == 1,
        packed_right=int(marks[PACKED][1]) == 1,
    )
