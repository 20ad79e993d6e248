"""MatMul of two activations as an integer kernel, as attention has it.

    y = s_a s_b / s_y · Σ_k (q_a − z_a)(q_b − z_b)

The sum is an int32; what becomes of it is what `products` says of constant weights.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from graphopt.targets.tvm.kernels.integer import describe
from graphopt.targets.tvm.kernels.integer_batch_product import IntegerBatchProduct, Operand
from graphopt.targets.tvm.kernels.requantize import Range, may_be_lifted
from graphopt.targets.tvm.quantized.cluster import Cluster
from graphopt.targets.tvm.quantized.conversion import KERNEL
from graphopt.targets.tvm.quantized.editor import DOMAIN, Editor, put_in_place, shape_of
from graphopt.targets.tvm.quantized.emission import emit_kernel
from graphopt.targets.tvm.quantized.parameters import INT8, UINT8, Quantized, constant, dequantized
from graphopt.targets.tvm.quantized.views import View, view_of

INT32_MAX = 2**31 - 1


def is_activation_product(node: ir.Node) -> bool:
    """Whether a product is a MatMul whose right factor is no constant matrix."""
    b = dequantized(node.inputs[1]) if node.op_type == "MatMul" else None
    array = None if b is None else constant(b.integers)
    return b is not None and (array is None or array.ndim != 2)


def rewrite_activation_product(cluster: Cluster, editor: Editor) -> str | None:
    """MatMul of two activations with an int8 result: replaced, or why not."""
    found = _product(cluster.node, editor, cluster.result.scale, cluster.bounds)
    if isinstance(found, str):
        return found
    kernel, sources = found
    made = emit_kernel(cluster, editor, kernel, sources, shape_of(cluster.result.integers))
    editor.replace(cluster.result.integers, made, channels_last=False)
    return None


def rewrite_activation_product_to_float(node: ir.Node, editor: Editor) -> str | None:
    """MatMul of two activations with a float32 result: replaced, or why not."""
    found = _product(node, editor, np.asarray(1, np.float32), None)
    if isinstance(found, str):
        return found
    kernel, sources = found
    replaced = node.outputs[0]
    name = node.name or f"MatMul of {replaced.name}"
    made = editor.add(
        type(kernel).__name__,
        sources,
        ir.DataType.FLOAT,
        shape_of(replaced),
        name=f"{name}.product",
        attributes={KERNEL: describe(kernel)},
        layer=name,
        domain=DOMAIN,
    )
    put_in_place(replaced, made)
    return None


def _product(
    node: ir.Node, editor: Editor, scale: np.ndarray, bounds: Range | None
) -> tuple[IntegerBatchProduct, list[ir.Value]] | str:
    """The kernel and what it reads; its result is float32 without bounds."""
    a, b = (dequantized(value) for value in node.inputs[:2])
    if a is None or b is None or not _is_int8(a) or not _is_int8(b):
        return "its factors are not both activations quantized to 8 bits with one scale"
    if len(shape_of(a.integers)) < 2 or len(shape_of(b.integers)) < 2:
        return "a factor is a vector"
    (*_, rows, depth), (*_, columns) = shape_of(a.integers), shape_of(b.integers)
    zero_points = (a.signed_zero_point, b.signed_zero_point)
    ends = [max(127 - zero_point, zero_point + 128) for zero_point in zero_points]
    if depth * math.prod(128 + abs(zero_point) for zero_point in zero_points) > INT32_MAX:
        return "its sums may overflow 32 bits"
    multiplier = np.float32(np.float32(a.scale * b.scale) / scale)
    if not np.finfo(np.float32).tiny <= multiplier <= np.finfo(np.float32).max:
        return "the ratio of its scales is not a normal number"
    lifted = bounds is not None and may_be_lifted(np.array([depth * math.prod(ends)]), np.array([multiplier]))
    batch = shape_of(node.outputs[0])[:-2]
    views = [
        _readable(editor, q, (*batch, *shape), right=i == 1)
        for i, (q, shape) in enumerate(((a, (rows, depth)), (b, (depth, columns))))
    ]
    kernel = IntegerBatchProduct(
        batch=batch,
        rows=rows,
        depth=depth,
        columns=columns,
        a=_operand(views[0]),
        b=_operand(views[1]),
        zero_points=zero_points,
        multiplier=float(multiplier),
        bounds=bounds or Range(0),
        result="float32" if bounds is None else "int8",
        lifted=lifted,
    )
    return kernel, [view.source for view in views]


def _is_int8(q: Quantized) -> bool:
    return q.per_tensor and q.integers.dtype in (INT8, UINT8)


def _readable(editor: Editor, q: Quantized, shape: tuple[int, ...], *, right: bool) -> View:
    """An int8 factor where the kernel can read it: in place, if neighbours there are what has to be read together."""
    value = editor.int8(q.integers)
    view = view_of(value, shape, editor.opset)
    rows, columns = view.strides[-2:]
    if (columns == 1 or shape[-1] == 1) or (right and (rows == 1 or shape[-2] == 1)):
        return view
    itself = np.empty(shape_of(value), np.int8)
    return View(value, 0, np.broadcast_to(itself, shape).strides)


def _operand(view: View) -> Operand:
    *batch, row, column = view.strides
    return Operand(math.prod(shape_of(view.source)), view.offset, tuple(batch), row, column)
