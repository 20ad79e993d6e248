"""AdaRound and GPTQ: columns, moments and optimizers against plain definitions, and the pass ahead of `quantize`."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import graphopt.ir as graph_ir
from graphopt.analysis.execution import Session
from graphopt.analysis.samples import Samples, probe_samples
from graphopt.errors import UsageError
from graphopt.ir.reading import constant
from graphopt.passes.quantize.adaround import AdaRound
from graphopt.passes.quantize.moments import moments
from graphopt.passes.quantize.patches import columns, from_matrix, places_of, to_matrix
from graphopt.passes.quantize.quantize import Quantize
from graphopt.passes.quantize.quantize_weights import QuantizeWeights
from graphopt.passes.quantize.rounding import Grid, Method, adaround, gptq, problem
from graphopt.pipeline.base import PassContext
from tests.passes.harness import Outcome, parse, run
from tests.passes.quantize.networks import KINDS, network, weight

Array = np.ndarray[Any, Any]
Golden = Callable[[str, Outcome], None]

HEAD = '<ir_version: 8, opset_import: ["" : 17]> '
BOTH = [AdaRound(iterations=200, learning_rate=0.1), AdaRound(method=Method.GPTQ)]


def model_of(text: str, **arrays: Array) -> ir.Model:
    """The model that `text` describes, whose output may have any shape."""
    model = parse(HEAD + text, **arrays)
    model.graph.outputs[0].shape = None
    graph_ir.refresh_shapes(model)
    return model


def correlated(model: ir.Model, count: int = 20, seed: int = 0) -> Samples:
    """Inputs that are not zero on average and depend on one another, as behind a layer: where rounding matters."""
    rng = np.random.default_rng(seed)
    entry = model.graph.inputs[0]
    shape = [int(dim) for dim in entry.shape or ()]
    common = rng.normal(size=(count, shape[0], 1, *shape[2:]))
    values = np.maximum(common + 0.3 * rng.normal(size=(count, *shape)) + 0.5, 0)
    return Samples({str(entry.name): values.astype(np.float32)}, {str(entry.name): 0})


def rounded(model: ir.Model, pass_: AdaRound, samples: Samples | None = None) -> Outcome:
    """Run the pass on a copy, and once more; everything that the manager checks holds."""
    graph_ir.refresh_shapes(model)
    after = graph_ir.clone(model)
    context = PassContext(calibration=samples or correlated(model))
    result = run(pass_, after, context)
    assert result.changed == (graph_ir.to_text(after) != graph_ir.to_text(model) or _weights(after) != _weights(model))
    again = graph_ir.clone(after)
    second = run(pass_, again, context)
    assert not second.changed and _weights(again) == _weights(after)
    return Outcome("adaround", model, after, result)


def _weights(model: ir.Model) -> dict[str, bytes]:
    return {name: value.const_value.numpy().tobytes() for name, value in model.graph.initializers.items()}


def error(before: ir.Model, after: ir.Model, samples: Samples) -> float:
    """The mean square of the difference of the outputs."""
    with Session(before, threads=1) as one, Session(after, threads=1) as other:
        apart = [next(iter(other.run(f).values())) - next(iter(one.run(f).values())) for f in samples]
    return float(np.mean(np.square(apart)))


CONVOLUTIONS = [
    ((1, 3, 6, 5), (4, 3, 3, 3), ""),
    ((2, 3, 7, 7), (5, 3, 3, 2), "strides=[2,1], pads=[1,0,2,1]"),
    ((1, 6, 5, 5), (9, 2, 3, 3), "group=3, pads=[1,1,1,1]"),
    ((1, 7, 6, 6), (7, 1, 3, 3), "group=7, dilations=[2,1]"),
    ((1, 2, 9), (3, 2, 4), "strides=[3], pads=[2,0]"),
    ((1, 2, 3, 4, 5), (3, 2, 2, 2, 2), "dilations=[1,2,1]"),
    ((1, 2, 6, 7), (3, 2, 3, 2), 'auto_pad="SAME_UPPER", strides=[2,2]'),
    ((1, 2, 6, 7), (3, 2, 4, 2), 'auto_pad="SAME_LOWER"'),
    ((1, 2, 6, 7), (3, 2, 3, 2), 'auto_pad="VALID"'),
]


@pytest.mark.parametrize(("given_", "shape", "attributes"), CONVOLUTIONS)
def test_matrix_times_columns_is_the_convolution(
    given_: tuple[int, ...], shape: tuple[int, ...], attributes: str
) -> None:
    dims = ",".join(map(str, given_))
    brackets = f"<{attributes}>" if attributes else ""
    kernel = weight(*shape)
    model = model_of(f"g (float[{dims}] x) => (float y) {{ y = Conv{brackets}(x, w) }}", w=kernel)
    node, x = model.graph[0], weight(*given_, seed=1)
    expected = Session(model, threads=1).run({"x": x})["y"]
    count = places_of(node, kernel, x)
    assert count == expected.shape[0] * np.prod(expected.shape[2:])
    matrix = to_matrix(node, kernel)
    made = columns(node, kernel, x, np.arange(count)) @ matrix.swapaxes(1, 2)  # [groups, places, outputs]
    found = np.moveaxis(made, 1, 0).reshape(expected.shape[0], -1, expected.shape[1]).swapaxes(1, 2)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=0, atol=2e-5)
    np.testing.assert_array_equal(from_matrix(node, matrix, kernel.shape), kernel)


@pytest.mark.parametrize(
    ("body", "given_", "shape"),
    [
        ("MatMul(x, w)", (2, 3, 5), (5, 4)),
        ("MatMul(x, w)", (5,), (5, 4)),
        ("Gemm(x, w)", (3, 5), (5, 4)),
        ("Gemm<transB=1>(x, w)", (3, 5), (4, 5)),
        ("Gemm<transA=1>(x, w)", (5, 3), (5, 4)),
    ],
)
def test_matrix_times_columns_is_the_product(body: str, given_: tuple[int, ...], shape: tuple[int, ...]) -> None:
    dims = ",".join(map(str, given_))
    array = weight(*shape)
    model = model_of(f"g (float[{dims}] x) => (float y) {{ y = {body} }}", w=array)
    node, x = model.graph[0], weight(*given_, seed=1)
    expected = Session(model, threads=1).run({"x": x})["y"]
    matrix = to_matrix(node, array)
    made = columns(node, array, x, np.arange(places_of(node, array, x))) @ matrix.swapaxes(1, 2)
    np.testing.assert_allclose(made.reshape(expected.shape), expected, rtol=0, atol=2e-5)
    np.testing.assert_array_equal(from_matrix(node, matrix, array.shape), array)


INT8 = Grid(np.ones(()), -127, 127)


def posed(features: int, outputs: int = 3, groups: int = 1, seed: int = 0, damping: float = 1e-6) -> Any:
    """A random problem, symmetric (x = x̂), and its columns."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(groups, features, features)) / features**0.5
    x = (rng.normal(size=(groups, 500, features)) + 0.5) @ (mixing + 0.3)
    steps = rng.uniform(-100, 100, (groups, outputs, features))
    measured = moments(steps, [(x[:, :200].astype(np.float32),) * 2, (x[:, 200:].astype(np.float32),) * 2])
    return problem(steps, INT8, measured.inputs, measured.both, damping), x


