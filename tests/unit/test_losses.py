"""What lossy passes cost: the float model that is kept, and the noise of each quantized layer against it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import graphopt.ir as graph_ir
from graphopt.analysis.layer_noise import layer_noise, named_precisions
from graphopt.analysis.samples import Samples
from graphopt.losses import LastFloats
from graphopt.passes.cleanup.eliminate_identity import EliminateIdentity
from graphopt.passes.quantize.quantize import Quantize
from graphopt.pipeline.base import PassContext
from graphopt.pipeline.manager import run_passes
from graphopt.pipeline.spec import parse_spec
from tests.passes.harness import parse
from tests.passes.quantize.test_sensitivity import HEAD, network, samples, weight


def quantized(model: ir.Model, data: Samples) -> tuple[ir.Model, LastFloats]:
    after, floats = graph_ir.clone(model), LastFloats()
    context = PassContext(calibration=data)
    run_passes(after, [EliminateIdentity(), Quantize()], context, before_each=floats.keep)
    return after, floats


def test_each_quantized_layer_has_its_noise_against_the_model_before_quantization() -> None:
    model, data = network(), samples()
    after, floats = quantized(model, data)
    found = floats.noise(after, data)
    assert {name for name, precision in named_precisions(after).items() if precision.integer} == set(found)
    assert {"conv_0", "relu_1", "conv_2", "add_3", "gemm_6"} <= set(found)
    assert all(15 < decibels < 60 for decibels in found.values())
    assert found == layer_noise(model, after, data.first(8))


def test_a_layer_that_is_an_output_of_the_graph_is_compared_as_it_comes_out() -> None:
    model = parse(
        HEAD + "g (float[1,3,6,6] x) => (float[1,2,6,6] p, float[1,2,6,6] y) { p = Conv(x, v) y = Conv(p, w) }",
        v=weight(2, 3, 1, 1),
        w=weight(2, 2, 1, 1),
    )
    graph_ir.refresh_shapes(model)
    after, floats = quantized(model, samples())
    assert set(floats.noise(after, samples())) == {"conv_0", "conv_1"}


def test_a_dynamic_layer_is_compared_behind_its_scales_and_its_bias() -> None:
    model = parse(HEAD + "g (float[2,8] x) => (float[2,5] y) { y = Gemm(x, w, b) }", w=weight(8, 5), b=weight(5))
    graph_ir.refresh_shapes(model)
    data = Samples({"x": weight(24, 8)}, {"x": 2})
    after, floats = graph_ir.clone(model), LastFloats()
    context = PassContext(calibration=data)
    run_passes(after, [parse_spec("quantize-dynamic")], context, before_each=floats.keep)
    (decibels,) = floats.noise(after, data).values()
    assert 30 < decibels < 60


def test_there_is_nothing_to_tell_without_samples_or_integers() -> None:
    model, data = network(), samples()
    after, floats = quantized(model, data)
    assert floats.noise(after, None) == {} and floats.noise(model, data) == {}
    already = LastFloats()
    already.keep(Quantize(), after)
    assert already.noise(after, data) == {}  # the model was never in float


def test_groups_of_values_give_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = network(), samples()
    after, _ = quantized(model, data)
    whole = layer_noise(model, after, data)
    monkeypatch.setattr("graphopt.analysis.layer_noise._GROUP_BYTES", 1)
    assert layer_noise(model, after, data) == pytest.approx(whole) and np.isfinite(list(whole.values())).all()
