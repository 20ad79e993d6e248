from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.passes.cleanup.fold_pad import FoldPad
from tests.passes.harness import Outcome, check, parse

Array = npt.NDArray[Any]


def normal(*shape: int) -> Array:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def header(opset: int = 17) -> str:
    return f'<ir_version: 10, opset_import: ["" : {opset}]>'


def pads(*numbers: int) -> Array:
    return np.array(numbers, np.int64)


def test_conv_golden(golden: Callable[[str, Outcome], None]) -> None:
    model = parse(
        header() + "g (float[1,1,3,3] x) => (float[N,C,H,W] z) { y = Pad(x, p) z = Conv<pads = [1,0,0,0]>(y, w) }",
        p=pads(0, 0, 1, 2, 0, 0, 3, 4),
        w=np.ones((1, 1, 2, 2), np.float32),
    )
    outcome = check(FoldPad(), model)
    golden("conv", outcome)
    assert outcome.operators() == ["Conv"]
    assert list(outcome.after.graph[0].attributes["pads"].as_ints()) == [2, 2, 3, 4]


@pytest.mark.parametrize("opset", [7, 10])
def test_pads_as_an_attribute(opset: int) -> None:
    model = parse(
        header(opset) + "g (float[1,3,5,5] x) => (float[N,C,H,W] z) "
        "{ y = Pad<pads = [0,0,1,2,0,0,3,4], mode = \"constant\", value = 0.0>(x) z = Conv(y, w) }",
        w=normal(4, 3, 3, 3),
    )  # fmt: skip
    assert check(FoldPad(), model).operators() == ["Conv"]


@pytest.mark.parametrize("opset", [11, 13, 18, 19, 22])
@pytest.mark.parametrize("value", ["", ", zero"])
def test_pads_as_an_input(opset: int, value: str) -> None:
    model = parse(
        header(opset) + f"g (float[1,3,5,5] x) => (float[N,C,H,W] z) {{ y = Pad(x, p{value}) z = Conv(y, w) }}",
        p=pads(0, 0, 1, 2, 0, 0, 3, 4),
        zero=np.array(0, np.float32),
        w=normal(4, 3, 3, 3),
    )
    assert check(FoldPad(), model).operators() == ["Conv"]


@pytest.mark.parametrize("axes", [(2, 3), (-1, 2), (3,)])
def test_axes_of_opset_18(axes: tuple[int, ...]) -> None:
    model = parse(
        header(18) + "g (float[1,3,5,5] x) => (float[N,C,H,W] z) { y = Pad(x, p, , a) z = Conv(y, w) }",
        p=pads(*range(1, 2 * len(axes) + 1)),
        a=pads(*axes),
        w=normal(4, 3, 3, 3),
    )
    assert check(FoldPad(), model).operators() == ["Conv"]


