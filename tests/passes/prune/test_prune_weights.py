"""prune-weights: which weights become zero, what it declines, and that a second run changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import graphopt
import graphopt.ir as graph_ir
from graphopt.analysis.samples import probe_samples
from graphopt.errors import UsageError
from graphopt.passes.prune.prune_weights import NO_FASTER, PruneWeights, Threshold
from graphopt.passes.quantize.convert_float16 import ConvertFloat16
from graphopt.passes.quantize.palettize import Palettize
from graphopt.passes.quantize.quantize import Quantize
from graphopt.pipeline.base import PassContext
from tests.passes.harness import Outcome, outputs, parse, run
from tests.passes.prune.random_networks import pictures, sequences

Array = np.ndarray[Any, Any]
Golden = Callable[[str, Outcome], None]

HEAD = '<ir_version: 8, opset_import: ["" : 17]> '


def weight(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def pruned(model: ir.Model, pass_: PruneWeights) -> Outcome:
    """Run the pass on a copy, twice: the second run changes nothing."""
    graph_ir.refresh_shapes(model)
    after = graph_ir.clone(model)
    result = run(pass_, after)
    assert result.changed == (graph_ir.to_text(after) != graph_ir.to_text(model))
    text = graph_ir.to_text(after)
    assert not run(pass_, after).changed and graph_ir.to_text(after) == text
    return Outcome("prune-weights", model, after, result)


def array(model: ir.Model, name: str) -> Array:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def product(rows: int = 8, columns: int = 4, scale: float = 1) -> ir.Model:
    """Two matrices; the numbers of the second are `scale` times as large."""
    return parse(
        HEAD + f"g (float[1,6] x) => (float[1,{columns}] y) {{ h = MatMul(x, w0) y = MatMul(h, w1) }}",
        w0=weight(6, rows), w1=weight(rows, columns, seed=1) * np.float32(scale),
    )  # fmt: skip


def test_golden(golden: Golden) -> None:
    model = parse(
        HEAD + "g (float[1,4,2,2] x) => (float[1,2,2,2] y) { c = Conv(x, w, b) y = Relu(c) }",
        w=np.array([[1, -3, 2, 4], [-1, 5, 0.5, 2]], np.float32).reshape(2, 4, 1, 1),
        b=np.array([0.1, 0.2], np.float32),
    )
    golden("conv", pruned(model, PruneWeights(pattern="2:4")))


def test_each_layer_gets_the_same_fraction_of_zeros_and_loses_its_smallest() -> None:
    outcome = pruned(product(scale=100), PruneWeights(0.75, Threshold.LAYER))
    for name in ("w0", "w1"):
        before, after = array(outcome.before, name), array(outcome.after, name)
        gone = after == 0
        assert gone.mean() == 0.75
        assert np.array_equal(after[~gone], before[~gone])
        assert np.abs(before[gone]).max() <= np.abs(before[~gone]).min()
    assert outcome.result.statistics["sparsity"] == 0.75
    assert outcome.result.statistics["speed"] == NO_FASTER


def test_one_threshold_empties_a_layer_of_small_numbers_and_lamp_does_not() -> None:
    fractions = {
        threshold: [
            float((array(pruned(product(scale=10000), PruneWeights(0.6, threshold)).after, name) == 0).mean())
            for name in ("w0", "w1")
        ]
        for threshold in (Threshold.GLOBAL, Threshold.LAMP)
    }
    assert fractions[Threshold.GLOBAL] == [1.0, 0.0]  # 48 of 80 numbers
    small, large = fractions[Threshold.LAMP]
    assert 0.4 < small < 0.8 and 0.4 < large < 0.8
    assert small * 48 + large * 32 == 48


def test_equal_numbers_do_not_all_go() -> None:
    model = parse(HEAD + "g (float[1,4] x) => (float[1,4] y) { y = MatMul(x, w) }", w=np.full((4, 4), 0.02, np.float32))
    assert (array(pruned(model, PruneWeights(0.5, Threshold.GLOBAL)).after, "w") == 0).sum() == 8


LAYERS: dict[str, tuple[str, tuple[int, ...], int]] = {
    "Conv": ("g (float[1,8,4,4] x) => (float[1,3,2,2] y) { y = Conv(x, w) }", (3, 8, 3, 3), 1),
    "Conv in groups": ("g (float[1,8,4,4] x) => (float[1,4,2,2] y) { y = Conv<group=2>(x, w) }", (4, 4, 3, 3), 1),
    "ConvTranspose": ("g (float[1,8,4,4] x) => (float[1,3,6,6] y) { y = ConvTranspose(x, w) }", (8, 3, 3, 3), 0),
    "Gemm": ("g (float[1,8] x) => (float[1,3] y) { y = Gemm(x, w) }", (8, 3), 0),
    "Gemm, transposed": ("g (float[1,8] x) => (float[1,3] y) { y = Gemm<transB=1>(x, w) }", (3, 8), 1),
    "Gemm, left": ("g (float[8,2] x) => (float[3,2] y) { y = Gemm(w, x) }", (3, 8), 1),
    "Gemm, left, transposed": ("g (float[8,2] x) => (float[3,2] y) { y = Gemm<transA=1>(w, x) }", (8, 3), 0),
    "MatMul": ("g (float[2,1,8] x) => (float[2,1,3] y) { y = MatMul(x, w) }", (2, 8, 3), 1),
    "MatMul, left": ("g (float[8,2] x) => (float[3,2] y) { y = MatMul(w, x) }", (3, 8), 1),
    "GRU": ("g (float[2,1,8] x) => (float[2,1,1,4] y) { y = GRU<hidden_size=4>(x, w, r) }", (1, 12, 8), 2),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("pattern", "stay"), [("2:4", 2), ("1:4", 1)])
def test_of_each_four_along_the_summed_axis_so_many_stay(layer: str, pattern: str, stay: int) -> None:
    text, shape, axis = LAYERS[layer]
    others = {"r": weight(1, 12, 4, seed=2)} if layer == "GRU" else {}
    outcome = pruned(parse(HEAD + text, w=weight(*shape), **others), PruneWeights(pattern=pattern))
    before, after = (np.moveaxis(array(model, "w"), axis, -1) for model in (outcome.before, outcome.after))
    before, after = (each.reshape(-1, 4) for each in (before, after))
    assert ((after != 0).sum(axis=1) == stay).all()
    largest = np.sort(np.abs(before), axis=1)[:, -stay:]
    assert np.array_equal(np.sort(np.abs(after), axis=1)[:, -stay:], largest)
    assert outcome.result.statistics["sparsity"] == 1 - stay / 4


def test_a_pattern_that_does_not_fit_an_axis_is_declined() -> None:
    outcome = pruned(product(), PruneWeights(pattern="2:4"))
    assert outcome.reasons() == {"matmul_0": "'w0': 6 numbers along the summed axis are no multiple of 4"}
    assert (array(outcome.after, "w1") == 0).mean() == 0.5


def test_a_weight_that_two_layers_sum_over_differently_gets_no_pattern() -> None:
    text = "g (float[1,4] x) => (float[1,4] y) { h = Gemm(x, w) y = Gemm<transB=1>(h, w) }"
    outcome = pruned(parse(HEAD + text, w=weight(4, 4)), PruneWeights(pattern="2:4"))
    assert outcome.reasons() == {"gemm_0": "'w': the layers that share it sum over different axes"}
    outcome = pruned(parse(HEAD + text, w=weight(4, 4)), PruneWeights(sparsity=0.5))
    assert outcome.result.statistics["elements"] == 16 and (array(outcome.after, "w") == 0).sum() == 8


def test_what_is_excluded_an_output_or_not_finite_stays() -> None:
    model = parse(
        HEAD
        + """g (float[1,4] x) => (float[1,4] y, float[4,4] u) {
            a = MatMul(x, w0) b = MatMul(a, u) c = MatMul(b, w1) y = MatMul(c, w2) }""",
        w0=weight(4, 4), u=weight(4, 4, seed=1), w1=np.full((4, 4), np.nan, np.float32), w2=weight(4, 4, seed=2),
    )  # fmt: skip
    outcome = pruned(model, PruneWeights(exclude=("matmul_0",)))
    assert outcome.reasons() == {
        "matmul_0": "'w0': 'matmul_0' is excluded",
        "matmul_1": "'u': it is an output of the graph",
        "matmul_2": "'w1': it holds NaN or infinities",
    }
    assert outcome.result.statistics["weights"] == 1


def test_a_constant_node_is_left_to_constant_folding() -> None:
    text = "g (float[1,2] x) => (float[1,2] y) { w = Constant<value = float[2,2] {1, 2, 3, 4}>() y = MatMul(x, w) }"
    outcome = pruned(parse(HEAD + text), PruneWeights())
    assert outcome.reasons() == {"matmul_1": "'w': it is a Constant node, which fold-constants makes an initializer"}
    assert not outcome.result.changed and "speed" not in outcome.result.statistics


def test_quantized_weights_are_refused() -> None:
    model = product()
    graph_ir.refresh_shapes(model)
    run(Quantize(), model, PassContext(calibration=probe_samples(model, 0, 12)))
    outcome = pruned(model, PruneWeights())
    assert not outcome.result.changed
    assert set(outcome.reasons().values()) == {"its weights are quantized already"}


@pytest.mark.parametrize(
    ("earlier", "reason"),
    [
        (Palettize(entries=16), "it is a palette; prune before palettize"),
        (ConvertFloat16(), "it is stored as float16; prune before convert-float16"),
    ],
)
def test_weights_that_are_computed_from_smaller_ones_are_declined(earlier: Any, reason: str) -> None:
    model = parse(HEAD + "g (float[1,64] x) => (float[1,64] y) { y = MatMul(x, w) }", w=weight(64, 64))
    graph_ir.refresh_shapes(model)
    assert run(earlier, model).changed
    outcome = pruned(model, PruneWeights())
    assert not outcome.result.changed and next(iter(outcome.reasons().values())).endswith(reason)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, "sparsity is 1.0, expected 0 or more and less than 1"),
        ({"sparsity": -0.1}, "sparsity is -0.1"),
        *(({"pattern": text}, f"pattern is '{text}', expected n:m") for text in ("4:2", "0:4", "2", "a:b", "2:4:8")),
    ],
)
def test_options_out_of_range_are_usage_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PruneWeights(**options).run(product(), PassContext())


def test_outputs_lose_what_the_zeros_held() -> None:
    """The noise of a product with random inputs is the energy of the weights that went."""
    model = parse(HEAD + "g (float[512,64] x) => (float[512,64] y) { y = MatMul(x, w) }", w=weight(64, 64))
    outcome = pruned(model, PruneWeights(sparsity=0.5))
    x = weight(512, 64, seed=9)
    expected, found = (outputs(each, {"x": x})["y"] for each in (outcome.before, outcome.after))
    lost = float(np.square(expected - found).sum() / np.square(expected).sum())
    assert lost == pytest.approx(1 - float(outcome.result.statistics["energy-kept"]), rel=0.1)
    assert 0.05 < lost < 0.1  # E[w²; |w| < median] = 0.0716 of a normal distribution


def test_a_library_of_pruned_weights_is_smaller_when_compressed_and_only_then(tmp_path: Path) -> None:
    model = parse(HEAD + "g (float[1,256] x) => (float[1,256] y) { y = MatMul(x, w) }", w=weight(256, 256))
    graph_ir.refresh_shapes(model)
    sparse = pruned(model, PruneWeights(sparsity=0.75)).after

    def size(which: ir.Model, *, compress: bool) -> int:
        out = tmp_path / f"{which is sparse}{compress}"
        report = graphopt.optimize(which, "cortex-a76", out=out, name="net", compress=compress).report
        return int(report["library"]["static_bytes"])

    assert size(sparse, compress=False) == size(model, compress=False)
    assert size(sparse, compress=True) < size(model, compress=True) - 100_000  # of 262,144 bytes of weights


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    model=st.one_of(pictures(), sequences()),
    sparsity=st.sampled_from((0.0, 0.3, 0.9)),
    threshold=st.sampled_from(Threshold),
    pattern=st.sampled_from(("", "", "2:4", "1:2")),
)
def test_random_networks(model: ir.Model, sparsity: float, threshold: Threshold, pattern: str) -> None:
    outcome = pruned(model, PruneWeights(sparsity, threshold, pattern))
    feeds = next(iter(probe_samples(model, 0, 1)))
    assert all(np.isfinite(found).all() for found in outputs(outcome.after, feeds).values())
    if not pattern:
        elements, layers = (int(outcome.result.statistics[key]) for key in ("elements", "weights"))
        wanted, found = sparsity * elements, float(outcome.result.statistics["sparsity"]) * elements
        assert wanted - layers - 1e-4 * elements <= found <= wanted + 1e-4 * elements
