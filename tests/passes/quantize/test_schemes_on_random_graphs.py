"""The schemes that need no data, on random graphs of products: valid, the same interface, done in one run, close."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.passes.quantize.convert_float16 import ConvertFloat16
from graphopt.passes.quantize.quantize_dynamic import Per, QuantizeDynamic
from graphopt.passes.quantize.quantize_weights import QuantizeWeights
from graphopt.pipeline.base import Pass
from tests.passes.harness import check
from tests.passes.random_graphs import Builder, models, reshape, transpose

# What each may cost; positive factors keep sums from cancelling, so that errors stay a fraction of the largest result.
PASSES: dict[str, tuple[Pass, float]] = {
    "dynamic": (QuantizeDynamic(), 0.05),
    "dynamic by row": (QuantizeDynamic(per=Per.ROW), 0.05),
    "int8": (QuantizeWeights(smallest=0), 0.03),
    "int8 by column": (QuantizeWeights(smallest=0, block=0), 0.03),
    "int4": (QuantizeWeights(smallest=0, bits=4, block=2), 0.4),
    "float16": (ConvertFloat16(smallest=0), 5e-3),
}


def product(build: Builder) -> None:
    """A MatMul of any rank, or a Gemm, maybe with an earlier weight of the same shape."""
    value = build.pick(lambda shape: len(shape) >= 2)
    if value is None:
        return
    *rows, depth = build.shapes[value]
    columns = build.choose(1, 3, 5, 7, 17)
    gemm = len(rows) == 1 and build.choose(True, False)
    turned = gemm and build.choose(True, False)
    size = (columns, depth) if turned else (depth, columns)
    known = [weight.name for weight in build.weights if tuple(weight.dims) == size]
    random = np.random.default_rng(len(build.weights))
    if known and build.choose(True, False):
        weight = build.choose(*known)
    else:
        weight = build.constant(random.uniform(0.1, 1, size).astype(np.float32))
    if gemm:
        bias = build.constant(random.uniform(0.1, 1, (columns,)).astype(np.float32))
        build.add("Gemm", [value, weight, bias], (*rows, columns), transB=int(turned))
    else:
        build.add("MatMul", [value, weight], (*rows, columns))


def total(build: Builder) -> None:
    one = build.pick()
    other = build.pick(lambda shape: one is not None and shape == build.shapes[one])
    assert one is not None and other is not None
    build.add(build.choose("Add", "Max"), [one, other], build.shapes[one])


@pytest.mark.parametrize("name", PASSES)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(model=models(product, product, product, total, transpose, reshape), seed=st.integers(0, 99))
def test_on_random_graphs(name: str, model: ir.Model, seed: int) -> None:
    pass_, relative = PASSES[name]
    random = np.random.default_rng(seed)
    feeds = {
        str(value.name): random.uniform(0.1, 1, tuple(value.shape.numpy())).astype(np.float32)  # type: ignore[union-attr]
        for value in model.graph.inputs
    }
    check(pass_, model, feeds=feeds, relative=relative, changes=None)
