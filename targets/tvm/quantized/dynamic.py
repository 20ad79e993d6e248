"""MatMulInteger with a constant right factor as an integer kernel, and what makes its input and uses its result.

    C = (A - z_a) (B - z_b) = A' W - z_a' Σ_k W,        A' = A and z_a' = z_a as int8 (a uint8 less 128), W = B - z_b

z_a may be computed at run time: the second term is a vector, from which the kernel's sums start. Cast to float32, a
product with a scale (one, or one for each column), and a sum with a constant vector right behind it are computed on the
sums. DynamicQuantizeLinear gives int8 at once where only such kernels read it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from graphopt.targets.tvm.kernels.dynamic_quantize import DynamicQuantize
from graphopt.targets.tvm.kernels.integer import describe
from graphopt.targets.tvm.kernels.integer_product import PANEL, IntegerProduct, pack_weights
from graphopt.targets.tvm.kernels.requantize import Range
from graphopt.targets.tvm.kernels.window import Window
from graphopt.targets.tvm.quantized.conversion import KERNEL
from graphopt.targets.tvm.quantized.editor import DOMAIN, Editor, copied, put_in_place, shape_of
from graphopt.targets.tvm.quantized.parameters import INT8, UINT8, constant

FLOAT, INT32 = ir.DataType.FLOAT, ir.DataType.INT32


@dataclass(frozen=True)
class Tail:
    """What follows the sums: `last` makes the result, sums · scale + addend, in float32.

    scale: computed, or constant, of one element or one for each column.
    """

    last: ir.Node
    scale: ir.Value
    addend: np.ndarray | None


def rewrite_dynamic(model: ir.Model) -> ir.Model:
    """`model` with integer kernels for its MatMulInteger nodes; `model` itself if it has none that they serve.

    Others keep to int32 arithmetic without a kernel. Shapes are static.
    """
    if not any(_served(node) for node in model.graph):
        return model
    model = copied(model)
    served = [node for node in model.graph if _served(node)]
    editor = Editor(model.graph)
    signed: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}  # the integers that DynamicQuantizeLinear makes: as int8
    for node in list(model.graph):
        if node.op_type == "DynamicQuantizeLinear" and _is_read_by_kernels(node, served):
            editor.place = node
            signed[node.outputs[0]] = _quantize_signed(node, editor)
    for node in served:
        _rewrite(node, editor, signed)
    RemoveUnusedNodesPass()(model)
    model.graph.opset_imports[DOMAIN] = 1
    return model


def _served(node: ir.Node) -> bool:
    if node.op_type != "MatMulInteger" or node.domain not in ("", "ai.onnx"):
        return False
    a = node.inputs[0]
    if a is None or a.dtype not in (INT8, UINT8) or any(not _is_static(v) for v in (a, node.outputs[0])):
        return False
    rows = node.inputs[2] if len(node.inputs) > 2 else None
    of_tensor = rows is None or (_is_static(rows) and math.prod(shape_of(rows)) == 1)
    return len(shape_of(a)) >= 2 and math.prod(shape_of(a)) > 0 and of_tensor and _weights(node) is not None


def _is_static(value: ir.Value) -> bool:
    return value.shape is not None and value.shape.is_static()


def _weights(node: ir.Node) -> np.ndarray | None:
    """The right factor less its zero point, [k, n], if it is constant and fits int8."""
    array = constant(node.inputs[1])
    given = node.inputs[3] if len(node.inputs) > 3 else None
    zero_point = np.zeros((), np.int16) if given is None else constant(given)
    if array is None or zero_point is None or array.ndim != 2 or not array.size or zero_point.ndim > 1:
        return None
    made = array.astype(np.int16) - zero_point.astype(np.int16)
    return made if made.min() >= -128 and made.max() <= 127 else None


def _is_read_by_kernels(quantize: ir.Node, served: list[ir.Node]) -> bool:
    integers, _, zero_point = quantize.outputs
    if integers.is_graph_output() or zero_point.is_graph_output() or not _is_static(integers):
        return False
    places = [(use.node, use.idx) for use in integers.uses()]
    return all(node in served and index == 0 for node, index in places) and all(
        use.node in served and use.idx == 2 and use.node.inputs[0] is integers for use in zero_point.uses()
    )


def _quantize_signed(node: ir.Node, editor: Editor) -> tuple[ir.Value, ir.Value]:
    """int8 integers and zero point in place of a DynamicQuantizeLinear."""
    x, (integers, scale, zero_point) = node.inputs[0], node.outputs
    shape = shape_of(integers)
    kernel = describe(DynamicQuantize(math.prod(shape), signed=True))
    made = editor.add(
        "DynamicQuantize",
        [x],
        INT8,
        shape,
        name=f"{integers.name}.int8",
        attributes={KERNEL: kernel},
        layer=node.name or f"{integers.name}.quantize",
        domain=DOMAIN,
        more=((f"{scale.name}.made", FLOAT, ()), (f"{zero_point.name}.int8", INT8, ())),
    )
    producer = made.producer()
    assert producer is not None
    put_in_place(scale, producer.outputs[1])
    return made, producer.outputs[2]


def _rewrite(node: ir.Node, editor: Editor, signed: dict[ir.Value, tuple[ir.Value, ir.Value]]) -> None:
    weights = _weights(node)
    a, given = node.inputs[0], node.inputs[2] if len(node.inputs) > 2 else None
    assert weights is not None and a is not None  # _served looked
    depth, columns = weights.shape
    *rows, _ = shape_of(a)
    tail = _tail(node, columns)
    editor.place = tail.last if tail else node
    name = node.name or f"MatMulInteger of {node.outputs[0].name}"
    integers, zero_point = signed.get(a) or (editor.int8(a), given)
    window = Window((1, 1, math.prod(rows), depth))
    result = "float32" if tail else "int32"
    product = IntegerProduct(window, columns, Range(0), bool(weights.min() > -128), result)
    packed = pack_weights(weights.T.astype(np.int8).reshape(columns, 1, 1, depth), window)
    width = product.panels * PANEL
    sums = np.pad(weights.sum(axis=0, dtype=np.int64), (0, width - columns)).astype(np.int32)
    inputs = [integers, editor.constant(packed, f"{name}.weights"), _start(zero_point, a, sums, editor, name)]
    if tail:
        inputs.append(_padded(tail.scale, columns, width, editor, f"{name}.scale"))
        addend = np.zeros(columns, np.float32) if tail.addend is None else tail.addend
        inputs.append(editor.constant(np.pad(addend, (0, width - columns)), f"{name}.addend"))
    replaced = tail.last.outputs[0] if tail else node.outputs[0]
    made = editor.add(
        "IntegerProduct",
        inputs,
        FLOAT if tail else INT32,
        shape_of(replaced),
        name=f"{name}.product",
        attributes={KERNEL: describe(product)},
        layer=name,
        domain=DOMAIN,
    )
    put_in_place(replaced, made)


def _start(zero_point: ir.Value | None, a: ir.Value, sums: np.ndarray, editor: Editor, name: str) -> ir.Value:
    """What the sums start from: -z_a' Σ_k W."""
    known = np.zeros((), np.int64) if zero_point is None else constant(zero_point)
    unsigned = a.dtype == UINT8 and (zero_point is None or zero_point.dtype == UINT8)
    if known is not None:
        shift = int(known.reshape(-1)[0]) - (128 if unsigned else 0)
        return editor.constant((-shift * sums.astype(np.int64)).astype(np.int32), f"{name}.start")
    assert zero_point is not None
    shape = shape_of(zero_point)
    wide = editor.add("Cast", [zero_point], INT32, shape, name=f"{name}.zero_point", attributes={"to": int(INT32)})
    if unsigned:
        offset = editor.constant(np.array(-128, np.int32), f"{name}.offset")
        wide = editor.add("Add", [wide, offset], INT32, shape, name=f"{name}.signed_zero_point")
    return editor.add("Mul", [wide, editor.constant(-sums, f"{name}.sums")], INT32, sums.shape, name=f"{name}.start")


