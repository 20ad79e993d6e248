"""Lanes: through which operators scales pass, and which keep them away, as equalization shows."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.passes.quantize.equalize import Clips, Equalize
from graphopt.passes.quantize.lane_rules import RULES
from tests.passes.harness import check, parse
from tests.passes.quantize.uneven import Array, uneven

HEAD = '<ir_version: 8, opset_import: ["" : 17]> '

THROUGH = {
    "LeakyRelu": "m = LeakyRelu<alpha=0.2>(a)",
    "PRelu": "m = PRelu(a, slope)",
    "MaxPool": "m = MaxPool<kernel_shape=[2,2]>(a)",
    "AveragePool": "m = AveragePool<kernel_shape=[2,2], pads=[1,1,1,1]>(a)",
    "GlobalAveragePool": "m = GlobalAveragePool(a)",
    "GlobalMaxPool": "m = GlobalMaxPool(a)",
    "Pad": "m = Pad(a, places)",
    "Pad of channels": "p = Pad(a, channels) m = Slice(p, one, seven, one)",
    "Identity": "m = Identity(a)",
    "Abs": "m = Abs(a)",
    "Neg": "m = Neg(a)",
    "Dropout": "m = Dropout(a)",
    "Clip at zero": "m = Clip(a, zero)",
    "Add of itself": "m = Add(a, a)",
    "Add of a constant": "m = Add(a, shifts)",
    "Sub from a number": "m = Sub(three, a)",
    "Min": "m = Min(a, three)",
    "Max": "m = Max(shifts, a)",
    "Sum": "r = Relu(a) m = Sum(a, r, three)",
    "Mul by a number": "m = Mul(a, three)",
    "Div": "m = Div(a, three)",
    "gate": "f = Sigmoid(x0) m = Mul(f, a)",
    "Transpose": "t = Transpose<perm=[0,2,3,1]>(a) m = Transpose<perm=[0,3,1,2]>(t)",
    "channel shuffle": "p = Reshape(a, pairs) t = Transpose<perm=[0,2,1,3,4]>(p) m = Reshape(t, back)",
    "Split and Concat": "p, q = Split<axis=1>(a) r = Relu(q) m = Concat<axis=1>(r, p)",
    "Concat along a picture": "m = Concat<axis=2>(a, a)",
    "Slice backwards": "m = Slice(a, last, before, one, minus)",
    "Gather": "m = Gather<axis=1>(a, chosen)",
    "Gather a row": "g = Gather<axis=2>(a, number) m = Unsqueeze(g, three_axis)",
    "Resize": 'm = Resize<mode="linear">(a, , factors)',
    "ReduceMean": "m = ReduceMean<axes=[2,3]>(a)",
    "ReduceMax without axes kept": "r = ReduceMax<axes=[3], keepdims=0>(a) m = Unsqueeze(r, three_axis)",
    "Expand": "r = GlobalMaxPool(a) m = Expand(r, size)",
    "Tile": "m = Tile(a, repeats)",
    "Squeeze and Unsqueeze": "s = Squeeze(a, zeroth) m = Unsqueeze(s, zeroth)",
    "residual Add": "r = Relu(a) c = Conv(r, own) m = Add(c, r)",
}
CONSTANTS = {
    "slope": np.array([0.1, 0.2, 0.3, 0.1, 0.5, 0.9], np.float32).reshape(6, 1, 1),
    "places": np.array([0, 0, 1, 0, 0, 0, 0, 1]),
    "channels": np.array([0, 1, 0, 0, 0, 2, 0, 0]),
    "one": np.array([1]),
    "seven": np.array([7]),
    "zero": np.array(0, np.float32),
    "three": np.array(3, np.float32),
    "shifts": np.arange(6, dtype=np.float32).reshape(6, 1, 1) - 2,
    "pairs": np.array([1, 2, 3, 5, 5]),
    "back": np.array([1, 6, 5, 5]),
    "last": np.array([-1]),
    "before": np.array([np.iinfo(np.int64).min]),
    "minus": np.array([-1]),
    "chosen": np.array([5, 0, 3, 3, 1, 2]),
    "number": np.array(2),
    "three_axis": np.array([3]),
    "factors": np.array([1, 1, 2, 2], np.float32),
    "size": np.array([1, 6, 2, 2]),
    "repeats": np.array([1, 1, 2, 1]),
    "zeroth": np.array([0]),
    "own": uneven(6, 6, 1, 1, seed=5),
}


def through(body: str, **more: Array) -> ir.Model:
    """A Conv, what `body` makes of its output a as m, and a Conv that reads m."""
    words = body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    used = {name: array for name, array in CONSTANTS.items() if name in words}
    weights = {"w": uneven(6, 3, 1, 1), "b": uneven(6, seed=7), "v": uneven(2, 6, 1, 1, axis=1, seed=1)}
    return parse(
        HEAD + "g (float[1,3,5,5] x, float[1,6,1,1] x0) => (float[1,2,H,W] y) {"
        f" a = Conv(x, w, b) {body} y = Conv(m, v) }}",
        **weights | used | more,
    )


@pytest.mark.parametrize("body", THROUGH.values(), ids=THROUGH)
def test_scales_pass_through(body: str) -> None:
    outcome = check(Equalize(), through(body))
    assert outcome.result.statistics["equalized-channels"] == 6


def test_every_rule_of_lanes_is_tested() -> None:
    tested = {word.split("<")[0].split("(")[0] for body in THROUGH.values() for word in body.split()}
    elsewhere = {
        "Conv",
        "ConvTranspose",
        "Gemm",
        "MatMul",
        "Flatten",
        "LayerNormalization",
        "Relu",
        "Upsample",
        "ReduceMin",
        "ReduceSum",
    }
    assert RULES.keys() - tested <= elsewhere


DECLINED = {
    "a graph output": ("m = Identity(a) z = Relu(a)", "'z' is an output of the graph"),
    "a sigmoid": ("m = Sigmoid(a)", "Sigmoid 'sigmoid_1' reads it as it is"),
    "ReLU6": ("m = Clip(a, zero, three)", "Clip 'clip_1' bounds all its channels alike"),
    "padding by one": ("m = Pad(a, places, three)", "puts other numbers than 0"),
    "fewer channels": ("p = Pad(a, cut) m = Concat<axis=1>(p, p)", "takes channels away"),
    "a mean over channels": ("r = ReduceMean<axes=[1]>(a) m = Add(a, r)", "reduces over its channels"),
    "an input": ("m = Add(a, x0)", "Add 'add_1' joins it with numbers that no layer scales"),
    "a square": ("m = Mul(a, a)", "Mul 'mul_1' reads it as it is"),
    "a factor by channel": ("m = Mul(a, shifts)", "Mul 'mul_1' next to it has no weight to balance with"),
    "a divisor": ("m = Div(x0, a)", "Div 'div_1'"),
    "a slope": ("m = PRelu(x0, a)", "has it for a slope"),
    "pictures shuffled": ("t = Transpose<perm=[0,2,1,3]>(a) m = Reshape(t, back)", "'conv_3' mixes its channels"),
    "nothing": ("m = Identity(x1)", "no Conv, ConvTranspose, Gemm or MatMul reads it"),
}  # fmt: skip


@pytest.mark.parametrize(("body", "reason"), DECLINED.values(), ids=DECLINED)
def test_declines_with_the_reason(body: str, reason: str) -> None:
    more = {}
    if "cut" in body:
        more["cut"] = np.array([0, 0, 0, 0, 0, -3, 0, 0])
    outputs = "float[1,2,H,W] y" + (", float[1,6,5,5] z" if " z = " in body else "")
    words = body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    used = {name: array for name, array in CONSTANTS.items() if name in words}
    if "mul_1' next" in reason:
        used["shifts"] = np.arange(1, 7, dtype=np.float32).reshape(6, 1, 1)
    tail = "k = Relu(a) y = Conv(m, v)" if "x1" in body else "y = Conv(m, v)"
    model = parse(
        HEAD + f"g (float[1,3,5,5] x, float[1,6,5,5] x0, float[1,6,5,5] x1) => ({outputs}) {{"
        f" a = Conv(x, w) {body} {tail} }}",
        w=uneven(6, 3, 1, 1), v=uneven(2, 6, 1, 1, axis=1), **used, **more,
    )  # fmt: skip
    outcome = check(Equalize(), model, changes=False)
    assert reason in outcome.reasons()["conv_0"]


@pytest.mark.parametrize("opset", [7, 8, 9, 11, 13, 18, 21, 23])
def test_every_opset(opset: int) -> None:
    """Parameters are attributes or inputs by version; without broadcasting, before 8, bounds are not split."""
    bounds, more = ("Clip<min=0.0, max=6.0>(a)", {}) if opset < 11 else ("Clip(a, low, six)", {"low": 0, "six": 6})
    mean, axes = ("ReduceMean<axes=[2]>(s)", {}) if opset < 18 else ("ReduceMean(s, axes)", {"axes": np.array([2])})
    model = parse(
        f'<ir_version: 7, opset_import: ["" : {opset}]> g (float[1,3,4,4] x) => (float[1,2,1,4] y) {{'
        f" a = Conv(x, w) r = {bounds} d = Conv<group=5>(r, k) s = PRelu(d, slope) m = {mean} y = Conv(m, v) }}",
        w=uneven(5, 3, 1, 1), k=uneven(5, 1, 1, 1, seed=1), v=uneven(2, 5, 1, 1, axis=1, seed=2),
        slope=np.full((5, 1, 1), 0.1, np.float32),
        **{name: np.asarray(each, np.float32) for name, each in more.items()},
        **axes,
    )  # fmt: skip
    outcome = check(Equalize(clips=Clips.SPLIT), model)
    assert outcome.result.statistics["equalized-channels"] == (5 if opset < 8 else 10)
