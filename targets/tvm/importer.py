"""ONNX IR to Relax: one function `main`, its bindings in the order of the ONNX nodes.

Each node is converted by our own converter where there is one (`operators/`), else by TVM's. The last binding that
comes from node number i is named `n{i}`, so that `attribution` can tell later which nodes a fused kernel computes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import tvm
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend

from graphopt.errors import UnsupportedError
from graphopt.targets.tvm.operators.attributes import plain_attributes
from graphopt.targets.tvm.operators.refusals import refusal
from graphopt.targets.tvm.operators.table import CONVERTERS
from graphopt.targets.tvm.operators.tensors import constant
from graphopt.targets.tvm.quantized.editor import DOMAIN

Converter = Callable[[relax.BlockBuilder, list[Any], dict[str, Any], ir.Node], Any]

DTYPES = frozenset(
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64".split()
)  # element types that kernels compute with; the names are numpy's


def dtype_name(value: ir.Value) -> str:
    """numpy's name of a tensor's element type; raises UnsupportedError for types no kernel computes with."""
    if value.dtype is None or not isinstance(value.type, ir.TensorType):
        raise UnsupportedError(f"value {value.name!r} is not a tensor of known type (found {value.type})")
    name = str(np.dtype(value.dtype.numpy())) if value.dtype != ir.DataType.STRING else "string"
    if name not in DTYPES:
        raise UnsupportedError(
            f"value {value.name!r} has element type {value.dtype.name}, which this backend has no kernels for",
            advice="cast it to float32 or an integer type before export",
        )
    return name


def static_shape(value: ir.Value) -> tuple[int, ...]:
    """The shape of a value; raises UnsupportedError unless every dimension is known."""
    if value.shape is None or not value.shape.is_static():
        raise UnsupportedError(
            f"value {value.name!r} has shape {value.shape}, which depends on the data or an unbound dimension",
            advice="bind the inputs' shapes with --shape NAME=…; shapes that depend on the data cannot be compiled",
        )
    return tuple(int(d) for d in value.shape.numpy())


def import_model(model: ir.Model) -> tvm.IRModule:
    """The Relax module of `model`, whose shapes are all static and whose functions are inlined.

    Raises UnsupportedError that lists every node without a lowering.
    """
    refused = unsupported(model)
    if refused:
        raise unsupported_error(refused)
    graph = model.graph
    opset = graph.opset_imports.get("", 1)
    builder = relax.BlockBuilder()
    values: dict[str, Any] = {name: constant(_array(init)) for name, init in graph.initializers.items()}
    parameters = []
    for i, value in enumerate(graph.inputs):
        variable = relax.Var(f"input{i}", relax.TensorType(static_shape(value), dtype_name(value)))
        parameters.append(variable)
        values[value.name or ""] = variable
    try:
        with builder.function("main", params=parameters):
            with builder.dataflow():
                for i, node in enumerate(graph):
                    _convert(builder, node, i, values, opset)
                outputs = [values[value.name or ""] for value in graph.outputs]
                result = builder.emit_output(relax.Tuple([_as_tensor(builder, output) for output in outputs]))
            builder.emit_func_output(result)
    except BaseException:
        builder._end_block()  # a builder that is left with an open block complains on the terminal
        raise
    return builder.get()


def unsupported(model: ir.Model) -> list[tuple[str, str, str]]:
    """(operator, node name, reason) of each node that cannot be lowered, as far as the graph alone shows it."""
    known = onnx_frontend._get_convert_map()
    found = []
    for node in model.graph:
        operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        reason = refusal(node)
        if reason is None and node.domain not in ("", "ai.onnx", DOMAIN):
            reason = f"operators of domain {node.domain!r} have no lowering"
        if reason is None and node.op_type not in CONVERTERS and node.op_type not in known:
            reason = "no lowering exists"
        if reason is None:
            reason = _unfit_values(node)
        if reason is not None:
            found.append((operator, node.name or "", reason))
    return found


def unsupported_error(refused: list[tuple[str, str, str]]) -> UnsupportedError:
    """One error that lists every refused node."""
    lines = [f"{operator} {name!r}: {reason}" for operator, name, reason in refused]
    shown = lines[:20] + ([f"… and {len(lines) - 20} more"] if len(lines) > 20 else [])
    operators = ", ".join(sorted({operator for operator, _, _ in refused}))
    return UnsupportedError(
        f"{len(lines)} node(s) cannot be compiled (operators: {operators})",
        where="\n".join(shown),
        advice="replace these operators before export, or cut the graph in front of them and compute the rest yourself",
    )


def _unfit_values(node: ir.Node) -> str | None:
    try:
        for value in (*node.inputs, *node.outputs):
            if value is not None and value.name:
                dtype_name(value)
                static_shape(value)
    except UnsupportedError as error:
        return error.what
    return None


def _convert(builder: relax.BlockBuilder, node: ir.Node, index: int, values: dict[str, Any], opset: int) -> None:
    inputs = onnx_frontend.onnx_input(None if v is None else values[v.name or ""] for v in node.inputs)
    own = CONVERTERS.get(node.op_type)
    if own is not None:
        result = own(builder, list(inputs), dict(node.attributes), node)
    else:
        result = _convert_by_tvm(builder, inputs, node, values, opset)
    items = list(result) if isinstance(result, relax.Tuple | tuple | list) else None
    if items is None:
        result = builder.normalize(result) if not isinstance(result, relax.Var) else result
        if isinstance(result.ty, relax.TupleType):
            items = [relax.TupleGetItem(result, k) for k in range(len(result.ty.fields))]
    if items is None:
        items = [result]
    for k, output in enumerate(node.outputs):
        if not output.name:
            continue
        if k >= len(items):
            raise unsupported_error([(node.op_type, node.name or "", f"output number {k} has no lowering")])
        emitted = items[k]
        if not isinstance(emitted, tvm.ir.GenericConst):
            emitted = builder.emit(_as_tensor(builder, emitted), name_hint=f"n{index}_{k}")
        _check(node, output, emitted)
        values[output.name] = emitted


def _convert_by_tvm(
    builder: relax.BlockBuilder, inputs: list[Any], node: ir.Node, values: Mapping[str, Any], opset: int
) -> Any:
    convert = onnx_frontend._get_convert_map()[node.op_type].get_converter(opset)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TVM warns of shapes that it cannot infer; _check is strict
            return convert(builder, inputs, plain_attributes(node), [values, {}])
    except Exception as error:  # TVM's converters raise all kinds for what they do not cover
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise unsupported_error([(node.op_type, node.name or "", f"TVM's importer: {reason[0]}")]) from error


def _as_tensor(builder: relax.BlockBuilder, expression: Any) -> Any:
    """`expression` as a tensor: some of TVM's converters return shapes and scalars."""
    expression = expression if isinstance(expression, relax.Var) else builder.normalize(expression)
    if isinstance(expression.ty, relax.ShapeType):
        values = expression.values if isinstance(expression, relax.ShapeExpr) else expression.ty.values
        return constant(np.array([int(v) for v in values], dtype=np.int64))
    return expression


def _check(node: ir.Node, output: ir.Value, emitted: Any) -> None:
    """Refuse a conversion whose type or shape is not what ONNX says: it would be wrong, or unplannable."""
    expected = (static_shape(output), dtype_name(output))
    ty = emitted.ty
    shape = None if ty.shape is None else tuple(int(d) if isinstance(d, tvm.tirx.IntImm) else -1 for d in ty.shape)
    found = (shape, str(ty.dtype.dtype) if ty.dtype is not None else None)
    if found != expected:
        raise unsupported_error(
            [(node.op_type, node.name or "", f"TVM's importer makes {found} of output {output.name!r}, not {expected}")]
        )


def _array(value: ir.Value) -> np.ndarray:
    if value.const_value is None:
        raise UnsupportedError(f"initializer {value.name!r} has no data")
    return value.const_value.numpy()


__all__ = ["dtype_name", "import_model", "static_shape", "unsupported", "unsupported_error"]
