"""How a quantized model is read, on the smallest graphs that show each case."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import graphopt.ir as graph_ir
from graphopt.analysis.quantization import precisions, quantization, quantized_node
from tests.passes.harness import parse

HEAD = '<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]> '
Q = "QuantizeLinear"
D = "DequantizeLinear"


def model(body: str, *, inputs: str = "float[1,4] x", output: str = "float[1,3] y", **weights: np.ndarray) -> ir.Model:
    constants: dict[str, np.ndarray] = {
        "s": np.float32(0.1),
        "z": np.int8(3),
        "z16": np.int16(0),
        "w": np.ones((4, 3), np.float32),
        "wq": np.ones((4, 3), np.int8),
        "ws": np.full(3, 0.1, np.float32),
        "bq": np.ones(3, np.int32),
        **weights,
    }
    loaded = parse(f"{HEAD} g ({inputs}) => ({output}) {{ {body} }}", **constants)
    graph_ir.refresh_shapes(loaded)
    return loaded


def layers(found: ir.Model) -> dict[str, str]:
    return {node.op_type: str(precision) for node, precision in precisions(found.graph).items()}


WEIGHT = "v = DequantizeLinear<axis=1>(wq, ws)"


def test_a_model_in_floats_is_not_quantized() -> None:
    found = model("y = MatMul(x, w)")
    assert quantization(found) is None and quantized_node(found) is None and layers(found) == {"MatMul": "float32"}


def test_a_product_may_end_in_float_and_other_operators_may_not() -> None:
    product = model(f"q = {Q}(x, s, z) d = {D}(q, s, z) {WEIGHT} y = MatMul(d, v)")
    assert layers(product) == {"MatMul": "int8"}
    function = model(f"q = {Q}(x, s, z) d = {D}(q, s, z) y = Sigmoid(d)", output="float[1,4] y")
    assert layers(function) == {"Sigmoid": "float32"}


def test_bias_and_bound_belong_to_the_product_before_them() -> None:
    found = model(
        f"q = {Q}(x, s, z) d = {D}(q, s, z) {WEIGHT} p = MatMul(d, v) b = {D}(bq, s) a = Add(p, b) r = Relu(a)"
        f" n = {Q}(r, s, z) y = {D}(n, s, z)"
    )
    assert layers(found) == {"MatMul": "int8", "Add": "int8", "Relu": "int8"}


def test_one_operand_in_float_makes_a_layer_float() -> None:
    found = model(
        f"q = {Q}(x, s, z) d = {D}(q, s, z) a = Add(d, x) n = {Q}(a, s, z) y = {D}(n, s, z)", output="float[1,4] y"
    )
    assert layers(found) == {"Add": "float32"}


@pytest.mark.parametrize("body", ["y = MatMul(d, w)", f"m = Add(d, k) n = {Q}(m, s, z) y = {D}(n, s, z)"])
def test_a_constant_in_float_makes_a_layer_float(body: str) -> None:
    found = model(f"q = {Q}(x, s, z) d = {D}(q, s, z) {body}", k=np.ones(4, np.float32), output="float[1,N] y")
    assert set(layers(found).values()) == {"float32"}


def test_weights_alone() -> None:
    found = model(f"{WEIGHT} y = MatMul(x, v)")
    result = quantization(found)
    assert result is not None and result.form == "weights" and result.activations is None
    assert str(result.weights) == "int8, symmetric, per channel" and result.operators == {"MatMul": (0, 1, 0)}
    assert layers(found) == {"MatMul": "float32, weights int8"}


def test_weights_in_blocks_of_four_bits() -> None:
    blocks = f"v = {D}<axis=0, block_size=2>(w4, s4) y = MatMul(x, v)"
    found = model(blocks, w4=np.ones((4, 3), np.int8), s4=np.ones((2, 3), np.float32))
    four = found.graph.initializers["w4"]
    four.const_value = ir.tensor(np.ones((4, 3), np.int8), dtype=ir.DataType.INT4, name="w4")
    four.type = ir.TensorType(ir.DataType.INT4)
    result = quantization(found)
    assert result is not None and str(result.weights) == "int4, symmetric, per block"
    assert layers(found) == {"MatMul": "float32, weights int4"}


def test_sixteen_bits_beside_eight() -> None:
    found = model(f"q = {Q}(x, s, z16) d = {D}(q, s, z16) {WEIGHT} y = MatMul(d, v)")
    assert layers(found) == {"MatMul": "int16, weights int8"}
    result = quantization(found)
    assert result is not None and str(result.activations) == "int16, symmetric, per tensor"


def test_half_precision_is_said() -> None:
    found = model("h = Cast<to=10>(x) p = MatMul(h, w16) y = Cast<to=1>(p)", w16=np.ones((4, 3), np.float16))
    assert layers(found) == {"MatMul": "float16"} and quantization(found) is None


def test_packed_weights_of_another_domain() -> None:
    found = model(
        "y = com.microsoft.MatMulNBits<K=4, N=3, bits=4, block_size=16>(x, packed, scales)",
        packed=np.zeros((3, 1, 8), np.uint8),
        scales=np.ones(3, np.float32),
    )
    result = quantization(found)
    assert result is not None and result.form == "weights" and str(result.weights) == "uint4, symmetric, per block"


def test_weights_of_a_palette() -> None:
    found = model(
        "i = Cast<to=6>(wi) v = Gather(book, i) y = MatMul(x, v)",
        wi=np.ones((4, 3), np.uint8),
        book=np.ones(9, np.float32),
    )
    assert layers(found) == {"MatMul": "float32, weights palette"}
    result = quantization(found)
    assert result is not None and result.form == "weights" and result.operators == {"MatMul": (0, 1, 0)}


def test_weights_stored_in_half_precision() -> None:
    found = model("v = Cast<to=1>(w16) y = MatMul(x, v)", w16=np.ones((4, 3), np.float16))
    assert layers(found) == {"MatMul": "float32, weights float16"}
    result = quantization(found)
    assert result is not None and result.form == "weights" and result.weights is None


def test_a_scale_for_each_row_is_chosen_at_run_time() -> None:
    found = model(
        "a = Abs(x) m = ReduceMax(a, axes) d = Div(x, m) r = Round(d) q = Cast<to=3>(r)"
        " i = MatMulInteger(q, wq) f = Cast<to=1>(i) y = Mul(f, m)",
        axes=np.array([1]),
    )
    assert layers(found)["MatMulInteger"] == "int8 at run time"


def test_what_is_computed_from_constants_alone_is_no_layer() -> None:
    found = model(f"v = {D}(wt, s) t = Transpose<perm=[1,0]>(v) y = MatMul(x, t)", wt=np.ones((3, 4), np.int8))
    assert layers(found) == {"MatMul": "float32, weights int8"}


def test_two_forms_are_both_named() -> None:
    found = model(
        f"q = {Q}(x, s, z) d = {D}(q, s, z) {WEIGHT} p = MatMul(d, v) u, us, uz = DynamicQuantizeLinear(p)"
        " i = MatMulInteger(u, wi, uz) f = Cast<to=1>(i) y = Mul(f, us)",
        wi=np.ones((3, 3), np.int8),
    )
    result = quantization(found)
    assert result is not None and result.form == "QDQ + dynamic"
    assert result.operators == {"MatMul": (1, 0, 0), "MatMulInteger": (1, 0, 0)}


def test_a_subgraph_is_looked_into() -> None:
    then = f"then_g () => (float[1,4] a) {{ q = {Q}(x, s, z) a = {D}(q, s, z) }}"
    found = model(
        f"y = If(c) <then_branch = {then}, else_branch = else_g () => (float[1,4] b) {{ b = Identity(x) }}>",
        inputs="float[1,4] x, bool c",
        output="float[1,4] y",
    )
    node = quantized_node(found)
    assert node is not None and node.op_type == Q and quantization(found) is None


@pytest.mark.parametrize("name", ["shape", "indices"])
def test_what_is_no_number_of_the_network_has_no_precision(name: str) -> None:
    bodies = {"shape": "y = Shape(x)", "indices": "y = ArgMax<axis=1>(x)"}
    assert layers(model(bodies[name], output="int64[N] y" if name == "shape" else "int64[1,1] y")) == {}
