"""A fused function taken apart: a matrix product, and what FuseTIR put behind it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir.expr import TensorLoad

from graphopt.targets.tvm.kernels.matmul import COLUMN_AXES, PACKED, ROW_AXES, TILE


@dataclass(frozen=True)
class Axis:
    """A flattened group of C's axes."""

    extents: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.extents)

    def unravel(self, position: Any) -> list[Any]:
        """The indices of a flat position."""
        indices: list[Any] = []
        for extent in reversed(self.extents[1:]):
            indices.insert(0, position % extent)
            position = position // extent
        return [position, *indices] if self.extents else []


@dataclass(frozen=True)
class Stage:
    """An operator behind the product: `target[indices] = value` for all values of `variables`."""

    target: Any
    indices: tuple[Any, ...]
    value: Any
    variables: tuple[Any, ...]
    extents: tuple[int, ...]

    def reads(self) -> list[TensorLoad]:
        """The elements that one element is computed from."""
        found: list[TensorLoad] = []

        def note(load: TensorLoad) -> TensorLoad:
            found.append(load)
            return load

        replace_loads(self.value, note)
        return found


@dataclass(frozen=True)
class Plan:
    """A fused function, taken apart. `left` and `right` are the factors' elements at the block's `variables` and k."""

    function: tirx.PrimFunc
    product: Any  # the buffer that C would have
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
    stages: tuple[Stage, ...]  # element-wise on C: computed on the sums
    rest: tuple[Stage, ...]  # what follows them: loops of their own, after the product

    def stored(self, buffer: Any) -> bool:
        """Whether a buffer is memory: a parameter, or read or written by the rest."""
        parameters = any(buffer.same_as(parameter) for parameter in self.function.params)
        return parameters or any(
            buffer.same_as(other) for stage in self.rest for other in (stage.target, *(r.source for r in stage.reads()))
        )


def take_apart(function: tirx.PrimFunc) -> Plan | None:
    """The parts of a function whose first block is a marked product; None for any other, and if it reduces further."""
    sch = s_tir.Schedule(function)
    blocks = [sch.get(block) for block in sch.get_child_blocks(sch.get_sblock("root"))]
    if not blocks or TILE not in blocks[0].annotations:
        return None
    block, marks = blocks[0], blocks[0].annotations
    *spatial, reduction = block.iter_vars
    extents = [int(v.dom.extent) for v in spatial]
    if not all(_is_map(other) for other in blocks[1:]):
        return None
    behind = [_stage(other) for other in blocks[1:]]
    made = [block.writes[0].source, *(stage.target for stage in behind)]
    fused = next((i for i, stage in enumerate(behind) if not _is_elementwise(stage, extents, made)), len(behind))
    second = len(extents) - int(marks[COLUMN_AXES])
    first = second - int(marks[ROW_AXES])
    rows, columns, lanes = (int(x) for x in marks[TILE])
    return Plan(
        function=function,
        product=block.writes[0].source,
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
        stages=tuple(behind[:fused]),
        rest=tuple(behind[fused:]),
    )


def _is_map(block: Any) -> bool:
    """Whether a block computes each element once, without a reduction."""
    spatial = all(v.iter_type == tirx.IterVar.DataPar for v in block.iter_vars)
    return spatial and isinstance(block.body, tirx.BufferStore)


def _stage(block: Any) -> Stage:
    return Stage(
        target=block.body.buffer,
        indices=tuple(block.body.indices),
        value=block.body.value,
        variables=tuple(v.var for v in block.iter_vars),
        extents=tuple(int(v.dom.extent) for v in block.iter_vars),
    )


def _is_elementwise(stage: Stage, extents: list[int], made: list[Any]) -> bool:
    """Whether a stage computes each element of C from the same element of what is `made` in this function."""

    def same(indices: Sequence[Any]) -> bool:
        return len(indices) == len(extents) and all(
            index.same_as(variable) or (extent == 1 and isinstance(index, tirx.IntImm))
            for index, variable, extent in zip(indices, stage.variables, extents, strict=True)
        )

    return (
        list(stage.extents) == extents
        and same(stage.indices)
        and all(same(load.indices) for load in stage.reads() if any(load.source.same_as(buffer) for buffer in made))
    )


def lookup(pairs: list[tuple[Any, Any]], key: Any, default: Any) -> Any:
    """What is paired with `key`. TVM compares nodes by identity; == on them builds an expression."""
    return next((value for known, value in pairs if known.same_as(key)), default)


def substitute(expression: Any, pairs: list[tuple[Any, Any]]) -> Any:
    """`expression` with each variable replaced by what is paired with it."""
    return tvm_ffi.structural_map(expression, (tirx.Var, lambda variable: lookup(pairs, variable, variable)))


def replace_loads(expression: Any, replacement: Callable[[TensorLoad], Any]) -> Any:
    """`expression` with each load replaced by what `replacement` makes of it."""
    return tvm_ffi.structural_map(expression, (TensorLoad, replacement))
