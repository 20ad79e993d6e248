"""Models that other tools quantized: understood, kept by the clean-up to the bit, and not quantized twice."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import graphopt.ir as graph_ir
from graphopt.analysis.execution import Session
from graphopt.analysis.quantization import Quantization, precisions, quantization
from graphopt.analysis.samples import Samples
from graphopt.errors import ModelWarning
from graphopt.passes.quantize.quantize import Quantize
from graphopt.pipeline.base import PassContext
from graphopt.pipeline.spec import parse_spec
from tests.passes.harness import parse, run
from tests.passes.quantize.test_sensitivity import HEAD, weight

Array = np.ndarray[Any, Any]

SAMPLES = Samples({"x": weight(12, 3, 8, 8, seed=7)}, {"x": 1})


def float_model() -> ir.Model:
    """One of each operator that the tools know, and for the clean-up an Identity and a pair of Transposes."""
    model = parse(
        HEAD + "g (float[1,3,8,8] x) => (float[1,4] y) {"
        " i = Identity(x) a = Conv<pads=[1,1,1,1]>(i, w1, b1) r = Relu(a)"
        " m = MaxPool<kernel_shape=[2,2],strides=[2,2]>(r)"
        " c = Conv(m, w2) s = Add(c, m) t = Transpose<perm=[0,2,3,1]>(s) u = Transpose<perm=[0,3,1,2]>(t)"
        " g = GlobalAveragePool(u) f = Flatten(g) z = MatMul(f, w3) q = Sigmoid(z) y = Gemm(q, w4, b4) }",
        w1=weight(5, 3, 3, 3),
        b1=weight(5),
        w2=weight(5, 5, 1, 1),
        w3=weight(5, 6),
        w4=weight(6, 4),
        b4=weight(4),
    )
    graph_ir.refresh_shapes(model)
    return model


def by_static(form: str, *, per_channel: bool, signed: bool, **extra: Any) -> Callable[[Path, Path], None]:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds: Iterator[dict[str, Array]] = iter(SAMPLES)

        def get_next(self) -> dict[str, Array] | None:
            return next(self.feeds, None)

    kind = QuantType.QInt8 if signed else QuantType.QUInt8
    return lambda source, result: quantize_static(
        source,
        result,
        Reader(),
        quant_format=QuantFormat[form],
        per_channel=per_channel,
        activation_type=kind,
        extra_options=extra,
    )


def by_dynamic(source: Path, result: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(source, result, op_types_to_quantize=["Conv", "MatMul", "Gemm"])


TOOLS: dict[str, Callable[[Path, Path], None]] = {
    "QDQ": by_static("QDQ", per_channel=True, signed=True),
    "QDQ-unsigned": by_static("QDQ", per_channel=False, signed=False),
    "QDQ-contributed": by_static("QDQ", per_channel=True, signed=True, UseQDQContribOps=True),
    "QOperator": by_static("QOperator", per_channel=False, signed=False),
    "QOperator-per-channel": by_static("QOperator", per_channel=True, signed=True),
    "dynamic": by_dynamic,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The model as ONNX Runtime's quantizers make it."""
    folder = tmp_path_factory.mktemp("quantized")
    graph_ir.save(float_model(), folder / "float.onnx")
    logging.getLogger().setLevel(logging.ERROR)  # they advise on preprocessing by the root logger
    for name, tool in TOOLS.items():
        tool(folder / "float.onnx", folder / f"{name}.onnx")
    return {name: folder / f"{name}.onnx" for name in TOOLS}


def found(made: dict[str, Path], name: str) -> tuple[ir.Model, Quantization]:
    model = graph_ir.load(made[name])
    graph_ir.bind_shapes(model, {})
    result = quantization(model)
    assert result is not None
    return model, result


def test_qdq_is_understood(made: dict[str, Path]) -> None:
    model, result = found(made, "QDQ")
    assert result.form == "QDQ" and str(result.activations) == "int8, asymmetric, per tensor"
    assert str(result.weights) == "int8, symmetric, per channel"
    layers = {node.op_type: str(precision) for node, precision in precisions(model.graph).items()}
    assert layers.pop("Identity") == "float32"  # before the first QuantizeLinear
    assert set(layers.values()) == {"int8"} and {"Conv", "MaxPool", "Add", "MatMul", "Sigmoid", "Gemm"} <= set(layers)
    assert result.operators["Conv"] == (2, 0, 0) and result.operators["Gemm"] == (1, 0, 0)


