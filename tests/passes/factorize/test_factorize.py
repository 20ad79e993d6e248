"""The pass: what becomes two layers, what stays and why, how closely the result follows, and that it settles."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import graphopt.ir as graph_ir
from graphopt.analysis.accuracy import measure_drop
from graphopt.analysis.comparison import compare_runs
from graphopt.analysis.cost import layer_costs, total
from graphopt.analysis.execution import Session
from graphopt.analysis.samples import Samples, probe_samples
from graphopt.errors import ModelWarning, UsageError
from graphopt.passes.cleanup.clean_up import CleanUp
from graphopt.passes.factorize.costs import Saving
from graphopt.passes.factorize.factorize import Factorize
from graphopt.passes.factorize.form import Method
from graphopt.passes.factorize.kernel_time import Arithmetic, IntegerKernels, Kernels
from graphopt.passes.factorize.layers import layers
from graphopt.passes.factorize.low_rank import directions
from graphopt.passes.factorize.matrix_forms import Svd
from graphopt.passes.factorize.ranks import Candidate, Choice, by_loss
from graphopt.passes.prune.held_out import held_out
from graphopt.passes.prune.prune_channels import PruneChannels
from graphopt.passes.prune.sensitivity import Sensitivity
from graphopt.passes.quantize.patches import from_matrix, to_matrix
from graphopt.passes.quantize.quantize import Quantize
from graphopt.pipeline.base import PassContext
from graphopt.pipeline.registry import TARGETS
from tests.passes.harness import Outcome, parse, run
from tests.passes.prune.random_networks import pictures, sequences

Array = np.ndarray[Any, Any]

HEAD = '<ir_version: 8, opset_import: ["" : 17]> '


def weight(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def low(outputs: int, features: int, rank: int, seed: int = 0) -> Array:
    """A matrix of rank `rank`, outputs of variance 1."""
    product = weight(outputs, rank, seed=seed) @ weight(rank, features, seed=seed + 1)
    return np.asarray(product / np.sqrt(rank * features), np.float32)


def dense(rank: int = 4, width: int = 64, noise: float = 0.0) -> ir.Model:
    """Two layers behind one another, the first nearly of rank `rank`."""
    return parse(
        HEAD + "g (float[1,48] x) => (float[1,10] y) { h = Gemm <transB = 1> (x, w0, b0) r = Relu(h) "
        "y = Gemm <transB = 1> (r, w1, b1) }",
        w0=low(width, 48, rank) + noise * weight(width, 48, seed=5), b0=weight(width, seed=2),
        w1=weight(10, width, seed=3), b1=weight(10, seed=4),
    )  # fmt: skip


def picture(**attributes: str) -> ir.Model:
    """A 3×3 convolution of rank 4 with strides, pads and dilations, and a matrix for each place behind it."""
    text = ", ".join(f"{name} = {value}" for name, value in attributes.items())
    return parse(
        HEAD + f"g (float[1,8,11,9] x) => (float[1,40,n,m] y) {{ a = Conv <{text}> (x, w0) "
        "c = Conv (a, w1, b1) y = Relu(c) }",
        w0=low(32, 72, 4).reshape(32, 8, 3, 3), w1=low(40, 32, 4, seed=7).reshape(40, 32, 1, 1), b1=weight(40),
    )  # fmt: skip


def factored(model: ir.Model, pass_: Factorize, samples: Samples | None = None) -> Outcome:
    """Run the pass on a copy, and once more: the second run changes nothing."""
    graph_ir.refresh_shapes(model)
    after = graph_ir.clone(model)
    context = PassContext(calibration=samples or gaussian(model), target=TARGETS.find("cortex-a76"))
    result = run(pass_, after, context)
    assert result.changed == (graph_ir.to_text(after) != graph_ir.to_text(model))
    again = graph_ir.clone(after)
    assert not run(pass_, again, context).changed
    assert graph_ir.to_text(again) == graph_ir.to_text(after)
    return Outcome("factorize", model, after, result)


def gaussian(model: ir.Model, count: int = 100) -> Samples:
    """Inputs of independent normal numbers: all directions count alike."""
    shapes = {str(value.name): value.shape for value in model.graph.inputs}
    arrays = {
        name: weight(count, *(int(size) for size in list(shape or ())[1:] if isinstance(size, int)), seed=9)
        for name, shape in shapes.items()
    }
    return Samples(arrays, dict.fromkeys(arrays, 1))


def macs(model: ir.Model) -> int:
    return total(layer_costs(model)).macs


def sqnr(outcome: Outcome, samples: Samples | None = None) -> float:
    runs = []
    for model in (outcome.before, outcome.after):
        with Session(model, threads=1) as session:
            runs.append([session.run(feeds) for feeds in samples or gaussian(outcome.before, 20)])
    return min(output.sqnr_db for output in compare_runs(*runs))


def structure(model: ir.Model) -> list[str]:
    """Nodes and weights of a text form, without the hashes of weights, which depend on the machine's arithmetic."""
    lines = graph_ir.to_text(model).splitlines()
    return [re.sub(r" = sha256:.*", "", line.strip()) for line in lines if line.startswith("  ") and "put" not in line]


