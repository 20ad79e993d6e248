"""A gain and a shift for each channel, from int8 to int8.

    t = q - z_x        y = min(max(rint(float32(t · g_c) + h_c) + z, low), high)

g and h are float32, made at compile time; a bent kernel takes other gains where t is negative. The product is not
contracted with the sum (`multiplied`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.tvm.kernels.integer_elementwise import PARALLEL_ELEMENTS, for_channels
from graphopt.targets.tvm.kernels.requantize import (
    LANES,
    ROUNDER_BITS,
    Instructions,
    Range,
    in_vectors,
    index,
    lanes_of,
    multiplied,
    number_of,
    quantize,
    splat,
    store,
    vector,
    wide,
)


@dataclass(frozen=True)
class IntegerAffine:
    """y of `rows` rows of `channels` elements; `zero_point` is x's, of an int8."""

    rows: int
    channels: int
    zero_point: int
    bent: bool
    bounds: Range


def affine_kernel(affine: IntegerAffine, instructions: Instructions) -> tirx.PrimFunc:
    """The kernel. Parameters, all flat: x int8, gains float32 [channels], those of negative t, shifts, y int8."""
    size = affine.rows * affine.channels
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"op_pattern": 8, "tirx.noalias": True})
        x = T.arg("x", T.buffer((size,), "int8", layout=None))
        names = ("gains", "negative", "shifts") if affine.bent else ("gains", "shifts")
        gains, *negative, shifts = (T.arg(name, T.buffer((affine.channels,), "float32", layout=None)) for name in names)
        y = T.arg("y", T.buffer((size,), "int8", layout=None))

        def number(q: Any, first: Any) -> Any:
            lanes = lanes_of(q)
            at = vector(first, lanes)
            lifted = q + splat(tirx.const(ROUNDER_BITS - affine.zero_point, "int32"), lanes)
            t = T.Bind(number_of(lifted, True))
            gain = gains[at]
            for other in negative:
                gain = tirx.Select(t < splat(tirx.const(0, "float32"), lanes), other[at], gain)
            return T.Bind(multiplied(t, gain, instructions) + shifts[at])

        def part(start: Any, first: Any, lanes: int) -> None:
            q = T.Bind(tirx.Cast(wide("int32", lanes), x[vector(start + first, lanes)]))
            numbers = [number(few, first + LANES * k) for k, few in enumerate(in_vectors(q))]
            store(y, start + first, quantize(numbers, affine.bounds, instructions), lanes)

        parallel = affine.rows > 1 and size >= PARALLEL_ELEMENTS
        with T.sblock("root"), (T.parallel if parallel else T.serial)(index(affine.rows)) as row:
            start = T.Bind(row * affine.channels)
            for_channels(affine.channels, lambda first, lanes: part(start, first, lanes))
    return builder.get()
