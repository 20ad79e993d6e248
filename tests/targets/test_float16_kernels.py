"""The kernels in float16: against ONNX Runtime's float32 within its rounding, within their buffers, and on ARM."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import graphopt
from graphopt import ir as graph_ir
from graphopt.passes.quantize.compute_float16 import ComputeFloat16
from graphopt.targets.host import HOST
from graphopt.targets.tvm.kernels import depthwise, direct_convolution, register_tile
from tests.passes.harness import parse
from tests.passes.harness import run as run_pass
from tests.targets.accesses import out_of_bounds
from tests.targets.compiled import lowered, run
from tests.targets.convolutions import Layer

EPSILON = 2.0**-11  # of a number, at most


def halved(model: ir.Model) -> ir.Model:
    """`model` with its products in float16."""
    assert run_pass(ComputeFloat16(), model).changed
    return model


def layer_in_float16(layer: Layer) -> ir.Model:
    return halved(layer.loaded())


def assert_computes(layer: Layer) -> None:
    """No element is off by more than the roundings of its sum, and the mean by no more than their random walk."""
    feeds = layer.feeds()
    expected = onnxruntime.InferenceSession(layer.model().SerializeToString()).run(None, feeds)[0]
    found = run(layer_in_float16(layer), feeds)["y"]
    assert found.dtype == np.float32 and found.shape == expected.shape
    largest = 1 + np.sqrt(layer.depth)  # that a partial sum comes to
    np.testing.assert_allclose(found, expected, rtol=0, atol=(layer.depth + 8) * EPSILON * largest)
    assert np.abs(found - expected).mean() < 2 * EPSILON * (1 + layer.depth**0.5)


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    """Layers of the direct, the depthwise and the 1×1 kernel, with odd sizes."""
    kind = draw(st.sampled_from(["dense", "grouped", "depthwise", "pointwise"]))
    channels = draw(st.sampled_from([1, 3, 5, 7, 17]))
    groups = {"dense": 1, "pointwise": 1, "grouped": channels, "depthwise": channels}[kind]
    kernel = (1, 1) if kind == "pointwise" else draw(st.sampled_from([(3, 3), (5, 5), (1, 3), (2, 2)]))
    layer = Layer(
        channels=channels,
        filters=groups * draw(st.sampled_from([1, 2] if kind != "dense" else [1, 5, 8, 17])),
        image=draw(st.tuples(*[st.sampled_from([1, 5, 7, 8, 9, 14, 17, 31])] * 2)),
        kernel=kernel,
        strides=draw(st.sampled_from([(1, 1), (2, 2), (2, 1)])) if kernel != (1, 1) else (1, 1),
        pads=draw(st.tuples(*[st.integers(0, 2)] * 4)) if kernel != (1, 1) else (0, 0, 0, 0),
        dilations=draw(st.sampled_from([(1, 1), (2, 1)])) if kind == "dense" else (1, 1),
        groups=groups,
        batch=draw(st.sampled_from([1, 2])),
        residual=draw(st.booleans()),
    )
    assume(min(layer.result) > 0)
    return layer


@settings(max_examples=12, deadline=None)
@given(layer=layers())
def test_computes_what_onnx_runtime_does(layer: Layer) -> None:
    assert_computes(layer)


KERNELS = [
    (Layer(17, 9, (7, 9)), direct_convolution),
    (Layer(8, 16, (17, 17), strides=(2, 2)), direct_convolution),
    (Layer(5, 5, (9, 31), groups=5), depthwise),
    (Layer(5, 5, (7, 7), groups=5, strides=(2, 2), residual=True), depthwise),
    (Layer(17, 24, (7, 7), kernel=(1, 1), pads=(0, 0, 0, 0)), register_tile),
    (Layer(17, 24, (1, 1), kernel=(1, 1), pads=(0, 0, 0, 0)), register_tile),
]


@pytest.mark.parametrize(("layer", "kernel"), KERNELS)
def test_the_kernels_take_float16_and_stay_in_their_buffers(layer: Layer, kernel: object) -> None:
    functions = lowered(layer_in_float16(layer)).functions.values()
    taken = [made for function in functions if (made := kernel.schedule(function, HOST)) is not None]  # type: ignore[attr-defined]
    assert taken and "float16" in taken[0].script()
    assert all(out_of_bounds(made) == [] for made in taken)
    assert_computes(layer)


PRODUCTS = """<ir_version: 8, opset_import: ["" : 17]>
    net (float[2,5,17] x, float[2,17,7] z) => (float[2,5,31] y, float[2,5,7] s, float[10,3] g) {
        y = MatMul(x, w)
        s = MatMul(x, z)
        f = Reshape(x, shape)
        g = Gemm<transB = 1>(f, v, b)
    }"""


def products() -> ir.Model:
    rng = np.random.default_rng(0)
    sizes = {"w": (17, 31), "v": (3, 17), "b": (3,)}
    weights = {name: rng.uniform(-1, 1, size).astype(np.float32) for name, size in sizes.items()}
    model = parse(PRODUCTS, shape=np.array([10, 17]), **weights)
    graph_ir.refresh_shapes(model)
    return model


def test_products_of_matrices_agree_with_onnx_runtime() -> None:
    rng = np.random.default_rng(1)
    shapes = {"x": (2, 5, 17), "z": (2, 17, 7)}
    feeds = {name: rng.uniform(-1, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    proto = ir.to_proto(products()).SerializeToString()
    expected = onnxruntime.InferenceSession(proto).run(None, feeds)
    found = run(halved(products()), feeds)
    for name, array in zip(("y", "s", "g"), expected, strict=True):
        np.testing.assert_allclose(found[name], array, rtol=0, atol=17 * EPSILON * 2)


def network() -> ir.Model:
    """The kinds of layers one behind another, with a residual sum and a part that stays in float32."""
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    text = """<ir_version: 8, opset_import: ["" : 17]> net (float[1,3,33,31] x) => (float[1,7] y) {
        a = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(x, w1)
        r = Clip(a, low, high)
        d = Conv<group = 20, pads = [2, 2, 2, 2]>(r, w2)
        p = Conv(d, w3)
        s = Add(p, r)
        e = Conv<group = 20, strides = [2, 2], pads = [0, 0, 1, 1]>(s, w4)
        h = HardSwish(e)
        m = GlobalAveragePool(h)
        f = Flatten(m)
        g = MatMul(f, w5)
        y = Softmax(g)
    }"""
    return parse(
        text,
        low=np.float32(0),
        high=np.float32(6),
        w1=weight(20, 3, 3, 3),
        w2=weight(20, 1, 5, 5),
        w3=weight(20, 20, 1, 1),
        w4=weight(20, 1, 3, 3),
        w5=weight(20, 7),
    )


@pytest.mark.emulation
@pytest.mark.parametrize("target", ["cortex-a55", "cortex-a76", "neoverse-n2"])
def test_a_bundle_for_arm_agrees_with_float32(target: str, tmp_path: Path) -> None:
    result = graphopt.optimize(network(), target, out=tmp_path / "out", name="net", quantize="float16", jobs=1)
    assert graphopt.verify(result.out, tolerance=2e-3).passed
    float32 = graphopt.optimize(network(), target, out=tmp_path / "float32", name="net", jobs=1)
    assert result.library.weight_bytes < 0.6 * float32.library.weight_bytes


@pytest.mark.parametrize("kernel", [1, 3])
def test_long_sums_do_not_stand_still(kernel: int) -> None:
    """A float16 above 512 no longer grows by less than 0.25: 2560 such terms need blocks."""
    channels = 2560 // kernel**2
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        net (float[1,{channels},{kernel},{kernel}] x) => (float[1,5,1,1] y) {{ y = Conv<strides = [2, 2]>(x, w) }}"""
    rng = np.random.default_rng(0)
    model = parse(text, w=rng.uniform(0.22, 0.24, (5, channels, kernel, kernel)).astype(np.float32))
    graph_ir.refresh_shapes(model)
    feeds = {"x": rng.uniform(0.99, 1.01, (1, channels, kernel, kernel)).astype(np.float32)}
    expected = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, feeds)[0]
    found = run(halved(model), feeds)["y"]
    np.testing.assert_allclose(found, expected, rtol=2e-2)
