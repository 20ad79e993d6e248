"""Normalization: what one threshold over all groups sees of their scores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import graphopt.ir as graph_ir
from graphopt.analysis.channels import channels
from graphopt.analysis.samples import Samples
from graphopt.passes.prune.allocation import Allocation
from graphopt.passes.prune.importance import Importance, rank
from graphopt.passes.prune.normalization import Normalization, comparable, kind_of
from graphopt.passes.prune.prune_channels import PruneChannels
from graphopt.pipeline.base import PassContext
from tests.passes.harness import parse, run

Array = np.ndarray[Any, Any]

HEAD = '<ir_version: 8, opset_import: ["" : 17]> '


def weight(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def two_kinds(first: Array, second: Array) -> Any:
    """Products of 4, 4, and convolutions of 4 channels; `first` and `second` scale units of both products."""
    model = parse(
        HEAD
        + """g (float[1,3,2,2] x) => (float[1,2] y) {
            a = Conv(x, c0) r = Relu(a) b = Conv(r, c1) q = Relu(b) p = GlobalAveragePool(q) f = Flatten(p)
            d = MatMul(f, w0) e = Relu(d) h = MatMul(e, w1) i = Relu(h) y = MatMul(i, w2) }""",
        c0=weight(4, 3, 1, 1), c1=weight(4, 4, 1, 1), w0=np.ones((4, 4), np.float32) * first / 2,
        w1=np.ones((4, 4), np.float32) * second / 2, w2=weight(4, 2),
    )  # fmt: skip
    graph_ir.refresh_shapes(model)
    return model


FIRST, SECOND = np.array([1, 2, 3, 4], np.float32), np.array([40, 10, 30, 20], np.float32)


@pytest.mark.parametrize(
    ("normalization", "expected"),
    [
        (Normalization.NONE, ([1, 2, 3, 4], [10, 20, 30, 40])),
        (Normalization.SUM, ([0.1, 0.2, 0.3, 0.4],) * 2),
        (Normalization.MEAN, ([0.4, 0.8, 1.2, 1.6],) * 2),
        (Normalization.MAX, ([0.25, 0.5, 0.75, 1.0],) * 2),
        (Normalization.CUMULATED, ([0.1, 0.3, 0.6, 1.0],) * 2),
        (Normalization.ISOMORPHIC, ([1 / 8, 2 / 8, 3 / 8, 4 / 8], [5 / 8, 6 / 8, 7 / 8, 1.0])),
    ],
)
def test_scores_by_their_group_or_class(normalization: Normalization, expected: tuple[list[float], ...]) -> None:
    found = channels(two_kinds(FIRST, SECOND).graph)
    groups = [group for group in found.groups if not group.protection]
    rankings = [rank(group, found, {}, Importance.L2, np.random.default_rng(0)) for group in groups]
    scores = comparable(groups, rankings, normalization)
    np.testing.assert_allclose(scores[2:], expected, rtol=1e-6)
    assert all(np.all(np.diff(each) >= 0) for each in scores)


def test_groups_of_one_kind_touch_the_same_operators_in_the_same_way() -> None:
    found = channels(two_kinds(FIRST, SECOND).graph)
    kinds = [kind_of(group) for group in found.groups if not group.protection]
    assert kinds[2] == kinds[3] and len(set(kinds)) == 3  # the second convolution is read by a product


@pytest.mark.parametrize(
    ("normalization", "left"),
    [(Normalization.NONE, (1, 4)), (Normalization.MAX, (2, 2)), (Normalization.ISOMORPHIC, (1, 4))],
)
def test_one_threshold_takes_what_is_least_by_the_normalization(
    normalization: Normalization, left: tuple[int, int]
) -> None:
    model = two_kinds(FIRST, SECOND)
    pass_ = PruneChannels(
        0.15, Importance.L2, Allocation.GLOBAL, normalization, reconstruct=False, exclude=("conv_*",), least=0.2
    )
    context = PassContext(calibration=Samples({"x": weight(4, 3, 2, 2)}, {"x": 1}))
    assert run(pass_, model, context).changed
    shapes = {name: value.shape for name, value in model.graph.initializers.items() if value.shape is not None}
    assert (shapes["w0"][1], shapes["w1"][1]) == left
    assert not run(pass_, model, context).changed


@pytest.mark.parametrize("importance", [Importance.L1, Importance.L2, Importance.ACTIVATION, Importance.SURGEON])
@pytest.mark.parametrize("normalization", list(Normalization))
def test_every_normalization_meets_the_budget(importance: Importance, normalization: Normalization) -> None:
    model = two_kinds(FIRST, SECOND)
    pass_ = PruneChannels(0.4, importance, Allocation.GLOBAL, normalization)
    result = run(pass_, model, PassContext(calibration=Samples({"x": weight(20, 3, 2, 2)}, {"x": 1})))
    assert result.changed and float(result.statistics["macs-left"]) <= 0.601
