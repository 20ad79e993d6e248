"""Quantized Conv, Gemm and MatMul: the integer path is bit-exact with its definition, and within a step of ORT."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from graphopt import ir as gir
from graphopt.analysis.execution import Session
from graphopt.targets.tvm.preparation import prepare
from graphopt.targets.tvm.quantized import conversion
from graphopt.targets.tvm.quantized.rewrite import LEFT_IN_FLOAT
from tests.passes.harness import parse
from tests.targets import compiled
from tests.targets.quantized_models import Activation, convolution_sums, layer_model
from tests.targets.random_layers import Layer, activations, convolutions, matrix_products, quantized, values

FEW = settings(  # each compiles a model: no shrinking
    max_examples=8, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)


def check(model: Any, x: np.ndarray, expected: np.ndarray) -> None:
    """The compiled model is bit-exact, has no layer in float, and differs from ONNX Runtime by a step at most."""
    prepared = prepare(model)
    assert prepared.meta[LEFT_IN_FLOAT] == []
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in prepared.graph}
    found = compiled.run(model, {"x": x})["y"]
    np.testing.assert_array_equal(found, expected)
    reference = Session(model).run({"x": x})["y"]
    assert np.abs(found.astype(int) - reference.astype(int)).max(initial=0) <= 1


@FEW
@given(convolutions())
def test_convolutions_are_bit_exact(layer: Layer) -> None:
    check(layer.model, layer.x, layer.y)


@pytest.mark.parametrize("channels", [3, 4, 8, 9, 17, 28])
def test_weights_packed_by_eight_give_the_bits_of_those_packed_by_four(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(channels)
    qx, qy = Activation(np.int8, 0.05, 3), Activation(np.int8, 0.5, -7)
    x = values(random, np.int8, (1, channels, 5, 7), False)
    weights = values(random, np.int8, (21, channels, 3, 3), False)
    model = layer_model(
        "Conv", x, qx, weights, random.uniform(0.001, 0.01, 21).astype(np.float32), None, qy, weight_axis=0,
        pads=(1, 0, 0, 1),
    )  # fmt: skip
    by_four = compiled.run(model, {"x": x})["y"]
    assert len(np.unique(by_four)) > 5
    monkeypatch.setattr(conversion, "takes_octets", lambda target: True)
    np.testing.assert_array_equal(compiled.run(model, {"x": x})["y"], by_four)


@FEW
@given(matrix_products())
def test_matrix_products_are_bit_exact(layer: Layer) -> None:
    check(layer.model, layer.x, layer.y)


@FEW
@given(data=st.data())
def test_products_whose_result_stays_in_float_keep_their_sums(data: Any) -> None:
    draw = data.draw
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    operator = draw(st.sampled_from(["Conv", "Gemm", "MatMul"]))
    depth, columns = draw(st.integers(1, 37)), draw(st.integers(1, 37))
    qx, extreme = draw(activations(0.05)), draw(st.booleans())
    attributes, shape, after, bias = "", (3, depth), f"3,{columns}", ", b"
    weights = values(random, np.int8, (depth, columns), extreme)
    if operator == "Conv":
        kernel, shape = tuple(draw(st.integers(1, 3)) for _ in range(2)), (2, depth, 5, 6)
        pads = [draw(st.integers(0, 2)) for _ in range(4)]
        attributes, weights = f"<pads = {pads}>", values(random, np.int8, (columns, depth, *kernel), extreme)
        height, width = (5 + pads[0] + pads[2] - kernel[0] + 1, 6 + pads[1] + pads[3] - kernel[1] + 1)
        after = f"2,{columns},{height},{width}"
    elif operator == "MatMul":
        bias = ""
    x = values(random, qx.dtype, shape, extreme)
    kind = "int8" if qx.dtype == np.int8 else "uint8"
    model = parse(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g ({kind}[{",".join(map(str, shape))}] x) => (float[{after}] y, {kind}[{after}] q) {{
            f = DequantizeLinear(x, s, z) w = DequantizeLinear <axis = {0 if operator == "Conv" else 1}> (i, t)
            p = {operator} {attributes} (f, w{bias}) y = Relu(p) q = QuantizeLinear(y, s, z) }}""",
        s=np.float32(qx.scale), z=np.array(qx.zero_point, qx.dtype), i=weights,
        t=random.uniform(0.001, 0.01, columns).astype(np.float32),
        b=random.standard_normal(columns).astype(np.float32),
    )  # fmt: skip
    gir.refresh_shapes(model)
    prepared = prepare(model)
    assert prepared.meta[LEFT_IN_FLOAT] == [] and "IntegerProduct" in {node.op_type for node in prepared.graph}
    expected = Session(model).run({"x": x})["y"]
    found = compiled.run(model, {"x": x})["y"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(float(np.ptp(expected)), 1e-3))


