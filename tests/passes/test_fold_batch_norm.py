from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.cleanup.fold_batch_norm import FoldBatchNorm
from graphopt.pipeline.base import PassContext
from tests.passes.harness import Outcome, check, parse

Array = npt.NDArray[Any]
CHANNELS = (1, 3, 5, 7, 17)


def normal(*shape: int, seed: int = 0, dtype: str = "float32") -> Array:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(dtype)


def statistics(channels: int, dtype: str = "float32") -> dict[str, Array]:
    """Scale, bias, mean and variance of a batch norm, with positive and negative scales."""
    rng = np.random.default_rng(channels)
    return {
        "gamma": rng.uniform(-2, 2, channels).astype(dtype),
        "beta": rng.standard_normal(channels).astype(dtype),
        "mean": rng.standard_normal(channels).astype(dtype),
        "var": rng.uniform(0.1, 3, channels).astype(dtype),
    }


def header(opset: int) -> str:
    return f'<ir_version: 8, opset_import: ["" : {opset}]>'


def test_conv_golden(golden: Callable[[str, Outcome], None]) -> None:
    model = parse(
        header(17) + "g (float[1,2,3,3] x) => (float[1,1,2,2] z) "
        "{ y = Conv(x, w, b) z = BatchNormalization<epsilon = 0.0>(y, gamma, beta, mean, var) }",
        w=np.full((1, 2, 2, 2), 2, np.float32),
        b=np.array([5], np.float32),
        gamma=np.array([3], np.float32),
        beta=np.array([1], np.float32),
        mean=np.array([1], np.float32),
        var=np.array([4], np.float32),
    )
    outcome = check(FoldBatchNorm(), model)
    golden("conv", outcome)
    # 3/√4 · 2 = 3, and 1.5 · (5 − 1) + 1 = 7
    assert outcome.operators() == ["Conv"]
    initializers = outcome.after.graph.initializers
    np.testing.assert_array_equal(initializers["w"].const_value.numpy(), np.full((1, 2, 2, 2), 3, np.float32))
    np.testing.assert_array_equal(initializers["b"].const_value.numpy(), np.array([7], np.float32))
    assert sorted(initializers) == ["b", "w"]


@pytest.mark.parametrize("opset", [7, 8, 9, 13, 14, 15, 18, 22])
def test_every_opset_folds_into_a_conv(opset: int) -> None:
    model = parse(
        header(opset) + "g (float[2,3,5,5] x) => (float[2,5,3,3] z) "
        "{ y = Conv(x, w) z = BatchNormalization(y, gamma, beta, mean, var) }",
        w=normal(5, 3, 3, 3),
        **statistics(5),
    )
    assert check(FoldBatchNorm(), model).operators() == ["Conv"]


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_convolutions_of_any_rank_and_group(operator: str, channels: int, group: int, spatial: int) -> None:
    ins, outs, kernel = 3 * group, channels * group, (2,) * spatial
    shape = (outs, 3, *kernel) if operator == "Conv" else (ins, channels, *kernel)
    sizes = ",".join(["4"] * spatial)
    model = parse(
        header(17) + f"g (float[2,{ins},{sizes}] x) => (float[2,{outs},{','.join('abc'[:spatial])}] z) "
        f"{{ y = {operator}<group = {group}, pads = [{','.join(['1'] * 2 * spatial)}]>(x, w, b) "
        "z = BatchNormalization(y, gamma, beta, mean, var) }",
        w=normal(*shape),
        b=normal(outs),
        **statistics(outs),
    )
    assert check(FoldBatchNorm(), model).operators() == [operator]


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [(), (5,), (1, 5), (1, 1), (2, 5), None])
def test_gemm_with_factors_and_any_bias(transposed: int, bias: tuple[int, ...] | None) -> None:
    third, weights = ("", {}) if bias is None else (", c", {"c": normal(*bias)})
    model = parse(
        header(17) + "g (float[2,7] x) => (float[2,5] z) "
        f"{{ y = Gemm<alpha = 0.5, beta = 3.0, transB = {transposed}>(x, w{third}) "
        "z = BatchNormalization(y, gamma, beta, mean, var) }",
        w=normal(5, 7) if transposed else normal(7, 5),
        **weights,
        **statistics(5),
    )
    outcome = check(FoldBatchNorm(), model)
    assert outcome.operators() == ["Gemm"]
    assert set(outcome.after.graph[0].attributes) <= {"transB"}


