"""Stages: they compute what one run computes, and see constants that change between them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import graphopt.ir as graph_ir
from graphopt.analysis.execution import Session
from graphopt.analysis.samples import probe_samples
from graphopt.analysis.stages import Stages, bytes_kept
from tests.passes.harness import parse

Array = np.ndarray[Any, Any]

HEAD = '<ir_version: 8, opset_import: ["" : 17]> '


def branches() -> ir.Model:
    """A skip connection over three layers, weights that are computed, and a value that is read late."""
    model = parse(
        HEAD + "g (float[2,4] x) => (float[2,4] y) {"
        " n = Neg(w) a = MatMul(x, n) b = Relu(a) c = MatMul(b, w) d = Add(c, x) e = MatMul(d, w) y = Add(e, b) }",
        w=np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32),
    )
    graph_ir.refresh_shapes(model)
    return model


def test_stages_compute_what_one_run_computes() -> None:
    model = branches()
    samples = list(probe_samples(model, 0, 3))
    names = [str(node.outputs[0].name) for node in model.graph]
    with Session(model, outputs=names, threads=1) as session:
        expected = [session.run(feeds) for feeds in samples]
    stages = Stages(model, samples)
    for node in model.graph:
        stages.advance(node)
        name = str(node.outputs[0].name)
        for found, wanted in zip(stages.values([name]), expected, strict=True):
            np.testing.assert_array_equal(found[name], wanted[name])
    for found, wanted in zip(stages.values(["y", "b"]), expected, strict=True):
        np.testing.assert_array_equal(found["y"], wanted["y"])
        np.testing.assert_array_equal(found["b"], wanted["b"])


def test_a_constant_that_changes_is_seen_by_what_was_not_passed() -> None:
    model = branches()
    samples = list(probe_samples(model, 0, 2))
    nodes = {str(node.outputs[0].name): node for node in model.graph}
    stages = Stages(model, samples)
    stages.advance(nodes["d"])
    with Session(model, outputs=["d", "b"], threads=1) as session:
        before = [session.run(feeds) for feeds in samples]
    weight = model.graph.initializers["w"]
    weight.const_value = ir.Tensor(np.eye(4, dtype=np.float32), name="w")
    for found, old in zip(stages.values(["y"]), before, strict=True):
        np.testing.assert_array_equal(found["y"], old["d"] + old["b"])


def test_nothing_that_was_passed_can_be_passed_again() -> None:
    model = branches()
    stages = Stages(model, list(probe_samples(model, 0, 1)))
    first, *_, last = model.graph
    stages.advance(last)
    with pytest.raises(ValueError, match="was passed"):
        stages.advance(first)


def test_of_a_dequantized_value_the_integers_are_kept() -> None:
    model = parse(
        HEAD + "g (float[2,4] x) => (float[2,4] y) {"
        " q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) a = Neg(d) b = Neg(a) y = Add(b, d) }",
        s=np.float32(0.1),
        z=np.int8(3),
    )
    graph_ir.refresh_shapes(model)
    assert bytes_kept(model) == 8 + 32  # q and a, or q and b
    samples = list(probe_samples(model, 0, 2))
    stages = Stages(model, samples)
    nodes = {str(node.outputs[0].name): node for node in model.graph}
    stages.advance(nodes["b"])
    with Session(model, threads=1) as session:
        for found, feeds in zip(stages.values(["y"]), samples, strict=True):
            np.testing.assert_array_equal(found["y"], session.run(feeds)["y"])


def test_what_a_branch_of_an_if_reads_is_kept_for_it() -> None:
    model = parse(
        HEAD + "g (float[2,4] x, bool c) => (float[2,4] y) { a = Neg(x) b = Exp(x)"
        " y = If(c) <then_branch = t () => (float[2,4] p) { p = Abs(a) },"
        " else_branch = e () => (float[2,4] r) { r = Relu(b) }> }"
    )
    graph_ir.refresh_shapes(model)
    samples = list(probe_samples(model, 0, 4))
    stages = Stages(model, samples)
    stages.advance(model.graph[2])
    with Session(model, threads=1) as session:
        for found, feeds in zip(stages.values(["y"]), samples, strict=True):
            np.testing.assert_array_equal(found["y"], session.run(feeds)["y"])


def test_the_room_is_that_of_the_widest_place() -> None:
    model = branches()
    assert bytes_kept(model) == 3 * 32  # x, b and c before the first Add
