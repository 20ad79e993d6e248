"""Weights that several layers read: the same factors for all, and a reason where layers read them in different ways."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import graphopt.ir as graph_ir
from graphopt.analysis.samples import Samples
from graphopt.passes.factorize.costs import Saving
from graphopt.passes.factorize.factorize import Factorize
from graphopt.passes.factorize.form import Method
from graphopt.passes.factorize.layers import layers
from graphopt.passes.factorize.sharing import spread_of
from graphopt.passes.prune.least_squares import shrunk
from graphopt.passes.prune.readers import observe
from graphopt.pipeline.base import silent
from tests.passes.factorize.test_factorize import HEAD, factored, low, sqnr, structure, weight
from tests.passes.harness import Outcome, parse

Array = np.ndarray[Any, Any]


def towers(shared: Array, second: str = "b = Gemm <transB = 1> (v, w, c1)", width: int = 48) -> ir.Model:
    """Two inputs, each through the same weight [64, 48]; both have their own bias."""
    return parse(
        HEAD + f"g (float[1,48] x, float[1,{width}] v) => (float[1,64] y, float[n,m] z) "
        f"{{ a = Gemm <transB = 1> (x, w, c0) y = Relu (a) {second} z = Relu (b) }}",
        w=shared, c0=weight(64, seed=2), c1=weight(64, seed=3),
    )  # fmt: skip


def pictures(shared: Array, first: str = "", second: str = "") -> ir.Model:
    """One 3×3 weight over a picture, and over what it makes of it."""
    return parse(
        HEAD + f"g (float[1,16,9,9] x) => (float[1,16,n,m] y) {{ a = Conv <{first}> (x, w) r = Relu(a) "
        f"b = Conv <{second}> (r, w) y = Relu (b) }}",
        w=shared,
    )  # fmt: skip


def weights(outcome: Outcome) -> list[str]:
    return sorted(name for name, value in outcome.after.graph.initializers.items() if len(value.shape or ()) > 1)


def test_layers_with_one_weight_get_the_same_two_factors() -> None:
    outcome = factored(towers(low(64, 48, 4)), Factorize(ratio=0.5))
    assert structure(outcome.after) == [
        "weight %c0: f32[64]",
        "weight %c1: f32[64]",
        "weight %w:1:1: f32[8,48]",
        "weight %w:1:2: f32[64,8]",
        '%a/inner:y:1 = Gemm(%x, %w:1:1) {transB=1}  # f32[1,8] "gemm_0/first"',
        '%a = Gemm(%a/inner:y:1, %w:1:2, %c0) {transB=1}  # f32[1,64] "gemm_0"',
        '%y = Relu(%a)  # f32[1,64] "relu_1"',
        '%b/inner:y:1 = Gemm(%v, %w:1:1) {transB=1}  # f32[1,8] "gemm_2/first"',
        '%b = Gemm(%b/inner:y:1, %w:1:2, %c1) {transB=1}  # f32[1,64] "gemm_2"',
        '%z = Relu(%b)  # f32[n,m] "relu_3"',
    ]
    assert outcome.result.statistics["ranks"] == "gemm_0 of 2 layers 8 of 48" and sqnr(outcome) > 60


def test_a_matmul_and_a_gemm_without_transposition_share_factors() -> None:
    model = parse(
        HEAD + "g (float[1,48] x, float[1,48] v) => (float[1,64] a, float[1,64] b) "
        "{ a = Gemm (x, w, c) b = MatMul (v, w) }",
        w=low(48, 64, 4), c=weight(64),
    )  # fmt: skip
    outcome = factored(model, Factorize(ratio=0.5))
    assert outcome.operators() == ["Gemm", "Gemm", "MatMul", "MatMul"]
    assert len(weights(outcome)) == 2 and sqnr(outcome) > 60


@pytest.mark.parametrize("method", ["svd", "spatial", "tucker2", "decoupled", "cp"])
def test_windows_that_move_differently_share_factors(method: str) -> None:
    """At the largest rank that pays, of a weight that has less in every form."""
    separable = (low(16, 16, 2)[:, :, None, None] * weight(3, 1, seed=5) * weight(1, 3, seed=6)).astype(np.float32)
    model = pictures(separable, "pads = [1,1,1,1]", "strides = [2,2], dilations = [2,1], pads = [0,1,2,1]")
    outcome = factored(model, Factorize(ratio=0.1, multiple=1, method=Method(method), slower=9.0))
    assert outcome.result.changed and sqnr(outcome) > 40
    nodes = [node for node in outcome.after.graph if node.op_type == "Conv"]
    half = len(nodes) // 2
    assert all(one.inputs[1] is other.inputs[1] for one, other in zip(nodes[:half], nodes[half:], strict=True))


def test_gathers_of_one_table_share_factors() -> None:
    model = parse(
        HEAD + "g (int64[1,4] i, int64[1,3] j) => (float[1,4,32] a, float[1,3,32] b) "
        "{ a = Gather (t, i) b = Gather (t, j) }",
        t=low(32, 50, 4).T.copy(),
    )  # fmt: skip
    samples = Samples({"i": np.arange(40).reshape(10, 4), "j": np.arange(30).reshape(10, 3)}, {"i": 1, "j": 1})
    outcome = factored(model, Factorize(ratio=0.5, saving=Saving.BYTES, slower=10.0), samples)
    assert outcome.operators() == ["Gather", "MatMul", "Gather", "MatMul"]
    assert len(weights(outcome)) == 2 and sqnr(outcome, samples) > 60


@pytest.mark.parametrize(
    ("second", "width", "reason"),
    [
        ("b = Add (v, w)", 48, "its weight is shared with 'add_2', which stays"),
        (
            "t = Transpose (v) b = Gemm <transA = 1, transB = 1> (t, w)",
            48,
            "its weight is shared with 'gemm_3', which stays",
        ),
    ],
)
def test_what_reads_the_weight_in_another_way_keeps_it_whole(second: str, width: int, reason: str) -> None:
    outcome = factored(towers(low(64, 48, 4), second, width), Factorize(ratio=0.5))
    assert not outcome.result.changed and outcome.reasons()["gemm_0"] == reason


def test_a_window_with_written_padding_and_one_with_automatic_padding_stay_whole() -> None:
    model = pictures(low(16, 144, 2).reshape(16, 16, 3, 3), "pads = [1,1,1,1]", 'auto_pad = "SAME_UPPER"')
    reason = "its weight is shared by 'conv_0' and 'conv_2', which read it in different ways"
    assert factored(model, Factorize(ratio=0.5)).reasons() == {"conv_0": reason, "conv_2": reason}


def test_a_weight_that_the_model_gives_away_stays_whole() -> None:
    model = towers(low(64, 48, 4))
    graph_ir.refresh_shapes(model)
    model.graph.outputs.append(model.graph.initializers["w"])
    found, declined = layers(model.graph, ())
    assert not found and {each.reason for each in declined} == {"its weight is shared with the model's outputs"}


def test_random_weights_that_are_shared_are_declined() -> None:
    outcome = factored(towers(weight(64, 48)), Factorize(ratio=0.3))
    assert not outcome.result.changed and "of its output's energy" in outcome.reasons()["gemm_0"]


def test_covariances_add_up_by_places_and_biases_take_up_their_own_means() -> None:
    model = parse(
        HEAD + "g (float[3,8] x, float[1,8] v) => (float[3,6] a, float[1,6] b) "
        "{ a = MatMul (x, w) b = Gemm (v, w, c) }",
        w=weight(8, 6), c=weight(6),
    )  # fmt: skip
    graph_ir.refresh_shapes(model)
    (layer,), _ = layers(model.graph, ())
    first, second = weight(20, 3, 8), weight(20, 8, seed=1) + np.float32(2)
    readers = {use.node: reader for use in layer.uses if (reader := use.reader()) is not None}
    observe(model, readers, Samples({"x": first, "v": second}, {"x": 0, "v": 1}), 100, 0, silent)
    spread = spread_of(layer, readers)
    rows = first.reshape(-1, 8)
    mean = rows.mean(axis=0)
    expected = 0.75 * (shrunk(np.cov(rows.T, bias=True), 60) + np.outer(mean, mean))
    expected += 0.25 * shrunk(np.cov(second.T, bias=True), 20)
    assert spread.covariance is not None and np.allclose(spread.covariance, expected, rtol=0.02, atol=0.02)
    assert spread.common is not None and np.allclose(spread.common, np.sqrt(0.75) * rows.mean(axis=0), atol=1e-5)
    assert spread.means[0] is None and np.allclose(spread.means[1], second.mean(axis=0), atol=1e-5)  # type: ignore[arg-type]


def test_the_input_that_counts_more_decides_the_directions() -> None:
    """Two inputs along four directions each: only eight of 48 are ever read."""
    samples = Samples(
        {name: weight(300, 4, seed=seed) @ weight(4, 48, seed=seed + 1) for seed, name in ((3, "x"), (5, "v"))},
        {"x": 1, "v": 1},
    )
    outcome = factored(towers(weight(64, 48)), Factorize(ratio=0.5), samples)
    assert outcome.result.changed and sqnr(outcome, samples) > 30


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    strides=st.tuples(*[st.integers(1, 2)] * 2),
    dilations=st.tuples(*[st.integers(1, 2)] * 2),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    rank=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_any_two_windows_of_one_weight_of_low_rank_are_factored_without_a_trace(
    strides: tuple[int, ...], dilations: tuple[int, ...], pads: tuple[int, ...], rank: int, seed: int
) -> None:
    text = f"strides = {list(strides)}, dilations = {list(dilations)}, pads = {list(pads)}"
    model = pictures(low(16, 144, rank, seed).reshape(16, 16, 3, 3), "pads = [1,1,1,1]", text)
    outcome = factored(model, Factorize(energy=0.999, multiple=1, refit=False, method=Method.SVD))
    assert outcome.operators() == ["Conv", "Conv", "Relu", "Conv", "Conv", "Relu"]
    assert len(weights(outcome)) == 2 and sqnr(outcome) > 40