def test_matmul_becomes_a_gemm() -> None:
    model = parse(
        header(17) + "g (float[2,7] x) => (float[2,5] z) "
        "{ y = MatMul(x, w) z = BatchNormalization(y, gamma, beta, mean, var) }",
        w=normal(7, 5),
        **statistics(5),
    )
    assert check(FoldBatchNorm(), model).operators() == ["Gemm"]


@pytest.mark.parametrize(
    ("text", "weights", "operators"),
    [
        ("z = Conv(y, w)", {"w": normal(5, 3, 3, 3)}, ["Conv"]),
        ("z = Conv<group = 3>(y, w, b)", {"w": normal(6, 1, 2, 2), "b": normal(6)}, ["Conv"]),
        ("z = Conv<auto_pad = \"SAME_UPPER\", strides = [2, 2]>(y, w)", {"w": normal(5, 3, 1, 1)}, ["Conv"]),
        ("a = Conv(y, w) c = Conv(y, v) z = Add(a, c)", {"w": normal(5, 3, 1, 1), "v": normal(5, 3, 1, 1)},
         ["Conv", "Conv", "Add"]),
    ],
)  # fmt: skip
def test_into_the_convolutions_behind_it(text: str, weights: dict[str, Array], operators: list[str]) -> None:
    model = parse(
        header(17) + "g (float[2,3,6,6] x) => (float[N,C,H,W] z) "
        f"{{ r = Relu(x) y = BatchNormalization(r, gamma, beta, mean, var) {text} }}",
        **weights,
        **statistics(3),
    )
    assert check(FoldBatchNorm(), model).operators() == ["Relu", *operators]


@pytest.mark.parametrize(
    ("text", "shape"),
    [("Gemm(y, w)", (3, 5)), ("Gemm<transB = 1, alpha = 2.0, beta = 0.5>(y, w, b)", (5, 3)), ("MatMul(y, w)", (3, 5))],
)
def test_into_the_matrix_product_behind_it(text: str, shape: tuple[int, int]) -> None:
    model = parse(
        header(17) + "g (float[2,3] x) => (float[2,5] z) "
        f"{{ y = BatchNormalization(x, gamma, beta, mean, var) z = {text} }}",
        w=normal(*shape),
        b=normal(5),
        **statistics(3),
    )
    assert check(FoldBatchNorm(), model).operators() == ["Gemm"]


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_without_a_shift_it_folds_into_a_padded_convolution_behind_it(operator: str) -> None:
    constants = statistics(3) | {"beta": np.zeros(3, np.float32), "mean": np.zeros(3, np.float32)}
    model = parse(
        header(17) + "g (float[2,3,6,6] x) => (float[N,C,H,W] z) "
        f"{{ r = Relu(x) y = BatchNormalization(r, gamma, beta, mean, var) z = {operator}<pads = [1,1,1,1]>(y, w) }}",
        w=normal(3, 3, 3, 3),
        **constants,
    )
    assert check(FoldBatchNorm(), model).operators() == ["Relu", operator]


def test_half_precision_is_rounded_once() -> None:
    model = parse(
        header(17) + "g (float16[2,3,5,5] x) => (float16[2,5,3,3] z) "
        "{ y = Conv(x, w) z = BatchNormalization(y, gamma, beta, mean, var) }",
        w=normal(5, 3, 3, 3, dtype="float16"),
        **statistics(5, "float16"),
    )
    assert check(FoldBatchNorm(), model, relative=4e-3).operators() == ["Conv"]