@pytest.mark.parametrize(("more", "lifted"), [(0, True), (1, False)])
def test_sums_are_lifted_up_to_the_largest_that_a_float32_holds(more: int, lifted: bool) -> None:
    x = np.arange(-128, 128).astype(np.int8).reshape(-1, 1)
    qx, qy, weight_scale = Activation(np.int8, 0.5, 0), Activation(np.int8, 4.0, -7), np.array([0.001], np.float32)
    weights = np.array([[127]], np.int8)
    bias = np.array([2**22 - 1 - 128 * 127 + more], np.int32)
    model = layer_model("Gemm", x, qx, weights, weight_scale, bias, qy, weight_axis=1)
    (kernel,) = (node.attributes["kernel"].as_string() for node in prepare(model).graph if "kernel" in node.attributes)
    assert json.loads(kernel)[1]["lifted"] is lifted
    sums = x.astype(np.int64) @ weights.astype(np.int64) + bias
    check(model, x, quantized(sums, qx, weight_scale, qy, None))


@pytest.mark.parametrize(
    ("operator", "shape", "weights", "attributes", "reason"),
    [
        ("Conv", (1, 2, 3, 3, 3), (2, 2, 1, 1, 1), {}, "it has 3 spatial dimensions"),
        ("Gemm", (3, 4), (4, 5), {"alpha": 0.5}, "it has alpha, beta or a transposed left factor"),
    ],
)
def test_what_has_no_kernel_stays_in_float_with_the_reason(
    operator: str, shape: tuple[int, ...], weights: tuple[int, ...], attributes: dict[str, Any], reason: str
) -> None:
    random = np.random.default_rng(0)
    q = Activation(np.int8, 0.1, 3)
    x, w = values(random, np.int8, shape, False), values(random, np.int8, weights, False)
    model = layer_model(operator, x, q, w, np.array(0.01, np.float32), None, q, weight_axis=0, **attributes)
    before = gir.fingerprint(model)
    prepared = prepare(model)
    (left,) = prepared.meta[LEFT_IN_FLOAT]
    assert left.name == "layer" and left.reason.startswith(reason)
    assert [node.op_type for node in prepared.graph] == [node.op_type for node in model.graph]
    assert gir.fingerprint(model) == before


@pytest.mark.parametrize(
    ("inputs", "outputs", "group", "kernel"),
    [(6, 4, 2, (1, 1)), (12, 51, 3, (3, 3)), (40, 80, 5, (1, 3)), (3, 9, 3, (2, 2))],
)
def test_grouped_convolutions_are_bit_exact(inputs: int, outputs: int, group: int, kernel: tuple[int, int]) -> None:
    random = np.random.default_rng(group)
    qx, qy = Activation(np.uint8, 0.05, 77), Activation(np.int8, 0.4, -9)
    x = values(random, np.uint8, (2, inputs, 7, 5), True)
    weights = values(random, np.int8, (outputs, inputs // group, *kernel), True)
    scale = random.uniform(0.001, 0.01, outputs).astype(np.float32)
    bias = random.integers(-5000, 5000, outputs, np.int32)
    strides, pads, dilations = (2, 1), (1, 0, 2, 1), (1, 2)
    model = layer_model(
        "Conv", x, qx, weights, scale, bias, qy, weight_axis=0, group=group, strides=strides, pads=pads,
        dilations=dilations,
    )  # fmt: skip
    sums = convolution_sums(x, weights, qx.zero_point, strides, pads, dilations, group) + bias
    check(model, x, np.moveaxis(quantized(sums, qx, scale, qy, None), -1, 1))
