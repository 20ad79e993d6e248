from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.cleanup.fold_affine import FoldAffine
from tests.passes.harness import Outcome, check, parse

Array = npt.NDArray[Any]


def normal(*shape: int, seed: int = 0, dtype: str = "float32") -> Array:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(dtype)


def header(opset: int = 17) -> str:
    return f'<ir_version: 8, opset_import: ["" : {opset}]>'


def test_conv_mul_add_golden(golden: Callable[[str, Outcome], None]) -> None:
    model = parse(
        header() + "g (float[1,1,2,2] x) => (float[1,2,2,2] z) { y = Conv(x, w) m = Mul(y, s) z = Add(t, m) }",
        w=np.array([2, 3], np.float32).reshape(2, 1, 1, 1),
        s=np.array([10, 100], np.float32).reshape(2, 1, 1),
        t=np.array(7, np.float32),
    )
    outcome = check(FoldAffine(), model)
    golden("conv-mul-add", outcome)
    assert outcome.operators() == ["Conv"]
    np.testing.assert_array_equal(outcome.after.graph.initializers["w"].const_value.numpy().ravel(), [20, 300])


@pytest.mark.parametrize("channels", [1, 3, 5, 7, 17])
@pytest.mark.parametrize("text", ["Mul(y, c)", "Mul(c, y)", "Add(y, c)", "Sub(y, c)", "Sub(c, y)", "Div(y, c)"])
@pytest.mark.parametrize("shape", ["scalar", "one", "channels", "full"])
def test_every_operator_and_shape_behind_a_grouped_conv(text: str, shape: str, channels: int) -> None:
    outs = 2 * channels
    shapes = {"scalar": (), "one": (1,), "channels": (outs, 1, 1), "full": (1, outs, 1, 1)}
    model = parse(
        header() + f"g (float[2,6,4,4] x) => (float[2,{outs},4,4] z) "
        f"{{ y = Conv<group = 2, pads = [1,1,1,1]>(x, w, b) z = {text} }}",
        w=normal(outs, 3, 3, 3),
        b=normal(outs),
        c=normal(*shapes[shape]) + np.float32(3),
    )
    assert check(FoldAffine(), model).operators() == ["Conv"]


@pytest.mark.parametrize("text", ["Mul(y, c)", "Sub(c, y)", "Div(y, c)"])
@pytest.mark.parametrize(
    ("linear", "weights", "shape"),
    [
        ("ConvTranspose<group = 3>(x, w)", {"w": normal(3, 5, 2, 2)}, (15, 1, 1)),
        ("BatchNormalization(x, w, b, m, v)",
         {name: normal(3, seed=i) ** 2 + np.float32(0.5) for i, name in enumerate("wbmv")}, (1, 3, 1, 1)),
    ],
)  # fmt: skip
def test_behind_other_operators_by_channel(
    linear: str, weights: dict[str, Array], shape: tuple[int, ...], text: str
) -> None:
    model = parse(
        header() + f"g (float[2,3,4,4] x) => (float[N,C,H,W] z) {{ y = {linear} z = {text} }}",
        c=normal(*shape) + np.float32(3),
        **weights,
    )
    assert len(check(FoldAffine(), model).operators()) == 1


@pytest.mark.parametrize("text", ["Mul(y, c)", "Add(y, c)", "Sub(c, y)", "Div(y, c)"])
@pytest.mark.parametrize("shape", [(), (5,), (1, 5)])
@pytest.mark.parametrize("bias", ["", ", b"])
def test_behind_a_gemm(text: str, shape: tuple[int, ...], bias: str) -> None:
    model = parse(
        header() + "g (float[2,3] x) => (float[2,5] z) "
        f"{{ y = Gemm<alpha = 2.0, beta = 0.5, transB = 1>(x, w{bias}) z = {text} }}",
        w=normal(5, 3),
        b=normal(5),
        c=normal(*shape) + np.float32(3),
    )
    assert check(FoldAffine(), model).operators() == ["Gemm"]


@pytest.mark.parametrize("shape", [(), (5,), (1, 1, 5)])
def test_a_scale_behind_a_matmul_of_any_rank(shape: tuple[int, ...]) -> None:
    model = parse(
        header() + "g (float[2,7,3] x) => (float[2,7,5] z) { y = MatMul(x, w) z = Mul(y, c) }",
        w=normal(3, 5),
        c=normal(*shape),
    )
    assert check(FoldAffine(), model).operators() == ["MatMul"]


def test_the_bias_behind_a_matmul_is_no_layer_to_decline() -> None:
    model = parse(
        header() + "g (float[2,7,3] x) => (float[2,7,5] z) { y = MatMul(x, w) z = Add(y, c) }",
        w=normal(3, 5),
        c=normal(5),
    )
    assert check(FoldAffine(), model, changes=False).reasons() == {}


def test_a_preprocessing_chain_folds_into_the_conv_behind_it() -> None:
    model = parse(
        header() + "g (float[2,3,6,6] x) => (float[N,C,H,W] z) "
        "{ a = Div(x, d) b = Sub(a, mean) c = Mul(b, s) z = Conv<strides = [2,2]>(c, w) }",
        d=np.array(255, np.float32),
        mean=normal(3, 1, 1),
        s=normal(1, 3, 1, 1),
        w=normal(5, 3, 2, 2),
    )
    assert check(FoldAffine(), model).operators() == ["Conv"]


