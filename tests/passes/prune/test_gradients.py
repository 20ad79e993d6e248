"""Importance by gradients, and the graph in torch that they are taken of. Needs the extra `torch`."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx.shape_inference
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import graphopt.ir as graph_ir
from graphopt.analysis.accuracy import cross_entropy, log_probabilities
from graphopt.analysis.channels import channels
from graphopt.analysis.execution import Session, required_inputs
from graphopt.analysis.samples import Samples, probe_samples
from graphopt.errors import DataError, UnsupportedError
from graphopt.passes.prune.allocation import Allocation
from graphopt.passes.prune.gradients import fisher, taylor
from graphopt.passes.prune.importance import Importance
from graphopt.passes.prune.prune_channels import PruneChannels
from graphopt.pipeline.base import PassContext, silent
from tests.passes.harness import parse, run
from tests.passes.prune.random_networks import pictures, sequences

pytest.importorskip("torch")

from graphopt.passes.prune.torch_graph import TorchGraph

Array = np.ndarray[Any, Any]

HEAD = '<ir_version: 8, opset_import: ["" : 17]> '
RECURRENT = {"LSTM", "GRU", "RNN"}


def weight(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def classifier(scale: float = 0.3) -> ir.Model:
    """conv → relu → conv → + shortcut → pool → matrix."""
    model = parse(
        HEAD
        + """g (float[1,3,5,5] x) => (float[1,4] y) {
            a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0) r = Relu(a) c = Conv <pads = [1, 1, 1, 1]> (r, w1, b1)
            d = Relu(c) e = Conv(d, w2, b2) s = Add(e, r) t = Relu(s) p = GlobalAveragePool(t) f = Flatten(p)
            y = Gemm <transB = 1> (f, w3, b3) }""",
        w0=scale * weight(6, 3, 3, 3), b0=weight(6), w1=scale * weight(5, 6, 3, 3, seed=1), b1=weight(5),
        w2=scale * weight(6, 5, 1, 1, seed=2), b2=weight(6), w3=weight(4, 6, seed=3), b3=weight(4),
    )  # fmt: skip
    graph_ir.refresh_shapes(model)
    return model


def pictures_of(count: int) -> tuple[Samples, Array]:
    return Samples({"x": weight(count, 3, 5, 5, seed=7)}, {"x": 1}), np.arange(count) % 4


def assert_torch_agrees(model: ir.Model) -> None:
    graph_ir.refresh_shapes(model)
    graph, inputs = TorchGraph(model.graph, []), required_inputs(model)
    with Session(model, threads=1) as session:
        for feeds in probe_samples(model, 0, 2):
            expected = session.run(feeds)
            for name, tensor in graph.run(feeds, inputs).items():
                np.testing.assert_allclose(tensor.numpy(), expected[name], rtol=2e-3, atol=1e-4)


FLOATS = {name: weight(3, seed=seed) ** 2 + 0.1 for seed, name in enumerate("sbmv")}
OPERATORS: dict[str, tuple[list[int], dict[str, Array]]] = {
    'y = Conv <auto_pad = "SAME_LOWER", strides = [2, 2]> (x, w)': ([1, 4, 7, 6], {"w": weight(3, 4, 2, 4)}),
    "y = Conv <pads = [0, 2], group = 2> (x, w, b)": ([1, 4, 7], {"w": weight(6, 2, 3), "b": weight(6)}),
    "y = Conv <dilations = [2, 1]> (x, w)": ([1, 4, 5, 5], {"w": weight(3, 4, 2, 3)}),
    "y = ConvTranspose <strides = [2, 2], pads = [1, 0, 0, 1], output_padding = [1, 0], group = 2> (x, w)": (
        [1, 4, 3, 3],
        {"w": weight(4, 3, 3, 2)},
    ),
    "y = MaxPool <kernel_shape = [3, 2], strides = [2, 2], pads = [1, 0, 0, 1]> (x)": ([1, 2, 7, 7], {}),
    "y = MaxPool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1> (x)": ([1, 2, 7, 7], {}),
    "y = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 0, 1]> (x)": ([1, 2, 6, 6], {}),
    "y = AveragePool <kernel_shape = [3], pads = [1, 1], count_include_pad = 1> (x)": ([1, 2, 6], {}),
    "y = GlobalMaxPool(x)": ([1, 3, 4, 4], {}),
    "y = Gemm <transA = 1, transB = 1, alpha = 0.5, beta = 2.0> (x, w, b)": (
        [3, 4],
        {"w": weight(2, 3), "b": weight(2)},
    ),
    "a = Softmax <axis = 1> (x) b = LogSoftmax(x) y = Add(a, b)": ([2, 3, 4], {}),
    "a = HardSwish(x) b = HardSigmoid <alpha = 0.3> (x) y = Mul(a, b)": ([2, 3, 4], {}),
    "a = LeakyRelu <alpha = 0.2> (x) b = Elu(x) c = PRelu(x, w) d = Softplus(x) y = Sum(a, b, c, d)": (
        [2, 3, 4],
        {"w": weight(4)},
    ),
    "a = Tanh(x) b = Sigmoid(x) c = Exp(x) d = Sub(a, b) e = Div(d, c) f = Erf(x) y = Mul(e, f)": ([2, 3, 4], {}),
    "a = Abs(x) b = Sqrt(a) c = Neg(b) y = Pow(c, w)": ([2, 3, 4], {"w": np.array(2, np.float32)}),
    "y = Clip(x, l)": ([2, 3, 4], {"l": np.array(-0.2, np.float32)}),
    "y = Clip(x, l, h)": ([2, 3, 4], {"l": np.array(0, np.float32), "h": np.array(0.6, np.float32)}),
    "y = BatchNormalization(x, s, b, m, v)": ([1, 3, 4, 2], FLOATS),
    "y = InstanceNormalization(x, s, b)": ([1, 3, 4, 2], {"s": weight(3), "b": weight(3)}),
    "y = LayerNormalization <axis = 1> (x, s, b)": ([2, 3, 4], {"s": weight(3, 4), "b": weight(3, 4)}),
    "y = ReduceMean <axes = [0, -1], keepdims = 0> (x)": ([2, 3, 4], {}),
    "y = ReduceSum(x, a)": ([2, 3, 4], {"a": np.array([1])}),
    "a, b = Split <axis = 2> (x, s) c = Concat <axis = 1> (a, a) d = Transpose <perm = [0, 2, 1]> (c) "
    "e = ReduceMax <axes = [1, 2]> (d) y = Add(b, e)": ([2, 3, 4], {"s": np.array([1, 3])}),
    "y = Slice(x, s, e, a, t)": (
        [2, 6, 4],
        {"s": np.array([5, 1]), "e": np.array([-9, 3]), "a": np.array([1, 2]), "t": np.array([-2, 1])},
    ),
    "y = Pad(x, p, v)": ([2, 3], {"p": np.array([1, 0, 0, 2]), "v": np.array(3, np.float32)}),
    "a = Gather <axis = 1> (x, i) b = Unsqueeze(a, u) y = Squeeze(b, u)": (
        [2, 3, 4],
        {"i": np.array([[0, -1]]), "u": np.array([0])},
    ),
    "s = Shape(x) a = Transpose <perm = [0, 2, 1]> (x) b = Flatten <axis = 2> (a) y = Reshape(b, s)": ([2, 3, 4], {}),
    "a = Reshape(x, s) b = Identity(a) c = Cast <to = 1> (b) y = Dropout(c)": ([2, 3, 4], {"s": np.array([0, -1])}),
}


@pytest.mark.parametrize("body", OPERATORS)
def test_operators_compute_what_onnx_runtime_computes(body: str) -> None:
    shape, weights = OPERATORS[body]
    proto = onnx.parser.parse_model(f"{HEAD} g (float{shape} x) => (float[] y) {{ {body} }}")
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    assert_torch_agrees(graph_ir.load(onnx.shape_inference.infer_shapes(proto)))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(model=st.one_of(pictures(), sequences()))
def test_random_networks_compute_the_same_in_torch_or_are_refused_by_name(model: ir.Model) -> None:
    try:
        assert_torch_agrees(model)
    except UnsupportedError as error:
        assert any(node.op_type in error.what for node in model.graph)


def test_scores_are_those_of_differences_of_the_loss() -> None:
    """A unit's mask m scales the columns of its readers: ∂L/∂m = Σ w ∂L/∂w. Fisher is the sum of its squares."""
    model = classifier()
    samples, labels = pictures_of(6)
    found = channels(model.graph)
    groups = [group for group in found.groups if not group.protection]
    scores = fisher(model, groups, found, samples, labels, silent)
    assert len(groups) == 2
    for group, names in zip(groups, (("w1", "w3"), ("w2",)), strict=True):
        for place in range(group.width):
            losses = []
            for factor in (1.02, 0.98):
                copy = graph_ir.clone(model)
                for name in names:
                    value = copy.graph.initializers[name]
                    assert value.const_value is not None
                    array = value.const_value.numpy().copy()
                    array[:, place] *= factor
                    value.const_value = ir.tensor(array, name=name)
                known = log_probabilities(copy, samples)
                losses.append(-known[np.arange(6), labels])
            slope = (losses[0] - losses[1]) / 0.04
            assert scores[group.units[place]] == pytest.approx(np.square(slope).sum(), rel=0.03, abs=1e-7)


