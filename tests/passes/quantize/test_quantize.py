"""The pass: what it writes, what it refuses to touch, that a second run changes nothing, and that it stays accurate."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphopt.ir as graph_ir
from graphopt.analysis.comparison import compare_runs
from graphopt.analysis.execution import Session
from graphopt.analysis.samples import Samples, probe_samples
from graphopt.errors import ModelWarning, UsageError
from graphopt.ir.reading import constant
from graphopt.passes.quantize.arithmetic import Parameters, dequantize, quantize
from graphopt.passes.quantize.quantize import Quantize
from graphopt.pipeline.base import PassContext
from graphopt.pipeline.registry import TARGETS
from tests.passes.harness import Outcome, parse, run

Array = np.ndarray[Any, Any]
Golden = Callable[[str, Outcome], None]

HEAD = '<ir_version: 8, opset_import: ["" : 17]> '


def weight(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def quantized(model: ir.Model, samples: Samples | None = None, pass_: Quantize | None = None) -> Outcome:
    """Run the pass on a copy, and once more; everything that the manager checks holds."""
    pass_ = pass_ or Quantize()
    graph_ir.refresh_shapes(model)
    after = graph_ir.clone(model)
    context = PassContext(calibration=samples or probe_samples(model, 0, 10))
    result = run(pass_, after, context)
    assert result.changed == (graph_ir.to_text(after) != graph_ir.to_text(model))
    again = graph_ir.clone(after)
    second = run(pass_, again, context)
    assert graph_ir.to_text(again) == graph_ir.to_text(after) and (not second.changed or not result.changed)
    return Outcome("quantize", model, after, result)


def sqnr(outcome: Outcome, seed: int = 0) -> float:
    samples = probe_samples(outcome.before, seed, 4)
    runs = []
    for model in (outcome.before, outcome.after):
        with Session(model, threads=1) as session:
            runs.append([session.run(feeds) for feeds in samples])
    return min(output.sqnr_db for output in compare_runs(*runs))


def test_golden_residual_block(golden: Golden) -> None:
    model = parse(
        HEAD + "g (float[1,3,8,8] x) => (float[1,3,8,8] y) {"
        " a = Conv<pads=[1,1,1,1]>(x, w1, b1) r = Relu(a) c = Conv(r, w2) s = Add(c, x) y = Relu(s) }",
        w1=np.ones((2, 3, 3, 3), np.float32),
        b1=np.zeros(2, np.float32),
        w2=np.ones((3, 2, 1, 1), np.float32),
    )
    x = np.linspace(-1, 1, 3 * 64, dtype=np.float32).reshape(1, 3, 8, 8)
    golden(
        "residual_block", quantized(model, Samples({"x": np.repeat(x, 10, 0)}, {"x": 1}), Quantize(correct_bias=False))
    )


def test_golden_concat_of_a_constant_and_the_output_of_the_graph(golden: Golden) -> None:
    model = parse(
        HEAD + "g (float[1,2,4,4] x) => (float[1,2,4,4] p, float[1,1,4,4] y) {"
        " p = Conv(x, w) c = Concat<axis=1>(p, k) y = Conv(c, v) }",
        w=np.ones((2, 2, 1, 1), np.float32),
        k=np.full((1, 1, 4, 4), 5, np.float32),
        v=np.ones((1, 3, 1, 1), np.float32),
    )
    x = np.linspace(-1, 1, 32, dtype=np.float32).reshape(1, 2, 4, 4)
    golden(
        "concat_constant", quantized(model, Samples({"x": np.repeat(x, 10, 0)}, {"x": 1}), Quantize(correct_bias=False))
    )


def test_a_convolution_is_what_integer_arithmetic_gives() -> None:
    """ONNX Runtime's result of the written model equals the sum of integer products, scaled once."""
    model = parse(
        HEAD + "g (float[1,5,7,7] x) => (float[1,3,7,7] y) { y = Conv(x, w, b) }",
        w=weight(3, 5, 1, 1),
        b=weight(3, seed=1),
    )
    outcome = quantized(model)
    stored = {str(name): value.const_value.numpy() for name, value in outcome.after.graph.initializers.items()}
    nodes = {node.op_type: node for node in outcome.after.graph}
    conv = nodes["Conv"]
    scales = [constant(v.producer().inputs[1]) for v in conv.inputs if v is not None and v.producer() is not None]
    feeds = probe_samples(model, 5, 1)[0]
    entry = nodes["QuantizeLinear"]
    scale, zero_point = stored[str(entry.inputs[1].name)], stored[str(entry.inputs[2].name)]
    x = quantize(feeds["x"], Parameters(scale, zero_point)).astype(np.int64) - zero_point
    w, b = (constant(conv.inputs[i].producer().inputs[0]).astype(np.int64) for i in (1, 2))
    sums = np.einsum("oi,nihw->nohw", w[:, :, 0, 0], x) + b[:, None, None]
    product = (scales[0] * scales[1]).astype(np.float64)[:, None, None]
    found = Session(outcome.after, threads=1).run(feeds)["y"]
    np.testing.assert_allclose(found, sums * product, rtol=0, atol=2e-6 * np.abs(found).max())
    np.testing.assert_array_equal(scales[2], scales[0] * scales[1])


