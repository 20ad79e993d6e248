"""Constants that a model stores small, and dequantizes or casts in front of MatMul, Gemm and Gather.

Left alone, TVM would fold DequantizeLinear and Cast of a constant into a float32 constant, and the library would be as
large as that of the float model. Here each such layer becomes one node, which keeps the small constant and computes
with it (`kernels.stored_product`). Integers of 4 bits that anything else reads become float32 here: no kernel has them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from tvm import relax

from graphopt.targets.tvm.kernels.stored_product import Stored, emit_product, emit_rows
from graphopt.targets.tvm.operators.tensors import shape_of, wrapped
from graphopt.targets.tvm.quantized.editor import DOMAIN, copied
from graphopt.targets.tvm.quantized.parameters import constant

FLOAT = ir.DataType.FLOAT
_BITS = {
    **dict.fromkeys((ir.DataType.INT8, ir.DataType.UINT8), 8),
    **dict.fromkeys((ir.DataType.INT4, ir.DataType.UINT4), 4),
}
WEIGHT = "weight"  # in a node's meta: the Stored that it multiplies by, or looks up


def rewrite_stored_weights(model: ir.Model) -> ir.Model:
    """`model` with nodes that compute on small constants; `model` itself if there are none."""
    if not any(_is_small(node) for node in model.graph):
        return model
    model = copied(model)
    for node in list(model.graph):
        form = _FORMS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if form is not None:
            form(node)
    RemoveUnusedNodesPass()(model)
    for node in list(model.graph):
        if _is_small(node) and _dtype(node.inputs[0]) in (ir.DataType.INT4, ir.DataType.UINT4):
            _expand(node)
    RemoveUnusedNodesPass()(model)
    model.graph.opset_imports[DOMAIN] = 1
    return model


def _is_small(node: ir.Node) -> bool:
    """Whether it makes float32 of a constant of a smaller type."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("DequantizeLinear", "Cast"):
        return False
    return node.outputs[0].dtype == FLOAT and _is_constant(node) and _small_type(node)


def _small_type(node: ir.Node) -> bool:
    dtype = _dtype(node.inputs[0])
    return dtype == ir.DataType.FLOAT16 if node.op_type == "Cast" else dtype in _BITS


def _dtype(value: ir.Value | None) -> ir.DataType | None:
    return None if value is None else value.dtype


def _is_constant(node: ir.Node) -> bool:
    return all(value is None or ir.convenience.get_const_tensor(value) is not None for value in node.inputs)


def stored(value: ir.Value | None, summed: int) -> Stored | None:
    """The matrix [k, n] that a value of rank 2 is made from, if it is a small constant; k is its axis `summed`."""
    node = None if value is None else value.producer()
    if node is None or not _is_small(node) or node.inputs[0] is None:
        return None
    data = constant(node.inputs[0])
    if data is None or data.ndim != 2 or not data.size:
        return None
    if node.op_type == "Cast":
        return Stored(_turned(data, summed), 16)
    bits = _BITS[node.inputs[0].dtype]  # type: ignore[index]
    found = _blocks(node, data.shape, summed)
    if found is None:
        return None
    scale, zero_point, block = found
    integers = _turned(data, summed).astype(np.int16)
    if bits == 4:  # as unsigned
        shift = 8 if node.inputs[0].dtype == ir.DataType.INT4 else 0
        integers = (integers + shift).astype(np.uint8)
        zero_point = np.full(scale.shape, 0, np.int16) if zero_point is None else zero_point
        zero_point = (zero_point + shift).astype(np.uint8)
    else:
        integers = integers.astype(data.dtype)
    if zero_point is not None and (zero_point == zero_point.flat[0]).all():
        return Stored(integers, bits, scale, None, block, int(zero_point.flat[0]))
    return Stored(integers, bits, scale, zero_point, block)


