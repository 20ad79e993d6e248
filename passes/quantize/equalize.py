"""Equalize the ranges of channels across layers, so that one scale serves them all.

W₂ f(W₁x + b) = (W₂S) f(S⁻¹W₁x + S⁻¹b) for f(x/s) = f(x)/s, with s_i = √(r₁ᵢ r₂ᵢ)/r₂ᵢ: r₁ᵢ is the largest magnitude of
row i of W₁, r₂ᵢ that of column i of W₂, and both are √(r₁ᵢ r₂ᵢ) afterwards (M. Nagel and others, Data-free quantization
through weight equalization and bias correction, 2019, section 4.1, equation 11). With a scale for each output channel
of a weight, W₁'s rows need no help, but the channel of the activation between does, which has one scale for all: r₁ᵢ
can be its largest magnitude on calibration data instead.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir.reading import opset_of
from graphopt.passes.quantize.channel_maxima import channel_maxima
from graphopt.passes.quantize.lane_rules import lanes_of
from graphopt.passes.quantize.lanes import Lanes
from graphopt.passes.quantize.rescaling import Seam, declined, rescale, seams_of, settle
from graphopt.pipeline.base import Pass, PassContext, PassResult, option

_BOUNDS = ("Relu", "Clip", "Min", "Max")
_BROADCAST_OPSET = 8  # the first in which Min and Max broadcast


class Ranges(enum.Enum):
    """What is balanced against the weights that read a channel."""

    ACTIVATIONS = "activations"
    WEIGHTS = "weights"


class Clips(enum.Enum):
    """What becomes of a Clip (ReLU6) between layers: its bounds are not the same for all channels afterwards."""

    KEEP = "keep"
    SPLIT = "split"


@dataclass(frozen=True)
class Equalize(Pass):
    """Balance the ranges of channels between layers that follow each other, exactly, for quantization."""

    name: ClassVar[str] = "equalize"
    exact: ClassVar[bool] = True

    ranges: Ranges = option(Ranges.ACTIVATIONS, "in front: of activations on calibration data, if any, or of weights")
    clips: Clips = option(Clips.KEEP, "a Clip between layers: keep it and what is around, or split it by channel")

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Equalize the main graph until no scale moves.

        Raises DataError if the samples do not fit.
        """
        split = self.clips is Clips.SPLIT and opset_of(model) >= _BROADCAST_OPSET
        lanes = lanes_of(model.graph, split_bounds=split)
        seams = seams_of(lanes)
        pinned = dict(lanes.pinned)
        for seam in seams:
            if reason := _obstacle(seam):
                pinned |= {lane: pinned.get(lane, reason) for lane in seam.lanes.tolist()}
        balanced = [seam for seam in seams if any(lane not in pinned for lane in seam.lanes.tolist())]
        maxima = None
        if self.ranges is Ranges.ACTIVATIONS and context.calibration is not None and balanced:
            observed = {value: lanes.of[value] for value in _stored(lanes, pinned)}
            maxima = channel_maxima(model, observed, lanes.count, context.calibration, context.progress)
        log2 = settle(balanced, lanes, pinned, alpha=0.5, maxima=maxima)
        changed = rescale(lanes, log2)
        moved = np.abs(log2[log2 != 0])
        statistics: dict[str, int | float | str] = {
            "ranges": (Ranges.WEIGHTS if maxima is None else Ranges.ACTIVATIONS).value,
            "equalized-channels": len(moved),
            "changed-nodes": changed,
            "largest-scale": round(float(np.exp2(moved.max(initial=0.0))), 2),
        }
        return PassResult(bool(changed), statistics, tuple(declined(seams, pinned)))


def _obstacle(seam: Seam) -> str:
    """Why the ranges on both sides cannot be balanced; empty if they can."""
    if not seam.readers:
        return "no Conv, ConvTranspose, Gemm or MatMul reads it"
    other = next((port.node for port in (*seam.makers, *seam.readers) if not port.weighted), None)
    return "" if other is None else f"{other.op_type} '{other.name}' next to it has no weight to balance with"


def _stored(lanes: Lanes, pinned: Mapping[int, str]) -> Sequence[ir.Value]:
    """The values with lanes to scale, without those that only a bound reads, which is computed with them."""
    movable = np.ones(lanes.count, bool)
    movable[list(pinned)] = False
    return [
        value
        for value, own in lanes.of.items()
        if movable[own].any() and not all(user.op_type in _BOUNDS for user in value.consumers())
    ]


def has_linear_depthwise(graph: ir.Graph) -> bool:
    """Whether Convs alone read some depthwise Conv: no activation bounds it, and its channels differ most in range."""
    return any(
        _is_depthwise(node)
        and bool(users := node.outputs[0].consumers())
        and not node.outputs[0].is_graph_output()
        and all(user.op_type == "Conv" for user in users)
        for node in graph
    )


def _is_depthwise(node: ir.Node) -> bool:
    weight = node.inputs[1] if node.op_type == "Conv" else None
    group = node.attributes["group"].as_int() if "group" in node.attributes else 1
    return weight is not None and weight.shape is not None and group > 1 and weight.shape[0] == group