def test_moments_give_the_error_of_any_weights() -> None:
    stated, x = posed(5, groups=2)
    other = stated.weights + weight(*stated.weights.shape, seed=3)
    expected = np.square((other - stated.weights) @ x.swapaxes(1, 2)).mean(axis=2)
    found = stated.losses(other) - stated.losses(stated.weights)
    np.testing.assert_allclose(found, expected, rtol=2e-3)


def test_the_error_of_a_matrix_is_that_of_the_outputs() -> None:
    rng = np.random.default_rng(0)
    matrix, other = rng.normal(size=(2, 2, 3, 4))
    x, behind = rng.normal(size=(2, 2, 50, 4)).astype(np.float32)
    found = moments(matrix, [(x, behind)])
    apart = x @ matrix.swapaxes(1, 2) - behind @ other.swapaxes(1, 2)
    assert found.error(other) == pytest.approx(np.sum(np.mean(apart**2, axis=1)), rel=1e-5)
    means = apart.mean(axis=1, keepdims=True)
    assert found.centred().error(other) == pytest.approx(np.sum(np.mean((apart - means) ** 2, axis=1)), rel=1e-5)


def test_centred_moments_leave_the_means_out() -> None:
    rng = np.random.default_rng(0)
    matrix, x = rng.normal(size=(1, 3, 4)), (rng.normal(size=(1, 300, 4)) + 5).astype(np.float32)
    found = moments(matrix, [(x, x)]).centred()
    np.testing.assert_allclose(found.inputs[0], np.cov(x[0].T, bias=True), atol=1e-4)
    np.testing.assert_allclose(found.wanted[0], (x[0] @ matrix[0].T).mean(axis=0), rtol=1e-4)