def _padded(scale: ir.Value, columns: int, width: int, editor: Editor, name: str) -> ir.Value:
    """`scale` as a vector of `width`: repeated if it is one number, then zeros."""
    known = constant(scale)
    if known is not None:
        vector = np.broadcast_to(known.astype(np.float32).reshape(-1), (columns,))
        return editor.constant(np.pad(vector, (0, width - columns)), name)
    if math.prod(shape_of(scale)) == 1:
        ones = np.pad(np.ones(columns, np.float32), (0, width - columns))
        single = _reshaped(scale, (1,), editor, name)
        return editor.add("Mul", [single, editor.constant(ones, f"{name}.ones")], FLOAT, (width,), name=name)
    vector_of = _reshaped(scale, (columns,), editor, name)
    if width == columns:
        return vector_of
    zeros = editor.constant(np.zeros(width - columns, np.float32), f"{name}.zeros")
    return editor.add("Concat", [vector_of, zeros], FLOAT, (width,), name=name, attributes={"axis": 0})


def _reshaped(value: ir.Value, shape: tuple[int, ...], editor: Editor, name: str) -> ir.Value:
    if shape_of(value) == shape:
        return value
    wanted = editor.constant(np.array(shape, np.int64), f"{name}.shape")
    return editor.add("Reshape", [value, wanted], FLOAT, shape, name=f"{name}.flat")


def _tail(node: ir.Node, columns: int) -> Tail | None:
    """Cast to float32, Mul by a scale and, where it follows, Add of a constant vector."""
    cast = _only_reader(node.outputs[0])
    if cast is None or cast.op_type != "Cast" or cast.outputs[0].dtype != FLOAT:
        return None
    mul = _only_reader(cast.outputs[0])
    if mul is None or mul.op_type != "Mul" or mul.inputs[0] is mul.inputs[1]:
        return None
    scale = mul.inputs[1] if mul.inputs[0] is cast.outputs[0] else mul.inputs[0]
    if scale is None or not _is_vector(scale, columns) or mul.outputs[0].shape != cast.outputs[0].shape:
        return None
    add = _only_reader(mul.outputs[0])
    if add is not None and add.op_type == "Add" and add.outputs[0].shape == mul.outputs[0].shape:
        other = add.inputs[1] if add.inputs[0] is mul.outputs[0] else add.inputs[0]
        addend = constant(other)
        if other is not None and addend is not None and _is_vector(other, columns):
            return Tail(add, scale, np.broadcast_to(addend.reshape(-1), (columns,)))
    return Tail(mul, scale, None)


def _is_vector(value: ir.Value, columns: int) -> bool:
    """Whether it holds one float32, or one for each column along its last axis."""
    if value.dtype != FLOAT or not _is_static(value):
        return False
    shape = shape_of(value)
    return math.prod(shape) == 1 or (shape[-1] == columns == math.prod(shape))


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = value.uses()
    if len(uses) != 1 or value.is_graph_output():
        return None
    return next(iter(uses)).node
