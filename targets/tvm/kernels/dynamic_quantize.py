"""DynamicQuantizeLinear: the range of a tensor, found at run time, and its 8-bit integers.

    s = (max(x, 0) - min(x, 0)) / 255, or 1 if that is 0        z = rint(min(max(-min(x, 0) / s, 0), 255))
    q = min(max(rint(x / s) + z, 0), 255)

with ties to even, in float32, operation by operation as ONNX Runtime computes it. The signed form, for kernels that
multiply int8, gives q - 128 and z - 128: the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.tvm.kernels.requantize import (
    LANES,
    ROUNDER,
    ROUNDER_BITS,
    Instructions,
    index,
    join,
    splat,
    store,
    vector,
    wide,
)

BLOCK = 16  # elements at a time: a vector of int8


@dataclass(frozen=True)
class DynamicQuantize:
    """Of `size` elements; the results are uint8 integers, float32 scale, uint8 zero point, or, `signed`, int8 ones."""

    size: int
    signed: bool

    @property
    def dtype(self) -> str:
        return "int8" if self.signed else "uint8"


def dynamic_quantize_kernel(quantize: DynamicQuantize, instructions: Instructions) -> tirx.PrimFunc:
    """The kernel. Parameters, all flat: x float32, integers, scale [1], zero point [1]."""
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"op_pattern": 8, "tirx.noalias": True})
        x = T.arg("x", T.buffer((max(quantize.size, 1),), "float32", layout=None))
        y = T.arg("y", T.buffer((max(quantize.size, 1),), quantize.dtype, layout=None))
        scale = T.arg("scale", T.buffer((1,), "float32", layout=None))
        zero_point = T.arg("zero_point", T.buffer((1,), quantize.dtype, layout=None))
        with T.sblock("root"):  # TVM looks for one in a kernel of one input
            _emit(quantize, x, y, scale, zero_point)
    return builder.get()


def _emit(quantize: DynamicQuantize, x: Any, y: Any, scale: Any, zero_point: Any) -> None:
    ends = IRBuilder.name("ends", T.alloc_buffer((2,), "float32", scope="local", layout=None))
    _find_ends(quantize.size, x, ends)
    low, high = T.Bind(ends[0]), T.Bind(ends[1])
    one, zero = tirx.const(1, "float32"), tirx.const(0, "float32")
    step = T.Bind(tirx.Select(low == high, one, (high - low) / tirx.const(255, "float32")))
    place = tirx.Min(tirx.Max(zero - low / step, zero), tirx.const(255, "float32"))
    level = T.Bind(_rounded(place, 1))
    shift = T.Bind(level - tirx.const(128, "int32") if quantize.signed else level)
    T.buffer_store(scale, step, [index(0)])
    T.buffer_store(zero_point, tirx.Cast(quantize.dtype, shift), [index(0)])
    least = -128 if quantize.signed else 0

    def integers(start: Any, lanes: int) -> None:
        parts = []
        for first in range(0, lanes, LANES):
            width = min(LANES, lanes)
            steps = _rounded(x[vector(start + first, width)] / splat(step, width), width) + splat(shift, width)
            steps = tirx.Max(steps, splat(tirx.const(least, "int32"), width))
            steps = tirx.Min(steps, splat(tirx.const(least + 255, "int32"), width))
            parts.append(steps)
        store(y, start, tirx.Cast(wide(quantize.dtype, lanes), join(parts)), lanes)

    _for_blocks(quantize.size, integers)


def _find_ends(size: int, x: Any, ends: Any) -> None:
    """Store the least and the largest of the elements and 0."""
    zero = tirx.const(0, "float32")
    names = ("lows", "highs")
    lows, highs = (
        IRBuilder.name(name, T.alloc_buffer((BLOCK,), "float32", scope="local", layout=None)) for name in names
    )
    for first in range(0, BLOCK, LANES):
        for buffer in (lows, highs):
            T.buffer_store(buffer, splat(zero, LANES), [vector(first, LANES)])

    def widen(start: Any, lanes: int) -> None:
        for first in range(0, lanes, LANES):
            width = min(LANES, lanes)
            at = vector(first, width)
            found = T.Bind(x[vector(start + first, width)])
            T.buffer_store(lows, tirx.Min(lows[at], found), [at])
            T.buffer_store(highs, tirx.Max(highs[at], found), [at])

    _for_blocks(size, widen)
    T.buffer_store(ends, lows[0], [index(0)])
    T.buffer_store(ends, highs[0], [index(1)])
    for lane in range(1, BLOCK):
        T.buffer_store(ends, tirx.Min(ends[0], lows[lane]), [index(0)])
        T.buffer_store(ends, tirx.Max(ends[1], highs[lane]), [index(1)])


def _for_blocks(size: int, body: Callable[[Any, int], None]) -> None:
    """Emit `body(start, lanes)` for whole blocks, then element by element for the rest."""
    whole, rest = divmod(size, BLOCK)
    if whole:
        with T.serial(index(whole)) as block:
            body(block * BLOCK, BLOCK)
    if rest:
        with T.serial(index(rest)) as element:
            body(element + whole * BLOCK, 1)


def _rounded(number: Any, lanes: int) -> Any:
    """The nearest int32, ties to even, of a float32 whose magnitude is below 2^22."""
    bits = tirx.reinterpret(wide("int32", lanes), number + splat(tirx.const(ROUNDER, "float32"), lanes))
    return bits - splat(tirx.const(ROUNDER_BITS, "int32"), lanes)
