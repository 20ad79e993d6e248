from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings

from graphopt.errors import PassError
from graphopt.passes.cleanup import clean_up
from graphopt.passes.cleanup.clean_up import CleanUp
from graphopt.pipeline.base import Pass, PassContext, PassResult
from tests.passes import random_graphs as steps
from tests.passes.harness import Outcome, check, parse

HEADER = '<ir_version: 8, opset_import: ["" : 17]>'


def normal(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def exported_block() -> ir.Model:
    """What an exporter makes of two layers: shapes computed at run time, a batch norm, transposes, dropout."""
    return parse(
        HEADER + "g (float[1,2,4,4] x) => (float[1,32] y) { a = Conv(x, w) b = BatchNormalization(a, s, t, m, v) "
        "c = Transpose <perm = [0, 2, 3, 1]> (b) d = Relu(c) e = Transpose <perm = [0, 3, 1, 2]> (d) f = Dropout(e) "
        "g = Shape(f) h = Gather(g, zero) i = Unsqueeze(h, axis) j = Concat <axis = 0> (i, rest) y = Reshape(f, j) }",
        **{name: normal(2) for name in "stm"},
        v=np.ones(2, np.float32),
        w=normal(2, 2, 1, 1),
        zero=np.array(0),
        axis=np.array([0]),
        rest=np.array([-1]),
    )


def test_exported_block_golden(golden: Callable[[str, Outcome], None]) -> None:
    outcome = check(CleanUp(), exported_block())
    golden("exported-block", outcome)
    assert outcome.operators() == ["Conv", "Relu", "Reshape"]
    statistics = outcome.result.statistics
    assert statistics["settled"] == "yes"
    assert statistics["fold-batch-norm.folded"] == 1
    assert statistics["eliminate-identity.removed-Dropout"] == 1
    assert statistics["move-transposes.transposes-removed"] == 2


def test_what_is_declined_in_the_end_is_listed_once() -> None:
    model = parse(
        HEADER + "g (float[2] x) => (float[2] y) { a = Dropout(x, r, t) b = Identity(a) y = Relu(b) }",
        r=np.array(0, np.float32),
        t=np.array(True),
    )
    result = CleanUp().run(model, PassContext())
    assert [(declined.layer, declined.reason) for declined in result.declined] == [("dropout_0", "is in training mode")]


def test_rounds_are_bounded_and_the_report_says_so() -> None:
    result = CleanUp(max_rounds=1).run(exported_block(), PassContext())
    assert result.statistics["rounds"] == 1
    assert result.statistics["settled"] == "no"


@dataclass(frozen=True)
class Rename(Pass):
    """Turn one operator into another: two of these undo each other."""

    name: ClassVar[str] = "rename"
    exact: ClassVar[bool] = False
    old: str = "Relu"
    new: str = "Abs"

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        nodes = [node for node in model.graph if node.op_type == self.old]
        for node in nodes:
            node.op_type = self.new
        return PassResult(bool(nodes))


def test_passes_that_undo_each_other_are_reported_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clean_up, "ROUND", (Rename("Relu", "Abs"), Rename("Abs", "Relu")))
    model = parse(HEADER + "g (float[2] x) => (float[2] y) { y = Relu(x) }")
    with pytest.raises(PassError, match="round 2 ends with the model of round 1; among rename"):
        CleanUp().run(model, PassContext())


MENU = (steps.unary, steps.same_again, steps.with_constant, steps.pair, steps.transpose, steps.transpose_layout)
SHAPES = (steps.reshape, steps.squeeze, steps.unsqueeze, steps.flatten, steps.slice_, steps.halves, steps.concat)


@settings(deadline=None, max_examples=80)
@given(steps.models(*MENU, *SHAPES, steps.reduce, steps.pad, steps.casts))
def test_random_graphs_keep_their_outputs_and_settle(model: ir.Model) -> None:
    outcome = check(CleanUp(), model, changes=None)
    assert outcome.result.statistics["settled"] == "yes"


@settings(deadline=None, max_examples=60)
@given(steps.models(*MENU, *SHAPES, steps.reduce, steps.pad, steps.casts))
def test_random_graphs_of_unknown_shapes_keep_their_outputs(model: ir.Model) -> None:
    feeds = steps.with_unknown_shapes(model)
    check(CleanUp(), model, changes=None, feeds=feeds)
