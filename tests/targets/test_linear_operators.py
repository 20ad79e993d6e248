"""QLinearConv, QLinearMatMul and ONNX Runtime's own operators on integers: compiled, they give what it gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import graphopt.ir as graph_ir
from graphopt import optimize, verify
from graphopt.targets.tvm.importer import unsupported
from graphopt.targets.tvm.preparation import prepare
from graphopt.targets.tvm.quantized.editor import DOMAIN
from tests.passes.harness import outputs, parse
from tests.passes.quantize.test_quantized_input import SAMPLES, by_static, float_model
from tests.targets import compiled
from tests.targets.single_node import assert_as_onnxruntime, model_of

RANDOM = np.random.default_rng(0)
PARAMETERS = ["sx", "zx", "sw", "zw", "sy", "zy"]
CONSTANT: dict[str, list[str]] = {  # what of an operator is known at compile time
    "all but the input": [*PARAMETERS, "w", "b"],
    "parameters": PARAMETERS,
    "nothing": [],
}


def of_scale(kind: Any, scale: Any, zero_point: Any) -> tuple[Any, Any]:
    return np.array(scale, np.float32), np.array(zero_point, kind)


def convolution(kind: Any, *, biased: bool = True) -> dict[str, Any]:
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    x, w = RANDOM.integers(low, high + 1, (2, 3, 7, 6), kind), RANDOM.integers(-63, 64, (5, 3, 3, 3), np.int8)
    (sx, zx), (sy, zy) = of_scale(kind, 0.031, (low + high) // 2 + 9), of_scale(kind, 0.37, (low + high) // 2 - 4)
    sw, zw = of_scale(np.int8, RANDOM.uniform(0.001, 0.02, 5), np.zeros(5))
    made = {"x": x, "sx": sx, "zx": zx, "w": w, "sw": sw, "zw": zw, "sy": sy, "zy": zy}
    return made | {"b": RANDOM.integers(-9000, 9000, 5, np.int32)} if biased else made


@pytest.mark.parametrize("kind", [np.uint8, np.int8])
@pytest.mark.parametrize("known", CONSTANT)
def test_convolution(known: str, kind: Any) -> None:
    inputs = convolution(kind)
    assert_as_onnxruntime("QLinearConv", inputs, CONSTANT[known], pads=[1, 0, 1, 2], strides=[2, 1])


def test_convolution_without_bias_by_one_scale() -> None:
    inputs = convolution(np.uint8, biased=False) | dict(zip(("sw", "zw"), of_scale(np.int8, 0.01, 0), strict=True))
    assert_as_onnxruntime("QLinearConv", inputs, CONSTANT["all but the input"])


@pytest.mark.parametrize("known", CONSTANT)
def test_matrix_product(known: str) -> None:
    a, b = RANDOM.integers(0, 256, (2, 4, 19), np.uint8), RANDOM.integers(-63, 64, (19, 6), np.int8)
    (sx, zx), (sy, zy) = of_scale(np.uint8, [0.04], [131]), of_scale(np.uint8, 0.21, 120)
    sw, zw = of_scale(np.int8, RANDOM.uniform(0.001, 0.02, 6), np.zeros(6))
    inputs = {"a": a, "sx": sx, "zx": zx, "w": b, "sw": sw, "zw": zw, "sy": sy, "zy": zy}
    assert_as_onnxruntime("QLinearMatMul", inputs, CONSTANT[known])


@pytest.mark.parametrize("known", ["all but the input", "nothing"])
def test_rows_have_scales_of_their_own(known: str) -> None:
    """ONNX Runtime takes one for all rows only: the definition in numpy."""
    a, b = RANDOM.integers(-128, 128, (4, 9), np.int8), RANDOM.integers(-127, 128, (9, 3), np.int8)
    (sx, zx), (sy, zy) = of_scale(np.int8, [0.01, 0.02, 0.04, 0.03], [3, -5, 0, 7]), of_scale(np.int8, 0.11, -3)
    sw, zw = of_scale(np.int8, [0.02, 0.01, 0.005], np.zeros(3))
    inputs = {"a": a, "sx": sx, "zx": zx, "w": b, "sw": sw, "zw": zw, "sy": sy, "zy": zy}
    proto = model_of("QLinearMatMul", inputs, CONSTANT[known])
    feeds = {name: array for name, array in inputs.items() if name not in CONSTANT[known]}
    sums = (a.astype(np.int64) - zx[:, None]) @ b.astype(np.int64)
    expected = np.clip(np.rint(sums.astype(np.float32) * (sx[:, None] * sw / sy)) + zy, -128, 127).astype(np.int8)
    np.testing.assert_array_equal(compiled.run(graph_ir.load(proto), feeds)["y0"], expected)


def test_scales_of_blocks_are_refused_by_name() -> None:
    model = parse(
        '<ir_version: 9, opset_import: ["" : 21]>'
        "g (uint8[2,4] a, float[2,1] s, uint8[2,1] z, float t, uint8 u) => (uint8[2,3] y) {"
        " [product] y = QLinearMatMul(a, s, z, w, t, u, t, u) }",
        w=np.ones((4, 3), np.uint8),
    )
    (operator, name, reason), *others = unsupported(prepare(model))
    assert (operator, name) == ("QLinearMatMul", "product") and "more than one dimension" in reason and not others


FORMS = ("QOperator", "QDQ")


@pytest.fixture(scope="module", params=["signed, per channel", "unsigned, per tensor"])
def quantized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model in both forms, as ONNX Runtime's quantizer makes them: with the same scales and weights."""
    signed = request.param.startswith("signed")
    folder = tmp_path_factory.mktemp("linear")
    graph_ir.save(float_model(), folder / "float.onnx")
    for form in FORMS:
        by_static(form, per_channel=signed, signed=signed)(folder / "float.onnx", folder / f"{form}.onnx")
    return {form: folder / f"{form}.onnx" for form in FORMS}


