"""DynamicQuantizeLinear: the range of a tensor, found at run time, and its 8-bit integers.

    s = (max(x, 0) - min(x, 0)) / 255, or 1 if that is 0        z = rint(min(max(-min(x, 0) / s, 0), 255))
    q = min(max(rint(x / s) + z, 0), 255)

with ties to even, in float32, operation by operation as ONNX Runtime computes it. The signed form, for kernels that
multiply int8, gives q - 128 and z - 128: the same numbers.

On AArch64 a quotient takes three multiply-adds, by the correctly rounded reciprocal r = 1 / s (P. Markstein, IA-64 and
elementary functions, 2000, theorem 8.2). They give the float32 that a division gives, as long as nothing over- or
underflows and the significand of s is not all ones.

    h = x · r        x / s = h + (x - h · s) · r
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
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
            _emit(quantize, instructions, x, y, scale, zero_point)
    return builder.get()


def _emit(quantize: DynamicQuantize, instructions: Instructions, x: Any, y: Any, scale: Any, zero_point: Any) -> None:
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

    def integers(start: Any, lanes: int, divided: Callable[[Any, int], Any]) -> None:
        width = min(LANES, lanes)
        offset = splat(T.Bind(shift - tirx.const(ROUNDER_BITS, "int32")), width)
        parts = []
        for first in range(0, lanes, LANES):
            number = divided(x[vector(start + first, width)], width)
            parts.append(_rounded_bits(number, width) + offset)
        store(y, start, _narrowed(quantize, instructions, parts, lanes), lanes)

    def by_division() -> None:
        _for_blocks(quantize.size, lambda start, lanes: integers(start, lanes, lambda x, w: x / splat(step, w)))

    if not instructions.is_aarch64 or quantize.size < BLOCK:
        by_division()
        return
    reciprocal, opposite = T.Bind(one / step), T.Bind(zero - step)

    def corrected(number: Any, lanes: int) -> Any:
        if lanes == 1:
            return number / step
        return corrected_quotient(T.Bind(number), splat(reciprocal, lanes), splat(opposite, lanes))

    with T.If(_has_reciprocal(step)):
        with T.Then():
            _for_blocks(quantize.size, lambda start, lanes: integers(start, lanes, corrected))
        with T.Else():
            by_division()


def _narrowed(quantize: DynamicQuantize, instructions: Instructions, parts: list[Any], lanes: int) -> Any:
    """8-bit integers of int32 ones, saturated."""
    if instructions.is_aarch64 and lanes == BLOCK:
        name = "sqxtn" if quantize.signed else "sqxtun"
        halves = [T.call_llvm_pure_intrin("int16x4", "llvm.aarch64.neon.sqxtn.v4i16", part) for part in parts]
        pairs = [join(halves[i : i + 2]) for i in range(0, len(halves), 2)]
        eights = [T.call_llvm_pure_intrin("int8x8", f"llvm.aarch64.neon.{name}.v8i8", pair) for pair in pairs]
        narrow = join(eights)
        return narrow if quantize.signed else tirx.reinterpret("uint8x16", narrow)
    least, width = -128 if quantize.signed else 0, min(LANES, lanes)
    low, high = (splat(tirx.const(end, "int32"), width) for end in (least, least + 255))
    bounded = [tirx.Min(tirx.Max(part, low), high) for part in parts]
    return tirx.Cast(wide(quantize.dtype, lanes), join(bounded))


def corrected_quotient(number: Any, reciprocal: Any, opposite: Any) -> Any:
    """number / step as the division rounds it, of four lanes each: the step's rounded reciprocal, and its negative."""
    nearly = T.Bind(number * reciprocal)
    return _fused(_fused(nearly, opposite, number), reciprocal, nearly)


def has_reciprocal(step: np.float32) -> bool:
    """Whether quotients can be corrected: neither tiny nor huge, and its significand is not all ones (theorem 8.2)."""
    return bool(2.0**-100 < step < 2.0**100) and int(step.view(np.int32)) & 0x7FFFFF != 0x7FFFFF


def _has_reciprocal(step: Any) -> Any:
    """The same of a number that is known at run time."""
    ones = tirx.const(0x7FFFFF, "int32")
    full = (tirx.reinterpret("int32", step) & ones) == ones
    inside = tirx.And(step > tirx.const(2.0**-100, "float32"), step < tirx.const(2.0**100, "float32"))
    return tirx.And(inside, tirx.Not(full))


def _fused(a: Any, b: Any, c: Any) -> Any:
    """a · b + c, rounded once."""
    return T.call_llvm_pure_intrin("float32x4", "llvm.fma.v4f32", a, b, c)


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
    return _rounded_bits(number, lanes) - splat(tirx.const(ROUNDER_BITS, "int32"), lanes)


def _rounded_bits(number: Any, lanes: int) -> Any:
    """The same, with ROUNDER_BITS added."""
    return tirx.reinterpret(wide("int32", lanes), number + splat(tirx.const(ROUNDER, "float32"), lanes))
