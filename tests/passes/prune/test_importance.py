"""Importance: which units go first, and what is compared across groups."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import graphopt.ir as graph_ir
from graphopt.analysis.channels import Group, channels
from graphopt.analysis.samples import Samples
from graphopt.errors import UsageError
from graphopt.passes.prune.allocation import Allocation, Candidate
from graphopt.passes.prune.importance import Importance, Ranking, rank
from graphopt.passes.prune.prune_channels import PruneChannels
from graphopt.passes.prune.readers import observe, readers
from graphopt.passes.prune.sensitivity import Sensitivity, losses, measure_of, unbounded
from graphopt.passes.prune.surgery import remove_units
from graphopt.pipeline.base import PassContext, silent
from tests.passes.harness import parse, run

Array = np.ndarray[Any, Any]

HEAD = '<ir_version: 8, opset_import: ["" : 17]> '


def weight(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def normalized(scale: Array) -> ir.Model:
    """conv → batch normalization with `scale` → conv."""
    width = len(scale)
    return parse(
        HEAD
        + """g (float[1,3,4,4] x) => (float[1,2,4,4] y) {
            a = Conv(x, w0) n = BatchNormalization(a, s, b, m, v) r = Relu(n) y = Conv(r, w1) }""",
        w0=weight(width, 3, 1, 1), s=scale, b=weight(width), m=weight(width), v=np.ones(width, np.float32),
        w1=weight(2, width, 1, 1),
    )  # fmt: skip


def ranked(model: ir.Model, importance: Importance, samples: Samples | None = None) -> list[Ranking]:
    """Of each group that may lose units, with places in the group for units."""
    graph_ir.refresh_shapes(model)
    found = channels(model.graph)
    groups = [group for group in found.groups if not group.protection]
    measured, _ = readers(groups, found)
    if samples is not None:
        observe(model, measured, samples, 64, 0, silent)
    rng = np.random.default_rng(0)
    return [_by_place(group, rank(group, found, measured, importance, rng)) for group in groups]


def _by_place(group: Group, ranking: Ranking) -> Ranking:
    place = {int(unit): number for number, unit in enumerate(group.units)}
    return Ranking(np.array([place[int(unit)] for unit in ranking.order]), ranking.scores, ranking.own)


def chain(scale: float = 1) -> ir.Model:
    """Three matrices; the second is `scale` times as large."""
    return parse(
        HEAD + "g (float[1,6] x) => (float[1,4] y) { a = MatMul(x, w0) b = MatMul(a, w1) y = MatMul(b, w2) }",
        w0=weight(6, 12), w1=weight(12, 12, seed=1) * np.float32(scale), w2=weight(12, 4, seed=2),
    )  # fmt: skip


def test_scale_is_the_magnitude_of_the_batch_normalization() -> None:
    (found,) = ranked(normalized(np.array([0.5, -0.1, 2, -1], np.float32)), Importance.SCALE)
    assert found.order.tolist() == [1, 0, 3, 2]
    np.testing.assert_allclose(found.scores, np.cumsum([0.1, 0.5, 1, 2]) / 3.6, rtol=1e-6)


def test_the_smallest_scales_leave() -> None:
    model = normalized(np.array([0.5, -0.1, 2, -1], np.float32))
    graph_ir.refresh_shapes(model)
    pass_ = PruneChannels(0.5, Importance.SCALE, Allocation.UNIFORM, reconstruct=False)
    samples = Samples({"x": weight(4, 3, 4, 4)}, {"x": 1})
    assert run(pass_, model, PassContext(calibration=samples)).changed
    tensor = model.graph.initializers["s"].const_value
    assert tensor is not None and tensor.numpy().tolist() == [2, -1]
    assert not run(pass_, model, PassContext(calibration=samples)).changed


def test_without_a_batch_normalization_there_is_no_scale() -> None:
    model = chain()
    graph_ir.refresh_shapes(model)
    pass_ = PruneChannels(importance=Importance.SCALE, allocation=Allocation.UNIFORM, reconstruct=False)
    result = run(pass_, model, PassContext(calibration=Samples({"x": weight(4, 6)}, {"x": 1})))
    assert not result.changed
    reasons = {each.layer: each.reason for each in result.declined}
    reason = "12 channels stay: no batch normalization behind them has a scale; clean-up folds it, so prune before"
    assert reasons["matmul_0"] == reasons["matmul_1"] == reason


def test_lamp_divides_by_what_is_left_of_the_group() -> None:
    model = parse(
        HEAD + "g (float[1,1] x) => (float[1,2] y) { a = MatMul(x, w0) y = MatMul(a, w1) }",
        w0=np.array([[3, -1, 2]], np.float32), w1=weight(3, 2),
    )  # fmt: skip
    (found,) = ranked(model, Importance.LAMP)
    assert found.order.tolist() == [1, 2, 0]
    np.testing.assert_allclose(found.scores, [1 / 14, 4 / 13, 1], rtol=1e-6)


@pytest.mark.parametrize("importance", [Importance.LAMP, Importance.L2])
def test_one_threshold_of_scores_does_not_see_how_large_a_layer_is(importance: Importance) -> None:
    widths = []
    for scale in (1, 1000):
        model = chain(scale)
        graph_ir.refresh_shapes(model)
        samples = Samples({"x": weight(4, 6)}, {"x": 1})
        pass_ = PruneChannels(0.5, importance, Allocation.GLOBAL, reconstruct=False)
        run(pass_, model, PassContext(calibration=samples))
        widths.append([value.shape for value in model.graph.initializers.values()])
    assert widths[0] == widths[1] and widths[0] != [(6, 12), (12, 12), (12, 4)]


def test_lamp_compares_the_units_own_scores_across_groups() -> None:
    """A group whose units are all alike keeps most: the last ones have scores of 1/3, 1/2 and 1."""
    even, uneven = np.ones((1, 8), np.float32), np.array([[1e-3] * 4 + [1, 10, 100, 1000]], np.float32)
    model = parse(
        HEAD + "g (float[1,1] x) => (float[1,1] y) { a = MatMul(x, w0) b = MatMul(a, w1) y = MatMul(b, w2) }",
        w0=uneven, w1=np.repeat(even, 8, axis=0), w2=weight(8, 1),
    )  # fmt: skip
    first, second = ranked(model, Importance.LAMP)
    np.testing.assert_allclose(second.scores, [1 / n for n in range(8, 0, -1)])
    threshold = 0.3
    assert [int((each.scores <= threshold).sum()) for each in (first, second)] == [7, 5]


def test_variance_sees_no_mean_and_magnitude_does() -> None:
    model = parse(
        HEAD + "g (float[1,4] x) => (float[1,2] y) { a = MatMul(x, w0) b = Add(a, c) y = MatMul(b, w1) }",
        w0=np.diag([0.3, 1, 3, 2]).astype(np.float32), c=np.array([10, 0, 0, 0], np.float32), w1=weight(4, 2),
    )  # fmt: skip
    x = weight(500, 4, seed=5)
    samples = Samples({"x": x}, {"x": 1})
    (variance,), (magnitude,) = (ranked(model, each, samples) for each in (Importance.VARIANCE, Importance.MAGNITUDE))
    assert variance.order.tolist() == [0, 1, 3, 2] and magnitude.order.tolist() == [1, 3, 2, 0]
    values = x @ np.diag([0.3, 1, 3, 2]) + [10, 0, 0, 0]
    for found, expected in ((variance, values.var(axis=0)), (magnitude, np.abs(values).mean(axis=0))):
        np.testing.assert_allclose(np.diff(found.scores, prepend=0), np.sort(expected / expected.sum()), rtol=1e-3)


def test_without_torch_importance_by_gradients_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UsageError, match="gradients need torch") as caught:
        PruneChannels(importance=Importance.TAYLOR).run(chain(), PassContext())
    assert "graphopt[torch]" in caught.value.advice


def test_units_whose_readers_are_mostly_not_measured_are_ranked_by_their_weights() -> None:
    samples = Samples({"x": weight(20, 5, 3)[:, :, None]}, {"x": 0})
    (surgeon,), (norm,) = (ranked(lstm(), each, samples) for each in (Importance.SURGEON, Importance.L2))
    np.testing.assert_array_equal(surgeon.order, norm.order)
    model = lstm()
    graph_ir.refresh_shapes(model)
    found = channels(model.graph)
    assert len(readers(found.groups, found)[0]) == 1  # the product behind; R of the LSTM is not


def test_what_a_unit_of_an_lstm_is_worth_is_measured_without_it() -> None:
    model = lstm()
    graph_ir.refresh_shapes(model)
    samples = Samples({"x": weight(20, 5, 3)[:, :, None]}, {"x": 0})
    found = channels(model.graph)
    (group,) = (each for each in found.groups if not each.protection)
    rng = np.random.default_rng(0)
    candidate = Candidate(rank(group, found, {}, Importance.L2, rng), (0, 1, 2, 3))
    measure = measure_of(model, samples, Sensitivity.OUTPUT, None)
    (lost,) = losses(model, found, [group], [candidate], {}, measure, silent)
    for level in (1, 2, 3):
        narrow, mask = graph_ir.clone(model), np.zeros(found.count, bool)
        mask[candidate.gone(level)] = True
        copy = channels(narrow.graph)
        remove_units(narrow.graph, copy, mask)
        graph_ir.refresh_shapes(narrow)
        assert lost[level] == pytest.approx(np.maximum(measure(narrow), lost[level - 1]), rel=1e-4) and lost[level] > 0


def lstm() -> ir.Model:
    return parse(
        HEAD
        + """g (float[5,1,3] x) => (float[5,1,2] y) {
            h = LSTM <hidden_size = 6> (x, w, r) t = Squeeze(h, one) y = MatMul(t, last) }""",
        w=weight(1, 24, 3), r=weight(1, 24, 6, seed=1), last=weight(6, 2, seed=2), one=np.array([1]),
    )  # fmt: skip


@pytest.mark.parametrize(("end", "expected"), [("Softmax", Sensitivity.DIVERGENCE), ("Relu", Sensitivity.OUTPUT)])
def test_probabilities_are_measured_by_their_divergence(end: str, expected: Sensitivity) -> None:
    model = parse(HEAD + f"g (float[1,3] x) => (float[1,4] y) {{ m = MatMul(x, w) y = {end}(m) }}", w=weight(3, 4))
    samples = Samples({"x": weight(5, 3)}, {"x": 1})
    assert unbounded(model, samples, Sensitivity.OUTPUT) is expected
    assert unbounded(model, samples, Sensitivity.LABELS) is Sensitivity.LABELS
