"""From int32 sums to int8: the one rounding of an integer layer, the same on every machine.

    y = min(max(rint(float32(a) · m) + z, low), high)

a: int32, the sum of products with the bias in it. float32(a) rounds to nearest, ties to even, and so does rint. m:
float32, one for each channel. z, low and high: within the range of int8; low and high hold the activation too.
The product is rounded to float32 before rint: nothing here may be contracted into a fused multiply-add.

Sums are `lifted` where they are known to be small: they begin at ROUNDER_BITS, the bits of the float32 R = 1.5 · 2^23.
Those bits plus a, read as a float32, are R + a exactly as long as |a| < 2^22, so that a subtraction makes float32(a).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.base import TargetDescription

LANES = 4  # int32 in 128 bits
# Adding 1.5 · 2^23 leaves the integer nearest to a small float32, ties to even, in the low bits of the sum.
ROUNDER = 12582912.0
ROUNDER_BITS = 0x4B400000


class Instructions(StrEnum):
    """What integer kernels are written with."""

    PORTABLE = "portable"  # vectors that LLVM maps to what there is
    ARMV7 = "armv7"  # NEON of 32 bits: that, but for sums of products
    NEON = "neon"  # AArch64 without the dot product
    DOTPROD = "dotprod"  # AArch64 with sdot
    I8MM = "i8mm"  # and with smmla

    @property
    def is_aarch64(self) -> bool:
        return self not in (Instructions.PORTABLE, Instructions.ARMV7)

    @property
    def has_sdot(self) -> bool:
        return self in (Instructions.DOTPROD, Instructions.I8MM)


def instructions_of(target: TargetDescription) -> Instructions:
    """The best that a core has."""
    if not target.triple.startswith(("aarch64", "arm64")):
        armv7 = target.triple.startswith("armv7") and "neon" in target.features
        return Instructions.ARMV7 if armv7 else Instructions.PORTABLE
    if "dotprod" not in target.features:
        return Instructions.NEON
    return Instructions.I8MM if "i8mm" in target.features else Instructions.DOTPROD


@dataclass(frozen=True)
class Range:
    """What the integers of a layer's result may be: the zero point, and the bounds, all within int8."""

    zero_point: int
    low: int = -128
    high: int = 127


def index(value: int) -> Any:
    """An index constant; TE's indices are int64 as well."""
    return tirx.const(value, "int64")


def keep_in_memory(instructions: Instructions) -> None:
    """A nop that may write to any memory, as far as LLVM knows, of a kernel whose parameters are not `noalias`.

    Without it LLVM moves what the tiles of a loop have in common, weights above all, out of the loop: more than there
    are registers, which it then stores to the stack, and sums with them. Loads that follow it stay in the loop.
    """
    if instructions is not Instructions.PORTABLE:
        name = "llvm.aarch64.hint" if instructions.is_aarch64 else "llvm.arm.hint"
        T.evaluate(T.call_llvm_intrin("void", name, tirx.const(0, "int32")))


def vector(start: Any, lanes: int) -> Any:
    """The index of `lanes` elements from `start` on; a plain index for one."""
    start = index(start) if isinstance(start, int) else start
    return start if lanes == 1 else tirx.Ramp(start, index(1), lanes)


def splat(value: Any, lanes: int) -> Any:
    """`value` in every lane."""
    return value if lanes == 1 else tirx.Broadcast(value, lanes)


