"""Fold batch normalization into the linear operator before or after it.

y = γ (x − μ)/σ + β = (γ/σ)·x + (β − γμ/σ),  σ = √(v + ε): for each channel a scale and a shift, which `linear` folds
into the weights of the Conv, ConvTranspose, Gemm or MatMul that makes x, or else into those of all that read y.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir.reading import constant, is_standard, opset_of
from graphopt.passes.cleanup.linear import LINEAR, Affine
from graphopt.passes.cleanup.neighbours import fold_into_consumers, fold_into_producer
from graphopt.passes.cleanup.sweeping import fold_until_settled
from graphopt.pipeline.base import Pass, PassContext, PassResult


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Fold BatchNormalization into the Conv, ConvTranspose, Gemm or MatMul before or after it."""

    name: ClassVar[str] = "fold-batch-norm"
    exact: ClassVar[bool] = True

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Fold in the main graph and its subgraphs until nothing changes."""
        opset = opset_of(model)

        def attempt(node: ir.Node) -> str | None:
            if not is_standard(node, "BatchNormalization"):
                return None
            affine = affine_of(node, opset)
            return affine if isinstance(affine, str) else _fold(node, affine)

        return fold_until_settled(model, attempt)


def affine_of(node: ir.Node, opset: int) -> Affine | str:
    """The scale and shift that a BatchNormalization applies to each channel, or the reason why they are not fixed."""
    if node.attributes.get_int("training_mode", 0):
        return "it is in training mode"
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return "its running mean or variance is used, so it is in training mode"
    if opset < 14 and sum(bool(output.name) for output in node.outputs) > 1:
        return "it has outputs for the running mean and variance, so it is in training mode"
    if opset < 9 and node.attributes.get_int("spatial", 1) == 0:
        return "its statistics differ by position (spatial=0)"
    arrays = [constant(value) for value in node.inputs[1:5]]
    if any(array is None for array in arrays):
        return "its scale, bias, mean or variance is not constant"
    gamma, beta, mean, variance = (array.astype(np.float64) for array in arrays if array is not None)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
    affine = Affine(scale, beta - scale * mean)
    return affine if affine.is_finite() else "its variance is negative or its constants are not finite"


def _fold(node: ir.Node, affine: Affine) -> str:
    """Fold and remove `node`; the reason if that cannot be."""
    source = node.inputs[0]
    if source is None:
        return "it has no input"

    def at(rank: int, axis: int) -> Affine | str:
        return affine if axis == 1 else f"its channels are axis 1 of {rank}, those of the MatMul axis {axis}"

    before = fold_into_producer(node, source, at, *LINEAR)
    if not before:
        return ""
    after = fold_into_consumers(node, source, at)
    return f"{before}; {after}" if after else ""
