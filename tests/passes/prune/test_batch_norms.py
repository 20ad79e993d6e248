"""Batch normalizations behind what was pruned: their statistics bring back the moments of their outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import graphopt.ir as graph_ir
from graphopt.analysis.execution import Session
from graphopt.analysis.samples import Samples
from graphopt.passes.prune.allocation import Allocation
from graphopt.passes.prune.batch_norms import estimate_statistics, has_statistics
from graphopt.passes.prune.prune_channels import PruneChannels
from graphopt.passes.prune.variants import few_apart
from graphopt.pipeline.base import PassContext
from tests.passes.harness import parse, run

Array = np.ndarray[Any, Any]

HEAD = '<ir_version: 8, opset_import: ["" : 17]> '


def weight(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def upsampling() -> ir.Model:
    """conv → relu → transposed convolution, which is not refitted → batch normalization → relu → conv."""
    model = parse(
        HEAD
        + """g (float[1,3,6,6] x) => (float[1,2,12,12] y) {
            a = Conv(x, w0, b0) r = Relu(a) t = ConvTranspose <strides = [2, 2]> (r, w1)
            n = BatchNormalization <epsilon = 0.01> (t, s, b, m, v) q = Relu(n) y = Conv(q, w2) }""",
        w0=weight(12, 3, 1, 1), b0=weight(12) + 1, w1=weight(12, 4, 2, 2, seed=1), s=weight(4) + 2, b=weight(4, seed=2),
        m=weight(4, seed=3), v=np.array([0.5, 1, 4, 2], np.float32), w2=weight(2, 4, 1, 1, seed=4),
    )  # fmt: skip
    graph_ir.refresh_shapes(model)
    return model


def moments(model: ir.Model, samples: Samples) -> Array:
    """Means and deviations of the channels of `n`."""
    with Session(model, outputs=["n"]) as session:
        arrays = np.concatenate([session.run(feeds)["n"] for feeds in samples])
    return np.stack([arrays.mean(axis=(0, 2, 3)), arrays.std(axis=(0, 2, 3))])


def test_the_moments_of_the_output_are_the_originals_where_nothing_else_is_refitted() -> None:
    model, samples = upsampling(), Samples({"x": weight(20, 3, 6, 6, seed=9)}, {"x": 1})
    fitted = few_apart(samples, 1024, 32).fitting
    expected = moments(model, fitted)
    options: dict[str, Any] = {"ratio": 0.4, "exclude": ("conv_5",), "allocation": Allocation.UNIFORM}
    spoiled = graph_ir.clone(model)
    run(PruneChannels(**options, reconstruct=False), spoiled, PassContext(calibration=samples))
    assert np.abs(moments(spoiled, fitted) - expected).max() > 0.1
    result = run(PruneChannels(**options), model, PassContext(calibration=samples))
    assert result.changed
    np.testing.assert_allclose(moments(model, fitted), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("epsilon", [1e-5, 0.1])
def test_what_was_scaled_and_shifted_is_normalized_to_the_same(epsilon: float) -> None:
    normalized = f"y = BatchNormalization <epsilon = {epsilon}> (x, s, b, m, v)"
    model = parse(
        HEAD + f"g (float[1,2,3] x) => (float[1,2,3] y) {{ {normalized} }}",
        s=weight(2), b=weight(2, seed=1), m=weight(2, seed=2), v=np.array([0.3, 2], np.float32),
    )  # fmt: skip
    inputs = [weight(1, 2, 3, seed=seed) for seed in range(5)]
    factor, shift = np.array([3, 0.5], np.float32)[:, None], np.array([-1, 4], np.float32)[:, None]
    with Session(model) as session:
        expected = [session.run({"x": array})["y"] for array in inputs]
    estimate_statistics(next(iter(model.graph)), [(array, array * factor + shift) for array in inputs])
    with Session(model) as session:
        found = [session.run({"x": array * factor + shift})["y"] for array in inputs]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_channel_that_never_moves_keeps_its_statistics() -> None:
    model = parse(
        HEAD + "g (float[1,2,3] x) => (float[1,2,3] y) { y = BatchNormalization(x, s, b, m, v) }",
        s=weight(2), b=weight(2), m=np.array([5, 6], np.float32), v=np.array([7, 8], np.float32),
    )  # fmt: skip
    moving = weight(1, 2, 3)
    moving[:, 1] = 3
    node = next(iter(model.graph))
    estimate_statistics(node, [(moving, 2 * moving)])
    kept = [value.const_value.numpy()[1] for value in node.inputs[3:5] if value is not None and value.const_value]
    assert kept == [6, 8]


def test_statistics_that_are_computed_are_left_alone() -> None:
    text = "g (float[1,2,3] x, float[2] m) => (float[1,2,3] y) { y = BatchNormalization(x, s, b, m, v) }"
    ones = np.ones(2, np.float32)
    model = parse(HEAD + text, s=ones, b=ones, v=ones)
    assert not has_statistics(next(iter(model.graph)))