def test_a_gemm_becomes_two_and_the_second_keeps_name_output_and_bias() -> None:
    after = factored(dense(), Factorize(ratio=0.2, refit=False)).after
    assert structure(after) == [
        "weight %w0: f32[64,8]",
        "weight %b0: f32[64]",
        "weight %w1: f32[10,64]",
        "weight %b1: f32[10]",
        "weight %w0:1: f32[8,48]",
        '%h/inner:y:1 = Gemm(%x, %w0:1) {transB=1}  # f32[1,8] "gemm_0/first"',
        '%h = Gemm(%h/inner:y:1, %w0, %b0) {transB=1}  # f32[1,64] "gemm_0"',
        '%r = Relu(%h)  # f32[1,64] "relu_1"',
        '%y = Gemm(%r, %w1, %b1) {transB=1}  # f32[1,10] "gemm_2"',
    ]


def test_a_conv_becomes_its_window_and_one_by_one() -> None:
    after = factored(picture(strides="[2, 1]", pads="[1, 0, 1, 2]"), Factorize(energy=0.999, refit=False)).after
    assert structure(after)[-5:] == [
        '%a/inner:y:1 = Conv(%x, %w0:1) {pads=[1,0,1,2], strides=[2,1]}  # f32[1,8,6,9] "conv_0/first"',
        '%a = Conv(%a/inner:y:1, %w0, %a/bias:y:1) {kernel_shape=[1,1]}  # f32[1,32,6,9] "conv_0"',
        '%c/inner:y:1 = Conv(%a, %w1:1)  # f32[1,8,6,9] "conv_1/first"',
        '%c = Conv(%c/inner:y:1, %w1, %b1) {kernel_shape=[1,1]}  # f32[1,40,6,9] "conv_1"',
        '%y = Relu(%c)  # f32[1,40,n,m] "relu_2"',
    ]


@pytest.mark.parametrize(
    "attributes",
    [
        {"pads": "[1, 1, 1, 1]"},
        {"strides": "[2, 1]", "pads": "[1, 0, 1, 2]"},
        {"dilations": "[2, 3]"},
        {"auto_pad": '"SAME_UPPER"', "strides": "[2, 2]"},
    ],
)
def test_a_convolution_of_low_rank_becomes_two_without_a_trace(attributes: dict[str, str]) -> None:
    outcome = factored(picture(**attributes), Factorize(energy=0.999))
    assert outcome.operators() == [*["Conv"] * 4, "Relu"] and macs(outcome.after) <= 0.4 * macs(outcome.before)
    assert sqnr(outcome) > 50


def test_a_stack_of_rows_is_factored_as_two_products() -> None:
    model = parse(HEAD + "g (float[1,6,32] x) => (float[1,6,48] y) { y = MatMul(x, w) }", w=low(32, 48, 3))
    outcome = factored(model, Factorize(ratio=0.5))
    assert outcome.operators() == ["MatMul", "MatMul"] and sqnr(outcome) > 60


def test_scaled_gemms_keep_their_scales() -> None:
    model = parse(
        HEAD + "g (float[1,32] x) => (float[1,48] y) { y = Gemm <alpha = 0.5, beta = 2.0> (x, w, b) }",
        w=low(32, 48, 3), b=weight(48),
    )  # fmt: skip
    assert sqnr(factored(model, Factorize(ratio=0.5, refit=False))) > 60


