"""A schedule for any fused kernel: stages inlined, accumulators in registers, outer loops parallel.

Kernels of our own bring their schedules (`kernels/`). Everything else gets this one: not the fastest, but tiled and
vectorized. It asks TVM's scheduler for each step, which refuses what would change the meaning.
"""

from __future__ import annotations

import math
from typing import Any

import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir.expr import TensorLoad

from graphopt.targets.base import TargetDescription
from graphopt.targets.tvm.kernels import SCHEDULES, TILED
from graphopt.targets.tvm.parts import IN_PLACE

PARALLEL_WORK = 1 << 15  # loop iterations below which waking a thread costs more than it saves
PARALLEL_TASKS = 64  # iterations that the threads share evenly enough
VECTOR = 4  # float32 in 128 bits
MAX_TILE = 16  # accumulators along the contiguous axis: four 128-bit registers of float32
ROW_TILE = 4  # accumulators across output channels


def tile_count(function: tirx.PrimFunc, target: TargetDescription) -> int:
    """Among how many tiles `schedule` chooses."""
    counts = (count(function, target) for _, count in TILED)
    return next((found for found in counts if found is not None), 1)


def schedule(function: tirx.PrimFunc, target: TargetDescription, place: int = 0) -> tirx.PrimFunc:
    """`function` scheduled for `target`; loops are reordered and split, the result is the same.

    place: of the tile, if there is a choice, in the order of the model; the last of fewer.
    """
    for tiled, _ in TILED:
        scheduled = tiled(function, target, place)
        if scheduled is not None:
            return scheduled
    for own in SCHEDULES:
        scheduled = own(function, target)
        if scheduled is not None:
            return scheduled
    try:
        made = _default(function)
    except s_tir.ScheduleError:
        made = function  # unscheduled loops are right, and LLVM still vectorizes the innermost
    return made.with_attr("tirx.noalias", False) if _is_in_place(function) else made


def _is_in_place(function: tirx.PrimFunc) -> bool:
    return function.attrs is not None and IN_PLACE in function.attrs


def _default(function: tirx.PrimFunc) -> tirx.PrimFunc:
    sch = s_tir.Schedule(function)
    root = sch.get_sblock("root")
    _inline_stages(sch, root)
    reductions = [block for block in sch.get_child_blocks(root) if _is_reduction(sch, block)]
    for block in sch.get_child_blocks(root):
        if not _is_reduction(sch, block) and not any(_is_reduction(sch, p) for p in sch.get_producers(block)):
            loops = sch.get_loops(block)
            if _is_in_place(function) and loops and _extents(sch, loops[-1:])[0] % VECTOR == 0:
                *loops, last = loops  # as its parameters alias, LLVM would make no vectors
                loops += sch.split(last, [None, VECTOR])
                sch.vectorize(loops[-1])
            _parallelize(sch, loops[:-1], loops[-1:])
    for block in reductions:
        _schedule_reduction(sch, block)
    return sch.mod["main"]


def _extents(sch: s_tir.Schedule, loops: list[Any]) -> list[int]:
    return [int(sch.get(loop).extent) for loop in loops]


def _is_reduction(sch: s_tir.Schedule, block: Any) -> bool:
    return any(iteration.iter_type == tirx.IterVar.CommReduce for iteration in sch.get(block).iter_vars)


def _inline_stages(sch: s_tir.Schedule, root: Any) -> None:
    """Compute element-wise stages in their consumers, where those are element-wise too: no stage between runs twice."""
    for block in sch.get_child_blocks(root):
        consumers = sch.get_consumers(block)
        if not consumers or _is_reduction(sch, block):
            continue
        if _is_copy(sch, block) or not any(_is_reduction(sch, c) for c in consumers):
            try:
                sch.compute_inline(block)
            except s_tir.ScheduleError:
                continue  # read by several consumers in forms that cannot be inlined


def _is_copy(sch: s_tir.Schedule, block: Any) -> bool:
    body = sch.get(block).body
    return isinstance(body, tirx.BufferStore) and isinstance(body.value, TensorLoad)


def _divisor(extent: int, most: int) -> int:
    """The largest divisor up to `most`; whole vectors, where there are any."""
    divisors = [d for d in range(1, min(extent, most) + 1) if extent % d == 0]
    return max(divisors, key=lambda d: (d % VECTOR == 0, d))


