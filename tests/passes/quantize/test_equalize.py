"""Cross-layer equalization: what it balances, through which operators, what it declines, and that outputs stay."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphopt.ir as graph_ir
from graphopt.analysis.samples import probe_samples
from graphopt.ir.reading import constant
from graphopt.passes.quantize.equalize import Clips, Equalize, Ranges, has_linear_depthwise
from graphopt.passes.quantize.quantize import Quantize
from graphopt.pipeline.base import PassContext
from graphopt.pipeline.manager import run_passes
from tests.passes import random_graphs as rg
from tests.passes.harness import Outcome, check, outputs, parse
from tests.passes.quantize.uneven import Array, uneven

Golden = Callable[[str, Outcome], None]

HEAD = '<ir_version: 8, opset_import: ["" : 17]> '


def even(*shape: int, axis: int = 0, seed: int = 0) -> Array:
    """The same, with the largest magnitude of each channel known: ranges within an eighth of the largest."""
    array = uneven(*shape, axis=axis, seed=seed)
    rest = tuple(n for n in range(len(shape)) if n != axis)
    largest = np.abs(array).max(rest, keepdims=True)
    spread = 2.0 ** np.random.default_rng(seed).uniform(-1, 1, largest.shape)
    return (array / largest * spread).astype(np.float32)


def weights_of(model: ir.Model) -> list[Array]:
    found = [constant(node.inputs[1]) for node in model.graph if node.op_type in ("Conv", "Gemm", "MatMul")]
    return [array for array in found if array is not None]


def test_golden_two_layers(golden: Golden) -> None:
    model = parse(
        HEAD + "g (float[1,1,2,2] x) => (float[1,1,2,2] y) { a = Conv(x, w, b) r = Relu(a) y = Conv(r, v) }",
        w=np.array([16, 1, 0.25], np.float32).reshape(3, 1, 1, 1),
        b=np.array([4, 1, 1], np.float32),
        v=np.array([1, 1, 4], np.float32).reshape(1, 3, 1, 1),
    )
    golden("two_layers", check(Equalize(), model))


def test_both_ranges_are_the_root_of_their_product() -> None:
    """Equation 11: the layers' ranges are equal channel by channel, and each is √(r₁ r₂)."""
    w, v = even(17, 3, 3, 3), even(5, 17, 1, 1, axis=1, seed=1)
    model = parse(
        HEAD + "g (float[1,3,6,6] x) => (float[1,5,4,4] y) { a = Conv(x, w) r = Relu(a) y = Conv(r, v) }", w=w, v=v
    )
    first, second = weights_of(check(Equalize(), model).after)
    expected = np.sqrt(np.abs(w).max((1, 2, 3)) * np.abs(v).max((0, 2, 3)))
    np.testing.assert_allclose(np.abs(first).max((1, 2, 3)), expected, rtol=1e-3)
    np.testing.assert_allclose(np.abs(second).max((0, 2, 3)), expected, rtol=1e-3)


def test_a_depthwise_layer_between_two_others_makes_a_chain_of_equal_ranges() -> None:
    model = parse(
        HEAD + "g (float[1,3,6,6] x) => (float[1,2,6,6] y) {"
        " a = Conv(x, w, b) r = Relu(a) d = Conv<group=7, pads=[1,1,1,1]>(r, k) s = Relu(d) y = Conv(s, v) }",
        w=even(7, 3, 1, 1),
        b=even(7, seed=3),
        k=even(7, 1, 3, 3, seed=1),
        v=even(2, 7, 1, 1, axis=1, seed=2),
    )
    first, depthwise, last = weights_of(check(Equalize(), model).after)
    ranges = np.abs(depthwise).max((1, 2, 3))
    np.testing.assert_allclose(np.abs(first).max((1, 2, 3)), ranges, rtol=1e-2)
    np.testing.assert_allclose(np.abs(last).max((0, 2, 3)), ranges, rtol=1e-2)


@pytest.mark.parametrize(
    ("body", "weights"),
    [
        (
            "a = Conv(x, w) f = Flatten(a) y = Gemm<transB=1>(f, v)",
            {"w": uneven(3, 3, 2, 2), "v": uneven(2, 48, axis=1)},
        ),
        (
            "f = Flatten(x) a = Gemm<alpha=0.5>(f, w, b) r = Relu(a) y = Gemm<beta=2.0>(r, v, c)",
            {"w": uneven(75, 7, axis=1), "b": uneven(7), "v": uneven(7, 3), "c": uneven(3)},
        ),
        (
            "f = Flatten(x) m = MatMul(f, w) a = Add(b, m) r = Relu(a) y = MatMul(r, v)",
            {"w": uneven(75, 5, axis=1), "b": uneven(5), "v": uneven(5, 3)},
        ),
        (
            "a = ConvTranspose<group=3>(x, w, b) r = Relu(a) c = ConvTranspose<group=3>(r, v) y = Flatten(c)",
            {"w": uneven(3, 5, 2, 2, axis=1), "b": uneven(15), "v": uneven(15, 2, 1, 1)},
        ),
        (
            "a = Conv<group=3>(x, w) r = Relu(a) c = Conv<group=3>(r, v) y = Flatten(c)",
            {"w": uneven(9, 1, 2, 2), "v": uneven(3, 3, 1, 1, axis=1)},
        ),
    ],
    ids=["flatten", "gemm", "matmul", "transposed", "groups"],
)  # fmt: skip
def test_every_kind_of_layer(body: str, weights: dict[str, Array]) -> None:
    check(Equalize(), parse(HEAD + f"g (float[1,3,5,5] x) => (float[1,N] y) {{ {body} }}", **weights))