def test_both_forms_of_a_model_come_to_the_same_kernels(quantized: dict[str, Path]) -> None:
    """The reference is the form of pairs: on unsigned integers ONNX Runtime's operators saturate sums in 16 bits
    on processors without dot products, and are off by a fifth of the range here."""
    loaded = {form: graph_ir.load(path) for form, path in quantized.items()}
    for model in loaded.values():
        graph_ir.bind_shapes(model, {})
    made = {form: prepare(model) for form, model in loaded.items()}
    assert not unsupported(made["QOperator"])
    kernels = {
        form: sorted(node.op_type for node in model.graph if node.domain == DOMAIN) for form, model in made.items()
    }
    assert kernels["QOperator"].count("IntegerProduct") == kernels["QDQ"].count("IntegerProduct") == 4
    feed = {"x": SAMPLES[0]["x"]}
    (expected,), (found,) = outputs(loaded["QDQ"], feed).values(), compiled.run(loaded["QOperator"], feed).values()
    step = float(np.abs(expected).max()) / 255  # at least the last scale
    np.testing.assert_allclose(found, expected, rtol=0, atol=1.5 * step)


def test_a_bundle_of_operators_on_integers_verifies(tmp_path: Path) -> None:
    graph_ir.save(float_model(), tmp_path / "float.onnx")
    by_static("QOperator", per_channel=True, signed=True)(tmp_path / "float.onnx", tmp_path / "model.onnx")
    optimize(tmp_path / "model.onnx", target="host", out=tmp_path / "bundle")
    assert verify(tmp_path / "bundle").passed


def test_operators_of_the_other_domain_are_floats_between_conversions() -> None:
    """Each on its own; ONNX Runtime rounds tables and sums of its own way, which moves a few results by one step."""
    model = parse(
        '<ir_version: 9, opset_import: ["" : 17, "com.microsoft" : 1]>'
        "g (uint8[2,4,6,6] x) => (uint8[2,4,6,6] a, uint8[2,4,6,6] b, uint8[2,4,6,6] c, uint8[2,4,6,6] d,"
        " uint8[2,4,3,3] e, uint8[2,8,6,6] f, uint8[2,4,1,1] g, uint8[2,4,6,6] h) {"
        " a = com.microsoft.QLinearLeakyRelu<alpha=0.2>(x, s, z, s, z)"
        " b = com.microsoft.QLinearSigmoid(x, s, z, t, u)"
        " c = com.microsoft.QLinearMul(x, s, z, x, t, u, s, z)"
        " d = com.microsoft.QLinearAdd(x, s, z, x, t, u, v, z)"
        " e = com.microsoft.QLinearAveragePool<kernel_shape=[2,2], strides=[2,2]>(x, s, z, v, z)"
        " f = com.microsoft.QLinearConcat<axis=1>(v, z, x, s, z, x, v, z)"
        " g = com.microsoft.QLinearGlobalAveragePool(x, s, z, t, z)"
        " i = com.microsoft.DequantizeLinear(x, s, z) h = com.microsoft.QuantizeLinear(i, v, z) }",
        s=np.float32(0.05),
        t=np.float32(1 / 256),
        v=np.float32(0.071),
        z=np.uint8(120),
        u=np.uint8(0),
    )
    feed = {"x": RANDOM.integers(0, 256, (2, 4, 6, 6), np.uint8)}
    expected = outputs(model, feed)
    for name, found in compiled.run(model, feed).items():
        difference = np.abs(found.astype(int) - expected[name].astype(int))
        assert found.dtype == expected[name].dtype
        assert difference.max() <= 1 and np.mean(difference > 0) < 0.03, name


def test_other_models_stay_as_they_are() -> None:
    from graphopt.targets.tvm.quantized.linear_operators import rewrite_linear_operators

    model: ir.Model = parse('<ir_version: 9, opset_import: ["" : 17]> g (float[3] x) => (float[3] y) { y = Relu(x) }')
    assert rewrite_linear_operators(model) is model
