"""The limit on what all layers together lose: how it is measured, that it holds, and that the report says so."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import graphopt.ir as graph_ir
from graphopt.analysis.execution import Session
from graphopt.analysis.samples import Samples
from graphopt.passes.factorize.accumulated import Accumulated
from graphopt.passes.factorize.factorize import Factorize
from graphopt.passes.prune.held_out import held_out
from graphopt.pipeline.base import PassContext
from graphopt.pipeline.registry import TARGETS
from tests.passes.factorize.test_factorize import HEAD, dense, gaussian, macs, weight
from tests.passes.harness import parse, run

Array = np.ndarray[Any, Any]


def scaled(factor: float, offset: float = 0.0) -> ir.Model:
    """y = factor x + offset, its rounded signs, and a constant."""
    return parse(
        HEAD + "g (float[1,4] x) => (float[1,4] y, int64[1,4] s, float[1,4] z) { m = Mul(x, f) y = Add(m, o) "
        "t = Sign(m) s = Cast <to = 7> (t) n = Mul(x, zero) z = Add(n, o) }",
        f=np.float32([factor]), o=np.float32([offset]), zero=np.float32([0]),
    )  # fmt: skip


def test_the_worst_output_counts_and_its_mean_does_not() -> None:
    array = weight(50, 4)
    parts = held_out(Samples({"x": array}, {"x": 1}), 40)
    accumulated = Accumulated(scaled(1, 100), parts, 0.05)
    assert (len(parts.apart), len(parts.fitting)) == (10, 40)
    apart = array[parts.apart_places]
    expected = 0.1**2 * np.square(apart).sum() / np.square(apart - apart.mean(axis=0)).sum()
    assert accumulated.lost(scaled(1, 100)) == 0
    assert accumulated.lost(scaled(0.9, 100)) == pytest.approx(expected, rel=1e-3)
    assert accumulated.lost(scaled(-1, 100)) > 3
    assert accumulated.lost(scaled(0, 100)) == pytest.approx(1, rel=0.2)  # every sign differs, and y all the same
    assert accumulated.lost(scaled(np.float32(3e38), 100)) == np.inf


def test_a_constant_output_is_judged_by_its_own_energy() -> None:
    samples = Samples({"x": np.ones((10, 4), np.float32)}, {"x": 1})
    accumulated = Accumulated(scaled(1, 100), held_out(samples, 8), 0.05)
    assert accumulated.lost(scaled(1, 110)) == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize("options", [{"ratio": 0.6}, {"energy": 0.8, "multiple": 1}])
def test_less_is_saved_than_asked_where_the_model_would_lose_too_much(options: dict[str, Any]) -> None:
    model = dense(rank=20, noise=0.02)
    graph_ir.refresh_shapes(model)
    samples = gaussian(model, 200)
    context = PassContext(calibration=samples, target=TARGETS.find("cortex-a76"))
    free, held = graph_ir.clone(model), graph_ir.clone(model)
    limitless = run(Factorize(most_lost=0.9, model_lost=1, samples=160, **options), free, context)
    pass_ = Factorize(most_lost=0.9, samples=160, **options)
    result = run(pass_, held, context)
    assert "output-lost" not in limitless.statistics and all(each.layer != "model" for each in limitless.declined)
    assert macs(free) < macs(held) < macs(model)
    assert _lost(model, free, 160) > 0.05 >= _lost(model, held, 160) > 0
    assert result.statistics["output-lost"] == pytest.approx(_lost(model, held, 160), rel=0.01)
    assert result.statistics["held-out-samples"] == 40
    reason = next(each.reason for each in result.declined if each.layer == "model")
    assert "asked was done: more costs more than 5 % of the outputs' energy, or 0.05 nats of their classes" in reason
    text = graph_ir.to_text(held)
    assert not run(pass_, held, context).changed and graph_ir.to_text(held) == text


def test_a_model_stays_whole_where_the_least_saving_loses_too_much() -> None:
    model = dense(rank=20, noise=0.02)
    graph_ir.refresh_shapes(model)
    text = graph_ir.to_text(model)
    context = PassContext(calibration=gaussian(model, 200), target=TARGETS.find("cortex-a76"))
    result = run(Factorize(ratio=0.6, most_lost=0.9, model_lost=0), model, context)
    assert not result.changed and graph_ir.to_text(model) == text
    assert result.declined[-1].layer == "model" and "even for less than 0.6 asked" in result.declined[-1].reason


def test_what_was_held_back_is_done_when_more_may_be_lost() -> None:
    model = dense(rank=20, noise=0.02)
    graph_ir.refresh_shapes(model)
    context = PassContext(calibration=gaussian(model, 200), target=TARGETS.find("cortex-a76"))
    options: dict[str, Any] = {"ratio": 0.6, "most_lost": 0.9, "least_saved": 0}
    run(Factorize(**options), model, context)
    again = run(Factorize(**options, model_lost=1), model, context)
    assert all(each.layer != "model" for each in again.declined)


def logits(scale: float) -> ir.Model:
    """The scores of a language model: three tokens, and one that varies most and never comes."""
    return parse(
        HEAD + "g (float[1,5,3] x) => (float[1,5,4] y) { m = MatMul (x, w) y = Add (m, b) }",
        w=np.hstack([scale * np.eye(3), np.full((3, 1), 30)]).astype(np.float32), b=np.float32([0, 0, 0, -1000]),
    )  # fmt: skip


def test_scores_are_judged_by_the_divergence_of_their_classes() -> None:
    before, after = logits(1), logits(0.3)
    parts = held_out(Samples({"x": weight(50, 1, 5, 3)}, {"x": 0}), 40)
    known, made = (_outputs(model, parts.apart) for model in (before, after))
    assert np.square(known - made).sum() / np.square(known - known.mean(axis=0)).sum() < 1e-3
    lost = Accumulated(before, parts, 0.05).lost(after)
    assert lost == pytest.approx(_divergence(known, made), rel=1e-3) and lost > 0.05


def _lost(before: ir.Model, after: ir.Model, wanted: int) -> float:
    """By hand, of the samples apart of `wanted` others: of their energy, or in nats of their classes."""
    apart = held_out(gaussian(before, 200), wanted).apart
    known, made = (_outputs(model, apart) for model in (before, after))
    energy = np.square(known - made).sum() / np.square(known - known.mean(axis=0)).sum()
    return max(float(energy), _divergence(known, made))


def _outputs(model: ir.Model, samples: Samples) -> Array:
    with Session(model, threads=1) as session:
        return np.stack([session.run(feeds)["y"].astype(np.float64) for feeds in samples])


def _divergence(known: Array, made: Array) -> float:
    moved = (each - each.max(axis=-1, keepdims=True) for each in (known, made))
    first, second = (each - np.log(np.exp(each).sum(axis=-1, keepdims=True)) for each in moved)
    return float((np.exp(first) * (first - second)).sum(axis=-1).mean())