def test_all_readers_of_a_branch_share_the_scale_of_the_channel() -> None:
    v, u = uneven(5, 4, 1, 1, axis=1, seed=1), uneven(3, 4, 3, 3, axis=1, seed=2)
    model = parse(
        HEAD + "g (float[1,3,5,5] x) => (float[1,5,5,5] y, float[1,3,3,3] z) {"
        " a = Conv(x, w) r = Relu(a) y = Conv(r, v) z = Conv(r, u) }",
        w=uneven(4, 3, 1, 1), v=v, u=u,
    )  # fmt: skip
    one, other = weights_of(check(Equalize(), model).after)[1:]
    np.testing.assert_allclose((one / v)[0, :, 0, 0], (other / u)[0, :, 0, 0], rtol=1e-5)


def test_declines_a_shared_weight_and_other_types_than_it_can_rescale_exactly() -> None:
    shared = parse(
        HEAD + "g (float[1,3,5,5] x) => (float[1,3,5,5] y) { a = Conv(x, w) r = Relu(a) y = Conv(r, w) }",
        w=uneven(3, 3, 1, 1),
    )
    assert "its weight 'w' is shared by 2 nodes" in check(Equalize(), shared, changes=False).reasons()["conv_0"]
    half = parse(
        HEAD + "g (float16[1,3,5,5] x) => (float16[1,2,5,5] y) { a = Conv(x, w) r = Relu(a) y = Conv(r, v) }",
        w=uneven(3, 3, 1, 1).astype(np.float16), v=uneven(2, 3, 1, 1).astype(np.float16),
    )  # fmt: skip
    assert check(Equalize(), half, changes=False).reasons()["conv_0"] == "it computes in float16"


def test_declines_what_a_subgraph_reads() -> None:
    model = parse(
        HEAD + "g (float[1,3,2,2] x, bool c) => (float[1,2,2,2] y, float[1,3,2,2] z) {"
        " a = Conv(x, w) y = Conv(a, v) z = If(c) <then_branch = t () => (p) { p = Relu(a) },"
        " else_branch = e () => (q) { q = Identity(a) }> }",
        w=uneven(3, 3, 1, 1), v=uneven(2, 3, 1, 1),
    )  # fmt: skip
    assert "in a subgraph reads it" in check(Equalize(), model, changes=False).reasons()["conv_0"]


def test_channels_without_range_count_as_an_eighth_of_the_largest() -> None:
    """Row 1 of w and column 3 of v are zeros; both in channel 2: nothing would tell its scale."""
    w = np.array([8, 0, 0, 8], np.float32).reshape(4, 1, 1, 1)
    v = np.array([2, 1, 0, 0], np.float32).reshape(1, 4, 1, 1)
    model = parse(
        HEAD + "g (float[1,1,2,2] x) => (float[1,1,2,2] y) { a = Conv(x, w, b) r = Relu(a) y = Conv(r, v) }",
        w=w, v=v, b=np.ones(4, np.float32),
    )  # fmt: skip
    first, second = weights_of(check(Equalize(), model).after)
    assert not first[1:3].any() and not second[0, 2:].any()
    np.testing.assert_allclose(second[0, :2, 0, 0], (4, 0.5), rtol=1e-3)  # s = 2 and 1/2: 4/8 in front of channel 1
    assert first[0] == pytest.approx(4, rel=1e-3) and np.isfinite(first).all()


def relu6(opset: int = 17) -> ir.Model:
    """An inverted bottleneck with wide inputs, so that its bounds are met."""
    return parse(
        f'<ir_version: 8, opset_import: ["" : {opset}]> '
        "g (float[1,3,6,6] x) => (float[1,2,6,6] y) {"
        " a = Conv(x, w, b) r = Clip(a, zero, six) d = Conv<group=5, pads=[1,1,1,1]>(r, k, c) s = Clip(d, low, six)"
        " y = Conv(s, v) }",
        w=uneven(5, 3, 1, 1), b=uneven(5, seed=1), k=uneven(5, 1, 3, 3, seed=2), c=uneven(5, seed=3),
        v=uneven(2, 5, 1, 1, axis=1, seed=4),
        zero=np.array(0, np.float32), six=np.array(6, np.float32), low=np.array(-1, np.float32),
    )  # fmt: skip


