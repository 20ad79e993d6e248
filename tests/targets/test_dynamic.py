"""DynamicQuantizeLinear, MatMulInteger and ConvInteger: compiled, they give what ONNX Runtime gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

import graphopt.ir as graph_ir
from graphopt import optimize, verify
from graphopt.analysis.samples import probe_samples
from graphopt.deploy.bundle import open_bundle
from graphopt.deploy.toolchain import build_program, launcher, run_program
from graphopt.deploy.verify import ROUNDED_TOLERANCE
from graphopt.passes.quantize.quantize_dynamic import Per, QuantizeDynamic
from graphopt.pipeline.base import PassContext
from graphopt.targets.arm.cores import CORES
from graphopt.targets.tvm.preparation import prepare
from tests.passes.harness import outputs, parse
from tests.targets import compiled
from tests.targets.single_node import assert_as_onnxruntime

RANDOM = np.random.default_rng(0)
RANGES = {
    "both signs": lambda: RANDOM.standard_normal((3, 37)),
    "negative": lambda: -np.abs(RANDOM.standard_normal((2, 5, 7))),
    "positive": lambda: np.abs(RANDOM.standard_normal(16)) + 3,
    "zeros": lambda: np.zeros((3, 7)),
    "one": lambda: np.full((1,), -0.3),
    "ties": lambda: np.arange(-255, 256) / 2,
}


@pytest.mark.parametrize("case", RANGES)
def test_dynamic_quantize(case: str) -> None:
    assert_as_onnxruntime("DynamicQuantizeLinear", {"x": RANGES[case]().astype(np.float32)}, outputs=3)


ZERO_POINTS: dict[str, dict[str, Any]] = {
    "kernel, uint8 by uint8": {"az": np.array(9, np.uint8), "bz": np.array(128, np.uint8)},
    "kernel, zero points of columns": {"az": np.array([9], np.uint8), "bz": np.full(17, 128, np.uint8)},
    "weights that leave int8": {"az": np.array(9, np.uint8), "bz": np.array(3, np.uint8)},
}


@pytest.mark.parametrize("depth", [1, 37])
@pytest.mark.parametrize("case", ZERO_POINTS)
def test_matmul_integer(case: str, depth: int) -> None:
    a, b = RANDOM.integers(0, 256, (3, depth), np.uint8), RANDOM.integers(0, 256, (depth, 17), np.uint8)
    assert_as_onnxruntime("MatMulInteger", {"a": a, "b": b, **ZERO_POINTS[case]}, ["b", "bz"])


def test_matmul_integer_of_int8_and_of_two_activations() -> None:
    a, b = RANDOM.integers(-128, 128, (2, 3, 20), np.int8), RANDOM.integers(-128, 128, (20, 5), np.int8)
    assert_as_onnxruntime("MatMulInteger", {"a": a, "b": b}, ["b"])
    assert_as_onnxruntime("MatMulInteger", {"a": a, "b": b})


FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "padded": {"pads": [1, 0, 1, 2]},
    "depthwise": {"group": 6, "strides": [2, 2]},
    "grouped": {"group": 3, "dilations": [2, 1]},
    "same": {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
}


@pytest.mark.parametrize("form", FORMS)
def test_conv_integer(form: str) -> None:
    groups = FORMS[form].get("group", 1)
    x, w = RANDOM.integers(0, 256, (2, 6, 9, 7), np.uint8), RANDOM.integers(0, 256, (12, 6 // groups, 3, 3), np.uint8)
    zero_points = {"xz": np.array(7, np.uint8), "wz": np.array(100, np.uint8)}
    assert_as_onnxruntime("ConvInteger", {"x": x, "w": w, **zero_points}, ["w", "wz"], **FORMS[form])


def test_conv_integer_in_one_dimension_without_zero_points() -> None:
    x, w = RANDOM.integers(0, 256, (2, 3, 9), np.uint8), RANDOM.integers(0, 256, (5, 3, 3), np.uint8)
    assert_as_onnxruntime("ConvInteger", {"x": x, "w": w}, ["w"], pads=[1, 1])


def network(columns: int = 21) -> ir.Model:
    """Two products of one input, one with a bias, one with an activation; and one whose scale is shared out."""

    def matrix(*shape: int) -> np.ndarray:
        return RANDOM.standard_normal(shape).astype(np.float32)

    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[2,9,40] x) => (float[2,9,{columns}] y) {{
        a = MatMul(x, w)
        b = Add(a, bias)
        c = MatMul(x, v)
        d = Relu(c)
        y = Add(b, d)
    }}"""
    model = parse(text, w=matrix(40, columns), v=matrix(40, columns), bias=matrix(columns))
    graph_ir.refresh_shapes(model)
    return model


@pytest.mark.parametrize(("per", "columns"), [(Per.TENSOR, 3), (Per.TENSOR, 16), (Per.TENSOR, 21), (Per.ROW, 21)])
def test_a_network_that_the_pass_made(per: Per, columns: int) -> None:
    model = network(columns)
    QuantizeDynamic(per=per).run(model, PassContext())
    graph_ir.refresh_shapes(model)
    kernels = [node.op_type for node in prepare(model).graph]
    assert kernels.count("IntegerProduct") == 2 and "MatMulInteger" not in kernels
    if per is Per.TENSOR:  # bias and scale are computed on the sums, and nothing is uint8
        assert kernels.count("Add") == 1 and "Cast" in kernels and "DynamicQuantizeLinear" not in kernels
    feeds = {"x": np.random.default_rng(1).standard_normal((2, 9, 40)).astype(np.float32)}
    expected = outputs(model, feeds)["y"]
    np.testing.assert_allclose(compiled.run(model, feeds)["y"], expected, rtol=0, atol=1e-6 * np.ptp(expected))