@pytest.mark.parametrize("features", [1, 2, 5, 9])
def test_adaround_comes_close_to_the_best_of_all_roundings(features: int) -> None:
    """Of 2^features roundings up or down, it finds one between the best and the nearest, near the best on average."""
    shares = []
    for seed in range(8):
        stated, _ = posed(features, seed=seed)
        below = np.floor(stated.weights)
        choices = [stated.losses(below + np.array(up)) for up in itertools.product((0, 1), repeat=features)]
        best, plain = np.min(choices, axis=0), stated.losses(INT8.nearest(stated.weights))
        found = adaround(stated, iterations=1000, learning_rate=0.05, regularization=30.0)
        assert set(np.unique(found - below)) <= {0, 1}
        shares.append(np.sum(stated.losses(found) - best) / max(np.sum(plain - best), 1e-9) if features > 1 else 0)
    assert np.mean(shares) < 0.4


def test_gptq_beats_the_nearest_integers_and_is_the_sequential_definition() -> None:
    stated, _ = posed(150, seed=2)  # more than a block
    found = gptq(stated)
    assert np.sum(stated.losses(found) - stated.losses(stated.weights)) < 0.5 * np.sum(
        stated.losses(INT8.nearest(stated.weights)) - stated.losses(stated.weights)
    )
    left, curvature = stated.weights[0].copy(), stated.curvature[0]
    for column in range(150):  # the definition: what is left is optimal for the columns that were rounded
        rounded_ = INT8.nearest(left[:, column])
        inverse = np.linalg.inv(curvature[column:, column:])
        left[:, column:] -= ((left[:, column] - rounded_) / inverse[0, 0])[:, None] * inverse[0]
        left[:, column] = rounded_
    assert np.mean(found[0] != left) < 0.02  # ties of float arithmetic


@pytest.mark.parametrize("solve", [gptq, lambda p: adaround(p, iterations=50, learning_rate=0.1, regularization=1)])
def test_integers_stay_within_the_grid_where_weights_are_clipped(solve: Callable[[Any], Array]) -> None:
    steps = np.array([[[180.2, -190.7, 3.4]]])
    found = solve(problem(steps, INT8, np.eye(3)[None], steps, 0.01))
    assert np.abs(found).max() == 127 and abs(found[0, 0, 2] - 3.4) < 1


def test_an_input_that_is_always_zero_leaves_weights_at_the_nearest() -> None:
    steps = np.array([[[1.4, -2.6]]])
    stated = problem(steps, INT8, np.zeros((1, 2, 2)), np.zeros((1, 1, 2)), 0.01)
    np.testing.assert_array_equal(gptq(stated), [[[1, -3]]])


def small() -> ir.Model:
    return parse(
        HEAD + "g (float[1,3,5,5] x) => (float[1,2,5,5] y) {"
        " a = Conv<pads=[1,1,1,1]>(x, w1, b1) r = Relu(a) y = Conv(r, w2) }",
        w1=weight(5, 3, 3, 3),
        b1=weight(5),
        w2=weight(2, 5, 1, 1),
    )


def test_golden_weights_and_bias_are_replaced_in_place(golden: Golden) -> None:
    model = parse(
        HEAD + "g (float[2,2] x) => (float[2,1] y) { y = Gemm(x, w, b) }",
        w=np.array([[127], [60.4]], np.float32),
        b=np.zeros(1, np.float32),
    )
    x = np.array([[[1, 1], [2, 2.5]]] * 10, np.float32)
    golden("gemm", rounded(model, AdaRound(method=Method.GPTQ), Samples({"x": x}, {"x": 0})))


