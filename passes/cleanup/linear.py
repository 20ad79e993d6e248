"""What folding into a linear operator needs: y = W∗x + b, with a scale and a shift for each channel before or after it.

After: s·(W∗x + b) + t = (sW)∗x + (sb + t), with s and t by output channel; this always holds.
Before: W∗(s·x + t) + b = (Ws)∗x + (b + W∗t), with s and t by input channel; with t ≠ 0 only where no padding adds
zeros that t would have shifted.

New weights are computed in double precision and rounded once to the type of the weight. (onnxscript's rules for these
folds are not used: `docs/adr/0005-where-the-rewriter-is-used.md` has what they did wrong.)
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.ir.reading import constant
from graphopt.passes.cleanup.constants import set_constant

Array = npt.NDArray[Any]

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# A weight of up to so many elements may be copied when it is shared.
_SMALL = 1024
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})


@dataclasses.dataclass(frozen=True)
class Affine:
    """x ↦ scale·x + shift, in float64; each of shape (channels,), or (1,) for all channels."""

    scale: Array
    shift: Array

    def shifts(self) -> bool:
        """Whether the shift is not zero everywhere."""
        return bool(np.any(self.shift))

    def is_finite(self) -> bool:
        """Neither NaN nor infinite."""
        return bool(np.all(np.isfinite(self.scale)) and np.all(np.isfinite(self.shift)))


@dataclasses.dataclass(frozen=True)
class Fold:
    """New constants of a node by input index, ready to be put in place."""

    node: ir.Node
    constants: dict[int, Array]
    op_type: str
    consumed: tuple[str, ...] = ()  # attributes that the constants take in

    def apply(self) -> None:
        """Change the node."""
        self.node.op_type = self.op_type
        for attribute in self.consumed:
            self.node.attributes.pop(attribute, None)
        for index, array in self.constants.items():
            set_constant(self.node, index, array, base=f"{self.node.outputs[0].name}_{_ROLE[index]}")


_ROLE = {1: "weight", 2: "bias"}


def channels_out(node: ir.Node) -> int | None:
    """The number of output channels of a linear node with constant weights."""
    weight = constant(node.inputs[1])
    if weight is None:
        return None
    if node.op_type == "Conv" or _is_transposed(node):
        return int(weight.shape[0])
    if node.op_type == "ConvTranspose":
        return int(weight.shape[1] * node.attributes.get_int("group", 1))
    return int(weight.shape[-1])  # also of a BatchNormalization, whose weight is a vector


def channels_in(node: ir.Node) -> int | None:
    """The number of input channels of a linear node with constant weights."""
    weight = constant(node.inputs[1])
    if weight is None:
        return None
    if node.op_type == "Conv":
        return int(weight.shape[1] * node.attributes.get_int("group", 1))
    if node.op_type == "ConvTranspose" or (node.op_type == "Gemm" and not _is_transposed(node)):
        return int(weight.shape[0])
    return int(weight.shape[-1] if node.op_type == "Gemm" else weight.shape[-2])


def fold_after(node: ir.Node, affine: Affine) -> Fold | str:
    """`affine` of the output of `node`, folded into it; or the reason why that cannot be.

    The channels are axis 1 of the output of a Conv, ConvTranspose or BatchNormalization, the last axis of the others'.
    """
    weight, bias = _weight(node), _bias(node)
    if isinstance(weight, str):
        return weight
    if isinstance(bias, str):
        return bias
    scale, shift = _spread(affine, channels_out(node))
    alpha, beta = _gemm_factors(node)
    new_weight = alpha * weight * _by_output(node, weight, scale)
    if bias is not None:
        return _rounded(node, new_weight, beta * bias * scale + shift)
    if affine.shifts():
        return _why_no_bias(node) or _rounded(node, new_weight, shift)
    return _rounded(node, new_weight, None)


def fold_before(node: ir.Node, affine: Affine) -> Fold | str:
    """`affine` of the input 0 of `node`, folded into it; or the reason why that cannot be.

    The channels are axis 1 of the input of a Conv or ConvTranspose, the last axis of the others'.
    """
    weight, bias = _weight(node), _bias(node)
    if isinstance(weight, str):
        return weight
    if node.attributes.get_int("transA", 0):
        return f"Gemm '{node.name}' behind it transposes its input"
    if affine.shifts() and node.op_type == "ConvTranspose":
        return f"what a shift adds to ConvTranspose '{node.name}' behind it is not the same at the borders"
    if affine.shifts() and node.op_type == "Conv" and is_padded(node):
        return f"Conv '{node.name}' behind it pads with zeros, which the shift does not reach"
    scale, shift = _spread(affine, channels_in(node))
    alpha, beta = _gemm_factors(node)
    new_weight = alpha * weight * _by_input(node, weight, scale)
    if not affine.shifts():
        return _rounded(node, new_weight, None)
    if isinstance(bias, str):
        return bias
    if bias is None and (reason := _why_no_bias(node)):
        return reason
    summed = alpha * _sum_over_inputs(node, weight * _by_input(node, weight, shift))
    return _rounded(node, new_weight, summed if bias is None else beta * bias + summed)


def is_padded(node: ir.Node) -> bool:
    """Whether a Conv may add zeros around its input."""
    auto_pad = node.attributes.get_string("auto_pad", "NOTSET")
    if auto_pad == "VALID":
        return False
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        weight = node.inputs[1]
        return weight is None or weight.shape is None or any(size != 1 for size in list(weight.shape)[2:])
    return any(node.attributes.get_ints("pads", ()))


def _weight(node: ir.Node) -> Array | str:
    """The weight in float64, or the reason why it cannot be changed."""
    value = node.inputs[1]
    weight = constant(value)
    if value is None or weight is None:
        return f"the weight of {node.op_type} '{node.name}' is not constant"
    if ir.DataType.from_numpy(weight.dtype) not in _FLOATS:
        return f"{node.op_type} '{node.name}' computes with {weight.dtype}"
    if node.op_type == "MatMul" and weight.ndim < 2:
        return f"the weight of MatMul '{node.name}' is a vector"
    users = len(set(value.consumers()))
    if users > 1 and weight.size > _SMALL:
        return f"its weight '{value.name}' is shared by {users} nodes: a second copy would make the model larger"
    return weight.astype(np.float64)


def _bias(node: ir.Node) -> Array | str | None:
    """The bias in float64, None if there is none, or the reason why it cannot be changed."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    bias = constant(value)
    if value is None or bias is None:
        return None if value is None else f"the bias of {node.op_type} '{node.name}' is not constant"
    if node.op_type == "Gemm" and bias.ndim == 2 and bias.shape[0] > 1 and bias.shape[1] == 1:
        return f"the bias of Gemm '{node.name}' differs by row and would grow to a matrix"
    return bias.astype(np.float64)


