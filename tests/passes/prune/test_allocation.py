"""Groups that may step at once: those step that come closest to the target."""

from __future__ import annotations

import numpy as np

import graphopt.ir as graph_ir
from graphopt.analysis.channels import channels
from graphopt.passes.prune.allocation import Candidate, levels, uniform
from graphopt.passes.prune.budget import Budget
from graphopt.passes.prune.importance import Ranking
from tests.passes.harness import parse


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
