"""Fold Mul, Add, Sub and Div by constants into the linear operator before or after them.

Each is y = s·x + t with s and t by channel if the constant is a scalar or varies along the axis of the channels alone.
Before it may stand a Conv, ConvTranspose, Gemm, MatMul or BatchNormalization; behind it, all that read it must be Conv,
ConvTranspose, Gemm or MatMul. A bias behind a MatMul is its natural form and stays (`fuse-matmul-add` makes a Gemm).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.ir.reading import constant, is_standard
from graphopt.passes.cleanup.linear import LINEAR, Affine
from graphopt.passes.cleanup.neighbours import AffineAt, fold_into_consumers, fold_into_producer
from graphopt.passes.cleanup.sweeping import fold_until_settled
from graphopt.pipeline.base import Pass, PassContext, PassResult

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class FoldAffine(Pass):
    """Fold Mul, Add, Sub and Div by constants into the Conv, ConvTranspose, Gemm, MatMul or batch norm next to them."""

    name: ClassVar[str] = "fold-affine"
    exact: ClassVar[bool] = True

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Fold in the main graph and its subgraphs until nothing changes."""
        return fold_until_settled(model, _attempt)


def _attempt(node: ir.Node) -> str | None:
    operands = _operands(node)
    if operands is None or not _is_candidate(node, operands[0]):
        return None
    return _fold(node, *operands)


def _operands(node: ir.Node) -> tuple[ir.Value, Array] | None:
    """The input that is computed and the one that is constant, if there is one of each."""
    if not is_standard(node, "Mul", "Add", "Sub", "Div") or len(node.inputs) != 2:
        return None
    first, second = node.inputs
    arrays = constant(first), constant(second)
    if first is None or second is None or (arrays[0] is None) == (arrays[1] is None):
        return None
    if arrays[1] is not None:
        return first, arrays[1].astype(np.float64)
    if arrays[0] is None or node.op_type == "Div":
        return None  # a constant divided by x is not linear
    return second, arrays[0].astype(np.float64)


def _is_candidate(node: ir.Node, source: ir.Value) -> bool:
    """Whether a linear operator stands next to `node` that might take it in."""
    before = source.producer()
    if before is not None and is_standard(before, *LINEAR, "BatchNormalization"):
        return not (before.op_type == "MatMul" and node.op_type in ("Add", "Sub"))
    users = node.outputs[0].consumers()
    return bool(users) and all(is_standard(user, *LINEAR) and user.inputs[0] is node.outputs[0] for user in users)


def _fold(node: ir.Node, source: ir.Value, operand: Array) -> str:
    """Fold and remove `node`; the reason if that cannot be."""
    at = _affine_at(node, source, operand)
    before = fold_into_producer(node, source, at, *LINEAR, "BatchNormalization")
    if not before:
        return ""
    after = fold_into_consumers(node, source, at)
    return f"{before}; {after}" if after else ""


def _affine_at(node: ir.Node, source: ir.Value, operand: Array) -> AffineAt:
    def at(rank: int, axis: int) -> Affine | str:
        shape = (1,) * (rank - operand.ndim) + operand.shape
        if len(shape) > rank or any(size != 1 for index, size in enumerate(shape) if index != axis):
            return f"its constant of shape {list(operand.shape)} varies along other axes than {axis} of {rank}"
        if shape[axis] != 1 and not _has_channels(source, axis, shape[axis]):
            return f"its constant of {shape[axis]} elements may broadcast a single channel"
        constants = operand.reshape(-1)
        one, zero = np.ones_like(constants), np.zeros_like(constants)
        if node.op_type == "Add":
            return Affine(one, constants)
        if node.op_type == "Mul":
            return Affine(constants, zero)
        if node.op_type == "Div":
            with np.errstate(divide="ignore"):
                return Affine(one / constants, zero)
        return Affine(one, -constants) if node.inputs[0] is source else Affine(-one, constants)

    return at


def _has_channels(source: ir.Value, axis: int, channels: int) -> bool:
    return source.shape is not None and axis < len(source.shape) and source.shape[axis] == channels