def _is_transposed(node: ir.Node) -> bool:
    """Whether the weight is that of a Gemm and has the output channels first."""
    return node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0


def _gemm_factors(node: ir.Node) -> tuple[float, float]:
    if node.op_type != "Gemm":
        return 1.0, 1.0
    return node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)


def _spread(affine: Affine, channels: int | None) -> tuple[Array, Array]:
    return np.broadcast_to(affine.scale, (channels or 1,)), np.broadcast_to(affine.shift, (channels or 1,))


def _why_no_bias(node: ir.Node) -> str:
    """Why a node without a bias cannot be given one; empty if it can."""
    if node.op_type != "MatMul":
        return ""
    ranks = [len(value.shape) if value is not None and value.shape is not None else None for value in node.inputs]
    if ranks == [2, 2]:
        return ""  # it becomes a Gemm
    return f"MatMul '{node.name}' has no bias, and only one of two matrices can become a Gemm"


def _by_output(node: ir.Node, weight: Array, channel: Array) -> Array:
    """`channel`, one number an output channel, in a shape that multiplies `weight`."""
    ones = (1,) * (weight.ndim - 2)
    if node.op_type == "ConvTranspose":
        group = node.attributes.get_int("group", 1)
        rows = channel.reshape(group, -1).repeat(weight.shape[0] // group, axis=0)
        return np.asarray(rows.reshape(*rows.shape, *ones))
    if node.op_type == "Conv" or _is_transposed(node):
        return channel.reshape(-1, 1, *ones)
    return channel  # the last axis, or a BatchNormalization's only one


def _by_input(node: ir.Node, weight: Array, channel: Array) -> Array:
    """`channel`, one number an input channel, in a shape that multiplies `weight`."""
    ones = (1,) * (weight.ndim - 2)
    if node.op_type == "Conv":
        group = node.attributes.get_int("group", 1)
        rows = channel.reshape(group, -1).repeat(weight.shape[0] // group, axis=0)
        return np.asarray(rows.reshape(*rows.shape, *ones))
    if node.op_type == "ConvTranspose":
        return channel.reshape(-1, 1, *ones)
    return channel if _is_transposed(node) else channel.reshape(-1, 1)


def _sum_over_inputs(node: ir.Node, weight: Array) -> Array:
    """One number an output channel: the sum over all else (Conv, Gemm, or MatMul of two matrices)."""
    if node.op_type == "Conv" or _is_transposed(node):
        return np.asarray(weight.reshape(weight.shape[0], -1).sum(axis=1))
    return np.asarray(weight.sum(axis=0))


def _rounded(node: ir.Node, weight: Array, bias: Array | None) -> Fold | str:
    """The fold with constants in the type of the node's weight; a reason if they leave its range."""
    dtype = node.inputs[1].dtype if node.inputs[1] is not None else None
    if dtype is None:
        return f"the type of the weight of {node.op_type} '{node.name}' is unknown"
    with np.errstate(over="ignore"):
        arrays = {index: array.astype(dtype.numpy()) for index, array in ((1, weight), (2, bias)) if array is not None}
    if not all(np.all(np.isfinite(array.astype(np.float64))) for array in arrays.values()):
        return f"the folded weight or bias of {node.op_type} '{node.name}' leaves the range of {dtype.name.lower()}"
    becomes_gemm = node.op_type == "MatMul" and bias is not None
    consumed = () if node.op_type != "Gemm" else ("alpha",) if bias is None else ("alpha", "beta")
    return Fold(node, arrays, "Gemm" if becomes_gemm else node.op_type, consumed)