def test_a_weight_from_a_constant_node_is_folded() -> None:
    model = parse(
        header(17) + "g (float[1,2] x) => (float[1,2] z) "
        "{ w = Constant<value = float[2,2] {1., 2., 3., 4.}>() y = MatMul(x, w) "
        "z = BatchNormalization(y, gamma, beta, mean, var) }",
        **statistics(2),
    )
    assert check(FoldBatchNorm(), model).operators() == ["Gemm"]


def test_inside_a_subgraph_with_weights_from_outside() -> None:
    model = parse(
        header(17) + "g (bool c, float[2,3,4,4] x) => (float[N,C,H,W] z) { z = If(c) <"
        "then_branch = t () => (float[A,B,D,E] p) { y = Conv(x, w) p = BatchNormalization(y, gamma, beta, mean, var) },"
        "else_branch = e () => (float[F,G,H,I] q) { q = Relu(x) }> }",
        w=normal(5, 3, 1, 1),
        **statistics(5),
    )
    outcome = check(FoldBatchNorm(), model)
    assert [node.op_type for node in outcome.after.graph.all_nodes()] == ["If", "Conv", "Relu"]


DECLINED = [
    (
        "output used twice",
        "y = Conv(x, w) a = BatchNormalization(y, gamma, beta, mean, var) z = Add(a, y)",
        {},
        "the output of Conv 'conv_0' before it is also used elsewhere",
    ),
    (
        "weight shared",
        "y = Conv(x, w) a = BatchNormalization(y, gamma, beta, mean, var) c = Conv(x, w) z = Add(a, c)",
        {"w": normal(3, 3, 11, 11)},
        "its weight 'w' is shared by 2 nodes",
    ),
    (
        "weight computed",
        "v = Abs(u) y = Conv(x, v) z = BatchNormalization(y, gamma, beta, mean, var)",
        {},
        "the weight of Conv 'conv_1' is not constant",
    ),
    ("nothing near", "z = BatchNormalization(x, gamma, beta, mean, var)", {}, "no Conv, ConvTranspose, Gemm or MatMul"),
    (
        "training",
        "y = Conv(x, w) z, m, n = BatchNormalization<training_mode = 1>(y, gamma, beta, mean, var)",
        {},
        "it is in training mode",
    ),
    (
        "padding behind a shift",
        "y = BatchNormalization(x, gamma, beta, mean, var) z = Conv<pads = [5,5,5,5]>(y, w)",
        {},
        "Conv 'conv_1' behind it pads with zeros, which the shift does not reach",
    ),
    (
        "negative variance",
        "y = Conv(x, w) z = BatchNormalization(y, gamma, beta, mean, var)",
        {"var": -np.ones(3, np.float32)},
        "its variance is negative",
    ),
    (
        "some readers do not fold",
        "y = BatchNormalization(x, gamma, beta, mean, var) a = Conv<pads = [0,0,0,0]>(y, w) b = Relu(y) z = Add(a, b)",
        {"w": normal(3, 3, 1, 1)},
        "what reads it is not always a Conv",
    ),
]


@pytest.mark.parametrize(("text", "weights", "reason"), [case[1:] for case in DECLINED], ids=[c[0] for c in DECLINED])
def test_declines_and_says_why(text: str, weights: dict[str, Array], reason: str) -> None:
    constants = {"w": normal(3, 3, 11, 11)} | statistics(3) | weights
    model = parse(
        header(17) + f"g (float[1,3,12,12] x, float[3,3,3,3] u) => (float[N,C,H,W] z) {{ {text} }}", **constants
    )
    feeds = {"x": normal(1, 3, 12, 12), "u": normal(3, 3, 3, 3)}
    outcome = check(FoldBatchNorm(), model, changes=False, feeds=feeds)
    [(_, said)] = outcome.reasons().items()
    assert reason in said


