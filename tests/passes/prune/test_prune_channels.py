"""The pass: what leaves, what stays and why, how closely what is left follows the original, and that it settles."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import graphopt.ir as graph_ir
from graphopt.analysis.channels import channels
from graphopt.analysis.comparison import compare_runs
from graphopt.analysis.cost import layer_costs, total
from graphopt.analysis.execution import Session
from graphopt.analysis.samples import Samples, probe_samples
from graphopt.errors import DataError, ModelWarning, UsageError
from graphopt.passes.factorize.kernel_time import Arithmetic, Kernels
from graphopt.passes.prune.allocation import Allocation, Candidate, by_loss, levels
from graphopt.passes.prune.budget import Budget, Saving
from graphopt.passes.prune.importance import NEEDS_GRADIENTS, Importance, Ranking
from graphopt.passes.prune.prune_channels import PruneChannels
from graphopt.passes.prune.sensitivity import Sensitivity
from graphopt.passes.quantize.quantize import Quantize
from graphopt.pipeline.base import PassContext
from graphopt.pipeline.registry import TARGETS
from tests.passes.harness import Outcome, parse, run
from tests.passes.prune.random_networks import pictures, sequences

Array = np.ndarray[Any, Any]
Golden = Callable[[str, Outcome], None]

HEAD = '<ir_version: 8, opset_import: ["" : 17]> '


def weight(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def residual() -> ir.Model:
    """conv1 → relu → conv2 → + shortcut → relu → pool → matrix."""
    return parse(
        HEAD
        + """g (float[1,3,8,8] x) => (float[1,5] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0) r = Relu(a)
            c = Conv <pads = [1, 1, 1, 1]> (r, w1, b1) d = Relu(c)
            e = Conv <pads = [1, 1, 1, 1]> (d, w2, b2) s = Add(e, r) t = Relu(s)
            p = GlobalAveragePool(t) f = Flatten(p) y = Gemm <transB = 1> (f, w3, b3) }""",
        w0=weight(8, 3, 3, 3), b0=weight(8), w1=weight(6, 8, 3, 3, seed=1), b1=weight(6), w2=weight(8, 6, 3, 3, seed=2),
        b2=weight(8), w3=weight(5, 8, seed=3), b3=weight(5),
    )  # fmt: skip


def correlated(rank: int, width: int, count: int = 40) -> tuple[ir.Model, Samples]:
    """Two matrices with nothing between them but what a few directions of the input say."""
    model = parse(
        HEAD + "g (float[1,6] x) => (float[1,4] y) { h = MatMul(x, w0) y = MatMul(h, w1) }",
        w0=weight(6, rank) @ weight(rank, width, seed=1), w1=weight(width, 4, seed=2),
    )  # fmt: skip
    return model, Samples({"x": weight(count, 6, seed=3)}, {"x": 1})


def pruned(model: ir.Model, pass_: PruneChannels, samples: Samples | None = None) -> Outcome:
    """Run the pass on a copy, and once more: the second run changes nothing."""
    graph_ir.refresh_shapes(model)
    after = graph_ir.clone(model)
    context = PassContext(calibration=samples or probe_samples(model, 0, 12), target=None)
    result = run(pass_, after, context)
    assert result.changed == (graph_ir.to_text(after) != graph_ir.to_text(model))
    again = run(pass_, graph_ir.clone(after), context)
    assert not again.changed
    assert again.statistics.get("short-of-target") == result.statistics.get("short-of-target")
    return Outcome("prune-channels", model, after, result)


def macs(model: ir.Model) -> int:
    return total(layer_costs(model)).macs


def sqnr(outcome: Outcome, samples: Samples | None = None) -> float:
    samples = samples or probe_samples(outcome.before, 1, 4)
    runs = []
    for model in (outcome.before, outcome.after):
        with Session(model, threads=1) as session:
            runs.append([session.run(feeds) for feeds in samples])
    return min(output.sqnr_db for output in compare_runs(*runs))


def test_golden_residual_block(golden: Golden) -> None:
    golden("residual", pruned(residual(), PruneChannels(ratio=0.4, reconstruct=False)))


@pytest.mark.parametrize("importance", sorted(set(Importance) - NEEDS_GRADIENTS - {Importance.SCALE}, key=str))
@pytest.mark.parametrize("allocation", list(Allocation))
def test_every_way_of_choosing_meets_the_budget(importance: Importance, allocation: Allocation) -> None:
    outcome = pruned(residual(), PruneChannels(ratio=0.4, importance=importance, allocation=allocation))
    assert 0.3 < macs(outcome.after) / macs(outcome.before) <= 0.6 * 1.001
    assert outcome.result.statistics["macs-left"] == pytest.approx(macs(outcome.after) / macs(outcome.before), abs=1e-4)


def test_groups_that_step_together_go_no_further_than_the_target() -> None:
    """Six equal groups of 8 in multiples of 4: where the first two give a half, the others need not."""
    names = [f"w{i}" for i in range(7)]
    steps = " ".join(f"v{i + 1} = MatMul(v{i}, w{i})" for i in range(6))
    text = HEAD + f"g (float[1,8] v0) => (float[1,8] y) {{ {steps} y = MatMul(v6, w6) }}"
    model = parse(text, **{name: weight(8, 8, seed=i) for i, name in enumerate(names)})
    outcome = pruned(model, PruneChannels(ratio=0.25, multiple=4, allocation=Allocation.UNIFORM, reconstruct=False))
    assert macs(outcome.after) / macs(outcome.before) == 0.75  # of 7 layers 3 are halved or quartered


@pytest.mark.parametrize("allocation", list(Allocation))
@pytest.mark.parametrize("saving", list(Saving))
def test_the_ratio_is_of_what_the_saving_names(saving: Saving, allocation: Allocation) -> None:
    outcome = pruned(residual(), PruneChannels(ratio=0.4, saving=saving, allocation=allocation))
    costs = [Budget(model, channels(model.graph), saving, Kernels(multiple=1)).total for model in _both(outcome)]
    assert 0.35 < costs[1] / costs[0] <= 0.6 * 1.001
    assert outcome.result.statistics[f"{saving.value}-left"] == pytest.approx(costs[1] / costs[0], abs=1e-4)
    assert outcome.result.statistics["macs-left"] == pytest.approx(macs(outcome.after) / macs(outcome.before), abs=1e-4)


def _both(outcome: Outcome) -> tuple[ir.Model, ir.Model]:
    return outcome.before, outcome.after


def test_savings_count_what_the_report_counts() -> None:
    model = residual()
    graph_ir.refresh_shapes(model)
    found, cost = channels(model.graph), total(layer_costs(model))
    expected = {
        Saving.MACS: cost.macs,
        Saving.PARAMS: cost.params,
        Saving.BYTES: cost.weight_bytes,
        Saving.CHANNELS: 27,
    }
    for saving, amount in expected.items():  # 8, 6, 8 and 5 channels are made
        assert Budget(model, found, saving).total == amount


def test_time_follows_the_kernels_of_the_target_and_not_the_macs() -> None:
    """Tiles have 8 outputs: without a whole tile less, no time is saved."""
    model, _ = correlated(rank=2, width=24)
    graph_ir.refresh_shapes(model)
    found = channels(model.graph)
    budget = Budget(model, found, Saving.TIME, Kernels(multiple=8))
    (group,) = (group for group in found.groups if not group.protection)
    everything = np.ones(found.count, bool)
    first, second = (budget.saved(everything, group.units[:count]) for count in (1, 8))
    assert 0 < first < second / 10


@pytest.mark.parametrize(("arithmetic", "kept"), [(Arithmetic.FLOAT32, 6), (Arithmetic.INT8, 8)])
def test_channels_stay_that_integers_are_not_computed_sooner_without(arithmetic: Arithmetic, kept: int) -> None:
    """Eight channels, of which two are dead, with a window of its own for each."""
    first = weight(8, 3, 3, 3)
    first[:2] = 0
    model = parse(
        HEAD
        + """g (float[1,3,16,16] x) => (float[1,4,16,16] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w0) b = Relu(a)
            c = Conv <pads = [1, 1, 1, 1], group = 8> (b, w1) y = Conv(c, w2) }""",
        w0=first, w1=weight(8, 1, 3, 3, seed=1), w2=weight(4, 8, 1, 1, seed=2),
    )  # fmt: skip
    graph_ir.refresh_shapes(model)
    context = PassContext(calibration=probe_samples(model, 0, 12), target=TARGETS.find("cortex-a76"))
    PruneChannels(ratio=0.2, kernels=arithmetic, least=0.6).run(model, context)
    shape = model.graph.initializers["w1"].shape
    assert shape is not None and shape[0] == kept


def test_another_saving_counts_from_before_the_first_run() -> None:
    first = pruned(residual(), PruneChannels(ratio=0.4))
    params = float(total(layer_costs(first.after)).params / total(layer_costs(first.before)).params)
    second = pruned(first.after, PruneChannels(ratio=1 - params - 0.01, saving=Saving.PARAMS))
    assert not second.result.changed
    assert second.result.statistics["params-left"] == pytest.approx(params, abs=1e-4)


def test_after_a_run_that_fell_short_other_limits_go_on_and_the_same_do_not() -> None:
    first = pruned(residual(), PruneChannels(ratio=0.9, least=0.7))
    assert not pruned(first.after, PruneChannels(ratio=0.8, least=0.7)).result.changed
    second = pruned(first.after, PruneChannels(ratio=0.9, least=0.3))
    assert second.result.changed and macs(second.after) < macs(first.after)


def test_channels_that_others_can_replace_leave_without_a_trace() -> None:
    model, samples = correlated(rank=2, width=8)
    outcome = pruned(model, PruneChannels(ratio=0.75, damping=1e-6), samples)
    assert macs(outcome.after) == macs(outcome.before) // 4
    assert sqnr(outcome, samples) > 50


def test_without_refitting_the_same_channels_are_missed() -> None:
    model, samples = correlated(rank=2, width=8)
    outcome = pruned(model, PruneChannels(ratio=0.75, reconstruct=False), samples)
    assert sqnr(outcome, samples) < 20


def test_the_surgeon_chooses_better_than_chance_and_refitting_helps() -> None:
    def loss(**options: Any) -> float:
        return sqnr(pruned(residual(), PruneChannels(ratio=0.3, **options)))

    assert loss() > loss(importance=Importance.RANDOM, allocation=Allocation.UNIFORM, reconstruct=False) + 3


def test_several_steps_meet_the_same_budget() -> None:
    outcome = pruned(residual(), PruneChannels(ratio=0.5, steps=3))
    assert 0.3 < macs(outcome.after) / macs(outcome.before) <= 0.5 * 1.001


def test_a_second_run_with_a_larger_ratio_goes_on_from_the_first() -> None:
    model = residual()
    first = pruned(model, PruneChannels(ratio=0.3))
    second = pruned(first.after, PruneChannels(ratio=0.5))
    assert second.result.changed
    assert macs(second.after) / macs(model) == pytest.approx(0.5, abs=0.12) and macs(second.after) <= 0.5 * macs(model)


def test_what_stays_is_a_multiple_where_the_group_is_wide() -> None:
    assert levels(64, least=0.1, multiple=8) == (0, 8, 16, 24, 32, 40, 48, 56)
    assert levels(12, least=0.1, multiple=8) == (0, *range(1, 11))
    assert levels(16, least=0.6, multiple=4) == (0, 4)
    model = residual()
    graph_ir.refresh_shapes(model)
    context = PassContext(calibration=probe_samples(model, 0, 12), target=TARGETS.find("cortex-a76"))
    PruneChannels(ratio=0.3, multiple=4).run(model, context)
    shapes = {name: value.shape for name, value in model.graph.initializers.items() if value.shape is not None}
    assert all(shapes[name][0] in (4, 8) for name in ("w0", "w2"))


def test_a_model_of_open_sizes_is_declined() -> None:
    model = parse(
        HEAD + "g (float[N,3,4,4] x) => (float[N,2,4,4] y) { a = Conv(x, w0) y = Conv(a, w1) }",
        w0=weight(6, 3, 1, 1), w1=weight(2, 6, 1, 1),
    )  # fmt: skip
    result = run(PruneChannels(), model)
    assert not result.changed
    assert result.declined[0].reason.startswith(
        "none of its macs can be counted: give sizes that are open with --shape"
    )
    assert "input 'x'" in result.declined[0].reason


def test_channels_that_reach_an_output_stay_and_the_report_says_so() -> None:
    model = parse(HEAD + "g (float[1,3,4,4] x) => (float[1,6,4,4] y) { y = Conv(x, w) }", w=weight(6, 3, 1, 1))
    outcome = pruned(model, PruneChannels(ratio=0.5))
    assert not outcome.result.changed
    assert outcome.reasons() == {"conv_0": "6 channels stay: they reach the output 'y'"}


def test_an_operator_that_is_not_understood_protects_what_reaches_it() -> None:
    model = parse(
        HEAD
        + """g (float[1,3,4,4] x) => (float[1,2,4,4] y) {
            a = Conv(x, w0) l = LRN <size = 3> (a) y = Conv(l, w1) }""",
        w0=weight(6, 3, 1, 1), w1=weight(2, 6, 1, 1),
    )  # fmt: skip
    reasons = pruned(model, PruneChannels(ratio=0.5)).reasons()
    assert reasons["conv_0"] == "6 channels stay: LRN 'lrn_1' computes across axis 1"


def test_excluded_layers_stay() -> None:
    outcome = pruned(residual(), PruneChannels(ratio=0.5, exclude=("conv_*",)))
    assert not outcome.result.changed
    assert outcome.reasons()["conv_0"] == "8 channels stay: excluded by the options"


def test_only_groups_that_lost_units_are_recorded() -> None:
    outcome = pruned(residual(), PruneChannels(ratio=0.2, exclude=("conv_0",)))
    assert json.loads(outcome.after.metadata_props["graphopt.prune-channels.widths"]) == {"conv_2#0": 6}


def test_floors_by_name_hold_beside_the_general_one() -> None:
    outcome = pruned(residual(), PruneChannels(ratio=0.9, least=0.3, floors=("gemm_*:0.75", "conv_2:0.2")))
    shapes = {name: value.shape for name, value in outcome.after.graph.initializers.items() if value.shape is not None}
    assert [shapes[name][0] for name in ("w0", "w1", "w2")] == [6, 2, 6]  # gemm reads the first and the last
    assert float(outcome.result.statistics["short-of-target"]) > 0


def branches() -> tuple[ir.Model, Samples, Array]:
    """Two branches that end in the scores of two classes: a large one that adds alike to both, and one that decides."""
    alike = np.repeat(100 * weight(8, 1, seed=1), 2, axis=1)
    model = parse(
        HEAD
        + """g (float[1,6] x) => (float[1,2] y) {
            a = MatMul(x, w0) b = Relu(a) c = MatMul(b, w1) d = MatMul(x, w2) e = Relu(d) f = MatMul(e, w3)
            y = Add(c, f) }""",
        w0=weight(6, 8), w1=alike, w2=weight(6, 8, seed=2), w3=weight(8, 2, seed=3),
    )  # fmt: skip
    samples = Samples({"x": weight(400, 6, seed=4)}, {"x": 1})
    with Session(model) as session:
        labels = np.array([session.run(feeds)["y"].argmax() for feeds in samples])
    return model, samples, labels


@pytest.mark.parametrize(
    ("sensitivity", "spared"), [(Sensitivity.OUTPUT, 0), (Sensitivity.DIVERGENCE, 2), (Sensitivity.LABELS, 2)]
)
def test_channels_stay_where_what_is_measured_would_lose_most(sensitivity: Sensitivity, spared: int) -> None:
    model, samples, labels = branches()
    graph_ir.refresh_shapes(model)
    context = PassContext(calibration=samples, labels=labels)
    run(PruneChannels(ratio=0.4, sensitivity=sensitivity, measured=80), model, context)
    widths = {name: value.shape[1] for name, value in model.graph.initializers.items() if value.shape is not None}
    assert widths[f"w{spared}"] == 8 and widths[f"w{2 - spared}"] == 1


def test_sensitivity_by_labels_needs_labels() -> None:
    model, samples, _ = branches()
    graph_ir.refresh_shapes(model)
    with pytest.raises(UsageError, match="there are no labels"):
        PruneChannels(sensitivity=Sensitivity.LABELS).run(model, PassContext(calibration=samples))


@pytest.mark.parametrize("sensitivity", [Sensitivity.DIVERGENCE, Sensitivity.LABELS])
def test_sensitivity_by_classes_needs_class_scores(sensitivity: Sensitivity) -> None:
    model = parse(
        HEAD + "g (float[1,3,4,4] x) => (float[1,2,4,4] y) { a = Conv(x, w0) y = Conv(a, w1) }",
        w0=weight(6, 3, 1, 1), w1=weight(2, 6, 1, 1),
    )  # fmt: skip
    graph_ir.refresh_shapes(model)
    context = PassContext(calibration=probe_samples(model, 0, 4), labels=np.zeros(4, np.int64))
    with pytest.raises(DataError, match="no output looks like class scores"):
        PruneChannels(sensitivity=sensitivity).run(model, context)


def test_what_the_last_step_takes_too_much_is_given_back() -> None:
    """Cheap losses come first in large steps: levels sink again while the target stays met."""
    model = parse(
        HEAD + "g (float[1,8] x) => (float[1,8] y) { a = MatMul(x, w0) b = MatMul(a, w1) y = MatMul(b, w2) }",
        w0=weight(8, 8), w1=weight(8, 8), w2=weight(8, 8),
    )  # fmt: skip
    graph_ir.refresh_shapes(model)
    found = channels(model.graph)
    budget, everything = Budget(model, found), np.ones(found.count, bool)
    groups = [group for group in found.groups if not group.protection]
    candidates = [Candidate(Ranking(group.units, np.arange(8.0), np.arange(8.0)), tuple(range(8))) for group in groups]
    stepped = np.array([0.0, 5, 5, 5, 5, 5, 5, 5.1])  # all seven units at once are the cheapest for each MAC
    stays = by_loss(candidates, [stepped, np.arange(8) * 100.0], budget, everything, budget.total - 2 * 16)
    assert [int((~stays[group.units]).sum()) for group in groups] == [2, 0]


def test_quantized_weights_are_refused() -> None:
    model = residual()
    graph_ir.refresh_shapes(model)
    run(Quantize(), model, PassContext(calibration=probe_samples(model, 0, 12)))
    outcome = pruned(model, PruneChannels(ratio=0.5))
    assert not outcome.result.changed
    assert set(outcome.reasons().values()) == {"its weights are quantized already"}


def test_a_budget_that_the_floors_do_not_allow_is_met_as_far_as_they_do() -> None:
    outcome = pruned(residual(), PruneChannels(ratio=0.9, least=0.7))
    assert outcome.result.changed and float(outcome.result.statistics["short-of-target"]) > 0.2


@pytest.mark.parametrize("steps", [1, 4])
def test_floors_are_of_the_width_before_pruning_in_every_round_and_run(steps: int) -> None:
    pass_ = PruneChannels(ratio=0.9, least=0.7, steps=steps)
    outcome = pruned(residual(), pass_)
    shapes = {name: value.shape for name, value in outcome.after.graph.initializers.items() if value.shape is not None}
    assert [shapes[name][0] for name in ("w0", "w1", "w2")] == [6, 5, 6]  # 0.7 of 8, 6 and 8, rounded up
    assert not run(pass_, outcome.after, PassContext(calibration=probe_samples(outcome.before, 0, 12))).changed


def test_without_data_weights_decide_and_a_warning_says_so() -> None:
    model = residual()
    graph_ir.refresh_shapes(model)
    before = macs(model)
    with pytest.warns(ModelWarning, match="channels are judged by their weights"):
        result = PruneChannels(ratio=0.4).run(model, PassContext())
    graph_ir.refresh_shapes(model)
    assert result.statistics["importance"] == "l2" and macs(model) <= 0.6 * before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.5}, "ratio is 1.5, expected 0 to 0.99"),
        ({"least": -1.0}, "least is -1.0, expected 0 to 1"),
        ({"steps": 0}, "steps is 0, expected 1 or more"),
        ({"multiple": 0}, "multiple is 0, expected 1 or more"),
        ({"floors": ("conv1",)}, "floor 'conv1': expected PATTERN:FRACTION"),
        ({"floors": ("conv1:2",)}, "floor 'conv1:2': expected PATTERN:FRACTION"),
    ],
)
def test_options_out_of_range_are_usage_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PruneChannels(**options).run(residual(), PassContext())


def test_the_same_seed_gives_the_same_model() -> None:
    texts = {graph_ir.fingerprint(pruned(residual(), PruneChannels(ratio=0.4)).after) for _ in range(2)}
    assert len(texts) == 1


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(model=st.one_of(pictures(), sequences()), ratio=st.sampled_from((0.1, 0.3, 0.6)))
def test_random_networks_stay_whole(model: ir.Model, ratio: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ModelWarning)
        outcome = pruned(model, PruneChannels(ratio=ratio, samples=4, measured=2, places=32))
    with Session(outcome.after, threads=1) as session:
        for feeds in probe_samples(outcome.after, 0, 1):
            assert all(np.isfinite(array).all() for array in session.run(feeds).values())


@pytest.mark.parametrize("allocation", list(Allocation))
def test_where_steps_of_the_target_lead_too_far_those_of_a_vector_are_taken(allocation: Allocation) -> None:
    """Of 16 channels 8 or 12 stay for a Cortex-A76: 8 where a half is asked for, and 12 where three quarters are."""
    text = HEAD + "g (float[1,6] x) => (float[1,2] y) { a = MatMul(x, w0) b = Relu(a) y = MatMul(b, w1) }"
    for ratio, multiple, expected in ((0.5, None, 8), (0.25, None, 12), (0.25, 8, 8), (0.45, None, 8)):
        model = parse(text, w0=weight(6, 16), w1=weight(16, 2, seed=1))
        graph_ir.refresh_shapes(model)
        context = PassContext(calibration=probe_samples(model, 0, 12), target=TARGETS.find("cortex-a76"))
        run(PruneChannels(ratio=ratio, multiple=multiple, allocation=allocation), model, context)
        assert model.graph.initializers["w1"].shape == (expected, 2)