def test_ranks_are_multiples_of_what_the_target_likes() -> None:
    outcome = factored(dense(rank=12, noise=0.01), Factorize(ratio=0.3))
    inner = [value.shape for name, value in outcome.after.graph.initializers.items() if name.startswith("w0")]
    assert [sorted(int(size) for size in shape or () if isinstance(size, int))[0] % 8 for shape in inner] == [0, 0]


def test_both_factors_have_the_same_range_at_every_inner_channel() -> None:
    after = factored(dense(rank=12, noise=0.01), Factorize(ratio=0.3)).after
    first, second = (node for node in after.graph if node.metadata_props)
    rows, columns = (np.abs(node.inputs[1].const_value.numpy()) for node in (first, second))
    assert np.allclose(rows.max(axis=1), columns.max(axis=0), rtol=1e-5)


def test_what_the_input_never_does_costs_nothing() -> None:
    """A matrix of full rank whose inputs lie near a few directions: only whitening sees that."""
    model = parse(HEAD + "g (float[1,48] x) => (float[1,64] y) { y = Gemm <transB = 1> (x, w, b) }",
                  w=weight(64, 48), b=weight(64, seed=1))  # fmt: skip
    basis, many = weight(4, 48, seed=2), weight(300, 4, seed=3)
    samples = Samples({"x": many @ basis + np.float32(3)}, {"x": 1})
    outcome = factored(model, Factorize(ratio=0.5), samples)
    assert outcome.result.changed and sqnr(outcome, samples) > 30
    plain = factored(model, Factorize(ratio=0.5, whitened=False), samples)
    assert not plain.result.changed and "of its output's energy" in plain.reasons()["gemm_0"]


def test_random_weights_are_declined_and_the_model_stays() -> None:
    model = parse(
        HEAD + "g (float[1,8,9,9] x) => (float[1,24] y) { a = Conv <pads = [1,1,1,1]> (x, w0, b0) "
        "p = GlobalAveragePool(a) f = Flatten(p) y = Gemm <transB = 1> (f, w1, b1) }",
        w0=weight(64, 8, 3, 3), b0=weight(64), w1=weight(24, 64, seed=1), b1=weight(24),
    )  # fmt: skip
    outcome = factored(model, Factorize(ratio=0.3))
    assert not outcome.result.changed
    assert all("of its output's energy, more than 5.0 %" in reason for reason in outcome.reasons().values())
    assert set(outcome.reasons()) == {"conv_0", "gemm_3"}


def test_a_layer_that_two_factors_would_not_speed_up_is_declined() -> None:
    model = parse(HEAD + "g (float[1,9] x) => (float[1,9] y) { y = MatMul(x, w) }", w=low(9, 9, 1))
    outcome = factored(model, Factorize(ratio=0.2, multiple=8))
    assert not outcome.result.changed and "estimated" in outcome.reasons()["matmul_0"]


def test_layers_that_must_stay_say_why() -> None:
    model = parse(
        HEAD + "g (float[1,16,4,4] x, float[1,16] v) => (float[1,16,4,4] y, float[16,16] u) { "
        "a = Conv <group = 2> (x, w0) y = Conv (a, w1) t = MatMul(v, w2) u = Add (t, w2) }",
        w0=weight(16, 8, 1, 1), w1=low(16, 16, 1).reshape(16, 16, 1, 1), w2=low(16, 16, 1),
    )  # fmt: skip
    reasons = factored(model, Factorize(ratio=0.2, exclude=("conv_1",))).reasons()
    assert reasons == {
        "conv_0": "its channels are in groups, whose matrices are small",
        "conv_1": "excluded by the options",
        "matmul_2": "its weight is shared with 'add_3', which stays",
    }


