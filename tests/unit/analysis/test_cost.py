"""Costs against numbers computed by hand, and against what the models' authors publish."""

from __future__ import annotations

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from graphopt.analysis.cost import LayerCost, layer_costs, total


def model(text: str, **weights: np.ndarray) -> ir.Model:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 24, "com.acme" : 1]> {text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))


def only(text: str, **weights: np.ndarray) -> LayerCost:
    (cost,) = layer_costs(model(text, **weights))
    return cost


def f32(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


# Each case: the graph, its weights, and the MACs as the product that a person would write down.
MACS = {
    "conv": (
        "g (float[2,3,8,8] x) => (float[2,16,4,4] y) { y = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w, b) }",
        {"w": f32(16, 3, 3, 3), "b": f32(16)},
        2 * 16 * 4 * 4 * 3 * 3 * 3,
    ),
    "depthwise conv": (
        "g (float[1,8,6,6] x) => (float[1,8,4,4] y) { y = Conv<group=8>(x, w) }",
        {"w": f32(8, 1, 3, 3)},
        8 * 4 * 4 * 9,
    ),
    "conv in two groups": (
        "g (float[1,8,6] x) => (float[1,4,4] y) { y = Conv<group=2>(x, w) }",
        {"w": f32(4, 4, 3)},
        4 * 4 * 4 * 3,
    ),
    "transposed conv": (
        "g (float[1,4,5,5] x) => (float[1,6,11,11] y) { y = ConvTranspose<strides=[2,2]>(x, w) }",
        {"w": f32(4, 6, 3, 3)},
        4 * 5 * 5 * 6 * 9,
    ),
    "gemm": (
        "g (float[5,7] x) => (float[5,9] y) { y = Gemm<transB=1>(x, w, b) }",
        {"w": f32(9, 7), "b": f32(9)},
        5 * 7 * 9,
    ),
    "gemm of a transposed input": (
        "g (float[7,5] x) => (float[5,9] y) { y = Gemm<transA=1>(x, w) }",
        {"w": f32(7, 9)},
        5 * 7 * 9,
    ),
    "batched matmul": (
        "g (float[2,4,5,6] a, float[2,4,6,3] b) => (float[2,4,5,3] y) { y = MatMul(a, b) }",
        {},
        2 * 4 * 5 * 6 * 3,
    ),
    "dot product": ("g (float[6] a, float[6] b) => (float y) { y = MatMul(a, b) }", {}, 6),
    "einsum": (
        'g (float[2,3,5] a, float[5,7] b) => (float[2,3,7] y) { y = Einsum<equation="bij,jk->bik">(a, b) }',
        {},
        2 * 3 * 5 * 7,
    ),
    "einsum with an ellipsis": (
        'g (float[2,3,5] a, float[1,5,7] b) => (float[2,3,7] y) { y = Einsum<equation="...ij,...jk->...ik">(a, b) }',
        {},
        2 * 3 * 5 * 7,
    ),
    "implicit einsum": (
        'g (float[3,5] a, float[5,7] b) => (float[3,7] y) { y = Einsum<equation="ij,jk">(a, b) }',
        {},
        3 * 5 * 7,
    ),
    "einsum of three": (
        "g (float[2,3] a, float[3,4] b, float[4,5] c) => (float[2,5] y)"
        ' { y = Einsum<equation="ij,jk,kl->il">(a, b, c) }',
        {},
        2 * 3 * 4 + 2 * 4 * 5,
    ),
    "einsum of one": ('g (float[3,5] a) => (float[5,3] y) { y = Einsum<equation="ij->ji">(a) }', {}, 0),
    "lstm": (
        "g (float[10,2,6] x) => (float[10,1,2,4] y) { y = LSTM<hidden_size=4>(x, w, r, b) }",
        {"w": f32(1, 16, 6), "r": f32(1, 16, 4), "b": f32(1, 32)},
        10 * 2 * 4 * 4 * (6 + 4),
    ),
    "bidirectional gru": (
        'g (float[10,2,6] x) => (float[10,2,2,4] y) { y = GRU<hidden_size=4, direction="bidirectional">(x, w, r) }',
        {"w": f32(2, 12, 6), "r": f32(2, 12, 4)},
        10 * 2 * 2 * 3 * 4 * (6 + 4),
    ),
    "rnn": (
        "g (float[10,2,6] x) => (float[10,1,2,4] y) { y = RNN<hidden_size=4>(x, w, r) }",
        {"w": f32(1, 4, 6), "r": f32(1, 4, 4)},
        10 * 2 * 4 * (6 + 4),
    ),
    "attention": (
        "g (float[2,3,5,8] q, float[2,3,7,8] k, float[2,3,7,4] v) => (float[2,3,5,4] y) { y = Attention(q, k, v) }",
        {},
        2 * 3 * 5 * 7 * (8 + 4),
    ),
    "packed attention": (
        "g (float[2,5,24] q, float[2,7,8] k, float[2,7,8] v) => (float[2,5,24] y)"
        " { y = Attention<q_num_heads=3, kv_num_heads=1>(q, k, v) }",
        {},
        2 * 3 * 5 * 7 * (8 + 8),
    ),
    "attention with a past": (
        "g (float[1,2,1,8] q, float[1,2,1,8] k, float[1,2,1,8] v, float[1,2,9,8] pk, float[1,2,9,8] pv)"
        ' => (float[1,2,1,8] y, float[1,2,10,8] qk, float[1,2,10,8] qv) { y, qk, qv = Attention(q, k, v, "", pk, pv) }',
        {},
        2 * 10 * (8 + 8),
    ),
    "quantized conv": (
        "g (uint8[1,3,8,8] x) => (uint8[1,4,6,6] y) { y = QLinearConv(x, s, z, w, s, zw, s, z, b) }",
        {
            "w": np.zeros((4, 3, 3, 3), np.int8), "b": np.zeros(4, np.int32),
            "s": np.float32(1).reshape(()), "z": np.uint8(0).reshape(()), "zw": np.int8(0).reshape(()),
        },
        4 * 6 * 6 * 3 * 9,
    ),
    "quantized matmul": (
        "g (uint8[5,6] x) => (uint8[5,7] y) { y = QLinearMatMul(x, s, z, w, s, z, s, z) }",
        {"w": np.zeros((6, 7), np.uint8), "s": np.float32(1).reshape(()), "z": np.uint8(0).reshape(())},
        5 * 6 * 7,
    ),
    "integer conv": (
        "g (uint8[1,3,8,8] x) => (int32[1,4,6,6] y) { y = ConvInteger(x, w) }",
        {"w": np.zeros((4, 3, 3, 3), np.uint8)},
        4 * 6 * 6 * 3 * 9,
    ),
    "integer matmul": (
        "g (uint8[5,6] x) => (int32[5,7] y) { y = MatMulInteger(x, w) }",
        {"w": np.zeros((6, 7), np.int8)},
        5 * 6 * 7,
    ),
    "normalization": (
        "g (float[2,8] x) => (float[2,8] y) { y = LayerNormalization(x, s, b) }",
        {"s": f32(8), "b": f32(8)},
        0,
    ),
    "elementwise": ("g (float[2,8] x) => (float[2,8] y) { y = Mul(x, x) }", {}, 0),
}  # fmt: skip


@pytest.mark.parametrize("case", MACS)
def test_macs_are_those_computed_by_hand(case: str) -> None:
    text, weights, expected = MACS[case]
    assert only(text, **weights).macs == expected


def test_params_and_bytes_of_a_convolution() -> None:
    text, weights, _ = MACS["conv"]
    cost = only(text, **weights)
    assert cost.params == 16 * 3 * 3 * 3 + 16
    assert cost.weight_bytes == cost.params * 4
    assert cost.activation_bytes == 2 * 16 * 4 * 4 * 4
    assert cost.inputs == ((2, 3, 8, 8), (16, 3, 3, 3), (16,)) and cost.outputs == ((2, 16, 4, 4),)


def test_scales_and_zero_points_are_bytes_but_no_params() -> None:
    text, weights, _ = MACS["quantized conv"]
    cost = only(text, **weights)
    assert cost.params == 4 * 3 * 9 + 4
    assert cost.weight_bytes == 4 * 3 * 9 + 4 * 4 + 4 + 1 + 1  # w, b, the one scale, two zero points


def test_bounds_and_shapes_are_no_params() -> None:
    costs = layer_costs(
        model(
            "g (float[2,6] x) => (float[3,4] z) { y = Clip(x, low, high) z = Reshape(y, shape) }",
            low=f32(),
            high=f32(),
            shape=np.array([3, 4]),
        )
    )
    assert [cost.params for cost in costs] == [0, 0] and [cost.weight_bytes for cost in costs] == [0, 0]


def test_four_bit_weights_take_half_a_byte() -> None:
    graph = model(
        "g (float[2,3] x) => (float[2,5] y) { w = DequantizeLinear(q, s) y = MatMul(x, w) }",
        q=np.zeros((3, 5), ml_dtypes.int4),
        s=f32(),
    )
    dequantize, product = layer_costs(graph)
    assert (dequantize.params, dequantize.macs, dequantize.activation_bytes) == (0, 0, 0)
    assert dequantize.notes == ("computed from constants alone",)
    assert (product.params, product.weight_bytes, product.macs) == (15, 8 + 4, 2 * 3 * 5)


def test_a_shared_weight_counts_once_in_the_total() -> None:
    costs = layer_costs(model("g (float[2,4] x) => (float[2,4] z) { y = MatMul(x, w) z = MatMul(y, w) }", w=f32(4, 4)))
    assert [cost.params for cost in costs] == [16, 16]
    assert total(costs).params == 16 and total(costs).weight_bytes == 64 and total(costs).macs == 2 * 2 * 16


BRANCHES = """g (bool c, float[2,4] x) => (float[2,4] z) {
    z = If(c) <
        then_branch = small () => (float[2,4] y) { y = Add(x, bias) },
        else_branch = large () => (float[2,4] t) { t = MatMul(x, w) }
    >
}"""


def test_the_larger_branch_of_an_if_is_counted_and_both_are_stored() -> None:
    costs = layer_costs(model(BRANCHES, w=f32(4, 4), bias=f32(4)))
    assert [cost.op for cost in costs] == ["If", "MatMul"]
    assert costs[1].name == "If_0/else_branch/MatMul_0"
    assert costs[0].notes == ("else_branch is counted; then_branch needs 0 MACs",)
    assert total(costs).macs == 2 * 4 * 4 and total(costs).params == 16 + 4


def loop(trips: str) -> str:
    return f"""g (int64 n, float[2,4] x) => (float[2,4] z) {{
        yes = Constant<value = bool {{1}}>()
        m = Constant<value = int64 {{7}}>()
        z = Loop({trips}, yes, x) <
            body = b (int64 i, bool c, float[2,4] s) => (bool d, float[2,4] t) {{ d = Identity(c) t = MatMul(s, w) }}
        >
    }}"""


def test_a_loop_counts_its_body_times_a_constant_trip_count() -> None:
    costs = layer_costs(model(loop("m"), w=f32(4, 4)))
    assert total(costs).macs == 7 * 2 * 4 * 4 and total(costs).params == 16
    assert costs[0].op == "Loop" and "counted 7 times" in costs[0].notes[0]


def test_a_loop_with_an_unknown_trip_count_counts_once_and_says_so() -> None:
    costs = layer_costs(model(loop("n"), w=f32(4, 4)))
    assert total(costs).macs == 2 * 4 * 4
    assert "trip count is not a constant" in costs[0].notes[0]


def test_a_scan_counts_its_body_times_the_length_of_its_sequence() -> None:
    costs = layer_costs(
        model(
            """g (float[2,4] x, float[9,2,4] xs) => (float[2,4] z, float[9,2,4] ys) {
                z, ys = Scan<num_scan_inputs=1, body = b (float[2,4] s, float[2,4] e) => (float[2,4] t, float[2,4] u)
                    { t = MatMul(s, w) u = Add(t, e) }>(x, xs) }""",
            w=f32(4, 4),
        )
    )
    assert total(costs).macs == 9 * 2 * 4 * 4


def test_symbolic_dimensions_leave_the_count_open_and_name_the_dimension() -> None:
    cost = only("g (float[N,3] x) => (float[N,5] y) { y = MatMul(x, w) }", w=f32(3, 5))
    assert cost.macs is None and cost.activation_bytes is None and cost.params == 15
    assert cost.outputs == (("N", 5),)
    assert "dimension 0 of 'y' (N) is not static" in cost.notes[0]
    assert total([cost]).uncounted == 1 and total([cost]).macs == 0


def test_a_custom_operator_is_uncounted_not_zero() -> None:
    cost = only("g (float[2,3] x) => (float[2,3] y) { y = com.acme.Magic(x) }")
    assert cost.op == "com.acme::Magic" and cost.macs is None and "com.acme::Magic" in cost.notes[0]


def test_weights_count_where_types_were_not_inferred() -> None:
    text = (
        "g (float[1,4] x) => (float[1,2] z)"
        " { w = Constant<value = float[2,4] {1,1,1,1,1,1,1,1}>() t = Transpose<perm=[1,0]>(w) z = MatMul(x, t) }"
    )
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 24]> {text}')
    costs = {cost.op: cost for cost in layer_costs(ir.from_proto(proto))}
    assert costs["Transpose"].params == 0 and costs["MatMul"].params == 8 and costs["MatMul"].weight_bytes == 32


