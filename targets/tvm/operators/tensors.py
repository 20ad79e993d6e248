"""What converters ask of Relax tensors, and how they make new ones: constants, TE computations, kernels of loops."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import tvm
from tvm import relax, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.errors import UnsupportedError

OPAQUE = 8  # relax::OpPatternKind::kOpaque: not fused with anything

Tensors = Sequence[Any]
Attributes = Mapping[str, ir.Attr]


def shape_of(tensor: Any) -> tuple[int, ...]:
    """The static shape of a Relax tensor."""
    return tuple(int(extent) for extent in tensor.ty.shape)


def dtype_of(tensor: Any) -> str:
    """numpy's name of a Relax tensor's element type."""
    return str(tensor.ty.dtype.dtype)


def is_float(tensor: Any) -> bool:
    return np.issubdtype(np.dtype(dtype_of(tensor)), np.floating)


def given(inputs: Tensors, position: int) -> Any:
    """An optional input: the tensor, or None where it is absent."""
    return inputs[position] if position < len(inputs) else None


def known(tensor: Any) -> np.ndarray | None:
    """The elements of a tensor that is constant, else None."""
    return tensor.value.numpy() if isinstance(tensor, tvm.ir.GenericConst) else None


def must_know(node: ir.Node, inputs: Tensors, position: int, name: str) -> np.ndarray | None:
    """The elements of an optional input that must be constant; None where it is absent.

    Raises UnsupportedError for one that is computed at run time.
    """
    tensor = given(inputs, position)
    if tensor is None:
        return None
    array = known(tensor)
    if array is None:
        raise unsupported(node, f"its {name} is computed at run time, a constant was expected", f"make {name} constant")
    return array


def attribute(attributes: Attributes, name: str, default: Any) -> Any:
    """The value of an attribute, or `default` where the node has none."""
    return attributes[name].value if name in attributes else default


def axis_of(attributes: Attributes, rank: int, default: int = 0, name: str = "axis") -> int:
    """The axis that an attribute names, counted from the front."""
    return int(attribute(attributes, name, default)) % max(rank, 1)


def is_used(node: ir.Node, index: int) -> bool:
    """Whether anything reads the node's output number `index`."""
    if index >= len(node.outputs):
        return False
    output = node.outputs[index]
    return bool(output.name) and (bool(output.uses()) or output.is_graph_output())


def output_dtype(node: ir.Node) -> str:
    """numpy's name of the element type of a node's first output."""
    dtype = node.outputs[0].dtype
    assert dtype is not None  # the importer refuses nodes with untyped values
    return str(dtype.numpy())


def lowest(dtype: np.dtype[Any]) -> Any:
    """The least value of a type, −∞ if it has one."""
    if dtype.kind == "b":
        return np.False_
    return np.array(-np.inf if dtype.kind == "f" else np.iinfo(dtype).min, dtype)[()]


def highest(dtype: np.dtype[Any]) -> Any:
    """The greatest value of a type, ∞ if it has one."""
    if dtype.kind == "b":
        return np.True_
    return np.array(np.inf if dtype.kind == "f" else np.iinfo(dtype).max, dtype)[()]


def unsupported(node: ir.Node, found: str, advice: str = "") -> UnsupportedError:
    """The refusal of a node, with its operator and name."""
    return UnsupportedError(f"{node.op_type} {node.name!r}: {found}", advice=advice)


def constant(array: np.ndarray | np.generic) -> Any:
    """A Relax constant."""
    array = np.asarray(array)
    return relax.const(tvm.runtime.tensor(np.ascontiguousarray(array).reshape(array.shape)))


def reshaped(tensor: Any, shape: Sequence[int]) -> Any:
    """The same elements in another shape; a constant stays one."""
    if 0 in shape:
        return constant(np.zeros(tuple(shape), dtype_of(tensor)))  # Relax reads a 0 as "the dimension that was here"
    array = known(tensor)
    return relax.op.reshape(tensor, tuple(shape)) if array is None else constant(array.reshape(tuple(shape)))


def cast(tensor: Any, dtype: str) -> Any:
    """The elements converted to another type; a constant stays one."""
    if dtype_of(tensor) == dtype:
        return tensor
    array = known(tensor)
    return relax.op.astype(tensor, dtype) if array is None else constant(array.astype(dtype))


def compute(builder: relax.BlockBuilder, function: Callable[..., Any], *tensors: Any, name: str) -> Any:
    """The tensor that a TE function computes of `tensors`, in a kernel that fuses with others."""
    return builder.emit(builder.call_te(function, *tensors, primfunc_name_hint=name))


def kernel(
    builder: relax.BlockBuilder,
    inputs: Sequence[Any],
    outputs: Sequence[tuple[tuple[int, ...], str]],
    body: Callable[..., None],
    *,
    name: str,
) -> Any:
    """What a kernel of explicit loops computes: a tensor, or a tuple of them if it has several outputs.

    `body` is called with a TIR buffer for each input and then for each output (shape and element type), and emits the
    loops that fill the outputs by TVM's script builder.
    """
    inputs = [builder.emit(tensor) if not isinstance(tensor, relax.Var) and known(tensor) is None else tensor
              for tensor in inputs]  # fmt: skip
    specifications = [*((shape_of(tensor), dtype_of(tensor)) for tensor in inputs), *outputs]
    with IRBuilder() as ib, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"op_pattern": OPAQUE, "tirx.noalias": True})
        buffers = [
            T.arg(f"b{i}", T.buffer(shape, dtype, layout=None)) for i, (shape, dtype) in enumerate(specifications)
        ]
        with T.sblock("root"):
            body(*buffers)
    types = [relax.TensorType(shape, dtype) for shape, dtype in outputs]
    function = builder.add_func(ib.get(), name)
    return builder.emit(relax.call_tir(function, list(inputs), types if len(types) > 1 else types[0]))


def for_each(shape: Sequence[int], body: Callable[[list[Any]], None], outer: Sequence[Any] = ()) -> None:
    """Inside a kernel: emit a loop for each axis, and `body` with their indices inside."""
    if len(outer) == len(shape):
        body(list(outer))
        return
    with T.serial(shape[len(outer)]) as i:
        for_each(shape, body, (*outer, i))


def wrapped(index: Any, extent: int) -> Any:
    """An ONNX index, negative from the end, as int64 in [0, extent). One out of range stays within the buffer."""
    index = index.astype("int64")
    index = tirx.Select(index < 0, index + extent, index)
    return tirx.max(tirx.min(index, tirx.const(extent - 1, "int64")), tirx.const(0, "int64"))


def wrapped_constant(indices: np.ndarray, extent: int, node: ir.Node) -> np.ndarray:
    """Constant ONNX indices as int64 in [0, extent); raises UnsupportedError for one out of range."""
    indices = indices.astype(np.int64)
    if indices.size and (indices.min() < -extent or indices.max() >= extent):
        raise unsupported(node, f"an index is outside of [-{extent}, {extent - 1}]", "correct the model's indices")
    return np.where(indices < 0, indices + extent, indices)
