"""What a QuantizeLinear or DequantizeLinear says: the integers, their scale and zero point."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

INT8 = ir.DataType.INT8
UINT8 = ir.DataType.UINT8


@dataclass(frozen=True)
class Quantized:
    """Integers q that stand for (q - zero_point) · scale; both are arrays [] or [channels] along `axis`."""

    integers: ir.Value
    scale: np.ndarray  # float32
    zero_point: np.ndarray  # int64
    axis: int | None

    @property
    def per_tensor(self) -> bool:
        return self.scale.size == 1

    @property
    def signed_zero_point(self) -> int:
        """The zero point of the same numbers as int8: a uint8 is read as one that is 128 less."""
        return int(self.zero_point.reshape(-1)[0]) - (128 if self.integers.dtype == UINT8 else 0)


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array of a constant; None if the value is absent or computed at run time."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else np.asarray(tensor.numpy())


def real_constant(value: ir.Value | None) -> np.ndarray | None:
    """The numbers of a constant, quantized or not, as float32; None if it is neither."""
    stored = dequantized(value)
    array = constant(value) if stored is None else constant(stored.integers)
    if array is None or array.dtype.kind not in "fiu":
        return None
    if stored is None:
        return array.astype(np.float32)
    shape = [-1 if stored.axis is not None and axis == stored.axis % array.ndim else 1 for axis in range(array.ndim)]
    zero_point, scale = (
        (each if stored.axis is None else each.reshape(shape)) for each in (stored.zero_point, stored.scale)
    )
    return np.asarray((array.astype(np.int64) - zero_point).astype(np.float32) * scale)


def dequantized(value: ir.Value | None) -> Quantized | None:
    """What a value is dequantized from; None if it is not, or by parameters that are not constant."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != "DequantizeLinear" or node.inputs[0] is None:
        return None
    return _parameters(node, node.inputs[0])


def quantized(node: ir.Node) -> Quantized | None:
    """What a QuantizeLinear makes; None for parameters that are not constant."""
    return _parameters(node, node.outputs[0])


def _parameters(node: ir.Node, integers: ir.Value) -> Quantized | None:
    scale = constant(node.inputs[1])
    given = node.inputs[2] if len(node.inputs) > 2 else None
    zero_point = np.zeros((), np.int64) if given is None else constant(given)
    if scale is None or zero_point is None or scale.dtype != np.float32 or _block_size(node):
        return None
    if integers.dtype is None or integers.dtype.is_floating_point() or integers.dtype == ir.DataType.STRING:
        return None
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    if scale.size == 1:
        scale, zero_point = scale.reshape(()), zero_point.reshape(())
    return Quantized(integers, scale, zero_point.astype(np.int64), None if scale.ndim == 0 else axis)


def _block_size(node: ir.Node) -> int:
    return node.attributes["block_size"].as_int() if "block_size" in node.attributes else 0
