"""A layer that makes class scores is not refitted to samples of few of its classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import graphopt.ir as graph_ir
from graphopt.analysis.accuracy import predictions
from graphopt.analysis.channels import channels
from graphopt.analysis.samples import Samples
from graphopt.passes.prune.prune_channels import PruneChannels
from graphopt.passes.prune.unseen import unseen_by
from graphopt.pipeline.base import PassContext
from tests.passes.harness import parse, run

Array = np.ndarray[Any, Any]

CLASSES, WIDTH = 10, 32
HEAD = '<ir_version: 8, opset_import: ["" : 17]> '


def weight(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def classifier() -> ir.Model:
    """With a nearest centre for each class, behind a hidden layer that keeps distances."""
    hidden, last = weight(CLASSES, WIDTH), weight(WIDTH, CLASSES, seed=1)
    model = parse(
        HEAD + f"""g (float[1,{CLASSES}] x) => (float[1,{CLASSES}] y) {{
            a = MatMul(x, w0) b = Relu(a) y = Gemm(b, w1, bias) }}""",
        w0=hidden, w1=last, bias=weight(CLASSES, seed=2),
    )  # fmt: skip
    graph_ir.refresh_shapes(model)
    array = weight(4000, CLASSES, seed=3)
    targets = 4 * np.eye(CLASSES)[array.argmax(axis=1)]
    given = np.maximum(array @ hidden, 0)
    solved, *_ = np.linalg.lstsq(np.c_[given, np.ones(len(given))], targets, rcond=None)
    model.graph.initializers["w1"].const_value = ir.tensor(solved[:-1].astype(np.float32), name="w1")
    model.graph.initializers["bias"].const_value = ir.tensor(solved[-1].astype(np.float32), name="bias")
    return model


def samples_of(model: ir.Model, classes: int, count: int) -> Samples:
    """`count` samples which the model gives one of the first classes."""
    array = weight(8000, CLASSES, seed=4)
    found, _ = predictions(model, Samples({"x": array}, {"x": 1}))
    return Samples({"x": array[found < classes][:count]}, {"x": 1})


@pytest.mark.parametrize(("classes", "kept"), [(3, True), (CLASSES, False)])
def test_the_last_layer_is_refitted_only_to_samples_of_most_classes(classes: int, kept: bool) -> None:
    model = classifier()
    samples = samples_of(model, classes, 200)
    found = unseen_by(model, channels(model.graph), samples)
    assert found == ({2: "samples are of 3 of the 10 classes that it tells apart"} if kept else {})
    work = graph_ir.clone(model)
    result = run(PruneChannels(ratio=0.2), work, PassContext(calibration=samples))
    assert result.changed and any("3 of the 10 classes" in each.reason for each in result.declined) == kept
    assert str(result.statistics["variant"]).endswith("as-it-is" if kept else "refitted")


def test_a_model_without_class_scores_is_refitted() -> None:
    model = parse(HEAD + "g (float[1,3,4] x) => (float[1,3,4] y) { y = MatMul(x, w) }", w=weight(4, 4))
    graph_ir.refresh_shapes(model)
    assert unseen_by(model, channels(model.graph), Samples({"x": weight(5, 3, 4)}, {"x": 1})) == {}
