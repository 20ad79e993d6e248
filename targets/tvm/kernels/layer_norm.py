"""Layer normalization of float32 over the last axes, a row at a time: its mean, its variance, one root and division.

    y[i] = (x[i] − mean) · (1 / √(variance + ε)) · γ[i] + β[i],    variance = Σ (x[i] − mean)² / n

Sums are of sixteen parts, a vector of four each, so that they wait for no addition before.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.tvm.kernels.epilogue import index
from graphopt.targets.tvm.kernels.matmul import is_static_float32
from graphopt.targets.tvm.kernels.row_vectors import VECTORS, elements, for_all, lanes_at, reduced, spread
from graphopt.targets.tvm.kernels.rows import LANES, local_buffer

PARALLEL_ELEMENTS = 1 << 14  # below, waking a thread costs more than it saves


def layer_norm_kernel(rows: int, length: int, epsilon: float) -> tirx.PrimFunc:
    """The kernel. Parameters, all flat: x float32 [rows · length], γ and β [length], y."""
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"op_pattern": 8, "tirx.noalias": True})
        x = T.arg("x", T.buffer((rows * length,), "float32", layout=None))
        gain = T.arg("gain", T.buffer((length,), "float32", layout=None))
        shift = T.arg("shift", T.buffer((length,), "float32", layout=None))
        y = T.arg("y", T.buffer((rows * length,), "float32", layout=None))
        loop = T.parallel if rows > 1 and rows * length >= PARALLEL_ELEMENTS else T.serial
        with T.sblock("root"), loop(index(rows)) as row:
            _row(x, gain, shift, y, T.Bind(row * length), length, epsilon)
    return builder.get()


def _row(x: Any, gain: Any, shift: Any, y: Any, start: Any, length: int, epsilon: float) -> None:
    part = tirx.const(1 / length, "float32")
    mean = T.Bind(_sum("sums", length, lambda i, lanes: x[elements(start + i, lanes)]) * part)

    def square(i: Any, lanes: int) -> Any:
        difference = T.Bind(x[elements(start + i, lanes)] - spread(mean, lanes))
        return difference * difference

    variance = _sum("squares", length, square) * part
    by = T.Bind(tirx.const(1, "float32") / T.sqrt(variance + tirx.const(epsilon, "float32")))

    def normalize(i: Any, lanes: int, _: int) -> None:
        at, of_row = elements(start + i, lanes), elements(i, lanes)
        number = (x[at] - spread(mean, lanes)) * spread(by, lanes)
        T.buffer_store(y, number * gain[of_row] + shift[of_row], [at])

    for_all(length, normalize)


def _sum(name: str, length: int, term: Any) -> Any:
    """Emit a loop; its result is the sum of `term(i, lanes)` over a row."""
    sums = local_buffer(name, VECTORS * LANES)
    for v in range(VECTORS):
        T.buffer_store(sums, spread(tirx.const(0, "float32")), [lanes_at(v * LANES)])

    def add(i: Any, lanes: int, v: int) -> None:
        at = index(v * LANES) if lanes == 1 else lanes_at(v * LANES)
        T.buffer_store(sums, sums[at] + term(i, lanes), [at])

    for_all(length, add)
    return reduced(sums, lambda a, b: a + b)


def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """relax.nn.layer_norm of float32 over the last axes as the kernel; others by TVM's own legalization."""
    rank = len(call.args[0].ty.shape) if call.args[0].ty.shape is not None else 0
    axes = sorted(int(axis) % rank for axis in call.attrs.axes) if rank else []
    attributes = call.attrs
    if not (is_static_float32(call) and axes == list(range(rank - len(axes), rank))) or not (
        attributes.center and attributes.scale
    ):
        return call.op.get_attr("FLegalize")(builder, call)
    shape = [int(extent) for extent in call.ty.shape]
    length = math.prod(shape[axes[0] :])
    made = layer_norm_kernel(math.prod(shape) // length, length, float(attributes.epsilon))
    return relax.call_tir(builder.add_func(made, "layer_norm"), list(call.args), call.ty)


LEGALIZE = {"relax.nn.layer_norm": legalize}