def test_taylor_adds_up_the_changes_of_all_that_is_coupled() -> None:
    model = classifier()
    samples, labels = pictures_of(6)
    found = channels(model.graph)
    groups = [group for group in found.groups if not group.protection]
    scores = taylor(model, groups, found, samples, labels, silent)
    expected = np.zeros(5)  # of the inner channels: rows of w1, b1, columns of w2
    for name, axis in (("w1", 0), ("b1", 0), ("w2", 1)):
        value = model.graph.initializers[name]
        assert value.const_value is not None
        array = value.const_value.numpy()
        changes = np.zeros(array.size)
        for place in range(array.size):
            losses = []
            for step in (5e-3, -5e-3):
                copy = graph_ir.clone(model)
                moved = array.astype(np.float64).reshape(-1)
                moved[place] += step
                copy.graph.initializers[name].const_value = ir.tensor(
                    moved.reshape(array.shape).astype(np.float32), name=name
                )
                losses.append(cross_entropy(log_probabilities(copy, samples), labels))
            changes[place] = abs(array.reshape(-1)[place] * (losses[0] - losses[1]) / 0.01)
        expected += np.moveaxis(changes.reshape(array.shape), axis, 0).reshape(5, -1).sum(axis=1)
    np.testing.assert_allclose(scores[groups[1].units], expected, rtol=0.05)