def test_statistics_by_position_of_opset_7_are_declined() -> None:
    model = parse(
        header(7) + "g (float[1,3,4,4] x) => (float[N,C,H,W] z) "
        "{ y = Conv(x, w) z = BatchNormalization<spatial = 0>(y, gamma, beta, mean, var) }",
        w=normal(3, 3, 1, 1),
        **{name: np.ones((3, 4, 4), np.float32) for name in ("gamma", "beta", "mean", "var")},
    )
    result = FoldBatchNorm().run(model, PassContext())
    assert not result.changed
    assert "spatial=0" in result.declined[0].reason


def test_a_matmul_of_rank_3_is_declined_since_its_channels_are_elsewhere() -> None:
    model = parse(
        header(17) + "g (float[2,3,4] x) => (float[2,3,4] z) "
        "{ y = MatMul(x, w) z = BatchNormalization(y, gamma, beta, mean, var) }",
        w=normal(4, 4),
        **statistics(3),
    )
    outcome = check(FoldBatchNorm(), model, changes=False)
    assert "its channels are axis 1 of 3, those of the MatMul axis 2" in outcome.reasons()["batchnormalization_1"]


def test_overflow_of_half_precision_is_declined() -> None:
    constants = statistics(3, "float16") | {"gamma": np.full(3, 6e4, np.float16), "var": np.full(3, 1e-4, np.float16)}
    model = parse(
        header(17) + "g (float16[1,3,4,4] x) => (float16[1,3,4,4] z) "
        "{ y = Conv(x, w) z = BatchNormalization(y, gamma, beta, mean, var) }",
        w=normal(3, 3, 1, 1, dtype="float16"),
        **constants,
    )
    outcome = check(FoldBatchNorm(), model, changes=False, feeds={"x": np.zeros((1, 3, 4, 4), np.float16)})
    assert "leaves the range of float16" in outcome.reasons()["batchnormalization_1"]


def test_a_small_shared_weight_is_copied() -> None:
    model = parse(
        header(17) + "g (float[1,3,4,4] x) => (float[1,3,4,4] z) { y = Conv(x, w) "
        "a = BatchNormalization(y, gamma, beta, mean, var) c = Conv(x, w) z = Add(a, c) }",
        w=normal(3, 3, 1, 1),
        **statistics(3),
    )
    assert check(FoldBatchNorm(), model).operators() == ["Conv", "Conv", "Add"]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_random_chains_keep_their_outputs(data: st.DataObject) -> None:
    channels = data.draw(st.sampled_from(CHANNELS))
    body, weights, value, ins = [], {}, "x", channels
    for index in range(data.draw(st.integers(1, 5))):
        kind = data.draw(st.sampled_from(["conv", "norm", "relu", "branch"]))
        out = f"v{index}"
        if kind == "conv":
            outs, kernel = data.draw(st.sampled_from(CHANNELS)), data.draw(st.sampled_from([1, 3]))
            pad = data.draw(st.sampled_from([0, kernel // 2]))
            crop = kernel // 2 - pad  # keep the size: pad the rest on the other side
            body.append(f"{out} = Conv<pads = [{pad},{pad},{pad + 2 * crop},{pad + 2 * crop}]>({value}, w{index})")
            weights[f"w{index}"] = normal(outs, ins, kernel, kernel, seed=index)
            ins = outs
        elif kind == "norm":
            body.append(f"{out} = BatchNormalization({value}, g{index}, b{index}, m{index}, s{index})")
            weights |= dict(
                zip((f"g{index}", f"b{index}", f"m{index}", f"s{index}"), statistics(ins).values(), strict=True)
            )
        elif kind == "relu":
            body.append(f"{out} = Relu({value})")
        else:
            body.append(f"n{index} = Neg({value}) {out} = Add(n{index}, {value})")
        value = out
    text = f"g (float[2,{channels},5,5] x) => (float[N,C,H,W] {value}) {{ {' '.join(body)} }}"
    check(FoldBatchNorm(), parse(header(17) + text, **weights), changes=None)
