from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.cleanup.clean_up import CleanUp
from graphopt.passes.cleanup.fuse_activations import FuseActivations
from tests.passes.harness import Outcome, check, parse

Array = npt.NDArray[Any]
LINE = {"x": np.linspace(-9, 9, 73, dtype=np.float32)}


def number(value: float) -> Array:
    return np.array(value, np.float32)


def header(opset: int = 17) -> str:
    return f'<ir_version: 8, opset_import: ["" : {opset}]>'


NUMBERS = {
    "zero": number(0),
    "one": number(1),
    "two": number(2),
    "three": number(3),
    "six": number(6),
    "sixth": number(1 / 6),
    "minus": number(-1),
}


def test_hard_swish_golden(golden: Callable[[str, Outcome], None]) -> None:
    model = parse(
        header() + "g (float[73] x) => (float[73] z) "
        "{ a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, b) z = Div(c, six) }",
        **{name: NUMBERS[name] for name in ("zero", "three", "six")},
    )
    outcome = check(FuseActivations(), model, feeds=LINE)
    golden("hard-swish", outcome)
    assert outcome.operators() == ["HardSwish"]


SPELT = [
    "a = Add(three, x) b = Clip(a, zero, six) c = Mul(b, x) z = Mul(sixth, c)",
    "a = Add(x, three) b = Clip(a, zero, six) c = Div(b, six) z = Mul(c, x)",
    "a = Add(x, three) b = Clip(a, zero, six) c = Mul(b, sixth) z = Mul(x, c)",
    "a = Add(x, three) r = Relu(a) b = Min(r, six) c = Div(b, six) z = Mul(x, c)",
    "c = HardSigmoid<alpha = 0.16666667, beta = 0.5>(x) z = Mul(x, c)",
]


@pytest.mark.parametrize("text", SPELT)
@pytest.mark.parametrize(
    ("opset", "expected"), [(13, ["HardSigmoid", "Mul"]), (14, ["HardSwish"]), (22, ["HardSwish"])]
)
def test_every_spelling_of_the_hard_swish(text: str, opset: int, expected: list[str]) -> None:
    model = parse(header(opset) + f"g (float[73] x) => (float[73] z) {{ {text} }}", **NUMBERS)
    changes = not (opset < 14 and "HardSigmoid" in text)
    assert check(FuseActivations(), model, feeds=LINE, changes=changes).operators() == expected


def test_clean_up_finds_the_hard_swish_before_its_division_goes_into_the_convolution_behind_it() -> None:
    model = parse(
        header() + "g (float[1,2,4,4] x) => (float[1,2,4,4] z) { a = Add(x, three) b = Clip(a, zero, six) "
        "c = Mul(x, b) d = Div(c, six) z = Conv(d, w) }",
        w=np.ones((2, 2, 1, 1), np.float32),
        **NUMBERS,
    )
    assert check(CleanUp(), model).operators() == ["HardSwish", "Conv"]


@pytest.mark.parametrize("opset", [7, 10])
def test_the_hard_swish_of_old_opsets(opset: int) -> None:
    model = parse(
        header(opset) + "g (float[73] x) => (float[73] z) "
        "{ a = Add(x, three) b = Clip<min = 0.0, max = 6.0>(a) c = Mul(x, b) z = Div(c, six) }",
        **NUMBERS,
    )
    assert check(FuseActivations(), model, feeds=LINE).operators() == ["HardSigmoid", "Mul"]


@pytest.mark.parametrize(
    "text",
    [
        "a = Add(x, two) b = Clip(a, zero, six) c = Mul(x, b) z = Div(c, six)",
        "a = Add(x, three) b = Clip(a, zero, two) c = Mul(x, b) z = Div(c, six)",
        "a = Add(x, three) b = Clip(a, zero, six) c = Mul(x, b) z = Div(c, two)",
        "c = HardSigmoid<alpha = 0.2, beta = 0.5>(x) z = Mul(x, c)",
        "c = HardSigmoid(x) z = Mul(x, c)",
        "a = Add(x, three) b = Clip(a, zero, six) c = Mul(b, b) z = Div(c, six)",
    ],
)
def test_what_is_almost_a_hard_swish_stays(text: str) -> None:
    model = parse(header() + f"g (float[73] x) => (float[73] z) {{ {text} }}", **NUMBERS)
    check(FuseActivations(), model, feeds=LINE, changes=False)


