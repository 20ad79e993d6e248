"""Sensitivity: each layer alone, as it is in the whole plan, and what the outputs lose by it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import graphopt.ir as graph_ir
from graphopt.analysis.execution import Session
from graphopt.analysis.noise import Noise
from graphopt.analysis.samples import Samples
from graphopt.errors import DataError, UsageError
from graphopt.passes.quantize.quantize import Quantize
from graphopt.passes.quantize.schemes import Scheme
from graphopt.passes.quantize.sensitivity import LayerSensitivity, output_noise
from graphopt.pipeline.base import PassContext
from tests.passes.harness import parse, run

Array = np.ndarray[Any, Any]

HEAD = '<ir_version: 8, opset_import: ["" : 17]> '


def weight(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def samples(count: int = 12, *, spread: float = 1.0) -> Samples:
    return Samples({"x": spread * weight(count, 3, 6, 6, seed=7)}, {"x": 1})


def network(outlier: float = 1.0) -> ir.Model:
    """Two convolutions, an addition and class scores. `outlier` multiplies the second's weights for a channel that is
    always 0 then: in float that changes nothing, and with one scale for all it takes the others their bits.
    """
    second = weight(5, 5, 1, 1, seed=2)
    second[:, 0] *= outlier
    first = weight(5, 3, 3, 3, seed=1)
    first[0] *= outlier == 1
    model = parse(
        HEAD + "g (float[N,3,6,6] x) => (float[N,7] y) {"
        " a = Conv<pads=[1,1,1,1]>(x, w1) r = Relu(a) b = Conv(r, w2) s = Add(b, r) p = GlobalAveragePool(s)"
        " f = Flatten(p) y = Gemm(f, w3) }",
        w1=first,
        w2=second,
        w3=weight(5, 7, seed=3),
    )
    graph_ir.bind_shapes(model, {})
    return model


def by_name(model: ir.Model, data: Samples, **options: Any) -> dict[str, LayerSensitivity]:
    return {
        layer.layer: layer for layer in Quantize(**options).sensitivity(model, PassContext(calibration=data)).layers
    }


def test_each_layer_that_rounds_is_measured_and_the_model_left_alone() -> None:
    model = network()
    before = graph_ir.fingerprint(model)
    found = Quantize().sensitivity(model, PassContext(calibration=samples()))
    assert [layer.layer for layer in found.layers] == ["conv_0", "conv_2", "add_3", "globalaveragepool_4", "gemm_6"]
    assert found.measure == "agreement" and found.samples == 12 and graph_ir.fingerprint(model) == before
    conv, add = found.layers[0], found.layers[2]
    assert conv.op == "Conv" and conv.key == "a" and conv.macs == 5 * 36 * 27
    assert conv.converted == (3 + 5) * 36  # its operand, and its result behind the Relu
    assert add.macs == 0 and all(20 < layer.sqnr_db < 70 for layer in found.layers)


def test_a_layer_alone_is_what_excluding_all_others_gives() -> None:
    """Without bias correction, and where the layer reads the input, so that its scale is the same."""
    model, data = network(), samples()
    found = by_name(model, data, correct_bias=False)["conv_0"]
    alone = graph_ir.clone(model)
    run(
        Quantize(correct_bias=False, exclude=("conv_2", "add_3", "gl*", "gemm_6")), alone, PassContext(calibration=data)
    )
    assert [node.op_type for node in alone.graph].count("QuantizeLinear") == 1
    assert found.sqnr_db == pytest.approx(output_noise(model, alone, data), abs=1e-3)


def test_noise_of_the_layers_adds_up_to_the_noise_of_the_whole() -> None:
    model, data = network(), samples(40)
    whole = graph_ir.clone(model)
    run(Quantize(correct_bias=False), whole, PassContext(calibration=data))
    total = sum(layer.noise for layer in by_name(model, data, correct_bias=False).values())
    assert -10 * np.log10(total) == pytest.approx(output_noise(model, whole, data), abs=1.5)


def test_sixteen_bits_are_measured_as_sixteen_bits() -> None:
    model, data = network(), samples()
    eight, sixteen = by_name(model, data), by_name(model, data, scheme=Scheme.INT16X8)
    assert eight.keys() == sixteen.keys()
    assert sixteen["add_3"].sqnr_db > eight["add_3"].sqnr_db + 35  # it has no weight, whose 8 bits would stay


def test_the_layer_with_an_outlier_is_the_worst() -> None:
    data = samples()
    plain, spoiled = by_name(network(), data, per_channel=False), by_name(network(300.0), data, per_channel=False)
    assert (
        min(spoiled.values(), key=lambda layer: layer.sqnr_db).layer
        == "conv_2"
        != min(plain.values(), key=lambda layer: layer.sqnr_db).layer
    )


def test_labels_measure_accuracy_and_have_to_fit() -> None:
    model, data = network(), samples()
    with Session(model) as session:
        classes = np.array([int(session.run(feeds)["y"].argmax()) for feeds in data])
    context = PassContext(calibration=data, labels=classes)
    found = Quantize().sensitivity(model, context)
    assert found.measure == "accuracy" and all(layer.drop is not None for layer in found.layers)
    with pytest.raises(DataError, match="12 samples"):
        Quantize().sensitivity(model, PassContext(calibration=data, labels=classes[:5]))


def test_an_output_that_is_no_class_gives_no_drop() -> None:
    model = parse(HEAD + "g (float[1,3,6,6] x) => (float[1,2,6,6] y) { y = Conv(x, w) }", w=weight(2, 3, 1, 1))
    found = Quantize().sensitivity(model, PassContext(calibration=samples()))
    assert found.measure == "" and found.layers[0].drop is None and found.layers[0].sqnr_db > 20


def test_probabilities_are_compared_as_what_goes_into_softmax() -> None:
    body = "g (float[1,3,6,6] x) => (float[1,4] y) { p = GlobalAveragePool(x) f = Flatten(p) "
    scores = parse(HEAD + body + "y = MatMul(f, w) }", w=weight(3, 4))
    chances = parse(HEAD + body + "s = MatMul(f, w) y = Softmax<axis=-1>(s) }", w=weight(3, 4))
    for model in (scores, chances):
        graph_ir.refresh_shapes(model)
    logits, found = by_name(scores, samples()), by_name(chances, samples())
    assert found["matmul_2"].sqnr_db == pytest.approx(logits["matmul_2"].sqnr_db, abs=3)


def test_as_many_samples_as_asked_for_are_run() -> None:
    context = PassContext(calibration=samples())
    assert Quantize().sensitivity(network(), context, 5).samples == 5


def test_it_needs_samples_and_a_model_in_float() -> None:
    with pytest.raises(DataError, match="--calib"):
        Quantize().sensitivity(network(), PassContext())
    model, data = network(), samples()
    run(Quantize(), model, PassContext(calibration=data))
    with pytest.raises(UsageError, match="quantized already"):
        Quantize().sensitivity(model, PassContext(calibration=data))


def test_progress_may_interrupt_it() -> None:
    def interrupt(done: int, total: int, what: str) -> None:
        if what.startswith("sensitivity of conv_2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Quantize().sensitivity(network(), PassContext(calibration=samples(), progress=interrupt))


def test_noise_sums_over_samples() -> None:
    noise = Noise()
    noise.add(np.array([3.0, 4.0]), np.array([3.0, 4.0]))
    assert noise.sqnr_db == np.inf
    noise.add(np.array([[5.0]]), np.array([[4.5]]))
    assert noise.sqnr_db == pytest.approx(10 * np.log10(50 / 0.25))


@pytest.mark.parametrize(
    ("found", "decibels"),
    [
        ([1.0, np.nan, np.inf], np.inf),  # the same
        ([1.0, np.nan, -np.inf], -np.inf),
        ([np.nan, np.nan, np.inf], -np.inf),
        ([1.0, 2.0, np.inf], -np.inf),
        ([1.0], -np.inf),  # another shape
    ],
)
def test_noise_of_what_is_not_finite(found: list[float], decibels: float) -> None:
    noise = Noise()
    noise.add(np.array([1.0, np.nan, np.inf]), np.array(found))
    assert noise.sqnr_db == decibels


def test_noise_without_a_signal() -> None:
    noise = Noise()
    noise.add(np.zeros(2), np.ones(2))
    assert noise.sqnr_db == -np.inf
