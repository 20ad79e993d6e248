"""Mixed precision: layers go back to float, the noisiest for their cost first, until a limit holds."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphopt.ir as graph_ir
from graphopt.analysis.accuracy import measure_drop
from graphopt.analysis.calibration import each_run
from graphopt.analysis.execution import Session
from graphopt.analysis.samples import Samples
from graphopt.errors import DataError, ModelWarning, ToleranceError, UsageError
from graphopt.passes.quantize.mixed_precision import Limit, Refused, back_off
from graphopt.passes.quantize.quantize import Quantize
from graphopt.passes.quantize.sensitivity import LayerSensitivity, output_noise
from graphopt.pipeline.base import PassContext
from tests.passes.harness import Outcome, parse, run
from tests.passes.quantize.test_sensitivity import HEAD, network, samples, weight

CHANNELS = st.sampled_from([1, 3, 5, 7, 17])
KINDS = st.sampled_from(["conv", "relu", "add", "pool", "depthwise"])
SPOILED = 300.0  # the weight that leaves nothing of the others in int8, if they share its scale


def outcome(model: ir.Model, data: Samples, pass_: Quantize, **context: Any) -> Outcome:
    """The pass on a copy; a second run changes nothing."""
    after = graph_ir.clone(model)
    result = run(pass_, after, PassContext(calibration=data, **context))
    text = graph_ir.to_text(after)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ModelWarning)  # that it is quantized already
        again = run(pass_, after, PassContext(calibration=data, **context))
    assert not again.changed and graph_ir.to_text(after) == text
    return Outcome("quantize", model, after, result)


def in_float(found: Outcome) -> dict[str, str]:
    return {layer: reason for layer, reason in found.reasons().items() if reason.startswith("it stays in float to")}


def test_the_layer_that_spoils_the_classes_goes_back_to_float_alone() -> None:
    model, data = network(SPOILED), samples(40)
    spoiled = outcome(model, data, Quantize(per_channel=False))
    assert measure_drop(model, spoiled.after, data).drop > 0.1
    found = outcome(model, data, Quantize(per_channel=False), max_drop=0.03)
    assert list(in_float(found)) == ["conv_2"]
    (reason,) = in_float(found).values()
    assert reason.startswith("it stays in float to hold a loss of 3 points: alone it brings noise at ")
    assert reason.endswith(" % of the MACs")
    assert found.result.statistics["layers-back-in-float"] == 1
    assert found.result.statistics["agreement-drop"] == pytest.approx(measure_drop(model, found.after, data).drop)
    assert measure_drop(model, found.after, data).drop <= 0.03
    assert "conv_0" not in found.reasons() and "gemm_6" not in found.reasons()  # the others are integers


def test_the_option_of_the_pass_goes_before_the_limit_of_the_run() -> None:
    model, data = network(SPOILED), samples(40)
    found = outcome(model, data, Quantize(per_channel=False, max_drop=1.0), max_drop=0.0)
    assert not in_float(found) and found.result.statistics["layers-back-in-float"] == 0


def test_labels_limit_accuracy() -> None:
    model, data = network(SPOILED), samples(40)
    with Session(model) as session:
        classes = np.array([int(session.run(feeds)["y"].argmax()) for feeds in data])
    wrong = (classes + 1) % 7  # the float model is never right, so nothing can be lost
    found = outcome(model, data, Quantize(per_channel=False), max_drop=0.0, labels=wrong)
    assert not in_float(found) and found.result.statistics["accuracy-drop"] <= 0
    found = outcome(model, data, Quantize(per_channel=False), max_drop=0.03, labels=classes)
    assert list(in_float(found)) == ["conv_2"] and "accuracy-drop" in found.result.statistics


def test_a_floor_for_the_noise_serves_where_there_are_no_classes() -> None:
    model = parse(
        HEAD + "g (float[1,3,6,6] x) => (float[1,2,6,6] y) { a = Conv(x, w1) r = Relu(a) y = Conv(r, w2) }",
        w1=weight(4, 3, 1, 1, seed=1),
        w2=weight(2, 4, 1, 1, seed=2),
    )
    graph_ir.refresh_shapes(model)
    data = samples()
    with pytest.raises(DataError, match="accuracy cannot be measured") as error:
        run(Quantize(), graph_ir.clone(model), PassContext(calibration=data, max_drop=0.01))
    assert "quantize{min_sqnr=" in error.value.advice
    plain = output_noise(model, outcome(model, data, Quantize()).after, data)
    found = outcome(model, data, Quantize(min_sqnr=plain + 1))
    assert len(in_float(found)) == 1 and "to hold" in next(iter(in_float(found).values()))
    assert output_noise(model, found.after, data) >= plain + 1
    assert found.result.statistics["sqnr-db"] == pytest.approx(output_noise(model, found.after, data), abs=0.01)


def test_trials_measure_each_bias_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def counted(model: ir.Model, names: Sequence[str], *others: Any) -> None:
        asked.extend(names)
        each_run(model, names, *others)

    monkeypatch.setattr("graphopt.passes.quantize.bias_correction.each_run", counted)
    model, data = network(SPOILED), samples(40)
    found = outcome(model, data, Quantize(per_channel=False), max_drop=0.03)
    assert found.result.statistics["trials"] > 2 and sorted(asked) == ["a/shift", "b/shift", "y/shift"]


def test_a_limit_that_only_float_holds_leaves_all_in_float() -> None:
    model, data = network(), samples()
    found = outcome(model, data, Quantize(min_sqnr=200.0))
    assert not found.result.changed and found.result.statistics["layers-back-in-float"] == 5
    assert found.operators() == [node.op_type for node in model.graph]


def test_what_the_passes_before_lost_cannot_be_held() -> None:
    model, data = network(), samples(40)
    original = network()
    original.graph.initializers["w3"].const_value = ir.tensor(weight(5, 7, seed=9))
    with pytest.raises(ToleranceError, match=r"agreement are lost before anything is quantized, allowed are 1"):
        run(Quantize(), model, PassContext(calibration=data, max_drop=0.01, original=original))
    assert ToleranceError.exit_status == 3


@pytest.mark.parametrize("wrong", [-0.1, 1.5])
def test_the_drop_is_a_fraction(wrong: float) -> None:
    with pytest.raises(UsageError, match="expected a fraction"):
        run(Quantize(max_drop=wrong), network(), PassContext(calibration=samples()))


def layer(name: str, sqnr_db: float, macs: int) -> LayerSensitivity:
    return LayerSensitivity(name, "Gemm", name, sqnr_db, None, macs, 0)


def searched(needed: Sequence[str], ranking: list[LayerSensitivity]) -> tuple[Refused, list[set[str]], list[str]]:
    """What stays in float where the candidate is exact once all `needed` do; the trials; and how often they ranked."""
    tried: list[set[str]] = []
    ranked: list[str] = []

    def quantized(candidate: ir.Model, refused: Refused) -> None:
        tried.append(set(refused))
        if not set(needed) <= set(refused):
            candidate.graph.initializers["w3"].const_value = ir.tensor(weight(5, 7, seed=9))

    def rank() -> list[LayerSensitivity]:
        ranked.append("once")
        return ranking

    context = PassContext(calibration=samples(4))
    return back_off(network(), Limit(min_sqnr=60.0), context, quantized, rank).refused, tried, ranked


def test_nothing_is_ranked_if_all_can_be_quantized() -> None:
    assert searched([], []) == ({}, [set()], [])


def test_growing_steps_and_bisection_find_the_shortest_prefix_of_the_ranking() -> None:
    layers = [layer(f"l{index:02}", 30.0 + index, 1000) for index in range(32)]
    refused, tried, ranked = searched(["l00", "l05"], list(reversed(layers)))
    assert list(refused) == [f"l{index:02}" for index in range(6)] and ranked == ["once"]
    assert [len(trial) for trial in tried] == [0, 1, 2, 3, 5, 8, 6]


def test_noise_is_weighed_against_work() -> None:
    """30 dB at a hundred times the work goes after 40 dB: ten times the noise for a hundred times the cost."""
    refused, _, _ = searched(["quiet"], [layer("loud", 30.0, 100_000), layer("quiet", 40.0, 1_000)])
    assert list(refused) == ["quiet"]


@given(
    st.lists(st.sampled_from(["conv", "relu", "add", "pool", "depthwise"]), max_size=6), CHANNELS, st.integers(15, 60)
)
@settings(deadline=None, max_examples=8)
def test_random_networks_hold_the_floor_or_stay_in_float(kinds: list[str], channels: int, floor: int) -> None:
    written = {
        "conv": "Conv<pads=[1,1,1,1]>({0}, w)",
        "depthwise": f"Conv<pads=[1,1,1,1], group={channels}>({{0}}, d)",
        "relu": "Relu({0})",
        "add": "Add({0}, v0)",
        "pool": "AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>({0})",
    }
    body = ["v0 = Conv(x, w_in)", *(f"v{i + 1} = {written[kind].format(f'v{i}')}" for i, kind in enumerate(kinds))]
    weights = {"w_in": weight(channels, 3, 1, 1)}
    weights |= {"w": weight(channels, channels, 3, 3, seed=1) / np.float32(3)} if "conv" in kinds else {}
    weights |= {"d": weight(channels, 1, 3, 3, seed=2) / np.float32(3)} if "depthwise" in kinds else {}
    text = f"g (float[1,3,6,6] x) => (float[1,{channels},6,6] v{len(kinds)}) {{ {' '.join(body)} }}"
    model = parse(HEAD + text, **weights)
    graph_ir.refresh_shapes(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ModelWarning)
        found = outcome(model, samples(10), Quantize(min_sqnr=float(floor)))
    assert output_noise(model, found.after, samples(10)) >= floor
    kept = found.result.statistics["layers-back-in-float"]
    assert kept == len(in_float(found)) and (found.result.changed or kept)
