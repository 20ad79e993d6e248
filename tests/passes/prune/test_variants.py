"""A pruned model is refitted where that loses less on samples which nothing was fitted to, and else left as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import graphopt.ir as graph_ir
from graphopt.analysis.samples import Samples
from graphopt.ir import clone
from graphopt.passes.prune.prune_channels import PruneChannels
from graphopt.passes.prune.sensitivity import Sensitivity, measure_of
from graphopt.passes.prune.variants import Variant, few_apart, judging, least
from graphopt.pipeline.base import PassContext, PassResult
from tests.passes.harness import parse, run

Array = np.ndarray[Any, Any]

KEPT = np.ones(1, bool)
HEAD = '<ir_version: 8, opset_import: ["" : 17]> '
INPUTS, WIDTH = 24, 48


def weight(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def stacked(array: Array) -> Samples:
    return Samples({"x": array}, {"x": 1})


def classifier(seed: int = 0) -> ir.Model:
    model = parse(
        HEAD
        + f"""g (float[1,{INPUTS}] x) => (float[1,10] y) {{
            a = MatMul(x, w0) b = Relu(a) c = MatMul(b, w1) d = Relu(c) y = Gemm(d, w2, bias) }}""",
        w0=weight(INPUTS, WIDTH, seed=seed), w1=weight(WIDTH, WIDTH, seed=seed + 1),
        w2=weight(WIDTH, 10, seed=seed + 2), bias=weight(10, seed=seed + 3),
    )  # fmt: skip
    graph_ir.refresh_shapes(model)
    return model


def clusters(count: int, size: int, seed: int) -> Array:
    """Samples in the order of their clusters, which lie apart: those behind look like none of those before."""
    rng = np.random.default_rng(seed)
    centres = 3 * rng.normal(size=(count, INPUTS))
    found = np.repeat(centres, size, axis=0) + 0.05 * rng.normal(size=(count * size, INPUTS))
    return found.astype(np.float32)


def pruned(model: ir.Model, samples: Samples, **options: Any) -> tuple[ir.Model, PassResult]:
    work = clone(model)
    return work, run(PruneChannels(0.4, **options), work, PassContext(calibration=samples))


@pytest.mark.parametrize(("count", "fitting", "apart"), [(2000, 1024, 32), (1040, 1008, 32), (100, 80, 20), (2, 1, 1)])
def test_a_fifth_of_few_samples_is_apart_and_a_number_of_many(count: int, fitting: int, apart: int) -> None:
    parts = few_apart(stacked(weight(count, 2)), 1024, 32)
    assert (len(parts.fitting), len(parts.apart)) == (fitting, apart)


def test_samples_in_the_order_of_their_classes_are_judged_by_all_of_them() -> None:
    classes = np.repeat(np.arange(10), 10)
    parts = few_apart(stacked(weight(100, 2)), 1024, 32, classes)
    assert parts.apart_labels is not None and np.all(np.bincount(parts.apart_labels, minlength=10) == 2)


def test_a_single_sample_is_both_parts() -> None:
    parts = few_apart(stacked(weight(1, 2)), 1024, 32)
    assert len(parts.fitting) == len(parts.apart) == 1


def test_the_least_loss_wins_and_a_refitted_variant_only_clearly() -> None:
    model = classifier()
    refitted, plain = (Variant(name, clone(model), KEPT, plain=name == "as-it-is") for name in ("refitted", "as-it-is"))
    for losses, expected in (((0.5, 1.0), refitted), ((0.95, 1.0), plain), ((np.nan, 1.0), plain), ((0, 0), refitted)):
        by_model = dict(zip((id(refitted.model), id(plain.model)), losses, strict=True))
        assert least(refitted, [plain], lambda each: by_model[id(each)])[0] is expected  # noqa: B023


def test_where_refitting_wins_by_half_no_other_variant_is_made() -> None:
    made = []

    def others(losses: tuple[float, ...]) -> Iterator[Variant]:
        for number, loss in enumerate(losses):
            made.append(number)
            yield Variant(f"{number}", ir.Model(ir.Graph([], [], nodes=[], name=f"{loss}"), ir_version=8), KEPT, True)

    def loss(model: ir.Model) -> float:
        return float(model.graph.name or "")

    first = Variant("refitted", ir.Model(ir.Graph([], [], nodes=[], name="0.4"), ir_version=8), KEPT, False)
    assert least(first, others((1.0, 0.1)), loss)[1] == {"loss-refitted": 0.4, "loss-0": 1.0} and made == [0]
    assert least(first, others((0.7, 0.1)), loss)[0].name == "1"


def test_noise_in_class_scores_is_judged_by_the_classes() -> None:
    vector = parse(HEAD + "g (float[2,3,4] x) => (float[2,3,4] y) { y = Relu(x) }")
    assert judging(classifier(), stacked(weight(2, INPUTS)), Sensitivity.OUTPUT) is Sensitivity.DIVERGENCE
    assert judging(vector, Samples({"x": weight(4, 3, 4)}, {"x": 2}), Sensitivity.OUTPUT) is Sensitivity.OUTPUT


def test_with_many_samples_of_one_kind_refitting_wins() -> None:
    model, samples = classifier(), stacked(weight(600, INPUTS, seed=9))
    work, result = pruned(model, samples)
    losses = {name: loss for name, loss in result.statistics.items() if name.startswith("loss-")}
    assert str(result.statistics["variant"]).endswith("refitted")
    assert losses[f"loss-{result.statistics['variant']}"] == min(losses.values())
    other, _ = pruned(model, samples, reconstruct=False)
    unseen = stacked(weight(300, INPUTS, seed=10))
    measure = measure_of(model, unseen, Sensitivity.DIVERGENCE, None)
    assert measure(work) < measure(other)


def test_refits_to_few_samples_of_other_kinds_are_declined_with_the_losses() -> None:
    declined = 0
    for seed in range(8):
        model, samples = classifier(seed), stacked(clusters(4, 5, seed))
        work, result = pruned(model, samples)
        judged = result.statistics
        if not str(judged["variant"]).endswith("as-it-is"):
            continue
        declined += 1
        reasons = {each.layer: each.reason for each in result.declined}
        assert reasons["model"].startswith(
            f"it is not refitted: on {judged['held-out-samples']} samples apart it loses"
        )
        parts = few_apart(samples, 1024, 32)
        measure = measure_of(model, parts.apart, Sensitivity.DIVERGENCE, None)
        assert float(f"{measure(work):.4g}") == judged[f"loss-{judged['variant']}"]
    assert declined


def test_the_choice_is_the_same_each_time() -> None:
    model, samples = classifier(), stacked(clusters(4, 10, 3))
    (first, one), (second, two) = (pruned(model, samples) for _ in range(2))
    assert one.statistics == two.statistics
    for name, value in first.graph.initializers.items():
        array, other = value.const_value, second.graph.initializers[name].const_value
        assert array is not None and other is not None
        np.testing.assert_array_equal(array.numpy(), other.numpy())
