"""int16 activations beside int8 weights: symmetric, biases in float, far closer to the float model than int8."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import graphopt.ir as graph_ir
from graphopt import optimize, verify
from graphopt.analysis.comparison import compare_runs
from graphopt.analysis.samples import probe_samples
from graphopt.errors import UsageError
from graphopt.passes.quantize.arithmetic import activation_parameters
from graphopt.passes.quantize.quantize import Quantize
from graphopt.passes.quantize.schemes import Scheme
from graphopt.pipeline.base import PassContext, PassResult
from graphopt.targets.arm.cores import CORES
from tests.passes.harness import Outcome, outputs, parse, run

SIXTEEN = Quantize(scheme=Scheme.INT16X8)


def weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).normal(size=shape).astype(np.float32)


def network(opset: int = 17) -> ir.Model:
    text = f"""<ir_version: 10, opset_import: ["" : {opset}]> g (float[1,3,8,8] x) => (float[1,5] y) {{
        a = Conv<pads = [1, 1, 1, 1]>(x, w, b)
        c = Relu(a)
        d = Sigmoid(a)
        e = Mul(c, d)
        f = Add(e, k)
        p = GlobalAveragePool(f)
        q = Flatten(p)
        y = Gemm(q, v, u)
    }}"""
    arrays = {"w": weight(4, 3, 3, 3), "b": weight(4), "k": weight(4, 1, 1), "v": weight(4, 5), "u": weight(5)}
    model = parse(text, **arrays)
    graph_ir.refresh_shapes(model)
    return model


def quantized(pass_: Quantize, opset: int = 17) -> tuple[ir.Model, ir.Model, PassResult]:
    before = network(opset)
    after = graph_ir.clone(before)
    result = run(pass_, after, PassContext(calibration=probe_samples(before, 0, 10)))
    again = graph_ir.clone(after)
    with pytest.warns(match="quantized already"):
        assert not run(pass_, again, PassContext(calibration=probe_samples(before, 0, 10))).changed
    return before, after, result


def test_golden(golden: Callable[[str, Outcome], None]) -> None:
    before, after, result = quantized(dataclasses.replace(SIXTEEN, correct_bias=False), 21)
    golden("int16x8", Outcome("quantize", before, after, result))


@pytest.mark.parametrize("opset", [11, 17, 21])
def test_it_is_written_in_an_opset_that_has_it(opset: int) -> None:
    _, after, _ = quantized(SIXTEEN, opset)
    assert after.opset_imports[""] == 21
    steps = [node for node in after.graph if node.op_type == "QuantizeLinear"]
    assert steps and {node.outputs[0].dtype for node in steps} == {ir.DataType.INT16}


def test_biases_stay_in_float_and_zero_points_are_0() -> None:
    _, after, _ = quantized(SIXTEEN)
    constants = after.graph.initializers.values()
    assert not any(value.dtype == ir.DataType.INT32 for value in constants)
    for node in after.graph:
        if node.op_type == "QuantizeLinear":
            assert not np.asarray(node.inputs[2].const_value).any()  # type: ignore[union-attr]
        if node.op_type in ("Conv", "Gemm"):
            assert node.inputs[2].is_initializer() and node.inputs[2].dtype == ir.DataType.FLOAT  # type: ignore[union-attr]


def test_it_is_closer_to_the_float_model_than_int8() -> None:
    found = []
    for pass_ in (Quantize(), SIXTEEN):
        before, after, _ = quantized(pass_)
        samples = list(probe_samples(before, 1, 4))
        (output,) = compare_runs(*([outputs(model, feeds) for feeds in samples] for model in (before, after)))
        found.append(output.sqnr_db)
    assert found[1] > found[0] + 5


def test_a_function_of_fixed_range_reaches_its_end() -> None:
    assert Scheme.INT16X8.fixed((0.0, 255 / 256)) == (0.0, 1.0) and Scheme.INT8.fixed((0.0, 255 / 256))[1] < 1
    parameters = activation_parameters(0.0, 1.0, dtype=Scheme.INT16X8.dtype)
    assert parameters.zero_point.dtype == np.int16 and float(parameters.scale) * 32767 == pytest.approx(1, rel=1e-6)


def test_a_target_without_the_scheme_refuses_it() -> None:
    target = dataclasses.replace(CORES[0], quantization=("int8",))
    with pytest.raises(UsageError, match="does not serve the scheme 'int16x8'"):
        run(SIXTEEN, network(), PassContext(target=target, calibration=probe_samples(network(), 0, 10)))


def test_a_bundle_computes_it_in_float_and_says_so(tmp_path: Path) -> None:
    samples = probe_samples(network(), 0, 10)
    result = optimize(network(), "host", out=tmp_path / "out", name="net", quantize="int16x8", calib=samples, jobs=1)
    reasons = {reason for layer in result.library.layers for reason in layer["in_float"].values()}
    assert "its result is quantized to INT16, not to 8 bits" in reasons
    assert verify(result.out).passed