@pytest.mark.parametrize(
    ("text", "operators"),
    [
        ("y = Relu(x) z = Relu(y)", ["Relu"]),
        ("y = Relu(x) z = Clip(y, minus, six)", ["Clip"]),
        ("y = Clip(x, minus, six) z = Relu(y)", ["Clip"]),
        ("y = Clip(x, one, six) z = Clip(y, zero, three)", ["Clip"]),
        ("y = Max(x, zero) z = Min(six, y)", ["Clip"]),
        ("y = Min(x, six) z = Max(y, zero)", ["Clip"]),
        ("y = Clip(x, zero, one) z = Clip(y, two, three)", ["Clip"]),
        ("y = Clip(x, , minus) z = Relu(y)", ["Clip"]),
        ("z = Max(x, zero)", ["Relu"]),
        ("z = Clip(x, zero)", ["Relu"]),
        ("a = Relu(x) b = Clip(a, , six) c = Relu(b) z = Min(c, three)", ["Clip"]),
    ],
)
def test_bounds_on_bounds(text: str, operators: list[str]) -> None:
    model = parse(header() + f"g (float[73] x) => (float[73] z) {{ {text} }}", **NUMBERS)
    assert check(FuseActivations(), model, feeds=LINE, relative=0).operators() == operators


@pytest.mark.parametrize("opset", [7, 8, 10])
def test_bounds_as_attributes(opset: int) -> None:
    model = parse(header(opset) + "g (float[73] x) => (float[73] z) { y = Relu(x) z = Clip<max = 6.0>(y) }")
    outcome = check(FuseActivations(), model, feeds=LINE, relative=0)
    assert outcome.operators() == ["Clip"]
    assert outcome.after.graph[0].attributes["max"].as_float() == 6


def test_a_value_used_elsewhere_is_declined() -> None:
    model = parse(
        header() + "g (float[73] x) => (float[73] z) { y = Relu(x) c = Clip(y, zero, six) z = Add(y, c) }", **NUMBERS
    )
    outcome = check(FuseActivations(), model, feeds=LINE, changes=False)
    assert outcome.reasons() == {"clip_1": "the output of Relu 'relu_0' before it is also used elsewhere"}


@pytest.mark.parametrize("text", ["z = Max(x, w)", "y = Relu(x) z = Max(y, w)", "z = Max(x, one)", "z = Min(x, x)"])
def test_what_is_no_scalar_bound_stays(text: str) -> None:
    model = parse(header() + f"g (float[73] x) => (float[73] z) {{ {text} }}", w=LINE["x"] * 2, **NUMBERS)
    check(FuseActivations(), model, feeds=LINE, changes=False)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_chains_of_bounds_give_the_same_numbers(data: st.DataObject) -> None:
    opset = data.draw(st.sampled_from([7, 10, 11, 13, 17]))
    values = st.sampled_from([-7.0, -1.0, 0.0, 0.5, 2.0, 6.0])
    body, weights, value = [], dict[str, Array](), "x"
    for index in range(data.draw(st.integers(1, 5))):
        # Max and Min broadcast from opset 8 on
        kind = data.draw(st.sampled_from(["Relu", "Clip", "Neg"] + ["Max", "Min"] * (opset > 7)))
        low, high = sorted((data.draw(values), data.draw(values)))
        if kind == "Clip" and opset < 11:
            body.append(f"v{index} = Clip<min = {low}, max = {high}>({value})")
        elif kind == "Clip":
            weights |= {f"l{index}": number(low), f"h{index}": number(high)}
            body.append(f"v{index} = Clip({value}, l{index}, h{index})")
        elif kind in ("Max", "Min"):
            weights[f"l{index}"] = number(low)
            body.append(f"v{index} = {kind}({value}, l{index})")
        else:
            body.append(f"v{index} = {kind}({value})")
        value = f"v{index}"
    model = parse(header(opset) + f"g (float[73] x) => (float[73] {value}) {{ {' '.join(body)} }}", **weights)
    check(FuseActivations(), model, feeds=LINE, relative=0, changes=None)