def test_onnx_runtimes_integer_kernels_give_what_the_model_says() -> None:
    """Its optimizer fuses every layer to QLinearConv and the like; results differ by rounding at the last scale."""
    model = parse(
        HEAD + "g (float[1,3,8,8] x) => (float[1,2,8,8] y) {"
        " a = Conv<pads=[1,1,1,1]>(x, w1, b1) r = Relu(a) c = Conv(r, w2) s = Add(c, r) y = Conv(s, w3) }",
        w1=weight(5, 3, 3, 3),
        b1=weight(5),
        w2=weight(5, 5, 1, 1),
        w3=weight(2, 5, 1, 1),
    )
    after = quantized(model).after
    feeds = probe_samples(model, 3, 1)[0]
    written = Session(after, threads=1).run(feeds)["y"]
    fused = Session(after, threads=1, optimize=True).run(feeds)["y"]
    assert np.abs(written - fused).max() < 0.02 * np.abs(written).max()


def test_a_bias_shared_by_two_layers_gets_a_scale_for_each() -> None:
    model = parse(
        HEAD + "g (float[1,3,4,4] x) => (float[1,3,4,4] y) { p = Conv(x, w, b) y = Conv(p, w, b) }",
        w=weight(3, 3, 1, 1),
        b=weight(3),
    )
    after = quantized(model).after
    convs = [node for node in after.graph if node.op_type == "Conv"]
    assert convs[0].inputs[1] is convs[1].inputs[1]  # one weight
    scales = [constant(conv.inputs[2].producer().inputs[1]) for conv in convs if conv.inputs[2] is not None]
    assert not np.array_equal(scales[0], scales[1])


def test_float_readers_of_an_integer_value_read_the_dequantized_one() -> None:
    model = parse(
        HEAD + "g (float[1,3,4,4] x) => (float[1,3,4,4] p, float[1,3,4,4] y, float[1,3,4,4] n) {"
        " p = Conv(x, w) y = Conv(p, w) n = Neg(p) }",
        w=weight(3, 3, 1, 1),
    )
    outcome = quantized(model)
    neg = next(node for node in outcome.after.graph if node.op_type == "Neg")
    assert neg.inputs[0] is outcome.after.graph.outputs[0]
    producer = outcome.after.graph.outputs[0].producer()
    assert producer is not None and producer.op_type == "DequantizeLinear"


def test_float_readers_of_a_float_value_read_it_as_it_was() -> None:
    model = parse(
        HEAD + "g (float[1,3,4,4] x) => (float[1,3,4,4] y, float[1,3,4,4] n) { y = Conv(x, w) n = Neg(x) }",
        w=weight(3, 3, 1, 1),
    )
    outcome = quantized(model)
    neg = next(node for node in outcome.after.graph if node.op_type == "Neg")
    assert neg.inputs[0] is outcome.after.graph.inputs[0]


def test_transposed_convolution_with_groups_is_close() -> None:
    model = parse(
        HEAD + "g (float[1,4,5,5] x) => (float[1,6,7,7] y) { y = ConvTranspose<group=2>(x, w, b) }",
        w=weight(4, 3, 3, 3) * np.array([1, 10, 0.1], np.float32)[:, None, None],
        b=weight(6),
    )
    assert sqnr(quantized(model)) > 35