@pytest.mark.parametrize("importance", [Importance.TAYLOR, Importance.FISHER])
@pytest.mark.parametrize("allocation", list(Allocation))
def test_channels_leave_by_gradients_and_a_second_run_changes_nothing(
    importance: Importance, allocation: Allocation
) -> None:
    model = classifier()
    samples, labels = pictures_of(20)
    context = PassContext(calibration=samples, labels=labels)
    pass_ = PruneChannels(ratio=0.4, importance=importance, allocation=allocation)
    result = run(pass_, model, context)
    assert result.changed and 0.3 < float(result.statistics["macs-left"]) <= 0.601
    assert not run(pass_, model, context).changed


@pytest.mark.parametrize("score", [taylor, fisher])
def test_a_channel_that_no_score_depends_on_is_worth_nothing(score: Any) -> None:
    model = classifier()
    value = model.graph.initializers["w2"]
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    array[:, 3] = 0
    value.const_value = ir.tensor(array, name="w2")
    samples, _ = pictures_of(8)
    found = channels(model.graph)
    groups = [group for group in found.groups if not group.protection]
    scores = score(model, groups, found, samples, None, silent)[groups[1].units]  # by its own classes
    assert scores[3] == 0 and np.all(np.delete(scores, 3) > 0)


def test_what_has_no_gradient_is_named() -> None:
    model = parse(
        HEAD
        + """g (float[1,3,4,4] x) => (float[1,4] y) {
            a = LRN <size = 3> (x) p = GlobalAveragePool(a) f = Flatten(p) y = Gemm(f, w) }""",
        w=weight(3, 4),
    )  # fmt: skip
    with pytest.raises(UnsupportedError, match="no gradient through LRN 'lrn_0'"):
        TorchGraph(model.graph, [])


def test_models_without_class_scores_and_labels_that_do_not_fit_are_refused() -> None:
    samples, labels = pictures_of(4)
    pass_ = PruneChannels(importance=Importance.FISHER, allocation=Allocation.UNIFORM)
    with pytest.raises(DataError, match="there are 3 labels for 4 samples, expected one for each"):
        run(pass_, classifier(), PassContext(calibration=samples, labels=labels[:3]))
    with pytest.raises(DataError, match=r"sample \d has no label from 0 to 3"):
        run(pass_, classifier(), PassContext(calibration=samples, labels=labels + 4))
    model = parse(
        HEAD + "g (float[1,3,5,5] x) => (float[1,2,5,5] y) { a = Conv(x, w0) y = Conv(a, w1) }",
        w0=weight(6, 3, 1, 1), w1=weight(2, 6, 1, 1),
    )  # fmt: skip
    graph_ir.refresh_shapes(model)
    with pytest.raises(DataError, match="no output looks like class scores"):
        run(pass_, model, PassContext(calibration=samples))