@pytest.mark.parametrize("pass_", BOTH, ids=["adaround", "gptq"])
@pytest.mark.parametrize(
    ("body", "entry", "shapes"),
    [
        ("Conv<pads=[1,1,1,1]>(x, w, b)", "1,17,6,6", ((5, 17, 3, 3), (5,))),
        ("Conv<pads=[1,1,1,1], group=7>(x, w, b)", "1,7,9,9", ((7, 1, 3, 3), (7,))),
        ("Conv<group=2>(x, w)", "1,6,9,9", ((4, 3, 3, 3), None)),
        ("Gemm<transB=1>(x, w, b)", "30,17", ((3, 17), (3,))),
        ("MatMul(x, w)", "30,17", ((17, 5), None)),
    ],
)
def test_the_output_is_nearer_than_with_the_nearest_integers(
    pass_: AdaRound, body: str, entry: str, shapes: tuple[tuple[int, ...], tuple[int, ...] | None]
) -> None:
    """Of both as `quantize` rounds them: its own weights, and those that the pass wrote."""
    arrays = {"w": weight(*shapes[0])}
    if shapes[1] is not None:
        arrays["b"] = weight(*shapes[1])
    model = model_of(f"g (float[{entry}] x) => (float y) {{ y = {body} }}", **arrays)
    samples = correlated(model)
    outcome = rounded(model, pass_, samples)
    plain = graph_ir.clone(model)
    node = plain.graph[0]
    stored = quantized_weight(graph_ir.clone(model), samples)
    plain.graph.initializers["w"].const_value = ir.Tensor(stored, name="w")
    assert node.inputs[1] is plain.graph.initializers["w"]
    fresh = correlated(model, seed=1)
    assert error(model, outcome.after, samples) < 0.6 * error(model, plain, samples)
    assert error(model, outcome.after, fresh) < error(model, plain, fresh)


