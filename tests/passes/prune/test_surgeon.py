"""The surgeon's order and losses are those of refitting without each unit in turn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import graphopt.ir as graph_ir
from graphopt.analysis.channels import Group, channels
from graphopt.analysis.samples import Samples
from graphopt.passes.prune.readers import Reader, observe, readers
from graphopt.passes.prune.sensitivity import without
from graphopt.passes.prune.surgeon import eliminate
from graphopt.pipeline.base import silent
from tests.passes.harness import parse

Array = np.ndarray[Any, Any]


def weight(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def convolutions(width: int, kernel: int, groups: int) -> tuple[Group, Reader]:
    """A convolution of `width` channels, and the one that reads them."""
    model = parse(
        f"""<ir_version: 8, opset_import: ["" : 17]> g (float[1,3,8,8] x) => (float[1,4,N,M] y) {{
            a = Conv(x, w0) r = Relu(a) y = Conv <group = {groups}> (r, w1) }}""",
        w0=weight(width, 3, 1, 1), w1=weight(4, width // groups, kernel, kernel, seed=1),
    )  # fmt: skip
    graph_ir.refresh_shapes(model)
    found = channels(model.graph)
    groups_found = [group for group in found.groups if not group.protection]
    measured, _ = readers(groups_found, found)
    observe(model, measured, Samples({"x": weight(16, 3, 8, 8, seed=2)}, {"x": 1}), 64, 0, silent)
    return groups_found[0], next(iter(measured.values()))


def lost(reader: Reader, gone: Array) -> float:
    """Of the energy of the reader's output, when it is refitted without units."""
    difference = reader.matrix - without(reader, gone)
    gram = reader.gram
    noise, energy = (float(np.einsum("gof,gfh,goh->", matrix, gram, matrix)) for matrix in (difference, reader.matrix))
    return noise / energy


@pytest.mark.parametrize(("kernel", "groups"), [(1, 1), (3, 1), (3, 2)])
def test_each_unit_is_the_one_whose_loss_is_least_after_those_before(kernel: int, groups: int) -> None:
    group, reader = convolutions(8, kernel, groups)
    order, scores, _ = eliminate(group, [reader])
    assert sorted(order.tolist()) == list(range(group.width))
    for count, (number, total) in enumerate(zip(order, np.cumsum(scores), strict=True)):
        gone = group.units[order[:count]]
        losses = {other: lost(reader, np.append(gone, group.units[other])) for other in order[count:]}
        assert losses[number] == pytest.approx(min(losses.values()), rel=1e-6)
        assert total == pytest.approx(losses[number], rel=1e-6)


def test_of_wide_groups_several_go_at_once_and_still_cost_less_than_others() -> None:
    group, reader = convolutions(320, 1, 1)
    order, _, _ = eliminate(group, [reader])
    assert sorted(order.tolist()) == list(range(320))
    chosen, rng = lost(reader, group.units[order[:280]]), np.random.default_rng(0)
    others = [lost(reader, group.units[rng.permutation(320)[:280]]) for _ in range(5)]
    assert chosen < 0.5 * min(others)