def test_depthwise_transposed_convolution_has_a_scale_for_each_channel() -> None:
    spread = np.array([1, 100, 0.01, 1, 0.1], np.float32)
    model = parse(
        HEAD + "g (float[1,5,4,4] x) => (float[1,1,6,6] a, float[1,1,6,6] b) {"
        " y = ConvTranspose<group=5>(x, w, c) a = Slice(y, zero, one, axis) b = Slice(y, two, three, axis) }",
        w=weight(5, 1, 3, 3) * spread[:, None, None, None],
        c=weight(5) * spread,
        **{name: np.array([number]) for number, name in enumerate(("zero", "one", "two", "three"))},
        axis=np.array([1]),
    )
    assert sqnr(quantized(model)) > 35


def test_without_data_nothing_is_quantized_and_that_is_said() -> None:
    model = parse(HEAD + "g (float[1,3,4,4] x) => (float[1,3,4,4] y) { y = Conv(x, w) }", w=weight(3, 3, 1, 1))
    graph_ir.refresh_shapes(model)
    with pytest.warns(ModelWarning, match="--calib"):
        result = Quantize().run(model, PassContext())
    assert not result.changed and "no calibration data" in result.declined[0].reason


def test_few_samples_are_warned_of() -> None:
    model = parse(HEAD + "g (float[1,3,4,4] x) => (float[1,3,4,4] y) { y = Conv(x, w) }", w=weight(3, 3, 1, 1))
    with pytest.warns(ModelWarning, match="3 samples"):
        quantized(model, probe_samples(model, 0, 3))


@pytest.mark.parametrize(
    "body",
    [
        "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = MatMul(d, w)",
        "q, qs, qz = DynamicQuantizeLinear(x) d = DequantizeLinear(q, qs, qz) y = MatMul(d, w)",
    ],
)
def test_a_quantized_model_is_left_alone_with_the_reason(body: str) -> None:
    constants = {"s": np.float32(0.1), "z": np.int8(0)} if "x, s" in body else {}
    model = parse(HEAD + f"g (float[4,4] x) => (float[4,4] y) {{ {body} }}", w=weight(4, 4), **constants)
    outcome = quantized(model)
    assert not outcome.result.changed
    assert outcome.reasons() == {next(iter(outcome.reasons())): "the model is quantized already"}


def test_an_old_opset_is_raised_to_that_of_scales_by_channel() -> None:
    model = parse(
        '<ir_version: 6, opset_import: ["" : 11]> g (float[1,3,4,4] x) => (float[1,3] y) {'
        " c = Conv(x, w) r = Relu(c) y = ReduceMean<axes=[2,3], keepdims=0>(r) }",
        w=weight(3, 3, 1, 1),
    )
    outcome = quantized(model)
    assert outcome.after.opset_imports[""] == 13 and sqnr(outcome) > 30


def test_values_that_are_not_finite_keep_their_layers_in_float() -> None:
    model = parse(
        HEAD
        + "g (float[2,4] x) => (float[2,4] y) { m = MatMul(x, w) l = Add(m, mask) s = Softmax(l) y = MatMul(s, w) }",
        w=weight(4, 4),
        mask=np.array([[0, 0, -np.inf, 0]] * 2, np.float32),
    )
    outcome = quantized(model)
    assert "NaN or infinity" in outcome.reasons()["add_1"] and sqnr(outcome) > 20


def test_a_value_that_is_infinite_on_the_samples_is_refused_by_name() -> None:
    model = parse(
        HEAD + "g (float[2,4] x) => (float[2,4] y) { m = MatMul(x, w) l = Div(m, zero) y = MatMul(l, w) }",
        w=np.ones((4, 4), np.float32),
        zero=np.zeros(1, np.float32),
    )
    outcome = quantized(model, Samples({"x": np.ones((10, 2, 4), np.float32)}, {"x": 0}))
    assert outcome.reasons()["matmul_2"] == "'l' is NaN or infinite on the calibration data"
    assert outcome.result.changed


