"""Layer normalization over the last axes from int8 to int8.

With t_i = n q_i − Σ q and V = n Σ q² − (Σ q)², which are integers and exact, and ε' = ε n² / s_x²,

    (x_i − mean) / √(variance + ε)  =  t_i / √(V + ε')

    r = float32(1 / √(V + ε')), in float64
    y_i = min(max(rint(float32(float32(float32(t_i) · r) · γ_i / s_y) + β_i / s_y) + z, low), high)

γ_i / s_y and β_i / s_y are float32 made at compile time. No product is contracted with a sum (`multiplied`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.tvm.kernels.requantize import (
    LANES,
    ROUNDER_BITS,
    Instructions,
    Range,
    in_vectors,
    index,
    multiplied,
    number_of,
    quantize,
    splat,
    vector,
)

VECTOR = 16
LONGEST = 1 << 17  # of a row: n Σ q² and its like stay below 2⁵³, n q below 2³¹
LIFTED = (1 << 22) // 256  # of a row: |t| < 2²²
PARALLEL_ELEMENTS = 1 << 14


@dataclass(frozen=True)
class IntegerLayerNorm:
    """y of `rows` rows of `length` elements; `epsilon` is ε'."""

    rows: int
    length: int
    epsilon: float
    bounds: Range


def layer_norm_kernel(norm: IntegerLayerNorm, instructions: Instructions) -> tirx.PrimFunc:
    """The kernel. Parameters, all flat: x int8, γ / s_y and β / s_y float32 [length], y int8."""
    size = norm.rows * norm.length
    parallel = norm.rows > 1 and size >= PARALLEL_ELEMENTS
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"op_pattern": 8, "tirx.noalias": True})
        x = T.arg("x", T.buffer((size,), "int8", layout=None))
        gain = T.arg("gain", T.buffer((norm.length,), "float32", layout=None))
        shift = T.arg("shift", T.buffer((norm.length,), "float32", layout=None))
        y = T.arg("y", T.buffer((size,), "int8", layout=None))
        with T.sblock("root"), (T.parallel if parallel else T.serial)(index(norm.rows)) as row:
            _row(norm, instructions, x, gain, shift, y, T.Bind(row * norm.length))
    return builder.get()


def _row(norm: IntegerLayerNorm, instructions: Instructions, x: Any, gain: Any, shift: Any, y: Any, start: Any) -> None:
    length, whole = norm.length, norm.length // VECTOR
    total, squares = (T.Bind(value) for value in _sums(x, start, length, instructions))
    wide = T.Bind(tirx.Cast("int64", total))
    spread = tirx.Cast("int64", squares) * tirx.const(length, "int64") - wide * wide
    deviation = T.sqrt(tirx.Cast("float64", spread) + tirx.const(norm.epsilon, "float64"))
    by = T.Bind(tirx.Cast("float32", tirx.const(1, "float64") / deviation))
    lifted = length <= LIFTED
    begin = T.Bind(tirx.const(ROUNDER_BITS if lifted else 0, "int32") - total)

    def normalized(first: Any, q: Any, lanes: int) -> Any:
        t = q * splat(tirx.const(length, "int32"), lanes) + splat(begin, lanes)
        number = multiplied(number_of(t, lifted), splat(by, lanes), instructions)
        at = vector(first, lanes)
        return multiplied(number, gain[at], instructions) + shift[at]

    if whole:
        with T.serial(index(whole)) as block:
            first = block * VECTOR
            integers = T.Bind(tirx.Cast("int32x16", x[vector(start + first, VECTOR)]))
            made = [T.Bind(normalized(first + LANES * k, q, LANES)) for k, q in enumerate(in_vectors(integers))]
            T.buffer_store(y, quantize(made, norm.bounds, instructions), [vector(start + first, VECTOR)])
    for i in range(whole * VECTOR, length):
        one = normalized(index(i), tirx.Cast("int32", x[start + i]), 1)
        T.buffer_store(y, quantize([T.Bind(one)], norm.bounds, instructions), [start + i])


def _sums(x: Any, start: Any, length: int, instructions: Instructions) -> tuple[Any, Any]:
    """Σ q and Σ q², int32."""
    whole = length // VECTOR
    sums = IRBuilder.name("sums", T.alloc_buffer((2 * LANES,), "int32", scope="local", layout=None))
    plain, squared = vector(0, LANES), vector(LANES, LANES)
    total, squares = tirx.const(0, "int32"), tirx.const(0, "int32")
    if whole:
        for at in (plain, squared):
            T.buffer_store(sums, splat(tirx.const(0, "int32"), LANES), [at])
        with T.serial(index(whole)) as block:
            q = T.Bind(x[vector(start + block * VECTOR, VECTOR)])
            ones = splat(tirx.const(1, "int8"), VECTOR)
            T.buffer_store(sums, _add_products(sums[plain], q, ones, instructions), [plain])
            T.buffer_store(sums, _add_products(sums[squared], q, q, instructions), [squared])
        for lane in range(LANES):
            total, squares = total + sums[index(lane)], squares + sums[index(LANES + lane)]
    for i in range(whole * VECTOR, length):
        q = T.Bind(tirx.Cast("int32", x[start + i]))
        total, squares = total + q, squares + q * q
    return total, squares


def _add_products(sums: Any, a: Any, b: Any, instructions: Instructions) -> Any:
    """Sums, int32x4, with the products of 16 int8 added, in any order."""
    if instructions.has_sdot:
        return T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.sdot.v4i32.v16i8", sums, a, b)
    products = T.Bind(tirx.Cast("int16x16", a) * tirx.Cast("int16x16", b))
    for four in in_vectors(products):
        sums = sums + tirx.Cast("int32x4", four)
    return sums


def epsilon_of(epsilon: float, scale: float, length: int) -> float:
    """ε' of a scale."""
    return epsilon * length * length / (scale * scale)
