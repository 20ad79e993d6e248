"""Weights that some nodes read turned round: W = A B and Wᵀ = Bᵀ Aᵀ are stored as the same two factors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import graphopt.ir as graph_ir
from graphopt.analysis.samples import Samples
from graphopt.passes.cleanup.clean_up import CleanUp
from graphopt.passes.factorize.costs import Saving, cost_of
from graphopt.passes.factorize.factorize import Factorize
from graphopt.passes.factorize.kernel_time import Kernels
from graphopt.passes.factorize.layers import layers
from graphopt.passes.factorize.low_rank import directions
from graphopt.passes.factorize.matrix_forms import Svd
from graphopt.passes.factorize.sharing import split_all, spread_of
from graphopt.passes.prune.least_squares import shrunk
from graphopt.passes.prune.readers import observe
from graphopt.pipeline.base import silent
from tests.passes.factorize.test_factorize import HEAD, factored, low, sqnr, structure, weight
from tests.passes.harness import assert_same_outputs, parse, run

Array = np.ndarray[Any, Any]

ROWS, WIDTH = 96, 48  # of the table t
READERS = {  # the shapes of the input and output, and the node
    "gather": ((5,), (5, WIDTH), "Gather (t, x{0})"),
    "matmul": ((2, ROWS), (2, WIDTH), "MatMul (x{0}, t)"),
    "stack": ((3, 2, ROWS), (3, 2, WIDTH), "MatMul (x{0}, t)"),
    "gemm": ((2, ROWS), (2, WIDTH), "Gemm <alpha = 0.5> (x{0}, t, width)"),
    "turned": ((2, WIDTH), (2, ROWS), "Gemm <transB = 1, beta = 0.5> (x{0}, t, rows)"),
    "bare": ((2, WIDTH), (2, ROWS), "Gemm <transB = 1> (x{0}, t)"),
}


def tied(table: Array, *readers: str) -> ir.Model:
    """Nodes that read one table [ROWS, WIDTH], each with an input and an output of its own."""
    inputs, outputs, nodes = [], [], []
    for number, name in enumerate(readers):
        reads, makes, node = READERS[name]
        inputs.append(f"{'int64' if name == 'gather' else 'float'}{list(reads)} x{number}")
        outputs.append(f"float{list(makes)} y{number}")
        nodes.append(f"y{number} = {node.format(number)}")
    text = f"g ({', '.join(inputs)}) => ({', '.join(outputs)}) {{ {' '.join(nodes)} }}"
    return parse(HEAD + text, t=table, width=weight(WIDTH, seed=2), rows=weight(ROWS, seed=3))


def samples_of(*readers: str) -> Samples:
    """60 for each reader of `tied`."""
    random = np.random.default_rng(4)
    shapes = {f"x{number}": (60, *READERS[name][0]) for number, name in enumerate(readers)}
    arrays = {
        key: random.integers(0, ROWS, shape) if name == "gather" else random.normal(size=shape).astype(np.float32)
        for (key, shape), name in zip(shapes.items(), readers, strict=True)
    }
    return Samples(arrays, dict.fromkeys(arrays, 0))


def matrices(model: ir.Model) -> list[tuple[int, ...]]:
    """Shapes of the weights, biases left out."""
    shapes = (value.shape for value in model.graph.initializers.values())
    return sorted(tuple(int(size) for size in shape) for shape in shapes if shape is not None and len(shape) > 1)


def test_an_embedding_and_the_scores_of_its_rows_get_the_same_two_factors() -> None:
    model = parse(
        HEAD + f"g (int64[1,4] i) => (float[4,{ROWS}] y) {{ e = Gather (t, i) s = Squeeze (e, axis) h = Tanh (s) "
        "y = Gemm <transB = 1> (h, t, c) }",
        t=low(ROWS, WIDTH, 4), c=weight(ROWS), axis=np.array([0]),
    )  # fmt: skip
    samples = Samples({"i": np.random.default_rng(0).integers(0, ROWS, (100, 1, 4))}, {"i": 0})
    outcome = factored(model, Factorize(ratio=0.5, saving=Saving.BYTES, slower=1.0), samples)
    assert structure(outcome.after) == [
        "weight %c: f32[96]",
        "weight %axis: i64[1] = [0]",
        "weight %t:1:1: f32[8,48]",
        "weight %t:1:2: f32[96,8]",
        '%e/inner:y:1 = Gather(%t:1:2, %i)  # f32[1,4,8] "gather_0/first"',
        '%e = MatMul(%e/inner:y:1, %t:1:1)  # f32[1,4,48] "gather_0"',
        '%s = Squeeze(%e, %axis)  # f32[4,48] "squeeze_1"',
        '%h = Tanh(%s)  # f32[4,48] "tanh_2"',
        '%y/inner:y:1 = Gemm(%h, %t:1:1) {transB=1}  # f32[4,8] "gemm_3/first"',
        '%y = Gemm(%y/inner:y:1, %t:1:2, %c) {transB=1}  # f32[4,96] "gemm_3"',
    ]
    assert outcome.result.statistics["ranks"] == "gemm_3 of 2 layers 8 of 48" and sqnr(outcome, samples) > 60


@pytest.mark.parametrize(
    ("readers", "operators"),
    [
        (("bare", "matmul"), ["Gemm", "Gemm", "MatMul", "MatMul"]),
        (("stack", "turned"), ["MatMul", "MatMul", "Gemm", "Gemm"]),
        (("gather", "gemm", "turned"), ["Gather", "MatMul", "Gemm", "Gemm", "Gemm", "Gemm"]),
        (("turned", "gather", "gather"), ["Gemm", "Gemm", "Gather", "MatMul", "Gather", "MatMul"]),
    ],
)
def test_nodes_that_read_a_weight_and_its_transpose_share_factors(readers: Sequence[str], operators: list[str]) -> None:
    samples = samples_of(*readers)
    outcome = factored(tied(low(ROWS, WIDTH, 4), *readers), Factorize(ratio=0.5, slower=9.0), samples)
    assert outcome.operators() == operators and sqnr(outcome, samples) > 60
    assert len(matrices(outcome.after)) == 2


@settings(max_examples=40, deadline=None)
@given(readers=st.lists(st.sampled_from(list(READERS)), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_at_full_rank_the_factors_are_the_weight_whichever_way_nodes_read_it(readers: list[str], seed: int) -> None:
    model = tied(weight(ROWS, WIDTH, seed=seed), *readers)
    graph_ir.refresh_shapes(model)
    before = graph_ir.clone(model)
    (layer,), declined = layers(model.graph, ())
    assert not declined
    form = Svd(layer, directions(layer.matrix, None))
    split_all(model.graph, [use.node for use in layer.uses], form, WIDTH)
    graph_ir.refresh_shapes(model)
    graph_ir.verify(model, interface=graph_ir.Interface.of(before))
    assert matrices(model) == [(WIDTH, WIDTH), (ROWS, WIDTH)]
    assert cost_of(form.products(WIDTH, layer), Kernels(), Saving.BYTES) == 4 * WIDTH * (WIDTH + ROWS)
    feeds = next(iter(samples_of(*readers)))
    assert_same_outputs(before, model, feeds=feeds, relative=1e-4)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(readers=st.lists(st.sampled_from(list(READERS)), min_size=2, max_size=4), rank=st.integers(1, 5))
def test_any_nodes_that_read_one_weight_of_low_rank_are_factored_without_a_trace(readers: list[str], rank: int) -> None:
    samples = samples_of(*readers)
    model = tied(low(ROWS, WIDTH, rank), *readers)
    options = Factorize(energy=0.9999, saving=Saving.BYTES, multiple=1, slower=10.0, refit=False)
    outcome = factored(model, options, samples)
    assert matrices(outcome.after) == sorted([(ROWS, rank), (rank, WIDTH)]) and sqnr(outcome, samples) > 40


def test_an_embedding_adds_its_rows_alike_to_the_covariance_of_a_product() -> None:
    readers = ("gather", "bare")
    model, samples = tied(weight(ROWS, WIDTH), *readers), samples_of(*readers)
    graph_ir.refresh_shapes(model)
    (layer,), _ = layers(model.graph, ())
    made = {use.node: reader for use in layer.uses if (reader := use.reader()) is not None}
    observe(model, made, samples, 100, 0, silent)
    rows = np.concatenate([feeds["x1"] for feeds in samples])
    mean = rows.mean(axis=0)
    gram = shrunk(np.cov(rows.T, bias=True), len(rows)) + np.outer(mean, mean)
    expected = (5 * np.eye(WIDTH) / ROWS + 2 * gram) / 7
    np.testing.assert_allclose(spread_of(layer, made).covariance, expected, rtol=0.02, atol=0.01)


def test_covariances_on_both_sides_of_a_weight_leave_the_rank_to_the_weight() -> None:
    readers = ("matmul", "turned")
    outcome = factored(tied(low(ROWS, WIDTH, 4), *readers), Factorize(ratio=0.5), samples_of(*readers))
    assert outcome.reasons()["matmul_0"] == "its weight is read both ways: its rank is chosen by its weight"


def test_a_random_weight_that_is_tied_stays_whole() -> None:
    readers = ("gather", "turned")
    outcome = factored(tied(weight(ROWS, WIDTH), *readers), Factorize(ratio=0.5, slower=1.0), samples_of(*readers))
    assert not outcome.result.changed and "of its output's energy" in outcome.reasons()["gemm_1"]


def test_a_table_that_is_read_by_columns_stays_whole() -> None:
    model = parse(
        HEAD + f"g (int64[3] i, float[2,{WIDTH}] x) => (float[{ROWS},3] e, float[2,{ROWS}] y) "
        "{ e = Gather <axis = 1> (t, i) y = Gemm <transB = 1> (x, t) }",
        t=low(ROWS, WIDTH, 4),
    )  # fmt: skip
    samples = Samples({"i": np.zeros((40, 3), np.int64), "x": weight(40, 2, WIDTH)}, {"i": 0, "x": 0})
    outcome = factored(model, Factorize(ratio=0.5), samples)
    assert not outcome.result.changed
    assert outcome.reasons() == {"gemm_1": "its weight is shared with 'gather_0', which stays"}


def test_a_transpose_of_a_weight_is_a_weight_of_its_own_after_clean_up() -> None:
    model = parse(
        HEAD + f"g (int64[1,4] i) => (float[1,4,{ROWS}] y) "
        "{ e = Gather (t, i) h = Tanh (e) w = Transpose <perm = [1, 0]> (t) y = MatMul (h, w) }",
        t=low(ROWS, WIDTH, 4),
    )  # fmt: skip
    run(CleanUp(), model)
    samples = Samples({"i": np.random.default_rng(0).integers(0, ROWS, (60, 4))}, {"i": 1})
    outcome = factored(model, Factorize(ratio=0.6, saving=Saving.BYTES, slower=1.0), samples)
    assert outcome.operators() == ["Gather", "MatMul", "Tanh", "MatMul", "MatMul"] and sqnr(outcome, samples) > 60
