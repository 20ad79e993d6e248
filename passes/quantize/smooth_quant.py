"""SmoothQuant: move the outliers of activations into the weights of the MatMul or Gemm that reads them.

Y = XW = (X S⁻¹)(S W) with s_j = max|X_j|^α / max|W_j|^(1−α), X_j and W_j being channel j of the operand and row j of
the weight (G. Xiao and others, SmoothQuant: Accurate and efficient post-training quantization for large language
models, 2022, equation 4). S⁻¹ goes into what makes X: the scale and bias of a layer norm, the factor at the end of an
RMS norm, the output channels of a linear layer, one operand of a product. All that read X share S, and W_j is the
largest of theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.errors import UsageError
from graphopt.ir.reading import constant, is_standard
from graphopt.passes.cleanup.constants import layer_name
from graphopt.passes.quantize.channel_maxima import channel_maxima
from graphopt.passes.quantize.lane_rules import lanes_of
from graphopt.passes.quantize.lanes import Lanes, Port
from graphopt.passes.quantize.rescaling import Seam, rescale, seams_of, settle
from graphopt.pipeline.base import Declined, Pass, PassContext, PassResult, option


@dataclass(frozen=True)
class SmoothQuant(Pass):
    """Move the outliers of what a MatMul or Gemm reads into its weight, exactly, for quantization."""

    name: ClassVar[str] = "smooth-quant"
    exact: ClassVar[bool] = True

    alpha: float = option(0.5, "share of the activations' range that moves into the weight: 0 to 1")

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Smooth the operands of the main graph's MatMul and Gemm with constant weights.

        Raises:
            UsageError: alpha is out of its range.
            DataError: the samples do not fit.
        """
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"alpha is {self.alpha}, expected a number from 0 to 1")
        products = [node for node in model.graph if _is_candidate(node)]
        if context.calibration is None and products:
            reason = "there is no calibration data, which the ranges of activations come from"
            return PassResult(False, {"smoothed": 0}, tuple(Declined(layer_name(node), reason) for node in products))
        lanes = lanes_of(model.graph)
        seams = [seam for seam in seams_of(lanes) if any(map(_smooths, seam.readers))]
        observed = {
            port.node.inputs[0]: lanes.of[port.node.inputs[0]]
            for seam in seams
            for port in seam.readers
            if _smooths(port) and port.node.inputs[0] is not None
        }
        if context.calibration is None or not observed:
            return PassResult(False, {"smoothed": 0}, tuple(_declined(products, lanes, seams)))
        maxima = channel_maxima(model, observed, lanes.count, context.calibration, context.progress)
        log2 = settle(seams, lanes, lanes.pinned, alpha=self.alpha, maxima=maxima)
        smoothed = sum(_smooths(port) and bool(np.any(log2[port.lanes])) for port in lanes.readers)
        changed = rescale(lanes, log2)
        statistics: dict[str, int | float | str] = {
            "smoothed": smoothed,
            "changed-nodes": changed,
            "largest-scale": round(float(np.exp2(np.abs(log2).max(initial=0.0))), 2),
        }
        return PassResult(bool(changed), statistics, tuple(_declined(products, lanes, seams)))


def _is_candidate(node: ir.Node) -> bool:
    return is_standard(node, "MatMul", "Gemm") and constant(node.inputs[1]) is not None


def _smooths(port: Port) -> bool:
    return port.weighted and port.node.op_type in ("MatMul", "Gemm")


def _declined(products: Sequence[ir.Node], lanes: Lanes, seams: Sequence[Seam]) -> Iterator[Declined]:
    """The products whose operand cannot be scaled, each with what stands in the way."""
    taking: Mapping[ir.Node, Port] = {port.node: port for seam in seams for port in seam.readers}
    for node in products:
        value = node.inputs[0]
        own = lanes.of.get(value) if value is not None else None
        port = taking.get(node)
        if port is not None and not all(lane in lanes.pinned for lane in port.lanes.tolist()):
            continue
        maker = value.producer() if value is not None else None
        if own is not None and (reasons := [lanes.pinned[n] for n in np.unique(own).tolist() if n in lanes.pinned]):
            yield Declined(layer_name(node), reasons[0])
        elif maker is None:
            yield Declined(layer_name(node), "it reads an input of the graph, which has no scale to take")
        else:
            yield Declined(layer_name(node), f"{maker.op_type} '{layer_name(maker)}' before it has no scale to take")