@pytest.mark.parametrize("mode", ["VALID", "SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize(("stride", "size"), [(1, 5), (2, 5), (2, 6), (3, 7)])
def test_automatic_padding_is_worked_out(mode: str, stride: int, size: int) -> None:
    model = parse(
        header() + f"g (float[1,3,{size},{size}] x) => (float[N,C,H,W] z) "
        f'{{ y = Pad(x, p) z = Conv<auto_pad = "{mode}", strides = [{stride},{stride}]>(y, w) }}',
        p=pads(0, 0, 1, 0, 0, 0, 0, 2),
        w=normal(4, 3, 3, 3),
    )
    outcome = check(FoldPad(), model)
    assert outcome.operators() == ["Conv"] and "auto_pad" not in outcome.after.graph[0].attributes


@pytest.mark.parametrize("own", [0, 1])
def test_average_pool_counts_the_padding(own: int) -> None:
    model = parse(
        header() + "g (float[1,3,5,5] x) => (float[N,C,H,W] z) { y = Pad(x, p) "
        f"z = AveragePool<kernel_shape = [3,3], pads = [{own},0,0,0], count_include_pad = {own}>(y) }}",
        p=pads(0, 0, 1, 1, 0, 0, 2, 0),
    )
    assert check(FoldPad(), model).operators() == ["AveragePool"]


def test_max_pool_takes_minus_infinity() -> None:
    model = parse(
        header() + "g (float[1,3,5,5] x) => (float[N,C,H,W] z) "
        "{ y = Pad(x, p, v) z = MaxPool<kernel_shape = [3,3], strides = [2,2]>(y) }",
        p=pads(0, 0, 1, 1, 0, 0, 1, 2),
        v=np.array(-np.inf, np.float32),
    )
    assert check(FoldPad(), model).operators() == ["MaxPool"]


@pytest.mark.parametrize("activation", ["Relu(x)", "Sigmoid(x)", "Clip(x, zero, six)", "Abs(x)"])
def test_max_pool_takes_zeros_behind_what_is_not_negative(activation: str) -> None:
    model = parse(
        header() + f"g (float[1,3,5,5] x) => (float[N,C,H,W] z) {{ r = {activation} "
        "y = Pad(r, p) z = MaxPool<kernel_shape = [3,3], strides = [2,2]>(y) }",
        p=pads(0, 0, 1, 1, 0, 0, 1, 2),
        zero=np.array(0, np.float32),
        six=np.array(6, np.float32),
    )
    assert check(FoldPad(), model).operators()[1:] == ["MaxPool"]


def test_several_readers_all_take_it() -> None:
    model = parse(
        header() + "g (float[1,3,5,5] x) => (float[N,C,H,W] z) "
        "{ y = Pad(x, p) a = Conv(y, w) b = AveragePool<kernel_shape = [3,3]>(y) z = Add(a, b) }",
        p=pads(0, 0, 1, 1, 0, 0, 1, 1),
        w=normal(3, 3, 3, 3),
    )
    assert check(FoldPad(), model).operators() == ["Conv", "AveragePool", "Add"]


POOL = "kernel_shape = [3,3]"
DECLINED = [
    ("value", "y = Pad(x, p, one) z = Conv(y, w)", "it pads with 1.0, a Conv with 0"),
    ("mode", 'y = Pad<mode = "reflect">(x, p) z = Conv(y, w)', "it pads by reflect"),
    ("crop", "y = Pad(x, crop) z = Conv(y, w)", "it crops"),
    ("channels", "y = Pad(x, more) z = Conv(y, v)", "it pads the batch or the channels"),
    ("other reader", "y = Pad(x, p) a = Conv(y, w) b = Relu(y) z = Sum(a)", "an operator that does not pad"),
    ("may be negative", f"y = Pad(x, p) z = MaxPool<{POOL}>(y)", "its input may be negative"),
    ("ceil", f"y = Pad(x, p) z = AveragePool<{POOL}, ceil_mode = 1, strides = [2,2]>(y)", "rounds its size up"),
    ("not counted", f"y = Pad(x, p) z = AveragePool<{POOL}, pads = [1,1,1,1]>(y)", "leaves out its own padding"),
    ("wide", "y = Pad(x, p) z = AveragePool<kernel_shape = [1,1]>(y)", "windows that lie in the padding alone"),
    ("positions", f"r = Relu(x) y = Pad(r, p) q, z = MaxPool<{POOL}>(y)", "positions in the padded input"),
    ("not constant", "y = Pad(x, given) z = Conv(y, w)", "its pads are not constant"),
]


@pytest.mark.parametrize(("text", "reason"), [case[1:] for case in DECLINED], ids=[case[0] for case in DECLINED])
def test_declines_and_says_why(text: str, reason: str) -> None:
    kind = "int64" if "q, z" in text else "float"
    model = parse(
        header() + f"g (float[1,3,6,6] x, int64[8] given) => ({kind}[N,C,H,W] z) {{ {text} }}",
        p=pads(0, 0, 1, 1, 0, 0, 1, 1),
        crop=pads(0, 0, -1, 1, 0, 0, 1, 1),
        more=pads(0, 1, 1, 1, 0, 0, 1, 1),
        one=np.array(1, np.float32),
        w=normal(3, 3, 3, 3),
        v=normal(3, 4, 3, 3),
    )
    feeds = {"x": normal(1, 3, 6, 6), "given": pads(0, 0, 1, 1, 0, 0, 1, 1)}
    outcome = check(FoldPad(), model, changes=False, feeds=feeds)
    [said] = outcome.reasons().values()
    assert reason in said


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_padding_keeps_the_outputs(data: st.DataObject) -> None:
    spatial = data.draw(st.integers(1, 3))
    numbers = data.draw(st.lists(st.integers(0, 3), min_size=2 * spatial, max_size=2 * spatial))
    own = data.draw(st.lists(st.integers(0, 1), min_size=2 * spatial, max_size=2 * spatial))
    kernel = data.draw(st.lists(st.integers(2, 3), min_size=spatial, max_size=spatial))
    strides = data.draw(st.lists(st.integers(1, 3), min_size=spatial, max_size=spatial))
    operator = data.draw(st.sampled_from(["Conv", "AveragePool", "MaxPool"]))
    count = data.draw(st.integers(0, 1))
    attributes = f"kernel_shape = {kernel}, strides = {strides}, pads = {own}"
    if operator == "AveragePool":
        attributes += f", count_include_pad = {count}"
    sizes = ",".join(["5"] * spatial)
    model = parse(
        header() + f"g (float[2,3,{sizes}] x) => (float[N,C,{','.join('HWD'[:spatial])}] z) "
        f"{{ r = Relu(x) y = Pad(r, p) z = {operator}<{attributes}>(y{', w' if operator == 'Conv' else ''}) }}",
        p=pads(0, 0, *numbers[:spatial], 0, 0, *numbers[spatial:]),
        w=normal(4, 3, *kernel),
    )
    check(FoldPad(), model, changes=None)
