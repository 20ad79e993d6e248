"""float16 storage: what becomes float16 with a Cast behind it, what is left alone, and how small libraries get."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import graphopt.ir as graph_ir
from graphopt import optimize, verify
from graphopt.errors import UsageError
from graphopt.passes.quantize.convert_float16 import ConvertFloat16
from graphopt.pipeline.base import PassContext
from graphopt.targets.arm.cores import CORES
from tests.passes.harness import Outcome, check, outputs, parse, run


def matrix(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).standard_normal(shape).astype(np.float32)


def network(opset: int = 17) -> ir.Model:
    text = f"""<ir_version: 8, opset_import: ["" : {opset}]> g (float[3,20] x, int64[2] i)
        => (float[3,9] y, float[2,20] e) {{
        a = MatMul(x, w)
        y = Gemm<transB = 1>(a, v, b)
        e = Gather(w, i)
    }}"""
    model = parse(text, w=matrix(20, 20), v=matrix(9, 20), b=matrix(9))
    graph_ir.refresh_shapes(model)
    return model


FEEDS = {"x": matrix(3, 20), "i": np.array([19, -20])}


def test_golden(golden: Callable[[str, Outcome], None]) -> None:
    outcome = check(ConvertFloat16(smallest=100), network(), feeds=FEEDS, relative=1e-3)
    assert outcome.result.statistics["converted-weights"] == 2  # and not the bias
    golden("weights", outcome)


@pytest.mark.parametrize("opset", [8, 13, 21])
def test_onnxruntime_computes_with_the_rounded_weights(opset: int) -> None:
    before, after = network(opset), network(opset)
    run(ConvertFloat16(smallest=0), after)
    for value in before.graph.initializers.values():
        array = np.asarray(value.const_value)
        value.const_value = ir.Tensor(array.astype(np.float16).astype(np.float32), name=value.name)
    expected, found = outputs(before, FEEDS), outputs(after, FEEDS)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


DECLINED = {
    "it holds 7e+04, and float16 ends at 65504": ("y = Add(x, c)", {"c": np.full(3, 7e4, np.float32)}),
    "it holds NaN or infinity": ("y = Add(x, c)", {"c": np.full(3, np.inf, np.float32)}),
    "it is excluded by 'c*'": ("y = Add(x, c)", {"c": matrix(3)}),
    "it is an output of the model": ("z = Add(x, y)", {"y": matrix(3)}),
}


@pytest.mark.filterwarnings("ignore:.*NaN or infinite")
@pytest.mark.parametrize("reason", DECLINED)
def test_what_it_leaves_alone_it_says_why(reason: str) -> None:
    body, weights = DECLINED[reason]
    result_names = "float[3] y" if "y =" in body else "float[3] z, float[3] y"
    head = '<ir_version: 8, opset_import: ["" : 17]>'
    model = parse(f"{head} g (float[3] x) => ({result_names}) {{ {body} }}", **weights)
    result = run(ConvertFloat16(smallest=0, exclude=("c*",) if "excluded" in reason else ()), model)
    assert not result.changed and [declined.reason for declined in result.declined] == [reason]


def test_a_target_without_the_scheme_refuses_it() -> None:
    target = dataclasses.replace(CORES[0], quantization=("int8",))
    with pytest.raises(UsageError, match="does not serve the scheme 'weights-float16'"):
        run(ConvertFloat16(), network(), PassContext(target=target))


def small(rows: int = 3) -> ir.Model:
    text = f"""<ir_version: 8, opset_import: ["" : 17]> g (float[{rows},70] x, int64[2] i)
        => (float[{rows},48] y, float[2,70] e) {{
            h = MatMul(x, w)
            y = Relu(h)
            e = Gather(t, i)
    }}"""
    return parse(text, w=matrix(70, 48), t=matrix(30, 70))


def test_a_bundle_for_the_host_keeps_the_weights_small(tmp_path: Path) -> None:
    result = optimize(small(), "host", out=tmp_path / "out", name="net", quantize="weights-float16", jobs=1)
    assert result.library.weight_bytes < 0.55 * 4 * (70 * 48 + 30 * 70)
    assert verify(result.out).passed


@pytest.mark.emulation
@pytest.mark.parametrize("target", ["cortex-a53", "cortex-a76", "armv7"])
def test_a_bundle_for_arm_verifies(target: str, tmp_path: Path) -> None:
    result = optimize(small(), target, out=tmp_path / "out", name="net", quantize="weights-float16", jobs=1)
    assert result.library.weight_bytes < 0.55 * 4 * (70 * 48 + 30 * 70)
    assert verify(result.out).passed
