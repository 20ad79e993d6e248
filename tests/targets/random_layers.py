"""Quantized layers of random shapes and numbers, each with the bits that its definition gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import strategies as st
from onnx import helper

from graphopt import ir as gir
from tests.targets.quantized_models import Activation, Array, convolution_sums, layer_model, requantized

Clip = tuple[str, tuple[float, ...]] | None


@dataclass(frozen=True)
class Layer:
    """A model of one layer, from the integers x to the integers y, and what y is of one x."""

    model: ir.Model
    x: Array
    y: Array


@st.composite
def activations(draw: Any, scale: float) -> Activation:
    dtype = draw(st.sampled_from([np.int8, np.uint8]))
    limits = np.iinfo(dtype)
    zero_point = draw(st.sampled_from([limits.min, limits.max, 0]) | st.integers(limits.min, limits.max))
    return Activation(dtype, scale * draw(st.floats(0.5, 2.0, width=32)), int(zero_point))


def values(random: np.random.Generator, dtype: Any, shape: tuple[int, ...], extreme: bool) -> Array:
    """Random integers, or only the least and the greatest of the type."""
    limits = np.iinfo(dtype)
    if extreme:
        return random.choice(np.array([limits.min, limits.max], dtype), shape)
    return random.integers(limits.min, limits.max, shape, dtype, endpoint=True)


@st.composite
def convolutions(draw: Any) -> Layer:
    """Dense, depthwise and grouped ones, of any strides, pads, dilations, zero points and scales."""
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    form = draw(st.sampled_from(["dense", "depthwise", "grouped"]))
    inputs, outputs, group = draw(st.integers(1, 37)), draw(st.integers(1, 37)), 1
    if form == "depthwise":
        outputs = group = inputs
    elif form == "grouped":
        group, inputs, outputs = (draw(st.sampled_from(sizes)) for sizes in ([2, 3, 5], [1, 3, 8], [1, 7, 17]))
        inputs, outputs = inputs * group, outputs * group
    kernel, strides, dilations = (tuple(draw(st.integers(1, most)) for _ in range(2)) for most in (3, 2, 2))
    pads = tuple(draw(st.integers(0, 2)) for _ in range(4))
    sizes = tuple(draw(st.integers(5, 9)) for _ in range(2))
    extreme = draw(st.booleans())
    qx = draw(activations(0.05))
    x = values(random, qx.dtype, (draw(st.integers(1, 2)), inputs, *sizes), extreme)
    weights = values(random, np.int8, (outputs, inputs // group, *kernel), extreme)
    per_channel = draw(st.booleans())
    weight_scale = random.uniform(0.001, 0.01, outputs if per_channel else 1).astype(np.float32)
    weight_scale = weight_scale if per_channel else weight_scale.reshape(())
    bias = random.integers(-5000, 5000, outputs, np.int32) if draw(st.booleans()) and per_channel else None
    qy = draw(activations(0.5))
    clip: Clip = draw(st.sampled_from([None, ("Relu", ()), ("Clip", (-3.0, 6.0))]))
    model = layer_model(
        "Conv", x, qx, weights, weight_scale, bias, qy, weight_axis=0, activation=clip, group=group,
        strides=strides, dilations=dilations, pads=pads,
    )  # fmt: skip
    sums = convolution_sums(x, weights, qx.zero_point, strides, pads, dilations, group)
    sums = sums if bias is None else sums + bias
    return Layer(model, x, np.moveaxis(quantized(sums, qx, weight_scale, qy, clip), -1, 1))


@st.composite
def matrix_products(draw: Any) -> Layer:
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    operator = draw(st.sampled_from(["Gemm", "MatMul"]))
    rows = (draw(st.integers(1, 9)),) if operator == "Gemm" else (draw(st.integers(1, 3)), draw(st.integers(1, 7)))
    depth, columns = draw(st.integers(1, 70)), draw(st.integers(1, 40))
    transposed = operator == "Gemm" and draw(st.booleans())
    qx, qy = draw(activations(0.05)), draw(activations(0.5))
    x = values(random, qx.dtype, (*rows, depth), draw(st.booleans()))
    weights = values(random, np.int8, (depth, columns), draw(st.booleans()))
    weight_scale = random.uniform(0.001, 0.01, columns).astype(np.float32)
    bias = random.integers(-5000, 5000, columns, np.int32) if operator == "Gemm" else None
    attributes: dict[str, Any] = {"transB": int(transposed)} if operator == "Gemm" else {}
    model = layer_model(
        operator, x, qx, weights.T if transposed else weights, weight_scale, bias, qy,
        weight_axis=0 if transposed else 1, **attributes,
    )  # fmt: skip
    sums = (x.astype(np.int64) - qx.zero_point) @ weights.astype(np.int64)
    sums = sums if bias is None else sums + bias
    return Layer(model, x, quantized(sums, qx, weight_scale, qy, None))


def side_by_side(layers: Sequence[Layer]) -> ir.Model:
    """One model of all layers: the inputs are l0_x, l1_x, …, the outputs l0_y, l1_y, …"""
    protos = [onnx.compose.add_prefix(ir.to_proto(layer.model), f"l{i}_") for i, layer in enumerate(layers)]
    graph = helper.make_graph(
        *([item for proto in protos for item in getattr(proto.graph, part)] for part in ("node",)),
        "layers",
        *([item for proto in protos for item in getattr(proto.graph, part)] for part in ("input", "output")),
        initializer=[item for proto in protos for item in proto.graph.initializer],
    )
    proto = helper.make_model(graph, opset_imports=protos[0].opset_import, ir_version=9)
    model = gir.load(proto)
    gir.refresh_shapes(model)
    return model


def quantized(sums: Array, qx: Activation, weight_scale: Array, qy: Activation, clip: Clip) -> Array:
    """The integers that sums of products, with channels along the last axis, become."""
    multiplier = np.float32(qx.scale) * weight_scale.astype(np.float32) / np.float32(qy.scale)
    low, high = qy.limits()
    if clip is not None:
        ends = clip[1] or (0.0, np.inf)
        low, high = (
            int(np.clip(np.rint(np.float32(end) / np.float32(qy.scale)) + qy.zero_point, low, high)) for end in ends
        )
    return requantized(sums, multiplier, qy, low, high)