def test_unsigned_activations_and_one_scale_are_told_apart(made: dict[str, Path]) -> None:
    _, result = found(made, "QDQ-unsigned")
    assert str(result.activations) == "uint8, asymmetric, per tensor"
    assert str(result.weights) == "int8, symmetric, per tensor"


def test_pairs_of_the_other_domain_are_understood(made: dict[str, Path]) -> None:
    model, result = found(made, "QDQ-contributed")
    assert {node.domain for node in model.graph if node.op_type == "QuantizeLinear"} == {"com.microsoft"}
    assert result.form == "QDQ" and str(result.activations) == "int8, asymmetric, per tensor"
    assert str(result.weights) == "int8, symmetric, per channel" and result.operators["Conv"] == (2, 0, 0)


def test_operators_of_integers_are_understood_in_both_domains(made: dict[str, Path]) -> None:
    model, result = found(made, "QOperator")
    domains = {node.domain for node in model.graph if node.op_type.startswith("QLinear")}
    assert domains == {"", "com.microsoft"}
    assert result.form == "QOperator" and result.operators["QLinearConv"] == (2, 0, 0)
    assert result.operators["QLinearAdd"] == result.operators["QGemm"] == (1, 0, 0)
    layers = {node.op_type: str(precision) for node, precision in precisions(model.graph).items()}
    assert layers["QLinearConv"] == "uint8, weights int8" and layers["MaxPool"] == layers["QLinearAdd"] == "uint8"
    assert str(found(made, "QOperator-per-channel")[1].weights) == "int8, symmetric, per channel"


def test_scales_of_the_run_are_understood(made: dict[str, Path]) -> None:
    model, result = found(made, "dynamic")
    assert result.form == "dynamic" and result.operators == {"ConvInteger": (2, 0, 0), "MatMulInteger": (2, 0, 0)}
    layers = {node.op_type: str(precision) for node, precision in precisions(model.graph).items()}
    assert layers["MatMulInteger"] == "uint8 at run time, weights int8" and layers["Sigmoid"] == "float32"


@pytest.mark.parametrize("name", TOOLS)
def test_clean_up_keeps_the_numbers_to_the_bit(name: str, made: dict[str, Path]) -> None:
    model, before = found(made, name)
    cleaned = graph_ir.clone(model)
    assert run(parse_spec("clean-up"), cleaned).changed
    after = quantization(cleaned)
    assert after is not None and after.form == before.form
    assert {op: count[0] for op, count in after.operators.items() if op not in MOVES} == {
        op: count[0] for op, count in before.operators.items() if op not in MOVES
    }
    with Session(model, threads=1) as one, Session(cleaned, threads=1) as other:
        for feeds in SAMPLES:
            np.testing.assert_array_equal(one.run(feeds)["y"], other.run(feeds)["y"])


MOVES = ("Flatten", "Identity", "Reshape", "Transpose")


@pytest.mark.parametrize("name", TOOLS)
def test_it_is_not_quantized_twice(name: str, made: dict[str, Path]) -> None:
    model, result = found(made, name)
    text = graph_ir.to_text(model)
    with pytest.warns(ModelWarning, match="nothing is quantized: the model is quantized already") as notices:
        outcome = run(Quantize(), model, PassContext(calibration=SAMPLES))
    assert not outcome.changed and graph_ir.to_text(model) == text
    (declined,) = outcome.declined
    assert declined.reason == "the model is quantized already"
    message = str(notices[0].message)
    assert result.form in message and "by onnx.quantize" in message and "float model" in message


def test_what_this_project_writes_is_understood() -> None:
    model = float_model()
    run(parse_spec("clean-up"), model)
    run(Quantize(), model, PassContext(calibration=SAMPLES))
    result = quantization(model)
    assert result is not None and result.form == "QDQ" and result.operators["Conv"] == (2, 0, 0)
    layers = {node.op_type: str(precision) for node, precision in precisions(model.graph).items()}
    assert layers["Relu"] == "int8"  # between the sum and its rounding
    assert set(layers.values()) == {"int8"}


def test_onnx_runtime_says_who_made_it(made: dict[str, Path]) -> None:
    assert onnx.load(made["QDQ"]).producer_name == "onnx.quantize"  # what the warning quotes