def quantized_weight(model: ir.Model, samples: Samples) -> Array:
    """The weight of the only layer as `quantize` stores it, dequantized; `model` is changed."""
    graph_ir.refresh_shapes(model)
    run(Quantize(correct_bias=False), model, PassContext(calibration=samples))
    node = next(node for node in model.graph if node.op_type in ("Conv", "Gemm", "MatMul"))
    producer = node.inputs[1].producer() if node.inputs[1] is not None else None
    assert producer is not None and producer.op_type == "DequantizeLinear"
    reading = graph_ir.clone(model)
    with Session(reading, outputs=[str(producer.outputs[0].name)], threads=1) as session:
        return next(iter(session.run(samples[0]).values()))


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99), st.booleans(), st.sampled_from([1, 30, 3000]))
@settings(deadline=None, max_examples=25)
def test_quantize_finds_the_grid_that_the_pass_chose(
    features: int, outputs: int, seed: int, per_channel: bool, largest: int
) -> None:
    """Also where one weight towers above the others and is clipped, and where a channel is zero."""
    array = weight(features, outputs, seed=seed)
    array[seed % features, seed % outputs] *= largest
    array[:, (seed // 7) % outputs] *= seed % 5 != 0
    assume(array.any())
    model = model_of(f"g (float[6,{features}] x) => (float y) {{ y = MatMul(x, w) }}", w=array)
    samples = correlated(model, 10)
    outcome = rounded(model, AdaRound(method=Method.GPTQ, per_channel=per_channel), samples)
    chosen = constant(outcome.after.graph.initializers["w"])
    assert chosen is not None
    graph_ir.refresh_shapes(outcome.after)
    after = graph_ir.clone(outcome.after)
    run(Quantize(per_channel=per_channel), after, PassContext(calibration=samples))
    found = quantized_weight_of(after, samples)
    np.testing.assert_allclose(found, chosen, rtol=1e-6, atol=1e-4 / 64 * np.abs(chosen).max())


def quantized_weight_of(model: ir.Model, samples: Samples) -> Array:
    node = next(node for node in model.graph if node.op_type == "MatMul")
    name = str(node.inputs[1].name) if node.inputs[1] is not None else ""
    with Session(model, outputs=[name], threads=1) as session:
        return next(iter(session.run(samples[0]).values()))


@given(st.integers(2, 70), st.sampled_from([0, 5, 32]), st.sampled_from([4, 8]), st.booleans(), st.integers(0, 99))
@settings(deadline=None, max_examples=8)
def test_quantize_weights_finds_the_blocks_that_the_pass_chose(
    features: int, block: int, bits: int, transposed: bool, seed: int
) -> None:
    outputs = -(-1024 // features)  # fewer elements stay in float
    array = weight(features, outputs, seed=seed)
    body = "Gemm<transB=1>(x, w)" if transposed else "MatMul(x, w)"
    model = model_of(f"g (float[6,{features}] x) => (float y) {{ y = {body} }}", w=array.T if transposed else array)
    if bits == 8 and not block:
        return  # the grid of quantize, which has its own test
    samples = correlated(model, 10)
    outcome = rounded(model, AdaRound(method=Method.GPTQ, bits=bits, block=block), samples)
    chosen = constant(outcome.after.graph.initializers["w"])
    after = graph_ir.clone(outcome.after)
    run(QuantizeWeights(bits=bits, block=block), after, PassContext())
    node = next(node for node in after.graph if node.op_type in ("MatMul", "Gemm"))
    name = str(node.inputs[1].name) if node.inputs[1] is not None else ""
    with Session(after, outputs=[name], threads=1) as session:
        found = next(iter(session.run(samples[0]).values()))
    assert chosen is not None and outcome.result.changed
    np.testing.assert_allclose(found, chosen, rtol=1e-6, atol=1e-4 / 4 * np.abs(chosen).max())


def test_four_bits_in_blocks_lose_less_than_with_the_nearest_integers() -> None:
    model = model_of("g (float[40,64] x) => (float y) { y = MatMul(x, w) }", w=weight(64, 32))
    samples = correlated(model, 10)
    errors = []
    for passes in ((), (AdaRound(bits=4, block=32),), (AdaRound(method=Method.GPTQ, bits=4, block=32),)):
        after = graph_ir.clone(model)
        for each in (*passes, QuantizeWeights(bits=4)):
            run(each, after, PassContext(calibration=samples))
        errors.append(error(model, after, samples))
    assert max(errors[1:]) < 0.7 * errors[0]


def test_two_layers_in_a_row_end_nearer_than_with_the_nearest_integers() -> None:
    model = small()
    graph_ir.refresh_shapes(model)
    samples = correlated(model, 30)
    outcome = rounded(model, AdaRound(), samples)
    stored = graph_ir.clone(model)
    run(Quantize(correct_bias=False), stored, PassContext(calibration=samples))
    plain = graph_ir.clone(model)
    for name in ("w1", "w2"):  # the nearest integers, everything else in float
        integers, scale = (constant(stored.graph.initializers[f"{name}/{what}:y:1"]) for what in ("int8", "scale"))
        assert integers is not None and scale is not None
        floats = (integers * scale.reshape(-1, 1, 1, 1)).astype(np.float32)
        plain.graph.initializers[name].const_value = ir.Tensor(floats, name=name)
    assert error(model, outcome.after, samples) < 0.8 * error(model, plain, samples)
    assert outcome.result.statistics["layers"] == 2


def test_the_seed_decides_and_nothing_else_does() -> None:
    model = small()
    graph_ir.refresh_shapes(model)
    samples = correlated(model)
    found = []
    for seed in (0, 0, 1):
        after = graph_ir.clone(model)
        run(AdaRound(iterations=50, samples=4, patches=5), after, PassContext(calibration=samples, seed=seed))
        found.append(_weights(after))
    assert found[0] == found[1] != found[2]


def test_weights_that_were_rounded_need_nothing() -> None:
    model = parse(
        HEAD + "g (float[4,3] x) => (float[4,2] y) { y = MatMul(x, w) }",
        w=np.array([[1, 3], [-100, 5], [127, 80]], np.float32) / 64,
    )
    outcome = rounded(model, AdaRound())
    assert not outcome.result.changed and outcome.reasons() == {"matmul_0": "its weights lie on the grid already"}


@pytest.mark.parametrize(
    ("body", "arrays", "reason"),
    [
        ("y = ConvTranspose(x, w)", {"w": weight(3, 2, 2, 2)}, "the columns of ConvTranspose are not sampled"),
        ("y = MatMul(w, x)", {"w": weight(5, 4)}, "its constant operand comes first"),
        ("y = MatMul(x, w)", {"w": weight(1, 3, 4, 2)}, "its weight is a stack of matrices"),
        ("a = Conv(x, w) y = Conv(a, w)", {"w": weight(3, 3, 1, 1)}, "its weight 'w' is shared with other nodes"),
        ("y = Conv(x, w)", {"w": weight(1, 4609, 1, 1)}, "an output reads 4609 numbers, and no more than 4608 are"),
    ],
)
def test_layers_it_leaves_alone_and_why(body: str, arrays: dict[str, Array], reason: str) -> None:
    channels = arrays["w"].shape[1] if "Conv(x" in body else 3
    model = model_of(f"g (float[1,{channels},4,4] x) => (float y) {{ {body} }}", **arrays)
    outcome = rounded(model, AdaRound())
    assert not outcome.result.changed and next(iter(outcome.reasons().values())).startswith(reason)


def test_what_quantize_weights_leaves_in_float_is_left_alone() -> None:
    model = model_of(
        "g (float[1,3,4,4] x) => (float y) { a = Conv(x, w) y = MatMul(a, v) }", w=weight(3, 3, 1, 1), v=weight(4, 5)
    )
    assert rounded(model, AdaRound(bits=4, block=32)).reasons() == {
        "conv_0": "quantize-weights leaves Conv in float",
        "matmul_1": "its weight has 20 elements, fewer than 1024",
    }


def test_layers_that_stay_in_float_are_left_alone_with_that_reason() -> None:
    model = parse(HEAD + "g (float[4,3] x) => (float[4,2] y) { y = MatMul(x, w) }", w=weight(3, 2))
    assert rounded(model, AdaRound(exclude=("matmul*",))).reasons() == {"matmul_0": "it is excluded by 'matmul*'"}


def test_without_data_nothing_is_rounded() -> None:
    model = small()
    graph_ir.refresh_shapes(model)
    result = run(AdaRound(), model)
    assert not result.changed
    assert {each.reason for each in result.declined} == {"there is no calibration data to keep its output on"}


def test_a_quantized_model_is_left_alone() -> None:
    model = small()
    graph_ir.refresh_shapes(model)
    context = PassContext(calibration=correlated(model))
    run(Quantize(), model, context)
    result = run(AdaRound(), model, context)
    assert not result.changed and result.declined[0].reason == "the model is quantized already"


def test_an_infinite_input_leaves_the_layer_alone() -> None:
    model = parse(
        HEAD + "g (float[2,3] x) => (float[2,2] y) { d = Div(x, zero) y = MatMul(d, w) }",
        w=weight(3, 2),
        zero=np.zeros(1, np.float32),
    )
    samples = Samples({"x": np.ones((10, 2, 3), np.float32)}, {"x": 0})
    with np.errstate(all="ignore"):
        outcome = rounded(model, AdaRound(), samples)
    assert outcome.reasons()["matmul_1"] == "its input is NaN or infinite on the calibration data"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, "iterations is 0"),
        ({"samples": 0}, "samples is 0"),
        ({"patches": -1}, "patches is -1"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"damping": 2.0}, "damping is 2.0"),
        ({"regularization": -1.0}, "regularization is -1.0"),
        ({"bits": 5}, "bits is 5 and block 0, expected 8 or 4"),
        ({"block": -1}, "bits is 8 and block -1"),
    ],
)
def test_options_out_of_range_are_usage_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        AdaRound(**options).run(small(), PassContext())


