"""SmoothQuant: the formula, what takes the scales in blocks of different exporters, and what it declines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphopt.ir as graph_ir
from graphopt.analysis.execution import Session
from graphopt.analysis.samples import Samples, probe_samples
from graphopt.errors import UsageError
from graphopt.ir.reading import constant
from graphopt.passes.quantize.smooth_quant import SmoothQuant
from graphopt.pipeline.base import PassContext
from tests.passes.harness import Outcome, check, parse

Array = np.ndarray[Any, Any]
Golden = Callable[[str, Outcome], None]

HEAD = '<ir_version: 8, opset_import: ["" : 17]> '
FUSED = "n = LayerNormalization(x, g, b)"
DECOMPOSED = (
    "mu = ReduceMean<axes=[-1]>(x) d = Sub(x, mu) sq = Pow(d, two) var = ReduceMean<axes=[-1]>(sq) e = Add(var, eps)"
    " sd = Sqrt(e) q = Div(d, sd) m = Mul(q, g) n = Add(m, b)"
)
RMS = "sq = Pow(x, two) ms = ReduceMean<axes=[-1]>(sq) e = Add(ms, eps) sd = Sqrt(e) q = Div(x, sd) n = Mul(g, q)"
SCALARS = {"two": np.array(2, np.float32), "eps": np.array(1e-5, np.float32)}


def outliers(*shape: int, axis: int = -1, seed: int = 0) -> Array:
    """Random numbers; along `axis` each channel has a range of its own, and a few are thirty times as wide."""
    rng = np.random.default_rng(seed)
    spread = np.where(rng.random(shape[axis]) < 0.2, 30.0, 1.0) * 2.0 ** rng.uniform(-1, 1, shape[axis])
    ones = [1] * len(shape)
    ones[axis] = -1
    return (rng.normal(size=shape) * spread.reshape(ones)).astype(np.float32)


def model_of(body: str, width: int = 16, **weights: Array) -> ir.Model:
    """x [1,5,width] to y, with vectors g and b, and the scalars of norms where they are used."""
    words = body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    known = {"g": outliers(width, seed=1), "b": outliers(width, seed=2), **SCALARS} | weights
    used = {name: array for name, array in known.items() if name in words}
    return parse(HEAD + f"g (float[1,5,{width}] x) => (float[K,N,M] y) {{ {body} }}", **used)


def smoothed(model: ir.Model, *, changes: bool | None = True, alpha: float = 0.5) -> Outcome:
    return check(
        SmoothQuant(alpha=alpha), model, changes=changes, context=PassContext(calibration=probe_samples(model, 4, 5))
    )


def maxima(model: ir.Model, name: str) -> Array:
    """max |x| of each number of the last axis, over the samples that `smoothed` takes."""
    with Session(model, outputs=[name]) as session:
        return np.max([np.abs(session.run(feeds)[name]).max((0, 1)) for feeds in probe_samples(model, 4, 5)], axis=0)


def weight_before(model: ir.Model, output: str) -> Array:
    node = next(node for node in model.graph if node.outputs[0].name == output)
    array = constant(node.inputs[1])
    assert array is not None
    return array


def test_golden_end_of_a_norm(golden: Golden) -> None:
    model = parse(
        HEAD + "g (float[1,2,2] x) => (float[1,2,1] y) { r = Relu(x) n = Mul(r, g) y = MatMul(n, w) }",
        g=np.array([4, 1], np.float32), w=np.ones((2, 1), np.float32),
    )  # fmt: skip
    samples = Samples({"x": np.array([[[1, 0.5], [0.5, 1]]], np.float32)}, {"x": 1})
    golden("end_of_a_norm", check(SmoothQuant(), model, context=PassContext(calibration=samples)))


@pytest.mark.parametrize("alpha", [0.0, 0.4, 0.5, 1.0])
def test_scales_are_those_of_equation_4(alpha: float) -> None:
    """Ranges within an eighth of the largest, so that the formula is met to the letter."""
    w = (np.random.default_rng(0).uniform(0.5, 1, (16, 7)) * np.linspace(1, 2, 16)[:, None]).astype(np.float32)
    g = np.linspace(1, 3, 16).astype(np.float32)
    model = model_of(f"{FUSED} y = MatMul(n, w)", w=w, g=g, b=np.zeros(16, np.float32))
    graph_ir.refresh_shapes(model)
    x = maxima(model, "n")
    after = smoothed(model, alpha=alpha).after
    expected = x**alpha / np.abs(w).max(1) ** (1 - alpha)
    np.testing.assert_allclose(weight_before(after, "y") / w, np.broadcast_to(expected[:, None], w.shape), rtol=1e-3)


BLOCKS = {
    "fused norm": f"{FUSED} y = MatMul(n, w)",
    "decomposed norm": f"{DECOMPOSED} y = MatMul(n, w)",
    "rms norm": f"{RMS} y = MatMul(n, w)",
    "norm, transposed": f"{FUSED} t = Transpose<perm=[1,0,2]>(n) y = MatMul(t, w)",
    "bias": f"{FUSED} p = MatMul(n, w) y = Add(p, c)",
    "Gemm": f"{FUSED} f = Reshape(n, flat) z = Gemm<transB=1>(f, w_t, c) y = Unsqueeze(z, first)",
    "queries, keys, values": (
        f"{FUSED} q1 = MatMul(n, w) k1 = MatMul(n, w2) v1 = MatMul(n, w3) s = Add(q1, k1) y = Add(s, v1)"
    ),
    "linear before": "p = MatMul(x, wide) p1 = Add(p, b) r = Relu(p1) y = MatMul(r, w)",
    "SwiGLU": (
        "u = MatMul(x, wide) v1 = MatMul(x, wide2) s = Sigmoid(v1) h = Mul(v1, s) m1 = Mul(h, u) y = MatMul(m1, w)"
    ),
    "values through attention": (
        "v1 = MatMul(x, wide) h = Reshape(v1, heads) ht = Transpose<perm=[0,2,1,3]>(h) sc = MatMul(x, square)"
        " pr = Softmax(sc) pu = Unsqueeze(pr, second) o = MatMul(pu, ht) ot = Transpose<perm=[0,2,1,3]>(o)"
        " of = Reshape(ot, joined) y = MatMul(of, w)"
    ),
}
WEIGHTS = {
    "w": outliers(16, 7, axis=0, seed=3),
    "w_t": outliers(7, 16, axis=1, seed=3),
    "w2": outliers(16, 7, axis=0, seed=4),
    "w3": outliers(16, 7, axis=0, seed=5),
    "wide": outliers(16, 16, seed=6),
    "wide2": outliers(16, 16, seed=7) / 100,
    "square": outliers(16, 5, seed=8) / 100,
    "c": outliers(7, seed=9),
    "flat": np.array([5, 16]),
    "first": np.array([0]),
    "second": np.array([1]),
    "heads": np.array([1, 5, 4, 4]),
    "joined": np.array([1, 5, 16]),
}


@pytest.mark.parametrize("body", BLOCKS.values(), ids=BLOCKS)
def test_blocks_of_different_exporters_compute_the_same_and_lose_their_outliers(body: str) -> None:
    model = model_of(body, **WEIGHTS)
    outcome = smoothed(model)
    assert int(outcome.result.statistics["smoothed"]) >= 1
    if "n = " in body:
        before, after = maxima(model, "n"), maxima(outcome.after, "n")
        assert after.max() / np.median(after) < before.max() / np.median(before)


def test_all_readers_share_one_scale() -> None:
    after = smoothed(model_of(BLOCKS["queries, keys, values"], **WEIGHTS)).after
    ratios = [weight_before(after, name) / WEIGHTS[key] for name, key in (("q1", "w"), ("k1", "w2"), ("v1", "w3"))]
    np.testing.assert_allclose(ratios[0][:, 0], ratios[1][:, 0], rtol=1e-5)
    np.testing.assert_allclose(ratios[0][:, 0], ratios[2][:, 0], rtol=1e-5)


DECLINED = {
    "GELU": ("p = MatMul(x, wide) e = Erf(p) m1 = Mul(p, e) y = MatMul(m1, w)", "Erf 'erf_1' reads it as it is"),
    "an output of the graph": ("y = MatMul(x, wide) z = MatMul(y, w)", "'y' is an output of the graph"),
    "Softmax": ("s = Softmax(x) y = MatMul(s, w)", "Softmax 'softmax_0' before it has no scale to take"),
    "an input": ("y = MatMul(x, w)", "it reads an input of the graph, which has no scale to take"),
    "a residual": (
        "p = MatMul(x, wide) s = Add(p, x) y = MatMul(s, w)",
        "Add 'add_1' before it has no scale to take",
    ),
    "a shared weight": (f"{FUSED} p = MatMul(n, wide) y = MatMul(p, wide)", "its weight 'wide' is shared by 2 nodes"),
}


@pytest.mark.parametrize(("body", "reason"), DECLINED.values(), ids=DECLINED)
def test_declines_with_the_reason(body: str, reason: str) -> None:
    model = model_of(body, **WEIGHTS)
    assert reason in smoothed(model, changes=False).reasons().values()


def test_declines_without_samples() -> None:
    outcome = check(SmoothQuant(), model_of(BLOCKS["fused norm"], **WEIGHTS), changes=False)
    assert outcome.reasons() == {"matmul_1": "there is no calibration data, which the ranges of activations come from"}


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_alpha_is_a_share(alpha: float) -> None:
    with pytest.raises(UsageError, match="expected a number from 0 to 1"):
        SmoothQuant(alpha=alpha).run(model_of(BLOCKS["fused norm"], **WEIGHTS), PassContext())


def test_channels_of_zeros_stay_finite() -> None:
    weights = {name: array.copy() for name, array in WEIGHTS.items()}
    weights["w"][3], weights["g"], weights["b"] = 0, outliers(16, seed=1), outliers(16, seed=2)
    weights["g"][5] = weights["b"][5] = 0
    after = smoothed(model_of(BLOCKS["fused norm"], **weights)).after
    assert np.isfinite(weight_before(after, "y")).all() and not weight_before(after, "y")[3].any()


@given(
    st.lists(st.sampled_from(("norm", "rms", "linear", "relu", "gate", "residual")), min_size=1, max_size=6),
    st.sampled_from((1, 3, 7, 17)),
    st.sampled_from((0.3, 0.5, 0.8)),
)
@settings(deadline=None, max_examples=10)
def test_random_blocks_compute_the_same(kinds: list[str], width: int, alpha: float) -> None:
    body, weights = ["v0 = Identity(x)"], {"w": outliers(width, 3, axis=0), **SCALARS}
    for index, kind in enumerate(kinds):
        last, this = f"v{index}", f"v{index + 1}"
        vectors = {f"g{index}": outliers(width, seed=index), f"b{index}": outliers(width, seed=index + 20)}
        if kind == "norm":
            body.append(f"{this} = LayerNormalization({last}, g{index}, b{index})")
            weights |= vectors
        elif kind == "rms":
            body.append(f"q{index} = Mul({last}, {last}) a{index} = ReduceMean<axes=[-1]>(q{index})")
            body.append(f"e{index} = Add(a{index}, eps) r{index} = Sqrt(e{index}) d{index} = Div({last}, r{index})")
            body.append(f"{this} = Mul(d{index}, g{index})")
            weights |= {f"g{index}": vectors[f"g{index}"]}
        elif kind == "linear":
            body.append(f"m{index} = MatMul({last}, w{index}) {this} = Add(m{index}, b{index})")
            weights |= {f"w{index}": outliers(width, width, seed=index) / width, f"b{index}": vectors[f"b{index}"]}
        elif kind == "gate":
            body.append(f"s{index} = Sigmoid({last}) {this} = Mul(s{index}, {last})")
        else:
            body.append(f"{this} = Relu({last})" if kind == "relu" else f"{this} = Add({last}, v{index // 2})")
    body.append(f"y = MatMul(v{len(kinds)}, w)")
    smoothed(model_of(" ".join(body), width, **weights), changes=None, alpha=alpha)
