"""Concatenation of int8 tensors along their last axis: vectors of each in turn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.tvm.kernels.integer_elementwise import for_channels
from graphopt.targets.tvm.kernels.requantize import Instructions, index, vector

PARALLEL_BYTES = 1 << 17


@dataclass(frozen=True)
class IntegerConcat:
    """[rows, Σ widths] of tensors [rows, width], one for each of `widths`."""

    rows: int
    widths: tuple[int, ...]


def concat_kernel(concat: IntegerConcat, _instructions: Instructions) -> tirx.PrimFunc:
    """The kernel. Parameters, flat: an int8 for each of the widths, y int8."""
    width = sum(concat.widths)
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"op_pattern": 8, "tirx.noalias": True})
        parts = [
            T.arg(f"x{i}", T.buffer((concat.rows * each,), "int8", layout=None)) for i, each in enumerate(concat.widths)
        ]
        y = T.arg("y", T.buffer((concat.rows * width,), "int8", layout=None))

        def emit_copy(part: Any, start: Any, at: Any, count: int) -> None:
            def copy(first: Any, lanes: int) -> None:
                T.buffer_store(y, part[vector(start + first, lanes)], [vector(at + first, lanes)])

            for_channels(count, copy)

        loop = T.parallel if concat.rows * width >= PARALLEL_BYTES else T.serial
        with T.sblock("root"), loop(index(concat.rows)) as row:
            before = 0
            for part, each in zip(parts, concat.widths, strict=True):
                start, at = T.Bind(row * each), T.Bind(row * width + before)
                emit_copy(part, start, at, each)
                before += each
    return builder.get()