def wide(dtype: str, lanes: int) -> str:
    """The name of a vector type."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def may_be_lifted(largest: np.ndarray, multipliers: np.ndarray) -> bool:
    """Whether sums of absolute values up to `largest` may be lifted: they and their results are small enough.

    A result with its zero point has to fit int16, of which 256 are left for the zero point and for rounding.
    """
    results = largest.astype(np.float64) * multipliers
    return bool(largest.max(initial=0) < 1 << 22 and results.max(initial=0) < (1 << 15) - 256)


def requantize(
    sums: list[Any], multipliers: list[Any], bounds: Range, instructions: Instructions, lifted: bool = False
) -> Any:
    """int8 results of int32 sums, given as vectors of LANES each; the result is one vector of them all.

    A single scalar is taken too, in a list of one; so is one vector of any width where `instructions` are portable.
    """
    if not instructions.is_aarch64 or not _are_vectors(sums):
        return _portably(sums, multipliers, bounds, lifted)
    return (_lifted_by_neon if lifted else _by_neon)(sums, multipliers, bounds)


def _are_vectors(sums: list[Any]) -> bool:
    return all(lanes_of(total) == LANES for total in sums)


def lanes_of(expression: Any) -> int:
    """How many lanes a TIR expression has."""
    return int(str(expression.ty.dtype).partition("x")[2] or 1)


def quantize(numbers: list[Any], bounds: Range, instructions: Instructions) -> Any:
    """int8 of float32 numbers, in steps of the result, given as for `requantize`; none is the bare product of two."""
    if not instructions.is_aarch64 or not _are_vectors(numbers):
        return join([_round_and_bound(number, bounds) for number in numbers])
    return _round_by_neon(numbers, bounds)


def multiplied(a: Any, b: Any, instructions: Instructions) -> Any:
    """a · b as a float32 that is not contracted with a sum. Beyond ±2³⁰ it may be anything beyond, of its sign."""
    if instructions.is_aarch64 and lanes_of(a) == LANES:
        return T.call_llvm_pure_intrin("float32x4", "llvm.aarch64.neon.fmulx.v4f32", a, b)
    limit = splat(tirx.const(2.0**30, "float32"), lanes_of(a))
    return tirx.Max(tirx.Min(a * b, limit), -limit)


def _portably(sums: list[Any], multipliers: list[Any], bounds: Range, lifted: bool) -> Any:
    numbers = [number_of(total, lifted) * multiplier for total, multiplier in zip(sums, multipliers, strict=True)]
    return join([_round_and_bound(number, bounds) for number in numbers])


def number_of(total: Any, lifted: bool) -> Any:
    """float32(a) of a sum."""
    return _lowered(total) if lifted else tirx.Cast(wide("float32", lanes_of(total)), total)


def _round_and_bound(scaled: Any, bounds: Range) -> Any:
    lanes = lanes_of(scaled)

    def number(value: float, dtype: str = "float32") -> Any:
        return splat(tirx.const(value, dtype), lanes)

    # Bounded before it is rounded, which is the same for integer bounds; it also keeps LLVM, which TVM allows to,
    # from contracting the multiplication and the addition.
    scaled = tirx.Max(scaled, number(bounds.low - bounds.zero_point))
    scaled = tirx.Min(scaled, number(bounds.high - bounds.zero_point))
    bits = tirx.reinterpret(wide("int32", lanes), scaled + number(ROUNDER))
    shift = bounds.zero_point - ROUNDER_BITS
    return tirx.Cast(wide("int8", lanes), bits + number(shift, "int32"))


def _lowered(total: Any) -> Any:
    """float32(a) of a lifted sum."""
    lanes = lanes_of(total)
    return tirx.reinterpret(wide("float32", lanes), total) - splat(tirx.const(ROUNDER, "float32"), lanes)


def _by_neon(sums: list[Any], multipliers: list[Any], bounds: Range) -> Any:
    """scvtf, fmulx, fadd, sqsub, sqxtn, sqadd, sqxtn: the integers saturate, so that the result does.

    fcvtns would do for fadd and sqsub, but it takes the one multiplier of a Cortex-A76 for two cycles. fmulx is fmul,
    except for 0 · ∞, and LLVM does not contract it with the addition. A float of 2^22 and more leaves other bits than
    its integer's, but on the same side of what int16 holds: floats are ordered as their bits are.
    """
    pairs = zip(sums, multipliers, strict=True)
    return _round_by_neon([multiplied(number_of(total, False), by, Instructions.NEON) for total, by in pairs], bounds)


def _round_by_neon(numbers: list[Any], bounds: Range) -> Any:
    halves = []
    for scaled in numbers:
        bits = tirx.reinterpret("int32x4", scaled + splat(tirx.const(ROUNDER, "float32"), LANES))
        rounder = splat(tirx.const(ROUNDER_BITS, "int32"), LANES)
        rounded = T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.sqsub.v4i32", bits, rounder)
        halves.append(T.call_llvm_pure_intrin("int16x4", "llvm.aarch64.neon.sqxtn.v4i16", rounded))
    pairs = [join(halves[i : i + 2] if i + 1 < len(halves) else [halves[i]] * 2) for i in range(0, len(halves), 2)]
    return _narrowed(pairs, len(halves), bounds.zero_point, bounds)


def _lifted_by_neon(sums: list[Any], multipliers: list[Any], bounds: Range) -> Any:
    """fsub, fmulx, fadd, uzp1, sqxtn. The low halves of the sum's bits are the integer: those of ROUNDER_BITS are 0.

    An even zero point is in what is added: integers are rounded to even, and stay even by it. An odd one comes later.
    """
    folded = bounds.zero_point if bounds.zero_point % 2 == 0 else 0
    halves = []
    for total, multiplier in zip(sums, multipliers, strict=True):
        scaled = T.call_llvm_pure_intrin("float32x4", "llvm.aarch64.neon.fmulx.v4f32", _lowered(total), multiplier)
        rounded = scaled + splat(tirx.const(ROUNDER + folded, "float32"), LANES)
        halves.append(T.Bind(tirx.reinterpret("int16x8", rounded)))
    low = [tirx.const(2 * lane, "int32") for lane in range(8)]
    pairs = [tirx.Shuffle([halves[i], halves[min(i + 1, len(halves) - 1)]], low) for i in range(0, len(halves), 2)]
    return _narrowed(pairs, len(halves), bounds.zero_point - folded, bounds)


def _narrowed(pairs: list[Any], vectors: int, zero_point: int, bounds: Range) -> Any:
    """int8 of vectors of eight int16, which hold `vectors` of LANES; `zero_point` is added on the way."""
    parts = []
    for i, pair in enumerate(pairs):
        both = pair
        if zero_point:
            more = splat(tirx.const(zero_point, "int16"), 8)
            both = T.call_llvm_pure_intrin("int16x8", "llvm.aarch64.neon.sqadd.v8i16", pair, more)
        narrow = T.call_llvm_pure_intrin("int8x8", "llvm.aarch64.neon.sqxtn.v8i8", both)
        if 2 * i + 1 == vectors:
            narrow = cut(narrow, 0, LANES)
        parts.append(narrow)
    result = join(parts)
    lanes = lanes_of(result)
    if bounds.low > -128:
        result = tirx.Max(result, splat(tirx.const(bounds.low, "int8"), lanes))
    if bounds.high < 127:
        result = tirx.Min(result, splat(tirx.const(bounds.high, "int8"), lanes))
    return result


def join(parts: list[Any]) -> Any:
    """Vectors of one type after each other in one vector; the widths of all but the last are equal."""
    while len(parts) > 1:
        joined = []
        for i in range(0, len(parts) - 1, 2):
            lanes = lanes_of(parts[i]) + lanes_of(parts[i + 1])
            joined.append(tirx.Shuffle(parts[i : i + 2], [tirx.const(lane, "int32") for lane in range(lanes)]))
        if len(parts) % 2:
            joined.append(parts[-1])
        parts = joined
    return parts[0]


def cut(value: Any, start: int, lanes: int) -> Any:
    """`lanes` lanes of a vector from `start` on."""
    if lanes == lanes_of(value):
        return value
    return tirx.Shuffle([value], [tirx.const(start + lane, "int32") for lane in range(lanes)])


def in_vectors(value: Any) -> list[Any]:
    """A vector as vectors of LANES; a scalar as it is."""
    lanes = lanes_of(value)
    return [cut(value, first, min(lanes, LANES)) for first in range(0, lanes, LANES)]


def store(buffer: Any, start: Any, value: Any, lanes: int) -> None:
    """Store the first `lanes` lanes of a vector, in as few stores as there are powers of two in their number."""
    value = T.Bind(value)
    at = 0
    while at < lanes:
        size = 1 << ((lanes - at).bit_length() - 1)
        T.buffer_store(buffer, cut(value, at, size), [vector(start + at, size)])
        at += size