def test_integers_that_are_outputs_stay_uint8() -> None:
    model = parse(
        """<ir_version: 8, opset_import: ["" : 17]> g (float[3,8] x) => (uint8[3,8] q, int32[3,5] y, float s) {
            q, s, z = DynamicQuantizeLinear(x)
            y = MatMulInteger(q, w, z)
        }""",
        w=RANDOM.integers(-127, 128, (8, 5), np.int8),
    )
    graph_ir.refresh_shapes(model)
    feeds = {"x": RANDOM.standard_normal((3, 8)).astype(np.float32)}
    found, weights = compiled.run(model, feeds), np.asarray(model.graph.initializers["w"].const_value)
    zero_point = int(np.rint(-feeds["x"].min() / found["s"]))
    np.testing.assert_array_equal(found["q"], outputs(model, feeds)["q"])
    np.testing.assert_array_equal(found["y"], (found["q"].astype(int) - zero_point) @ weights.astype(int))


def test_a_bundle_for_the_host_verifies(tmp_path: Path) -> None:
    result = optimize(network(), "host", out=tmp_path / "out", name="net", quantize="dynamic-int8", jobs=1)
    assert result.library.weight_bytes < 5000  # 1680 weights, which take 6720 bytes in float32
    assert verify(result.out, tolerance=1e-5).passed
    assert verify(result.out).tolerance == ROUNDED_TOLERANCE  # what deeper models need


def test_a_bundle_that_was_quantized_on_samples_may_differ_by_a_step(tmp_path: Path) -> None:
    model = network()
    result = optimize(model, "host", out=tmp_path / "out", name="net", calib=probe_samples(model, 0, 12), jobs=1)
    found = verify(result.out)
    assert found.passed and found.tolerance == ROUNDED_TOLERANCE


@pytest.mark.emulation
@pytest.mark.parametrize("target", ["cortex-a76", "cortex-a72", "armv7"])
def test_a_bundle_for_arm_verifies(target: str, tmp_path: Path) -> None:
    result = optimize(network(), target, out=tmp_path / "out", name="net", quantize="dynamic-int8", jobs=1)
    assert verify(result.out, tolerance=1e-5).passed


def test_three_multiply_adds_round_as_a_division() -> None:
    random = np.random.default_rng(0)
    ends = [1, 1.5, 1 + 2**-23, 2 - 2**-22]  # 2 - 2⁻²³, all ones, would fail
    for step in np.concatenate([random.uniform(1, 2, 200), ends]).astype(np.float32):
        ties = (np.arange(-255, 256, dtype=np.float32) + np.float32(0.5)) * step  # next to what rint decides
        near = [np.nextafter(ties, np.float32(end)) for end in (-np.inf, np.inf)]
        x = np.concatenate([ties, *near, random.uniform(-255, 255, 2000).astype(np.float32) * step])
        reciprocal = np.float32(1) / step
        nearly = x * reciprocal
        # The product of two float32 is exact in float64, and so is its difference to x, which nearly cancels.
        rest = (x.astype(np.float64) - nearly.astype(np.float64) * np.float64(step)).astype(np.float32)
        wide = np.longdouble(nearly) + np.longdouble(rest) * np.longdouble(reciprocal)
        np.testing.assert_array_equal(wide.astype(np.float32), x / step)


@pytest.mark.emulation
@pytest.mark.parametrize("form", ["normal", "tiny", "huge", "all ones"])
def test_arm_quantizes_to_the_bits_of_the_host(form: str, tmp_path: Path) -> None:
    x = np.random.default_rng(0).uniform(0, 1, 1000).astype(np.float32)
    x *= np.float32({"tiny": 1e-33, "huge": 1e33}.get(form, 1))
    if form == "all ones":
        step = np.nextafter(np.float32(2), np.float32(1))
        x = np.resize(np.concatenate([np.arange(256), np.arange(255) + 0.5]).astype(np.float32) * step, 1000)
        assert x.max() / np.float32(255) == step
    nodes = [helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"])]
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1000])]
    outputs = [helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None) for name in "yz"]
    outputs.insert(1, helper.make_tensor_value_info("s", onnx.TensorProto.FLOAT, None))
    proto = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs), ir_version=9)
    model = graph_ir.load(onnx.shape_inference.infer_shapes(proto))
    expected = compiled.run(model, {"x": x})
    target = next(core for core in CORES if core.name == "cortex-a76")
    optimize(model, target=target.name, out=tmp_path / "made", name="net", jobs=1)
    bundle = open_bundle(tmp_path / "made")
    build_program(bundle.example, target, bundle.include, bundle.static, tmp_path / "example")
    (tmp_path / "x").write_bytes(x.tobytes())
    run_program((*launcher(target), str(tmp_path / "example"), "-o", str(tmp_path), str(tmp_path / "x")))
    for i, spec in enumerate(bundle.outputs):
        assert (tmp_path / f"output_{i}.bin").read_bytes() == expected[spec.name].tobytes()
