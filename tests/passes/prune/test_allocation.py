"""Which groups step: of those that may step at once the closest to the target, and by losses the cheapest."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st

import graphopt.ir as graph_ir
from graphopt.analysis.channels import Channels, Group, channels
from graphopt.passes.prune.allocation import Candidate, by_loss, levels, uniform
from graphopt.passes.prune.budget import Budget, Saving
from graphopt.passes.prune.importance import Ranking
from tests.passes.harness import parse

Array = np.ndarray[Any, Any]


def test_a_wide_step_is_left_out_where_a_narrow_one_meets_the_target() -> None:
    """The second group is read by a layer of 64 outputs, and the first by none so wide; either can halve."""
    shapes = {"w0": (4, 16), "w1": (16, 16), "w2": (16, 64)}
    model = parse(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1,4] x) => (float[1,64] y) '
        "{ a = MatMul(x, w0) b = MatMul(a, w1) y = MatMul(b, w2) }",
        **{name: np.ones(shape, np.float32) for name, shape in shapes.items()},
    )
    graph_ir.refresh_shapes(model)
    found = channels(model.graph)
    groups = [group for group in found.groups if not group.protection]
    candidates = [
        Candidate(Ranking(group.units, np.arange(16.0), np.ones(16)), levels(16, least=0.1, multiple=8))
        for group in groups
    ]
    budget = Budget(model, found)
    whole = np.ones(found.count, bool)
    for ordered in (list(zip(candidates, groups, strict=True)), list(zip(candidates, groups, strict=True))[::-1]):
        each, widths = [pair[0] for pair in ordered], [pair[1].width for pair in ordered]
        stays = uniform(each, widths, budget, whole, 0.9 * budget.total)
        assert 0.8 * budget.total < budget.left(stays) <= 0.9 * budget.total


def chain(widths: list[int]) -> tuple[ir.Model, Channels, list[Group]]:
    """Products in a row, of which each second one is added to what came before."""
    steps = (
        f"m{i} = MatMul(v{i}, a{i}) r{i} = MatMul(m{i}, b{i}) v{i + 1} = Add(v{i}, r{i}) " for i in range(len(widths))
    )
    model = parse(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1,4] x) => (float[1,3] y) { v0 = MatMul(x, w0) '
        + "".join(steps) + f"y = MatMul(v{len(widths)}, last) }}",
        w0=np.ones((4, 9), np.float32), last=np.ones((9, 3), np.float32),
        **{f"a{i}": np.ones((9, width), np.float32) for i, width in enumerate(widths)},
        **{f"b{i}": np.ones((width, 9), np.float32) for i, width in enumerate(widths)},
    )  # fmt: skip
    graph_ir.refresh_shapes(model)
    found = channels(model.graph)
    return model, found, [group for group in found.groups if not group.protection]


@given(
    widths=st.lists(st.integers(2, 12), min_size=1, max_size=4),
    seed=st.integers(0, 999),
    left=st.floats(0.3, 0.95),
    saving=st.sampled_from([Saving.MACS, Saving.PARAMS, Saving.CHANNELS]),
)
@settings(max_examples=40, deadline=None)
def test_the_cheapest_step_is_found_without_asking_all_groups_again(
    widths: list[int], seed: int, left: float, saving: Saving
) -> None:
    model, found, groups = chain(widths)
    rng, budget, whole = np.random.default_rng(seed), Budget(model, found, saving), np.ones(found.count, bool)
    candidates, losses = [], []
    for group in groups:
        steps = levels(group.width, least=0.1, multiple=1)
        candidates.append(Candidate(Ranking(rng.permutation(group.units), np.arange(1.0), np.ones(1)), steps))
        losses.append(np.r_[0, np.cumsum(rng.integers(0, 3, len(steps) - 1) * rng.random(len(steps) - 1))])
    target = left * budget.total
    np.testing.assert_array_equal(
        by_loss(candidates, losses, budget, whole, target), _asked_again(candidates, losses, budget, whole, target)
    )


def _asked_again(
    candidates: list[Candidate], losses: list[Array], budget: Budget, whole: Array, target: float
) -> Array:
    """Greed that looks at every level of every group, and gives back likewise."""
    at = [0] * len(candidates)

    def after(levels: list[int]) -> Array:
        stays = whole.copy()
        for each, level in zip(candidates, levels, strict=True):
            stays[each.gone(level)] = False
        return stays

    while budget.left(after(at)) > target:
        offers = [
            ((loss[level] - loss[at[number]]) / saved, number, level)
            for number, (each, loss) in enumerate(zip(candidates, losses, strict=True))
            for level in range(at[number] + 1, len(each.levels))
            if (saved := budget.saved(after(at), each.gone(level))) > 0
        ]
        if not offers:
            return after(at)
        _, number, level = min(offers)
        at[number] = level
    while True:
        back = []
        for number, loss in enumerate(losses):
            met = [n for n in range(at[number]) if budget.left(after([*at[:number], n, *at[number + 1 :]])) <= target]
            back += [(loss[at[number]] - loss[met[0]], -number, met[0])] if met else []
        if not back:
            return after(at)
        _, number, level = max(back)
        at[-number] = level
