"""Passes that change weights, in every order that a recipe can give: what goes together, what is refused and why."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import graphopt.ir as graph_ir
from graphopt.analysis.comparison import compare_runs
from graphopt.analysis.samples import Samples
from graphopt.passes.factorize.factorize import Factorize
from graphopt.passes.prune.prune_channels import PruneChannels
from graphopt.passes.quantize.compute_float16 import ComputeFloat16
from graphopt.passes.quantize.quantize import Quantize
from graphopt.passes.quantize.quantize_dynamic import QuantizeDynamic
from graphopt.pipeline.base import Pass, PassContext
from tests.passes.harness import outputs, parse, run

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(32, 1, 16, 6, 6)).astype(np.float32)
CONTEXT = PassContext(calibration=Samples({"x": IMAGES}, {"x": 0}))

PASSES: dict[str, Pass] = {
    "factorize": Factorize(ratio=0.2),
    "prune": PruneChannels(ratio=0.2),
    "int8": Quantize(),
    "dynamic": QuantizeDynamic(),
    "float16": ComputeFloat16(),
}
QUANTIZED, HALF = "quantized already", "float16"


def network() -> ir.Model:
    """Three products, of which two have a low rank."""

    def low(rows: int, columns: int, rank: int) -> np.ndarray:
        left, right = RNG.normal(size=(rows, rank)), RNG.normal(size=(rank, columns))
        return (left @ right / np.sqrt(columns * rank)).astype(np.float32)

    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[1,16,6,6] x) => (float[1,10] y) {
        a = Conv(x, w1, b1)  r = Relu(a)  c = Conv(r, w2, b2)  s = Relu(c)
        m = GlobalAveragePool(s)  f = Flatten(m)  y = Gemm<transB = 1>(f, w3, b3)
    }"""
    biases = {name: RNG.normal(size=size).astype(np.float32) for name, size in (("b1", 64), ("b2", 96), ("b3", 10))}
    w1, w2 = low(64, 16, 8).reshape(64, 16, 1, 1), low(96, 64, 6).reshape(96, 64, 1, 1)
    model = parse(text, w1=w1, w2=w2, w3=low(10, 96, 10), **biases)
    graph_ir.refresh_shapes(model)
    return model


def ran(model: ir.Model, names: str) -> list[tuple[bool, list[str]]]:
    """Whether each of the passes changed the model, and what it gave as reasons."""
    results = [run(PASSES[name], model, CONTEXT) for name in names.split()]
    return [(result.changed, [declined.reason for declined in result.declined]) for result in results]


@pytest.mark.parametrize(
    "order",
    [
        "factorize prune int8",
        "prune factorize int8",
        "factorize prune dynamic",
        "factorize prune float16",
        "prune factorize float16",
    ],
)
def test_smaller_first_and_narrower_last_go_together(order: str) -> None:
    model = network()
    before = graph_ir.clone(model)
    assert all(changed for changed, _ in ran(model, order))
    runs = [[outputs(each, {"x": image}) for image in IMAGES[:8]] for each in (before, model)]
    assert min(output.sqnr_db for output in compare_runs(*runs)) > 15


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ("int8", "prune", QUANTIZED),
        ("int8", "factorize", QUANTIZED),
        ("int8", "int8", QUANTIZED),
        ("int8", "float16", QUANTIZED),
        ("int8", "dynamic", QUANTIZED),
        ("float16", "prune", HALF),
        ("float16", "factorize", HALF),
        ("float16", "int8", HALF),
    ],
)
def test_what_narrows_numbers_comes_last(first: str, second: str, reason: str) -> None:
    model = network()
    (narrowed, _), (changed, reasons) = ran(model, f"{first} {second}")
    assert narrowed and not changed
    assert any(reason in said for said in reasons), reasons
