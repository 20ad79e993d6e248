"""Softmax of float32 along the last axis, a row at a time: its maximum, exponentials and their sum, one division.

    y[i] = e(x[i] − max x) · (1 / Σ_j e(x[j] − max x))

The exponential is a power of 2 and a polynomial. With n = rint(x / ln 2) and r = x − n ln 2, which lies in ±0.3467,

    e(x) = 2ⁿ · (1 + r + r² (c₂ + c₃ r + c₄ r² + c₅ r³))

The coefficients are minimax in the relative error (by Lawson's iteration), 1.1e-7 at most before rounding; a test holds
the result to 3e-7. ln 2 is split in two so that n ln 2 is exact without a fused multiply-add (W. Cody and W. Waite,
Software manual for the elementary functions, 1980, chapter 6). Below −87.3 the result is that of −87.3, about 1e-38.
A row with a NaN or +∞, or of nothing but −∞, is NaN, as it is for ONNX Runtime.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.tvm.kernels.epilogue import index
from graphopt.targets.tvm.kernels.row_vectors import VECTORS, elements, for_all, lanes_at, reduced, spread
from graphopt.targets.tvm.kernels.rows import LANES, local_buffer

PARALLEL_ELEMENTS = 1 << 14  # below, waking a thread costs more than it saves

_LEAST = -87.3
_ROUNDER = 12582912.0  # 1.5 · 2²³: a sum with it has no fraction, and its lowest bits hold the integer
_ROUNDER_BITS = 0x4B400000
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
COEFFICIENTS = (0.4999923, 0.16667115, 0.04189033, 0.0083125)


def softmax_kernel(rows: int, length: int) -> tirx.PrimFunc:
    """The kernel. Parameters, both flat: x float32 [rows · length], y."""
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"op_pattern": 8, "tirx.noalias": True})
        x = T.arg("x", T.buffer((rows * length,), "float32", layout=None))
        y = T.arg("y", T.buffer((rows * length,), "float32", layout=None))
        with T.sblock("root"):  # TVM looks for one in a kernel of one input
            loop = T.parallel if rows > 1 and rows * length >= PARALLEL_ELEMENTS else T.serial
            with loop(index(rows)) as row:
                _row(x, y, T.Bind(row * length), length)
    return builder.get()


def _row(x: Any, y: Any, start: Any, length: int) -> None:
    largest = local_buffer("largest", VECTORS * LANES)
    sums = local_buffer("sums", VECTORS * LANES)
    for v in range(VECTORS):
        T.buffer_store(largest, spread(tirx.const(-math.inf, "float32")), [lanes_at(v * LANES)])
        T.buffer_store(sums, spread(tirx.const(0, "float32")), [lanes_at(v * LANES)])

    def widen(i: Any, lanes: int, v: int) -> None:
        at = index(v * LANES) if lanes == 1 else lanes_at(v * LANES)
        T.buffer_store(largest, tirx.Max(largest[at], x[elements(start + i, lanes)]), [at])

    for_all(length, widen)
    top = reduced(largest, tirx.Max)

    def exponential(i: Any, lanes: int, v: int) -> None:
        at = index(v * LANES) if lanes == 1 else lanes_at(v * LANES)
        made = _exponential(x[elements(start + i, lanes)] - spread(top, lanes), lanes)
        T.buffer_store(y, made, [elements(start + i, lanes)])
        T.buffer_store(sums, sums[at] + made, [at])

    for_all(length, exponential)
    scale = T.Bind(tirx.const(1, "float32") / reduced(sums, lambda a, b: a + b))

    def divide(i: Any, lanes: int, _: int) -> None:
        at = elements(start + i, lanes)
        T.buffer_store(y, y[at] * spread(scale, lanes), [at])

    for_all(length, divide)


def _exponential(x: Any, lanes: int) -> Any:
    """e to the power of x, not above 0."""

    def constant(value: float) -> Any:
        return spread(tirx.const(value, "float32"), lanes)

    least = constant(_LEAST)
    x = T.Bind(tirx.Select(x < least, least, x))  # by a comparison: NaN stays NaN, which a maximum would lose
    shifted = T.Bind(x * constant(1 / math.log(2)) + constant(_ROUNDER))
    integer = "int32" if lanes == 1 else f"int32x{lanes}"
    number = "float32" if lanes == 1 else f"float32x{lanes}"
    bits = T.Bind(tirx.reinterpret(integer, shifted))
    # by integers: TVM simplifies a + b - b to a, floats or not
    n = T.Bind(tirx.Cast(number, bits - spread(tirx.const(_ROUNDER_BITS, "int32"), lanes)))
    r = T.Bind(x - n * constant(LN2_HIGH) - n * constant(LN2_LOW))
    square = T.Bind(r * r)
    c2, c3, c4, c5 = map(constant, COEFFICIENTS)
    inner = c2 + c3 * r + square * (c4 + c5 * r)
    power = T.Bind(constant(1) + r + square * inner)
    exponent = bits << spread(tirx.const(23, "int32"), lanes)
    return T.Bind(tirx.reinterpret(number, tirx.reinterpret(integer, power) + exponent))


def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """relax.nn.softmax of float32 along the last axis as the kernel; others by TVM's own legalization."""
    shape = call.ty.shape
    axis = int(call.attrs.axis)
    static = shape is not None and all(isinstance(extent, tirx.IntImm) and int(extent) > 0 for extent in shape)
    if str(call.ty.dtype.dtype) != "float32" or not static or axis not in (-1, len(shape) - 1):
        return call.op.get_attr("FLegalize")(builder, call)
    sizes = [int(extent) for extent in shape]
    kernel = builder.add_func(softmax_kernel(math.prod(sizes[:-1]), sizes[-1]), "softmax")
    return relax.call_tir(kernel, [call.args[0]], call.ty)


LEGALIZE = {"relax.nn.softmax": legalize}