def _blocks(node: ir.Node, shape: tuple[int, ...], summed: int) -> tuple[np.ndarray, np.ndarray | None, int] | None:
    """Scale and zero point as [blocks, n], and the extent of a block; None if they run along another axis."""
    scale = constant(node.inputs[1])
    given = constant(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    zero_point = None if given is None or not given.astype(np.int16).any() else given.astype(np.int16)
    if scale is None or scale.dtype != np.float32:
        return None
    axis = node.attributes["axis"].as_int() % 2 if "axis" in node.attributes else 1
    block = node.attributes["block_size"].as_int() if "block_size" in node.attributes else 0
    if block:
        if axis != summed:
            return None
        turned = None if zero_point is None else _turned(zero_point, summed)
        return _turned(scale, summed), turned, block
    if scale.size > 1 and axis == summed:
        return None
    columns = (1, shape[1 - summed])

    def spread(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.broadcast_to(array.reshape(1, -1), columns))

    return spread(scale), None if zero_point is None else spread(zero_point), shape[summed]


def _turned(array: np.ndarray, summed: int) -> np.ndarray:
    return np.ascontiguousarray(array if summed == 0 else array.T)


def _rewrite_product(node: ir.Node) -> None:
    x = node.inputs[0]
    if x is None or x.dtype != FLOAT or x.shape is None or len(x.shape) < 2 or not x.shape.is_static():
        return
    gemm = node.op_type == "Gemm"
    if gemm and (_number(node, "alpha") != 1 or _number(node, "beta") != 1 or _flag(node, "transA")):
        return
    weight = stored(node.inputs[1], int(gemm and _flag(node, "transB")))
    if weight is not None:
        _replace(node, "StoredProduct", [x, *node.inputs[2:]], weight)


def _rewrite_gather(node: ir.Node) -> None:
    indices = node.inputs[1]
    if indices is None or constant(indices) is not None or ("axis" in node.attributes and _flag(node, "axis")):
        return
    weight = stored(node.inputs[0], 1)
    if weight is not None:
        _replace(node, "StoredRows", [indices], weight)


_FORMS: dict[str, Callable[[ir.Node], None]] = {
    "Gather": _rewrite_gather,
    "Gemm": _rewrite_product,
    "MatMul": _rewrite_product,
}


def _flag(node: ir.Node, name: str) -> bool:
    return name in node.attributes and node.attributes[name].as_int() != 0


def _number(node: ir.Node, name: str) -> float:
    return node.attributes[name].as_float() if name in node.attributes else 1.0


def _replace(node: ir.Node, operator: str, inputs: list[ir.Value | None], weight: Stored) -> None:
    made = ir.node(operator, inputs, domain=DOMAIN, num_outputs=1, name=node.name)
    old, new = node.outputs[0], made.outputs[0]
    new.type, new.shape = old.type, old.shape
    made.meta[WEIGHT] = weight
    assert node.graph is not None
    node.graph.insert_before(node, made)
    name, old.name = old.name, None
    new.name = name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    node.graph.remove(node, safe=True)


def _expand(node: ir.Node) -> None:
    """Let a float32 constant stand for integers of 4 bits."""
    value, graph = node.outputs[0], node.graph
    data, scale = constant(node.inputs[0]), constant(node.inputs[1])
    assert isinstance(graph, ir.Graph) and data is not None and scale is not None  # _is_small looked
    zero_point = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    axis = node.attributes["axis"].as_int() % max(data.ndim, 1) if "axis" in node.attributes else 1
    block = node.attributes["block_size"].as_int() if "block_size" in node.attributes else 0

    def spread(array: np.ndarray) -> np.ndarray:
        if block:
            return np.repeat(array, block, axis=axis).take(np.arange(data.shape[axis]), axis=axis)
        return array.reshape([-1 if i == axis else 1 for i in range(data.ndim)]) if array.size > 1 else array

    integers = data.astype(np.int32) - (0 if zero_point is None else spread(zero_point.astype(np.int32)))
    floats = (integers.astype(np.float32) * spread(scale)).astype(np.float32)
    name, value.name = value.name, None
    tensor = ir.Tensor(floats, name=name)
    made = ir.Value(name=name, type=ir.TensorType(FLOAT), shape=ir.Shape(floats.shape), const_value=tensor)
    graph.register_initializer(made)
    value.replace_all_uses_with(made)


def convert_product(
    builder: relax.BlockBuilder, inputs: list[Any], attributes: dict[str, ir.Attr], node: ir.Node
) -> Any:
    """x times a stored matrix, and the bias of a Gemm."""
    made = emit_product(builder, inputs[0], node.meta[WEIGHT])
    if len(inputs) < 2 or inputs[1] is None:
        return made
    return relax.op.add(builder.emit(made), inputs[1])


def convert_rows(builder: relax.BlockBuilder, inputs: list[Any], attributes: dict[str, ir.Attr], node: ir.Node) -> Any:
    """Rows of a stored matrix."""
    weight: Stored = node.meta[WEIGHT]
    extent = weight.data.shape[1]
    assert len(shape_of(inputs[0])) + 1 == len(node.outputs[0].shape or ())
    return emit_rows(builder, inputs[0], weight, lambda index: wrapped(index, extent))


CONVERTERS = {"StoredProduct": convert_product, "StoredRows": convert_rows}