@pytest.mark.parametrize(("operator", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_the_input_of_a_recurrent_layer_is_multiplied_by_two_factors(operator: str, gates: int, direction: str) -> None:
    ways, hidden = 2 if direction == "bidirectional" else 1, 24
    model = parse(
        HEAD + f"g (float[7,1,64] x) => (float[7,{ways},1,{hidden}] y) {{ "
        f'y = {operator} <hidden_size = {hidden}, direction = "{direction}"> (x, w, r) }}',
        w=low(ways * gates * hidden, 64, 4).reshape(ways, gates * hidden, 64),
        r=0.1 * weight(ways, gates * hidden, hidden),
    )  # fmt: skip
    samples = Samples({"x": weight(40, 7, 1, 64)}, {"x": 0})
    outcome = factored(model, Factorize(energy=0.999), samples)
    assert outcome.operators() == ["MatMul", operator] and sqnr(outcome, samples) > 50
    assert structure(outcome.after)[2] == "weight %w:1: f32[64,8]"


def test_a_recurrent_layer_without_its_first_output_is_factored_too() -> None:
    model = parse(
        HEAD + "g (float[7,1,64] x) => (float[1,1,24] h) { , h = GRU <hidden_size = 24> (x, w, r) }",
        w=low(72, 64, 4).reshape(1, 72, 64), r=0.1 * weight(1, 72, 24),
    )  # fmt: skip
    samples = Samples({"x": weight(40, 7, 1, 64)}, {"x": 0})
    assert sqnr(factored(model, Factorize(energy=0.999), samples), samples) > 50


def embedding(rank: int) -> ir.Model:
    return parse(
        HEAD + "g (int64[1,5] i) => (float[1,5,32] y) { e = Gather (t, i) y = MatMul(e, w) }",
        t=low(400, 48, rank), w=weight(48, 32),
    )  # fmt: skip


def test_an_embedding_becomes_a_narrow_table_and_a_product_where_bytes_are_worth_time() -> None:
    tokens = np.random.default_rng(0).integers(0, 400, (30, 5))
    samples = Samples({"i": tokens}, {"i": 1})
    options: dict[str, Any] = {"ratio": 0.5, "saving": Saving.BYTES, "exclude": ("matmul_1",)}
    stays = factored(embedding(8), Factorize(**options), samples)
    assert not stays.result.changed and "two factors of rank 8 take an estimated" in stays.reasons()["gather_0"]
    outcome = factored(embedding(8), Factorize(slower=1.0, **options), samples)
    assert structure(outcome.after) == [
        "weight %w: f32[48,32]",
        "weight %t:1: f32[400,8]",
        "weight %t:2: f32[8,48]",
        '%e/inner:y:1 = Gather(%t:1, %i)  # f32[1,5,8] "gather_0/first"',
        '%e = MatMul(%e/inner:y:1, %t:2)  # f32[1,5,48] "gather_0"',
        '%y = MatMul(%e, %w)  # f32[1,5,32] "matmul_1"',
    ]
    assert sqnr(outcome, samples) > 60


def test_a_result_with_several_readers_and_an_output_keep_theirs() -> None:
    model = parse(
        HEAD + "g (float[1,48] x) => (float[1,64] h, float[1,64] y) { h = MatMul(x, w) r = Relu(h) y = Add(r, h) }",
        w=low(48, 64, 4),
    )  # fmt: skip
    assert sqnr(factored(model, Factorize(ratio=0.5))) > 60


def test_a_larger_ratio_goes_on_and_factors_are_left_alone(tmp_path: Path) -> None:
    model = dense(rank=4)
    first = factored(model, Factorize(ratio=0.2))
    CleanUp().run(first.after, PassContext())
    graph_ir.save(first.after, tmp_path / "m.onnx")  # the marks live as long as the file
    second = factored(graph_ir.load(tmp_path / "m.onnx"), Factorize(ratio=0.9))
    assert list(second.reasons().values()).count("it is a factor already") == 2


@pytest.mark.parametrize("saving", ["macs", "bytes", "time"])
def test_each_kind_of_saving_is_met(saving: str) -> None:
    from graphopt.pipeline.spec import parse_spec

    pass_ = parse_spec(f"factorize{{ratio=0.4,saving={saving}}}")
    assert isinstance(pass_, Factorize)
    outcome = factored(dense(rank=4), pass_)
    assert float(outcome.result.statistics[f"{saving}-left"]) <= 0.6
    if saving != "time":
        before, after = (total(layer_costs(model)) for model in (outcome.before, outcome.after))
        left = after.macs / before.macs if saving == "macs" else after.weight_bytes / before.weight_bytes
        assert left == pytest.approx(float(outcome.result.statistics[f"{saving}-left"]), abs=0.01)


def test_refitted_weights_are_in_the_order_that_a_runtime_takes() -> None:
    """ONNX Runtime refuses large initializers whose numbers lie in another order."""
    model = parse(HEAD + "g (float[1,16,5,5] x) => (float[1,24,5,5] y) { y = Conv <pads = [1, 1, 1, 1]> (x, w) }",
                  w=weight(24, 16, 3, 3))  # fmt: skip
    node = model.graph.node(0)
    turned = np.asfortranarray(to_matrix(node, weight(24, 16, 3, 3))[0])[None]
    assert from_matrix(node, turned, (24, 16, 3, 3)).astype(np.float32).flags.c_contiguous


def test_ranks_by_energy() -> None:
    outcome = factored(dense(rank=4, noise=0.001), Factorize(energy=0.99))
    assert "gemm_0 8 of 48" in str(outcome.result.statistics["ranks"]) and sqnr(outcome) > 20


def test_ranks_by_variational_bayes() -> None:
    outcome = factored(dense(rank=12, noise=0.02), Factorize(vbmf=True, most_lost=0.5, multiple=1))
    ranks = re.findall(r" (\d+) of", str(outcome.result.statistics["ranks"]))
    assert ranks and set(ranks) == {"12"}


def test_only_the_divergence_of_class_scores_passes_over_other_outputs() -> None:
    model = parse(
        HEAD + "g (float[1,64] x) => (float[1,8] y, float[1,64] z) { a = Gemm (x, w0, b0) y = Gemm (a, w1) "
        "z = Gemm (x, w2, b0) }",
        w0=low(64, 64, 8) + 0.01 * weight(64, 64, seed=5), b0=weight(64), w1=weight(64, 8, seed=3),
        w2=low(64, 64, 8, seed=7) + 0.02 * weight(64, 64, seed=6),
    )  # fmt: skip
    graph_ir.refresh_shapes(model)
    context = PassContext(calibration=gaussian(model), target=TARGETS.find("cortex-a76"))
    options: dict[str, Any] = {"ratio": 0.3, "exclude": ("gemm_1",)}
    ranks = [
        str(run(Factorize(sensitivity=each, **options), graph_ir.clone(model), context).statistics["ranks"])
        for each in (Sensitivity.OUTPUT, Sensitivity.DIVERGENCE)
    ]
    assert ranks[0].startswith("gemm_0") and ranks[1].startswith("gemm_2")
    with pytest.raises(UsageError, match="there are no labels"):
        run(Factorize(sensitivity=Sensitivity.LABELS, **options), model, context)


@pytest.mark.parametrize(
    ("rows", "features", "outputs", "line", "counted"),
    [(1024, 144, 16, 32, 86135), (784, 64, 64, 0, 134251), (196, 256, 64, 0, 109289), (49, 768, 768, 0, 932870),
     (64, 576, 64, 8, 77657), (1, 1024, 1024, 0, 39772)],
)  # fmt: skip
def test_integer_kernels_take_what_was_counted(
    rows: int, features: int, outputs: int, line: int, counted: float
) -> None:
    found = IntegerKernels().window(rows, features, outputs, line, winograd=line > 0)
    assert found == pytest.approx(counted, rel=0.04)
    assert Kernels().window(rows, features, outputs, line, winograd=line > 0) > 2 * counted


@pytest.mark.parametrize(
    ("rows", "channels", "outputs", "counted"),
    [(1024, 16, 16, 24750), (1024, 16, 32, 207516), (256, 32, 96, 111469), (64, 64, 64, 6957), (64, 64, 192, 58126)],
)
def test_integer_kernels_gain_nothing_by_two_outputs_of_a_channel(
    rows: int, channels: int, outputs: int, counted: float
) -> None:
    assert IntegerKernels().depthwise(rows, 9, outputs, 8, channels) == pytest.approx(counted, rel=0.12)


@pytest.mark.parametrize(
    ("channels", "counted"), [(4, 56100), (5, 95100), (7, 157300), (8, 50300), (12, 113000), (16, 99800), (20, 164200)]
)
def test_channels_behind_the_last_eight_cost_integers_as_much_as_eight(channels: int, counted: float) -> None:
    """Of 3×3 at 64×64, counted on cortex-a76."""
    assert IntegerKernels().by_channel(64 * 64, 9, channels) == pytest.approx(counted, rel=0.15)


def test_for_integer_kernels_a_window_pays_that_winograd_computes_sooner_in_float() -> None:
    model = parse(
        HEAD + "g (float[1,64,16,16] x) => (float[1,64,16,16] y) "
        "{ c = Conv <pads = [1, 1, 1, 1]> (x, w, b) y = Relu (c) }",
        w=low(64, 576, 48).reshape(64, 64, 3, 3), b=weight(64),
    )  # fmt: skip
    options: dict[str, Any] = {
        "ratio": 0.1, "saving": Saving.TIME, "method": Method.SVD, "refit": False, "most_lost": 1e-6,
    }  # fmt: skip
    plain, integer = (factored(model, Factorize(kernels=each, **options), gaussian(model, 12)) for each in Arithmetic)
    assert plain.reasons()["conv_0"].startswith("rank 40, the largest that pays, loses")
    assert integer.result.statistics["ranks"] == "conv_0 48 of 64"


def test_products_that_stay_in_float_are_costed_so_beside_integer_kernels() -> None:
    model = parse(
        HEAD + "g (float[9,1,64] x) => (float[9,1,1,24] y) { y = LSTM <hidden_size = 24> (x, w, r) }",
        w=low(96, 64, 12).reshape(1, 96, 64), r=0.1 * weight(1, 96, 24),
    )  # fmt: skip
    samples = Samples({"x": weight(60, 9, 1, 64)}, {"x": 0})
    options: dict[str, Any] = {"energy": 0.9, "saving": Saving.TIME, "model_lost": 1}
    ranks = [
        factored(model, Factorize(kernels=each, **options), samples).result.statistics["ranks"] for each in Arithmetic
    ]
    assert ranks[0] == ranks[1] == "lstm_0 16 of 64"


def test_refitting_helps() -> None:
    model = dense(rank=12, noise=0.1)
    options: dict[str, Any] = {"ratio": 0.5, "most_lost": 0.6, "model_lost": 1}
    outcomes = [factored(model, Factorize(refit=on, **options)) for on in (False, True)]
    others = gaussian(model, 400).part(100, 300)
    without, fitted = (sqnr(each, others) for each in outcomes)
    assert fitted > without + 0.2
    assert outcomes[1].reasons()["gemm_0"] == "it is not refitted: its error does not fall on samples apart"


def test_few_samples_do_not_make_a_layer_forget_what_they_do_not_show() -> None:
    model = dense(rank=12, noise=0.03)
    graph_ir.refresh_shapes(model)
    plain = factored(model, Factorize(ratio=0.5, whitened=False, refit=False), gaussian(model, 20))
    weighed = factored(model, Factorize(ratio=0.5), gaussian(model, 20))
    others = gaussian(model, 200).part(100, 100)
    assert sqnr(weighed, others) > sqnr(plain, others) - 0.1


def test_refitting_helps_recurrent_layers_behind_others() -> None:
    model = parse(
        HEAD + "g (float[9,1,48] x) => (float[9,1,1,24] y) { m = MatMul(x, w0) r = Relu(m) "
        "y = LSTM <hidden_size = 24> (r, w, r0) }",
        w0=low(48, 64, 12) + 0.05 * weight(48, 64, seed=5), r0=0.1 * weight(1, 96, 24),
        w=(low(96, 64, 12) + 0.05 * weight(96, 64, seed=6)).reshape(1, 96, 64),
    )  # fmt: skip
    samples = Samples({"x": weight(500, 9, 1, 48)}, {"x": 0})
    options: dict[str, Any] = {"energy": 0.6, "most_lost": 0.5, "model_lost": 1}
    outcomes = [factored(model, Factorize(refit=on, **options), samples.first(400)) for on in (False, True)]
    assert all(each.operators() == ["MatMul", "MatMul", "Relu", "MatMul", "LSTM"] for each in outcomes)
    without, fitted = (sqnr(each, samples.part(400, 100)) for each in outcomes)
    assert fitted > without + 0.3


def test_without_data_the_weights_decide_and_a_warning_says_so() -> None:
    model = dense(rank=4)
    graph_ir.refresh_shapes(model)
    before = graph_ir.clone(model)
    with pytest.warns(ModelWarning, match="ranks are chosen by the weights alone"):
        result = run(Factorize(ratio=0.4), model)
    assert result.changed and macs(model) <= 0.6 * macs(before)
    assert sqnr(Outcome("factorize", before, model, result)) > 60


def test_a_limit_on_the_loss_is_held_by_saving_less() -> None:
    model = dense(rank=20, noise=0.02)
    graph_ir.refresh_shapes(model)
    samples, free, held = gaussian(model, 200), graph_ir.clone(model), graph_ir.clone(model)
    target = TARGETS.find("cortex-a76")
    options: dict[str, Any] = {"ratio": 0.6, "most_lost": 0.9}
    Factorize(**options, model_lost=1).run(free, PassContext(calibration=samples, target=target))
    lost = measure_drop(model, free, samples).drop
    assert lost > 0.1
    context = PassContext(calibration=samples, target=target, max_drop=lost / 2)
    result = Factorize(samples=100, **options).run(held, context)
    others = held_out(samples, 100).apart
    assert measure_drop(model, held, samples).drop <= lost / 2
    assert measure_drop(model, held, others).drop == pytest.approx(float(result.statistics["drop-held-out"]), abs=1e-4)
    assert result.statistics["held-out-samples"] == 100 and result.statistics["samples-fitted"] == 100
    assert result.changed and 0 < float(result.statistics["ratio-held"]) < 0.6
    text = graph_ir.to_text(held)
    assert not Factorize(samples=100, **options).run(held, context).changed and graph_ir.to_text(held) == text
    refused = Factorize(**options).run(graph_ir.clone(model), PassContext(calibration=samples, max_drop=-0.01))
    assert not refused.changed and "-1.00 points that are allowed" in refused.declined[-1].reason


def test_factors_are_pruned_and_quantized_after_it_and_quantized_weights_refused() -> None:
    model = dense(rank=12, noise=0.02)
    graph_ir.refresh_shapes(model)
    context = PassContext(calibration=gaussian(model), target=TARGETS.find("cortex-a76"))
    counts = [macs(model)]
    for pass_ in (Factorize(ratio=0.3), PruneChannels(ratio=0.2, multiple=1)):
        assert run(pass_, model, context).changed
        counts.append(macs(model))
    assert counts[0] > counts[1] > counts[2]
    marked = [node for node in model.graph if node.metadata_props]
    assert run(Quantize(), model, context).changed
    assert sum(node.op_type in ("Gemm", "MatMul") for node in model.graph) == 3 and len(marked) == 2
    refused = run(Factorize(ratio=0.5), model, context)
    assert not refused.changed and refused.declined[0].reason == "its weights are quantized already"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.5}, "ratio is 1.5, expected 0 to 0.99"),
        ({"energy": 2.0}, "energy is 2.0, expected 0 to 1"),
        ({"samples": 0}, "samples is 0, expected 1 or more"),
        ({"vbmf": True, "energy": 0.9}, "vbmf and energy both choose the ranks"),
    ],
)
def test_options_out_of_range_are_usage_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Factorize(**options).run(dense(), PassContext())


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(model=st.one_of(pictures(), sequences()), ratio=st.sampled_from((0.1, 0.3)))
def test_random_networks_stay_whole(model: ir.Model, ratio: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ModelWarning)
        samples = probe_samples(model, 0, 4)
        pass_ = Factorize(ratio=ratio, most_lost=0.9, multiple=1, measured=2, places=64)
        outcome = factored(model, pass_, samples)
    with Session(outcome.after, threads=1) as session:
        for feeds in samples:
            assert all(np.isfinite(array).all() for array in session.run(feeds).values())


def test_the_last_step_saves_what_is_asked_and_not_the_cheapest_mass() -> None:
    """A large step may cost least for what it saves, and still lose more than a small one that suffices."""
    model = dense(rank=12, noise=0.02)
    graph_ir.refresh_shapes(model)
    found, _ = layers(model.graph, ())
    forms = [Svd(layer, directions(layer.matrix, None)) for layer in found[:2]]
    first, second = (
        Candidate(form.layer, tuple(Choice(form, rank, 0.0, much) for rank, much in zip((8, 4), saved, strict=True)))
        for form, saved in zip(forms, ((10.0, 100.0), (12.0, 13.0)), strict=True)
    )
    losses = (np.array([3.0, 20.0]), np.array([4.0, 5.0]))
    for wanted, expected in ((9.0, [8, None]), (11.0, [None, 8]), (100.0, [4, None])):
        taken = by_loss((first, second), losses, wanted)
        assert [choice and choice.rank for choice in taken] == expected
