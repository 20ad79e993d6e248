"""float16 arithmetic: where a region begins and ends, what stays in float32 and why, and how close outputs stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings

import graphopt.ir as graph_ir
from graphopt.analysis.samples import Samples, probe_samples
from graphopt.errors import UsageError
from graphopt.passes.quantize.compute_float16 import ComputeFloat16
from graphopt.pipeline.base import PassContext
from graphopt.targets.arm.cores import CORES
from tests.passes.harness import Outcome, check, outputs, parse, run
from tests.passes.prune.random_networks import pictures, sequences

HEAD = '<ir_version: 8, opset_import: ["" : 17]> '


def weight(*shape: int) -> np.ndarray:
    return (np.random.default_rng(shape).standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)


def test_golden_from_the_input_to_a_mean_and_back(golden: Callable[[str, Outcome], None]) -> None:
    model = parse(
        HEAD
        + """g (float[1,3,8,8] x) => (float[1,4] y, float[1,4,8,8] r) {
            a = Conv(x, w, b)
            r = Relu(a)
            m = GlobalAveragePool(r)
            f = Flatten(m)
            e = Exp(f)
            y = Gemm(e, v)
        }""",
        w=weight(4, 3, 1, 1),
        b=weight(4),
        v=weight(4, 4),
    )
    outcome = check(ComputeFloat16(), model, relative=3e-3)
    assert outcome.result.statistics["products"] == 2 and "unknown" in str(outcome.result.statistics["ranges"])
    golden("regions", outcome)


def test_a_shared_constant_stays_float32_for_those_who_need_it() -> None:
    model = parse(
        HEAD + "g (float[2,4] x) => (float[2,4] y) { a = MatMul(x, w) d = Div(a, w2) y = Add(d, b) }",
        w=weight(4, 4),
        w2=np.full(4, 2, np.float32),
        b=weight(4),
    )
    outcome = check(ComputeFloat16(), model, relative=3e-3)
    assert outcome.operators() == ["Cast", "MatMul", "Cast", "Div", "Add"]


def test_without_a_product_nothing_is_gained() -> None:
    check(ComputeFloat16(), parse(HEAD + "g (float[2,4] x) => (float[2,4] y) { y = Relu(x) }"), changes=False)


def test_a_bound_beyond_float16_bounds_nothing() -> None:
    body = "g (float[2,4] x) => (float[2,4] y) { a = MatMul(x, w) y = Clip(a, low, high) }"
    bounds = {"low": np.float32(0), "high": np.float32(3e38)}
    check(ComputeFloat16(), parse(HEAD + body, w=weight(4, 4), **bounds), relative=3e-3)


WINOGRAD = "Winograd's algorithm in float32 takes less time"
DECLINED = {
    "it is excluded by 'mat*'": ("y = MatMul(x, w)", weight(4, 4)),
    "a constant of it holds NaN or infinity": ("y = MatMul(x, w)", np.full((4, 4), np.inf, np.float32)),
    "a constant of it holds 7e+04, and float16 ends at 65504": ("y = MatMul(x, w)", np.full((4, 4), 7e4, np.float32)),
}


@pytest.mark.filterwarnings("ignore:.*NaN or infinite")
@pytest.mark.parametrize("reason", DECLINED)
def test_what_it_leaves_alone_it_says_why(reason: str) -> None:
    body, w = DECLINED[reason]
    model = parse(f"{HEAD} g (float[2,4] x) => (float[2,4] y) {{ {body} }}", w=w)
    result = run(ComputeFloat16(exclude=("mat*",) if "excluded" in reason else ()), model)
    assert not result.changed and [declined.reason for declined in result.declined] == [reason]


@pytest.mark.parametrize(("size", "channels", "stays"), [(56, 64, True), (7, 4, False)])
def test_a_window_stays_float32_where_winograd_pays_more(size: int, channels: int, stays: bool) -> None:
    shape = f"float[1,{channels},{size},{size}]"
    text = f"{HEAD} g ({shape} x) => ({shape} y) {{ y = Conv<pads = [1, 1, 1, 1]>(x, w) }}"
    result = run(ComputeFloat16(), parse(text, w=weight(channels, channels, 3, 3)))
    assert [declined.reason for declined in result.declined] == ([WINOGRAD] if stays else [])
    assert result.changed != stays


def test_a_layer_near_the_end_of_float16_on_samples_stays_float32() -> None:
    model = parse(
        HEAD + "g (float[1,4] x) => (float[1,4] y) { a = MatMul(x, w) y = MatMul(a, v) }",
        w=np.eye(4, dtype=np.float32),
        v=np.full((4, 4), 100, np.float32),
    )
    graph_ir.refresh_shapes(model)
    samples = Samples({"x": np.full((2, 1, 4), 100, np.float32)}, {"x": 0})
    result = run(ComputeFloat16(), model, PassContext(calibration=samples))
    assert result.statistics["products"] == 1 and "ranges" not in result.statistics
    (declined,) = result.declined
    assert declined.reason == "'y' reaches 4e+04 on the samples, and float16 ends at 65504"


def test_a_quantized_model_is_left_alone() -> None:
    model = parse(
        HEAD + "g (float[2,4] x) => (float[2,4] y) {"
        " q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = MatMul(d, w) }",
        s=np.float32(0.1),
        z=np.int8(0),
        w=weight(4, 4),
    )
    result = run(ComputeFloat16(), model)
    assert not result.changed and [each.reason for each in result.declined] == ["the model is quantized already"]


def test_a_target_without_the_arithmetic_refuses_it() -> None:
    cores = {core.name: core for core in CORES}
    model = parse(HEAD + "g (float[2,4] x) => (float[2,4] y) { y = MatMul(x, w) }", w=weight(4, 4))
    with pytest.raises(UsageError, match="'cortex-a72' does not serve the scheme 'float16'"):
        run(ComputeFloat16(), model, PassContext(target=cores["cortex-a72"]))
    served = {name for name, core in cores.items() if "float16" in core.quantization}
    assert served == {name for name, core in cores.items() if "fp16" in core.features}
    assert dataclasses.replace(cores["cortex-a76"]).quantization.count("float16") == 1


@settings(max_examples=40, deadline=None)
@given(model=pictures() | sequences())
def test_random_networks_stay_close_and_a_second_run_changes_nothing(model: ir.Model) -> None:
    before = graph_ir.clone(model)
    graph_ir.refresh_shapes(model)
    run(ComputeFloat16(), model)
    text = graph_ir.to_text(model)
    assert not run(ComputeFloat16(), model).changed
    assert graph_ir.to_text(model) == text
    (feeds,) = probe_samples(before, 0, 1)
    found = outputs(model, feeds)
    for name, array in outputs(before, feeds).items():
        assert found[name].dtype == array.dtype
        np.testing.assert_allclose(found[name], array, rtol=0, atol=0.05 * np.abs(array).max())