def test_golden_split_bounds(golden: Golden) -> None:
    model = parse(
        HEAD + "g (float[1,1,2,2] x) => (float[1,1,2,2] y) { a = Conv(x, w) r = Clip(a, low, six) y = Conv(r, v) }",
        w=np.array([4, 1], np.float32).reshape(2, 1, 1, 1), v=np.array([1, 4], np.float32).reshape(1, 2, 1, 1),
        low=np.array(-1, np.float32), six=np.array(6, np.float32),
    )  # fmt: skip
    golden("split_bounds", check(Equalize(clips=Clips.SPLIT), model))


def test_split_bounds_are_met_and_exact() -> None:
    model = relu6()
    feeds = {"x": 40 * np.random.default_rng(1).normal(size=(1, 3, 6, 6)).astype(np.float32)}
    outcome = check(Equalize(clips=Clips.SPLIT), model, feeds=feeds)
    assert outcome.result.statistics["equalized-channels"] == 10
    assert outcome.operators() == ["Conv", "Relu", "Min", "Conv", "Max", "Min", "Conv"]


def test_the_manager_holds_it_to_the_tolerance_of_exact_passes() -> None:
    model = relu6()
    (record,) = run_passes(model, [Equalize(clips=Clips.SPLIT)], PassContext())
    assert record.exact and record.changed and record.comparison[0].relative <= 1e-5


def test_split_bounds_settle_on_samples_too() -> None:
    model = relu6()
    outcome = check(Equalize(clips=Clips.SPLIT), model, context=PassContext(calibration=probe_samples(model, 3, 12)))
    assert outcome.result.statistics["ranges"] == "activations"


def test_the_range_of_an_activation_is_that_of_the_samples() -> None:
    v = even(2, 5, 1, 1, axis=1)
    model = parse(
        HEAD + "g (float[1,3,4,4] x) => (float[1,2,4,4] y) { a = Conv(x, w) r = Relu(a) y = Conv(r, v) }",
        w=even(5, 3, 1, 1), v=v,
    )  # fmt: skip
    samples = probe_samples(model, 0, 10)
    x = np.stack([feeds["x"] for feeds in samples])
    w = weights_of(model)[0][:, :, 0, 0]
    largest = np.maximum(np.einsum("oi,snihw->snohw", w, x), 0).max((0, 1, 3, 4))
    after = check(Equalize(), model, context=PassContext(calibration=samples)).after
    expected = np.sqrt(largest * np.abs(v).max((0, 2, 3)))
    np.testing.assert_allclose(np.abs(weights_of(after)[1]).max((0, 2, 3)), expected, rtol=1e-3)


def test_weights_are_balanced_with_samples_too_if_asked() -> None:
    model = parse(
        HEAD + "g (float[1,3,4,4] x) => (float[1,2,4,4] y) { a = Conv(x, w) r = Relu(a) y = Conv(r, v) }",
        w=uneven(5, 3, 1, 1), v=uneven(2, 5, 1, 1, axis=1),
    )  # fmt: skip
    context = PassContext(calibration=probe_samples(model, 2, 10))
    with_data = check(Equalize(ranges=Ranges.WEIGHTS), model, context=context).after
    assert graph_ir.to_text(with_data) == graph_ir.to_text(check(Equalize(), model).after)


KINDS = st.sampled_from(
    [
        "conv",
        "depthwise",
        "relu",
        "leaky",
        "clip",
        "sigmoid",
        "add",
        "concat",
        "pool",
        "mean",
        "shuffle",
        "bias",
        "scale",
        "gate",
    ]
)


def test_scales_are_bounded() -> None:
    model = parse(
        HEAD + "g (float[1,1,2,2] x) => (float[1,1,2,2] y) { a = Conv(x, w) y = Conv(a, v) }",
        w=np.full((1, 1, 1, 1), 1e-12, np.float32), v=np.full((1, 1, 1, 1), 1e12, np.float32),
    )  # fmt: skip
    check(Equalize(), model, changes=False)


@given(
    st.lists(KINDS, min_size=1, max_size=8),
    st.integers(1, 7),
    st.sampled_from((13, 17, 21)),
    st.sampled_from(Clips),
    st.booleans(),
)
@settings(deadline=None, max_examples=12)
def test_random_networks_compute_the_same(
    kinds: list[str], channels: int, opset: int, clips: Clips, data: bool
) -> None:
    model = network(kinds, channels, opset)
    context = PassContext(calibration=probe_samples(model, 1, 3) if data else None)
    check(Equalize(clips=clips), model, changes=None, context=context)


