"""Quantization: int8 where integer kernels compute, written as QuantizeLinear and DequantizeLinear of standard ONNX.

`observers` (in analysis) choose ranges, `arithmetic` turns them into scales and zero points, `placement` decides which
values are integers and which share a scale, `insertion` rewrites the graph, and `quantize` is the pass.
"""

from __future__ import annotations

PASSES: tuple[str, ...] = (
    "graphopt.passes.quantize.adaround:AdaRound",
    "graphopt.passes.quantize.compute_float16:ComputeFloat16",
    "graphopt.passes.quantize.convert_float16:ConvertFloat16",
    "graphopt.passes.quantize.correct_bias:CorrectBias",
    "graphopt.passes.quantize.equalize:Equalize",
    "graphopt.passes.quantize.palettize:Palettize",
    "graphopt.passes.quantize.quantize:Quantize",
    "graphopt.passes.quantize.quantize_dynamic:QuantizeDynamic",
    "graphopt.passes.quantize.quantize_weights:QuantizeWeights",
    "graphopt.passes.quantize.smooth_quant:SmoothQuant",
)
