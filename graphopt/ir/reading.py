"""Reading nodes and values: what an operator's parameters are, whatever form the opset gives them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

STANDARD_DOMAINS = frozenset({"", "ai.onnx"})


def opset_of(model: ir.Model) -> int:
    """The version of the standard operators that the model imports; 1 if it uses none of them."""
    versions = [model.opset_imports[domain] for domain in STANDARD_DOMAINS if domain in model.opset_imports]
    return max(versions, default=1)


def is_standard(node: ir.Node, *operators: str) -> bool:
    """Whether `node` is of the standard domain and, where `operators` are given, one of them."""
    return node.domain in STANDARD_DOMAINS and (not operators or node.op_type in operators)


def constant(value: ir.Value | None) -> npt.NDArray[np.generic] | None:
    """The array of an initializer or of a Constant node; None for anything that is known only at run time.

    An initializer that is also an input of its graph is a default that the caller may override: not a constant.
    """
    if value is None or value.is_graph_input():
        return None
    producer = value.producer()
    if not value.is_initializer() and (producer is None or not is_standard(producer, "Constant")):
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape of `value` if every dimension is a number."""
    if value is None or value.shape is None:
        return None
    dims = value.shape.dims
    return tuple(dim for dim in dims if isinstance(dim, int)) if all(isinstance(dim, int) for dim in dims) else None


def same_shape(one: ir.Value | None, other: ir.Value | None) -> bool:
    """Whether both values are known to have one shape; equal names stand for equal dimensions."""
    if one is None or other is None or one.shape is None or other.shape is None:
        return False
    if len(one.shape) != len(other.shape):
        return False
    return all(
        a == b and (isinstance(a, int) or a.value is not None)
        for a, b in zip(one.shape.dims, other.shape.dims, strict=True)
    )


def has_parameter(node: ir.Node, name: str, index: int) -> bool:
    """Whether the parameter that was attribute `name` and became input `index` is given in either form."""
    return name in node.attributes or (index < len(node.inputs) and node.inputs[index] is not None)


def integers(node: ir.Node, name: str, index: int) -> tuple[int, ...] | None:
    """The integers of a parameter, attribute `name` or input `index` by version; None if absent or not constant."""
    if name in node.attributes:
        attribute = node.attributes[name]
        if attribute.is_ref():
            return None
        return (attribute.as_int(),) if attribute.type == ir.AttributeType.INT else tuple(attribute.as_ints())
    array = constant(node.inputs[index]) if index < len(node.inputs) else None
    return None if array is None else tuple(int(number) for number in array.reshape(-1))


def axes_of(node: ir.Node, rank: int, index: int = 1) -> tuple[int, ...] | None:
    """The sorted, non-negative axes of a Squeeze, Unsqueeze or Reduce in either form; None if not constant."""
    axes = integers(node, "axes", index)
    return None if axes is None else normalized(axes, rank)


def normalized(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """`axes`, of which negative ones count from the end of `rank`, as sorted non-negative numbers."""
    return tuple(sorted(axis % rank for axis in axes))