def test_progress_counts_layers() -> None:
    model = small()
    graph_ir.refresh_shapes(model)
    seen: list[tuple[int, int, str]] = []
    context = PassContext(calibration=correlated(model), progress=lambda *step: seen.append(step))
    run(AdaRound(method=Method.GPTQ), model, context)
    assert seen == [(0, 2, "round weights"), (1, 2, "round weights"), (2, 2, "round weights")]


def test_samples_of_probes_serve_a_model_of_two_inputs() -> None:
    model = parse(
        HEAD + "g (float[4,3] x, float[4,3] z) => (float[4,2] y) { s = Add(x, z) m = MatMul(s, w) y = Add(m, b) }",
        w=weight(3, 2),
        b=weight(2),
    )
    outcome = rounded(model, AdaRound(method=Method.GPTQ), probe_samples(model, 0, 10))
    assert outcome.result.changed and "b" in outcome.after.graph.initializers


@given(KINDS, st.integers(1, 7), st.integers(0, 99), st.sampled_from(list(Method)))
@settings(deadline=None, max_examples=10)
def test_random_networks_are_done_after_one_run(kinds: list[str], channels: int, seed: int, method: Method) -> None:
    """`rounded` runs twice, and verifies; what comes out is close."""
    model = network(kinds, channels, seed)
    samples = probe_samples(model, seed, 6)
    outcome = rounded(model, AdaRound(method=method, iterations=20), samples)
    with Session(model, threads=1) as session:
        power = float(np.mean([np.mean(np.square(session.run(feeds)["y"])) for feeds in samples]))
    assert outcome.result.changed and error(model, outcome.after, samples) < 0.01 * power
