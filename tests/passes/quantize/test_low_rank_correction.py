"""Integers with a correction of low rank: taken where both bytes and error win, and left where they do not."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphopt
import graphopt.ir as graph_ir
from graphopt.analysis.samples import Samples
from graphopt.passes.quantize.block_insertion import bytes_of_nodes
from graphopt.passes.quantize.blocks import dequantize_blocks, quantize_blocks
from graphopt.passes.quantize.low_rank_correction import correct, error_of
from graphopt.passes.quantize.quantize_weights import QuantizeWeights
from graphopt.pipeline.base import PassContext
from tests.passes.harness import outputs, parse, run

HEAD = '<ir_version: 8, opset_import: ["" : 21]> '
RNG = np.random.default_rng(0)
PASS = QuantizeWeights(bits=4, block=16, low_rank=True)


def weight(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def stack(features: int = 384, outputs: int = 256) -> ir.Model:
    """A MatMul, and a Gemm with a transposed weight and a bias."""
    model = parse(
        HEAD + f"g (float[4,{features}] x) => (float[4,256] y) {{ m = MatMul(x, w) r = Relu(m) "
        "y = Gemm <transB = 1> (r, v, b) }",
        w=weight(features, outputs), v=weight(256, outputs), b=weight(256),
    )  # fmt: skip
    graph_ir.refresh_shapes(model)
    return model


def few_directions(count: int = 64, features: int = 384, rows: int = 4) -> Samples:
    """Inputs that lie near a few directions: what counts of an error has low rank."""
    basis = weight(5, features)
    return Samples({"x": weight(count, rows, 5) @ basis + 0.05 * weight(count, rows, features)}, {"x": 0})


def structure(model: ir.Model) -> list[str]:
    lines = graph_ir.to_text(model).splitlines()
    return [re.sub(r" = sha256:.*", "", line.strip()) for line in lines if line.startswith("  ") and "put" not in line]


def test_a_corrected_product_is_one_by_integers_and_two_narrow_ones() -> None:
    model = stack()
    result = run(PASS, model, PassContext(calibration=few_directions()))
    assert result.statistics["low-rank-corrections"] == 2
    lines = structure(model)
    assert [line for line in lines if "MatMul" in line or "Gemm" in line or "Add" in line] == [
        '%m/uncorrected:y:1 = MatMul(%x, %w/dequantized:y:1)  # f32[4,256] "matmul_0"',
        '%m/correction/inner:y:1 = MatMul(%x, %w/dequantized:y:2)  # f32[4,16] "matmul_0/first"',
        '%m/correction:y:1 = MatMul(%m/correction/inner:y:1, %w/dequantized:y:3)  # f32[4,256] "matmul_0/second"',
        '%m = Add(%m/uncorrected:y:1, %m/correction:y:1)  # f32[4,256] "matmul_0/corrected"',
        '%y/uncorrected:y:1 = Gemm(%r, %v/dequantized:y:1, %b) {transB=1}  # f32[4,256] "gemm_2"',
        '%y/correction/inner:y:1 = MatMul(%r, %v/dequantized:y:2)  # f32[4,8] "gemm_2/first"',
        '%y/correction:y:1 = MatMul(%y/correction/inner:y:1, %v/dequantized:y:3)  # f32[4,256] "gemm_2/second"',
        '%y = Add(%y/uncorrected:y:1, %y/correction:y:1)  # f32[4,256] "gemm_2/corrected"',
    ]


def test_bytes_and_the_outputs_error_both_win() -> None:
    samples = few_directions()
    reference, noises, sizes = stack(), [], []
    for pass_ in (QuantizeWeights(bits=4, block=16), PASS):
        model = graph_ir.clone(reference)
        sizes.append(run(pass_, model, PassContext(calibration=samples)).statistics["bytes-after"])
        pairs = [(outputs(reference, feeds)["y"], outputs(model, feeds)["y"]) for feeds in samples]
        noises.append(sum(float(np.square(one - two).sum()) for one, two in pairs))
    assert int(sizes[1]) < int(sizes[0]) and noises[1] < 0.7 * noises[0]


def file_bytes(model: ir.Model) -> int:
    graph_ir.refresh_shapes(model)
    return int(ir.serde.serialize_model(model).ByteSize())


def test_the_model_s_file_gets_smaller_too() -> None:
    reference, sizes = stack(), []
    for pass_ in (QuantizeWeights(bits=4, block=16), PASS):
        model = graph_ir.clone(reference)
        run(pass_, model, PassContext(calibration=few_directions()))
        sizes.append(file_bytes(model))
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize(("features", "columns", "target"), [(384, 256, "cortex-a76"), (640, 160, "armv7")])
def test_the_library_gets_smaller_too(features: int, columns: int, target: str, tmp_path: Path) -> None:
    text = f"g (float[1,{features}] x) => (float[1,{columns}] y) {{ y = MatMul (x, w) }}"
    reference, sizes = parse(HEAD + text, w=weight(features, columns)), []
    graph_ir.refresh_shapes(reference)
    for number, pass_ in enumerate((QuantizeWeights(bits=4, block=16), PASS)):
        model = graph_ir.clone(reference)
        result = run(pass_, model, PassContext(calibration=few_directions(features=features, rows=1)))
        report = graphopt.optimize(model, target, out=tmp_path / str(number), name="net").report
        sizes.append(report["library"]["static_bytes"])
    assert result.statistics["low-rank-corrections"] == 1 and sizes[1] < sizes[0]


@pytest.mark.parametrize("gemm", [False, True])
def test_the_bytes_of_a_correction_s_nodes_are_those_of_the_file(gemm: bool) -> None:
    text = "n = Gemm <transB = 1> (x, w, b)" if gemm else "n = MatMul (x, w)"
    reference = parse(
        HEAD + f"g (float[4,384] x) => (float[4,256] y) {{ {text} y = Relu (n) }}",
        w=weight(*((256, 384) if gemm else (384, 256))), b=weight(256),
    )  # fmt: skip
    graph_ir.refresh_shapes(reference)
    node, array = reference.graph.node(0), reference.graph.initializers["w"].const_value.numpy()
    files, weights = [], []
    for pass_ in (QuantizeWeights(bits=4, block=16), PASS):
        model = graph_ir.clone(reference)
        weights.append(int(run(pass_, model, PassContext(calibration=few_directions())).statistics["bytes-after"]))
        files.append(file_bytes(model))
    more = bytes_of_nodes(node, array, quantize_blocks(array, int(gemm), 16, bits=4, symmetric=True))
    assert 500 < more < 3000 and (files[1] - files[0]) - (weights[1] - weights[0]) == pytest.approx(more, abs=24)


def test_layers_too_small_for_the_kernels_of_a_correction_keep_their_blocks() -> None:
    model = parse(HEAD + "g (float[4,128] x) => (float[4,40] y) { y = MatMul(x, w) }", w=weight(128, 40))
    graph_ir.refresh_shapes(model)
    result = run(PASS, model, PassContext(calibration=few_directions(features=128)))
    assert "low-rank-corrections" not in result.statistics
    assert re.search(r"leave no bytes for a correction, whose nodes or kernels take 7000$", result.declined[-1].reason)


def test_what_is_too_wide_for_moments_says_that_its_weight_decides() -> None:
    model = parse(HEAD + "g (float[4,2500] x) => (float[4,40] y) { m = MatMul(x, w) y = MatMul(m, v) }",
                  w=weight(2500, 40), v=weight(40, 40))  # fmt: skip
    graph_ir.refresh_shapes(model)
    result = run(PASS, model, PassContext(calibration=few_directions(features=2500)))
    reasons = [each.reason for each in result.declined if each.layer == "matmul_0"]
    assert "it sums over more than 2400 numbers: a correction goes by its weight alone" in reasons


def test_random_weights_and_inputs_of_all_directions_keep_their_blocks() -> None:
    model = parse(HEAD + "g (float[4,128] x) => (float[4,512] y) { y = MatMul(x, w) }", w=weight(128, 512))
    graph_ir.refresh_shapes(model)
    plain = graph_ir.clone(model)
    context = PassContext(calibration=Samples({"x": weight(400, 4, 128)}, {"x": 0}))
    result = run(PASS, model, context)
    run(QuantizeWeights(bits=4, block=16), plain, context)
    assert graph_ir.to_text(model) == graph_ir.to_text(plain)
    assert [each.layer for each in result.declined] == ["matmul_0"]
    assert " times as much as blocks of 16" in result.declined[0].reason


def test_a_second_run_changes_nothing() -> None:
    model = stack()
    context = PassContext(calibration=few_directions())
    assert run(PASS, model, context).changed
    text = graph_ir.to_text(model)
    assert not run(PASS, model, context).changed and graph_ir.to_text(model) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("m = MatMul(x, w) n = MatMul(x, w) y = Add(m, n)", "the weight is shared with another layer"),
        ("y = Gemm <alpha = 2.0> (x, w)", "it needs blocks, and a product without a scale and a transposed operand"),
    ],
)
def test_what_has_no_correction_says_why(text: str, reason: str) -> None:
    model = parse(HEAD + f"g (float[4,64] x) => (float[4,64] y) {{ {text} }}", w=weight(64, 64))
    graph_ir.refresh_shapes(model)
    result = run(PASS, model, PassContext(calibration=few_directions(features=64)))
    assert result.changed and result.declined[-1].reason == f"no low-rank correction: {reason}"


@settings(max_examples=25, deadline=None)
@given(
    features=st.integers(9, 90), outs=st.integers(5, 70), rank=st.integers(1, 4), transposed=st.booleans(),
    symmetric=st.booleans(), bits=st.sampled_from((4, 8)),
)  # fmt: skip
def test_a_correction_has_the_bytes_and_the_error_that_it_says(
    features: int, outs: int, rank: int, transposed: bool, symmetric: bool, bits: int
) -> None:
    attributes = "<transB = 1>" if transposed else ""
    shape = (outs, features) if transposed else (features, outs)
    model = parse(
        HEAD + f"g (float[2,{features}] x) => (float[2,{outs}] y) {{ y = Gemm {attributes} (x, w) }}", w=weight(*shape)
    )
    node, array = model.graph.node(0), model.graph.initializers["w"].const_value.numpy()
    basis = weight(rank, features)
    covariance = np.asarray(basis.T @ basis, np.float64) + 0.01 * np.eye(features)
    axis = 1 if transposed else 0
    plain = quantize_blocks(array, axis, 8, bits=bits, symmetric=symmetric)
    found = correct(node, array, plain, covariance, 100, bits=bits, symmetric=symmetric)
    if isinstance(found, str):
        return
    product = dequantize_blocks(found.first) @ dequantize_blocks(found.second)
    whole = dequantize_blocks(found.residual) + (product.T if transposed else product)
    assert found.nbytes + 100 < plain.nbytes
    assert found.error == pytest.approx(error_of(node, array, whole, covariance), rel=1e-3)
    assert found.error < error_of(node, array, dequantize_blocks(plain), covariance)