def test_shapes_that_contradict_the_operator_are_noted_not_raised() -> None:
    broken = model("g (float[2,3] x) => (float[2,3] y) { y = Identity(x) }")
    node = ir.node("LSTM", [broken.graph.inputs[0]])
    broken.graph.append(node)
    lstm = layer_costs(broken)[-1]
    assert lstm.macs is None and "do not fit the operator" in lstm.notes[0]


# MLPerf Tiny and the MobileNet papers publish these within rounding; SOURCES of the models give the parameters.
KNOWN = {
    "mobilenet_v2_1.0_224": (300.8e6, 3_489_105 - 8),  # 8 settings and shapes beside the parameters
    "mlperftiny_resnet8_cifar10": (12.5e6, 77_706),
    "mlperftiny_kws_dscnn": (2.66e6, 22_604),
    "mlperftiny_ad01_autoencoder": (0.264e6, 265_864),
}


@pytest.mark.real
@pytest.mark.parametrize("name", KNOWN)
def test_real_models_have_the_published_macs(name: str) -> None:
    path = Path(os.environ.get("GRAPHOPT_REAL_MODELS", "")) / f"{name}.onnx"
    if not path.is_file():
        pytest.skip("GRAPHOPT_REAL_MODELS does not name a folder with this model")
    sums = total(layer_costs(ir.from_proto(onnx.shape_inference.infer_shapes(onnx.load(path)))))
    published, params = KNOWN[name]
    assert sums.macs == pytest.approx(published, rel=5e-3) and sums.params == params and sums.uncounted == 0