def network(kinds: list[str], channels: int, opset: int) -> ir.Model:
    body, now, weights = ["v0 = Conv(x, w_in)"], channels, {"w_in": uneven(channels, 3, 1, 1)}
    written = {
        "relu": "Relu({0})",
        "leaky": "LeakyRelu({0})",
        "clip": "Clip({0}, low, high)",
        "sigmoid": "Sigmoid({0})",
        "add": "Add({0}, {0})",
        "pool": "MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>({0})",
        "mean": "AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>({0})",
        "shuffle": "Gather<axis=1>({0}, order{1})",
        "bias": "Add({0}, vector{1})",
        "scale": "Mul({0}, vector{1})",
    }
    for index, kind in enumerate(kinds):
        last = f"v{index}"
        if kind in ("conv", "depthwise"):
            groups = now if kind == "depthwise" else 1
            weights[f"w{index}"] = uneven(now, now // groups, 3, 3, seed=index) / np.float32(3 * (now // groups) ** 0.5)
            made = f"Conv<pads=[1,1,1,1], group={groups}>({last}, w{index})"
        elif kind == "concat":
            made, now = f"Concat<axis=1>({last}, v0)", now + channels
        elif kind == "gate":
            body.append(f"g{index} = Sigmoid({last})")
            made = f"Mul({last}, g{index})"
        else:
            made = written[kind].format(last, index)
            if kind == "shuffle":
                weights[f"order{index}"] = np.arange(now)[::-1].copy()
            elif kind in ("bias", "scale"):
                weights[f"vector{index}"] = uneven(now, 1, 1, seed=index)
        body.append(f"v{index + 1} = {made}")
    weights["w_out"] = uneven(2, now, 1, 1, axis=1, seed=9)
    body.append(f"y = Conv(v{len(kinds)}, w_out)")
    text = " ".join(body)
    if "low" in text:
        weights |= {"low": np.array(-1, np.float32), "high": np.array(2, np.float32)}
    head = f'<ir_version: 8, opset_import: ["" : {opset}]> '
    return parse(head + f"g (float[1,3,5,5] x) => (float[1,2,5,5] y) {{ {text} }}", **weights)


@given(
    rg.models(
        rg.unary,
        rg.pair,
        rg.with_constant,
        rg.transpose,
        rg.reshape,
        rg.slice_,
        rg.halves,
        rg.concat,
        rg.reduce,
        rg.pad,
    )
)
@settings(deadline=None, max_examples=6)
def test_graphs_without_layers_are_left_alone(model: ir.Model) -> None:
    factors = [node for node in model.graph if node.op_type == "Mul"]
    outcome = check(Equalize(), model, changes=False)
    assert len(outcome.result.declined) <= len(factors)


DEPTHWISE = "a = Conv<group=8>(x, w) "
SHAPES = HEAD + "g (float[1,8,4,4] x) => (float[1,5,2,2] y) { "


@pytest.mark.parametrize(
    "layers",
    [
        DEPTHWISE + "r = Relu(a) y = Conv(r, v) }",
        "a = Conv(x, u) y = Conv(a, v) }",
        DEPTHWISE + "s = Conv(a, v) t = Relu(a) q = Conv(t, v) y = Add(s, q) }",
    ],
    ids=["an activation follows", "not depthwise", "an activation reads it too"],
)
def test_layers_that_ask_for_balance_are_told_apart(layers: str) -> None:
    arrays = {"w": uneven(8, 1, 3, 3), "u": uneven(8, 8, 3, 3), "v": uneven(5, 8, 1, 1)}
    assert not has_linear_depthwise(parse(SHAPES + layers, **arrays).graph)
    assert has_linear_depthwise(parse(SHAPES + DEPTHWISE + "y = Conv(a, v) }", **arrays).graph)


def test_quantize_balances_linear_depthwise_layers_first() -> None:
    """Channels that differ in range share the scale between the layers: balanced, they lose less."""
    model = parse(SHAPES + DEPTHWISE + "y = Conv(a, v) }", w=uneven(8, 1, 3, 3), v=uneven(5, 8, 1, 1, axis=1, seed=2))
    samples = probe_samples(model, 0, count=16)
    noise = {}
    for spec in (Quantize(equalize=False), Quantize()):
        work = graph_ir.clone(model)
        result = spec.run(work, PassContext(calibration=samples))
        assert result.statistics.get("equalized-channels", 0) == (8 if spec.equalize else 0)
        feed = samples[0]
        expected, found = outputs(model, feed)["y"], outputs(work, feed)["y"]
        noise[spec.equalize] = float(np.mean((found - expected) ** 2))
    assert noise[True] < 0.5 * noise[False]