def test_before_a_padded_conv_the_scale_folds_and_the_shift_stays() -> None:
    model = parse(
        header() + "g (float[2,3,6,6] x) => (float[N,C,H,W] z) "
        "{ a = Add(x, t) b = Mul(a, s) z = Conv<pads = [1,1,1,1]>(b, w) }",
        t=normal(3, 1, 1),
        s=normal(3, 1, 1),
        w=normal(5, 3, 3, 3),
    )
    outcome = check(FoldAffine(), model)
    assert outcome.operators() == ["Add", "Conv"]
    assert "pads with zeros" in outcome.reasons()["add_0"]


@pytest.mark.parametrize("text", ["MatMul(y, w)", "Gemm(y, w, b)", "Gemm<transB = 1, alpha = 3.0>(y, v, b)"])
def test_before_a_matrix_product(text: str) -> None:
    model = parse(
        header() + f"g (float[2,3] x) => (float[2,5] z) {{ y = Sub(c, x) z = {text} }}",
        w=normal(3, 5),
        v=normal(5, 3),
        b=normal(5),
        c=normal(3),
    )
    assert check(FoldAffine(), model).operators() == ["Gemm"]


@pytest.mark.parametrize("opset", [7, 9, 11, 13, 18, 22])
def test_every_opset(opset: int) -> None:
    model = parse(
        header(opset) + "g (float[1,3,4,4] x) => (float[1,5,4,4] z) { y = Conv(x, w) m = Mul(y, s) z = Add(m, t) }",
        w=normal(5, 3, 1, 1),
        s=normal(5, 1, 1),
        t=normal(5, 1, 1),
    )
    assert check(FoldAffine(), model).operators() == ["Conv"]


DECLINED = [
    ("by width", "y = Conv(x, w) z = Mul(y, c)", normal(4), "varies along other axes than 1 of 4"),
    ("more axes", "y = Conv(x, w) z = Mul(y, c)", normal(1, 1, 5, 1, 1), "varies along other axes than 1 of 4"),
    ("used twice", "y = Conv(x, w) a = Mul(y, c) z = Add(a, y)", normal(5, 1, 1), "is also used elsewhere"),
    ("division by zero", "y = Conv(x, w) z = Div(y, c)", np.zeros((5, 1, 1), np.float32), "not finite"),
    ("transposed", "f = Flatten(x) y = Mul(f, c) z = Gemm<transA = 1>(y, g)", normal(1), "transposes its input"),
]


@pytest.mark.parametrize(("text", "constant", "reason"), [case[1:] for case in DECLINED], ids=[c[0] for c in DECLINED])
def test_declines_and_says_why(text: str, constant: Array, reason: str) -> None:
    model = parse(
        header()
        + f"g (float[1,3,4,4] x) => (float[A,B,C,D] z) {{ {text} }}".replace(
            "float[A,B,C,D]",
            "float[A,B]" if "Gemm" in text else "float[A,B,C,D,E]" if constant.ndim == 5 else "float[A,B,C,D]",
        ),
        w=normal(5, 3, 1, 1),
        g=normal(1, 5),
        c=constant,
    )
    outcome = check(FoldAffine(), model, changes=False)
    [said] = outcome.reasons().values()
    assert reason in said


def test_a_single_channel_that_broadcasts_is_declined() -> None:
    model = parse(
        header() + "g (float[1,3,4,4] x) => (float[1,5,4,4] z) { y = Conv(x, w) z = Mul(y, c) }",
        w=normal(1, 3, 1, 1),
        c=normal(5, 1, 1),
    )
    assert "broadcast" in check(FoldAffine(), model, changes=False).reasons()["mul_1"]


def test_integers_are_left_alone() -> None:
    model = parse(
        header() + "g (int32[2,3] x) => (int32[2,5] z) { y = MatMul(x, w) z = Mul(y, c) }",
        w=np.ones((3, 5), np.int32),
        c=np.array(2, np.int32),
    )
    assert "computes with int32" in check(FoldAffine(), model, changes=False).reasons()["mul_1"]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_random_chains_keep_their_outputs(data: st.DataObject) -> None:
    channels = data.draw(st.sampled_from((1, 3, 5, 7)))
    body, weights, value, ins = [], {}, "x", channels
    for index in range(data.draw(st.integers(1, 6))):
        out = f"v{index}"
        kind = data.draw(st.sampled_from(["conv", "affine", "affine", "relu"]))
        if kind == "conv":
            ins_before, ins = ins, data.draw(st.sampled_from((1, 3, 5, 7)))
            kernel = data.draw(st.sampled_from((1, 3)))
            pad = kernel // 2
            body.append(f"{out} = Conv<pads = [{pad},{pad},{pad},{pad}]>({value}, w{index})")
            weights[f"w{index}"] = normal(ins, ins_before, kernel, kernel, seed=index)
        elif kind == "affine":
            operator = data.draw(st.sampled_from(["Mul", "Add", "Sub", "Div"]))
            shape = data.draw(st.sampled_from([(), (1,), (ins, 1, 1), (1, ins, 1, 1), (4,), (1, 1, 4, 1)]))
            operands = [value, f"c{index}"]
            if operator != "Div" and data.draw(st.booleans()):
                operands.reverse()
            body.append(f"{out} = {operator}({', '.join(operands)})")
            weights[f"c{index}"] = normal(*shape, seed=index) + np.float32(4)
        else:
            body.append(f"{out} = Relu({value})")
        value = out
    text = f"g (float[2,{channels},4,4] x) => (float[N,C,H,W] {value}) {{ {' '.join(body)} }}"
    check(FoldAffine(), parse(header() + text, **weights), changes=None)