def _schedule_reduction(sch: s_tir.Schedule, block: Any) -> None:
    """Give a reduction a tile of accumulators in registers, and its consumer the same tile."""
    shape = [int(e) for e in sch.get(block).writes[0].source.ty.shape]
    if math.prod(shape) == 1 or _reduces_contiguous(sch, block) or not _reduction_rank(sch, block, 2):
        loops = sch.get_loops(block)
        rank = _reduction_rank(sch, block)
        _parallelize(sch, loops[:-rank], loops[-rank:])
        return
    consumers = sch.get_consumers(block)
    fits = len(consumers) == 1 and not _is_reduction(sch, consumers[0]) and _same_space(sch, block, consumers[0])
    if not fits:
        sch.cache_write(block, 0, "local")
    epilogue = sch.get_consumers(block)[0]
    spatial = sch.get_loops(epilogue)
    extents = _extents(sch, spatial)
    outer_columns, columns = sch.split(spatial[-1], [None, _divisor(extents[-1], MAX_TILE)])
    order, inner = [*spatial[:-1], outer_columns], [columns]
    channel = 1 if len(spatial) >= 4 else len(spatial) - 2
    if channel >= 0 and extents[channel] > 1:
        order[channel], rows = sch.split(spatial[channel], [None, _divisor(extents[channel], ROW_TILE)])
        inner.insert(0, rows)
    sch.reorder(*order, *inner)
    sch.compute_at(block, order[-1])
    sch.set_scope(block, 0, "local")
    loops = sch.get_loops(block)[len(order) :]
    rank = _reduction_rank(sch, block, 2)  # compute_at drops loops of extent 1
    tile, reduction = loops[:-rank], loops[-rank:]
    sch.reorder(*reduction, *tile)
    _parallelize(sch, order, [*reduction, *tile])
    _in_registers(sch, tile)
    _in_registers(sch, inner)
    sch.decompose_reduction(block, reduction[0])


def _in_registers(sch: s_tir.Schedule, tile: list[Any]) -> None:
    """Unroll a tile, and vectorize along its last loop: LLVM then keeps the accumulators in registers."""
    for loop in tile[:-1]:
        sch.unroll(loop)
    if tile and _extents(sch, tile[-1:])[0] % VECTOR == 0:
        sch.vectorize(tile[-1])
    elif tile:
        sch.unroll(tile[-1])


def _reduction_rank(sch: s_tir.Schedule, block: Any, least: int = 1) -> int:
    """How many reduction variables of at least that extent a block has."""
    return sum(
        iteration.iter_type == tirx.IterVar.CommReduce and int(iteration.dom.extent) >= least
        for iteration in sch.get(block).iter_vars
    )


def _same_space(sch: s_tir.Schedule, block: Any, consumer: Any) -> bool:
    shape = [int(e) for e in sch.get(block).writes[0].source.ty.shape]
    return shape == _extents(sch, sch.get_loops(consumer))


def _reduces_contiguous(sch: s_tir.Schedule, block: Any) -> bool:
    """Whether no operand is read along its last axis by the last spatial variable: a tile of it would gather."""
    definition = sch.get(block)
    spatial = [i.var for i in definition.iter_vars if i.iter_type == tirx.IterVar.DataPar]
    indices = [region.region[-1].min for region in definition.reads if region.region]
    return not spatial or not any(_reads(index, spatial[-1]) for index in indices)


def _reads(expression: Any, variable: Any) -> bool:
    found: list[bool] = []

    def note(other: Any) -> None:
        found.append(other.same_as(variable))

    tvm_ffi.structural_walk(expression, (tirx.Var, note))
    return any(found)


def _parallelize(sch: s_tir.Schedule, spatial: list[Any], rest: list[Any]) -> None:
    """Run the outermost of the spatial loops in parallel, where the work is worth it."""
    if math.prod(_extents(sch, [*spatial, *rest])) < PARALLEL_WORK:
        return
    outer: list[Any] = []
    for loop in spatial:
        if math.prod(_extents(sch, outer)) >= PARALLEL_TASKS:
            break
        outer.append(loop)
    if outer:
        sch.parallel(sch.fuse(*outer))
