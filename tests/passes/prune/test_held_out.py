"""A limit on the loss is judged by samples that nothing was fitted to, and held on all."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import graphopt.ir as graph_ir
from graphopt.analysis.accuracy import measure_drop
from graphopt.analysis.execution import Session
from graphopt.analysis.samples import Samples
from graphopt.passes.prune.allocation import Allocation
from graphopt.passes.prune.held_out import HeldOut, held_out
from graphopt.passes.prune.importance import Importance
from graphopt.passes.prune.prune_channels import PruneChannels
from graphopt.pipeline.base import PassContext
from tests.passes.harness import parse, run

Array = np.ndarray[Any, Any]

HEAD = '<ir_version: 8, opset_import: ["" : 17]> '
NAIVE: dict[str, Any] = {"importance": Importance.RANDOM, "allocation": Allocation.UNIFORM, "reconstruct": False}


def weight(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def classifier() -> ir.Model:
    model = parse(
        HEAD
        + """g (float[1,6] x) => (float[1,5] y) {
            a = MatMul(x, w0) b = Relu(a) c = MatMul(b, w1) d = Relu(c) y = MatMul(d, w2) }""",
        w0=weight(6, 24), w1=weight(24, 24, seed=1), w2=weight(24, 5, seed=2),
    )  # fmt: skip
    graph_ir.refresh_shapes(model)
    return model


def stacked(array: Array) -> Samples:
    return Samples({"x": array}, {"x": 1})


@pytest.mark.parametrize(
    ("count", "wanted", "judging"), [(10, 256, 2), (300, 256, 60), (2000, 256, 1744), (2, 256, 1), (1, 256, 0)]
)
def test_what_is_left_over_judges_a_fifth_at_least(count: int, wanted: int, judging: int) -> None:
    apart = HeldOut(classifier(), stacked(weight(count, 6)), None, wanted)
    assert apart.count == judging and len(apart.parts.fitting) == count - judging


def test_the_loss_is_of_each_part_with_its_own_labels() -> None:
    def chooser(*classes: int) -> ir.Model:
        model = parse(
            HEAD + "g (float[1,3] x) => (float[1,3] y) { y = MatMul(x, w) }", w=np.eye(3)[[*classes]].astype("f")
        )
        graph_ir.refresh_shapes(model)
        return model

    classes = np.array([0, 0, 0, 1, 2, 2, 2, 2, 2, 2])
    classes[held_out(stacked(np.eye(3, dtype=np.float32)[classes]), 8).apart_places] = 1
    apart = HeldOut(chooser(0, 1, 2), stacked(np.eye(3, dtype=np.float32)[classes]), classes, 8)
    loss = apart.loss(chooser(0, 0, 2))  # takes 1 for 0
    assert (loss.held_out, loss.overall) == (1.0, pytest.approx(np.mean(classes == 1))) and loss.worst == 1.0
    loss = apart.loss(chooser(0, 1, 1))
    assert (loss.held_out, loss.overall) == (0.0, pytest.approx(np.mean(classes == 2))) and loss.worst == loss.overall


def test_nothing_is_fitted_to_what_judges() -> None:
    texts = set()
    for seed in (1, 2):
        model = classifier()
        array = weight(50, 6)
        array[held_out(stacked(array), 1024).apart_places] = weight(10, 6, seed=seed)
        samples = stacked(array)
        result = run(PruneChannels(ratio=0.4), model, PassContext(calibration=samples, max_drop=1.0))
        assert (result.statistics["samples-fitted"], result.statistics["held-out-samples"]) == (40, 10)
        texts.add(graph_ir.fingerprint(model))
    assert len(texts) == 1


@pytest.mark.parametrize("limit", [0.08, 0.1, 0.2])
def test_less_is_removed_until_the_limit_holds_on_both(limit: float) -> None:
    model, array = classifier(), weight(120, 6, seed=5)
    original = graph_ir.clone(model)
    context = PassContext(calibration=stacked(array), max_drop=limit)
    result = run(PruneChannels(ratio=0.9, samples=60, **NAIVE), model, context)
    assert result.changed and 0 < float(result.statistics["ratio-held"]) < 0.9
    apart = measure_drop(original, model, held_out(stacked(array), 60).apart).drop
    assert apart <= limit and measure_drop(original, model, stacked(array)).drop <= limit
    assert result.statistics["drop-held-out"] == pytest.approx(apart, abs=1e-4)
    again = graph_ir.clone(model)
    assert not run(PruneChannels(ratio=0.9, samples=60, **NAIVE), again, context).changed
    assert graph_ir.fingerprint(again) == graph_ir.fingerprint(model)


def test_another_limit_goes_on() -> None:
    model, samples = classifier(), stacked(weight(120, 6, seed=5))
    first = run(PruneChannels(ratio=0.9, **NAIVE), model, PassContext(calibration=samples, max_drop=0.1))
    second = run(PruneChannels(ratio=0.9, **NAIVE), model, PassContext(calibration=samples, max_drop=1.0))
    assert first.changed and second.changed and second.statistics["macs-left"] < first.statistics["macs-left"]


def test_where_nothing_can_be_removed_within_the_limit_the_pass_declines() -> None:
    model, samples = classifier(), stacked(weight(60, 6, seed=5))
    with Session(model) as session:
        labels = np.array([session.run(feeds)["y"].argmax() for feeds in samples])
    context = PassContext(calibration=samples, labels=labels, max_drop=-0.01)
    result = run(PruneChannels(ratio=0.8, **NAIVE), model, context)
    assert not result.changed
    assert "costs more than the -1.00 points allowed" in result.declined[0].reason