def test_correcting_biases_brings_the_means_of_channels_back() -> None:
    model = parse(
        HEAD + "g (float[1,8,6,6] x) => (float[1,5,6,6] y) { r = Relu(x) y = Conv(r, w) }",
        w=weight(5, 8, 1, 1) ** 3,
    )
    samples = probe_samples(model, 1, 10)
    shifts = []
    for correct in (False, True):
        outcome = quantized(graph_ir.clone(model), samples, Quantize(correct_bias=correct, per_channel=False))
        with Session(outcome.before) as one, Session(outcome.after) as other:
            apart = [other.run(feeds)["y"] - one.run(feeds)["y"] for feeds in samples]
        shifts.append(np.abs(np.mean(apart, axis=(0, 1, 3, 4))).max())
    assert shifts[1] < 0.1 * shifts[0]


def test_a_target_without_the_scheme_is_a_usage_error() -> None:
    import dataclasses

    target = dataclasses.replace(TARGETS.find("host"), quantization=())
    model = parse(HEAD + "g (float[4,4] x) => (float[4,4] y) { y = MatMul(x, w) }", w=weight(4, 4))
    with pytest.raises(UsageError, match="int8"):
        Quantize().run(model, PassContext(target=target))


LAYERS = st.sampled_from(
    [
        "conv",
        "depthwise",
        "relu",
        "clip",
        "sigmoid",
        "hardswish",
        "add",
        "mul",
        "concat",
        "pool",
        "mean",
        "transpose",
        "abs",
    ]
)


@given(st.lists(LAYERS, min_size=1, max_size=7), st.integers(1, 7), st.integers(0, 3))
@settings(deadline=None, max_examples=15)
def test_random_networks_of_odd_channels_stay_close_and_a_second_run_changes_nothing(
    kinds: list[str], channels: int, seed: int
) -> None:
    body, now, weights = ["v0 = Conv(x, w_in)"], channels, {"w_in": weight(channels, 3, 1, 1, seed=seed)}
    written = {
        "relu": "Relu({0})",
        "clip": "Clip({0}, low, high)",
        "sigmoid": "Sigmoid({0})",
        "hardswish": "HardSwish({0})",
        "add": "Add({0}, {0})",
        "mul": "Mul({0}, half)",
        "pool": "MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>({0})",
        "mean": "AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>({0})",
        "transpose": "Transpose<perm=[0,1,3,2]>({0})",
        "abs": "Abs({0})",
    }
    for index, kind in enumerate(kinds):
        last = f"v{index}"
        if kind in ("conv", "depthwise"):
            groups = now if kind == "depthwise" else 1
            weights[f"w{index}"] = weight(now, now // groups, 3, 3, seed=index) / np.float32(3 * (now // groups) ** 0.5)
            made = f"Conv<pads=[1,1,1,1], group={groups}>({last}, w{index})"
        elif kind == "concat":
            made, now = f"Concat<axis=1>({last}, v0)", now + channels
        else:
            made = written[kind].format(last)
        body.append(f"v{index + 1} = {made}")
    weights["w_out"] = weight(2, now, 1, 1, seed=9)
    body.append(f"y = Conv(v{len(kinds)}, w_out)")
    text = " ".join(body)
    used = {"low": np.float32(-1), "high": np.float32(2), "half": np.float32(0.5)}
    weights |= {name: np.asarray(array) for name, array in used.items() if name in text}
    model = parse(HEAD + f"g (float[1,3,5,5] x) => (float[1,2,5,5] y) {{ {text} }}", **weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ModelWarning)
        outcome = quantized(model)
    assert outcome.result.changed and sqnr(outcome) > 10


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=10)
def test_dequantized_weights_are_within_half_a_step(seed: int) -> None:
    array = weight(3, 7, seed=seed % 1000)
    model = parse(HEAD + "g (float[2,7] x) => (float[2,3] y) { y = Gemm<transB=1>(x, w) }", w=array)
    after = quantized(model, pass_=Quantize(correct_bias=False)).after
    node = next(node for node in after.graph if node.op_type == "Gemm").inputs[1].producer()
    integers, scale, zero_point = (constant(value) for value in node.inputs)
    assert integers.dtype == np.int8 and integers.min() >= -127 and not zero_point.any()
    moved = np.abs(dequantize(integers, Parameters(scale, zero_point, 0)) - array)
    clipped = np.abs(array) > 127 * scale[:, None]
    assert np.all((moved <= 0.5001 * scale[:, None]) | clipped)
