"""Each rule of placement on a small graph: what is an integer, what shares a scale, what stays in float and why."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import graphopt.ir as graph_ir
from graphopt.passes.quantize.placement import Plan, place
from tests.passes.harness import parse

RNG = np.random.default_rng(0)
K = {"w": RNG.normal(size=(4, 4, 1, 1)).astype(np.float32), "v": RNG.normal(size=(4, 4, 1, 1)).astype(np.float32)}
B = {"b": RNG.normal(size=4).astype(np.float32)}


def planned(
    body: str, *, inputs: str = "float[1,4,8,8] x", output: str = "y", opset: int = 17, **given: object
) -> Plan:
    """The plan of nodes between `inputs` and `output`; weights by name."""
    weights = {name: np.asarray(array) for name, array in given.items() if name not in ("exclude",)}
    used = {name: array for name, array in {**K, **B, **weights}.items() if f"{name}" in _words(body)}
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g ({inputs}) => ({output}) {{ {body} }}'
    text = text.replace(f"=> ({output})", f"=> (float[{','.join('N' for _ in range(4))}] {output})")
    model = parse(text.replace("[N,N,N,N]", "[A,B,C,D]"), **used)
    graph_ir.refresh_shapes(model)
    exclude = given.get("exclude", ())
    return place(model.graph, exclude=exclude if isinstance(exclude, tuple) else ())


def _words(text: str) -> set[str]:
    return set("".join(c if c.isalnum() or c == "_" else " " for c in text).split())


def groups(plan: Plan) -> list[tuple[str, ...]]:
    return [tuple(_name(value) for value in group.values) for group in plan.groups]


def layers(plan: Plan) -> list[str]:
    return [layer.node.op_type for layer in plan.layers]


def reasons(plan: Plan) -> dict[str, str]:
    return {declined.layer: declined.reason for declined in plan.declined}


def _name(value: ir.Value) -> str:
    return value.name or ""


def test_a_product_takes_integers_and_may_end_in_float() -> None:
    plan = planned("y = Conv(x, w, b)")
    assert layers(plan) == ["Conv"] and groups(plan) == [("x",)] and not plan.declined


def test_between_two_products_stands_one_pair() -> None:
    plan = planned("c = Conv(x, w, b) y = Conv(c, v)")
    assert groups(plan) == [("x",), ("c",)]


@pytest.mark.parametrize("activation", ["Relu(c)", "Clip(c, zero, six)"])
def test_relu_and_clip_belong_to_the_sum_before_them(activation: str) -> None:
    plan = planned(f"c = Conv(x, w, b) r = {activation} y = Conv(r, v)", zero=np.float32(0), six=np.float32(6))
    assert layers(plan) == ["Conv", "Conv"] and groups(plan) == [("x",), ("r",)]
    assert [node.op_type for node in plan.layers[0].tail] == [activation.partition("(")[0]]


def test_a_relu_whose_operand_is_read_elsewhere_is_a_layer_of_its_own() -> None:
    plan = planned("c = Conv(x, w) r = Relu(c) s = Add(c, r) y = Conv(s, v)")
    assert layers(plan) == ["Conv", "Relu", "Add", "Conv"]
    assert groups(plan) == [("x",), ("c",), ("r",), ("s",)]


def test_a_residual_sum_has_three_scales() -> None:
    plan = planned("p = Conv(x, w) q = Conv(x, v) s = Add(p, q) r = Relu(s) y = Conv(r, w)")
    assert groups(plan) == [("x",), ("p",), ("q",), ("r",)]


def test_concat_has_one_scale_for_operands_and_result() -> None:
    plan = planned(
        "p = Conv(x, w) q = Conv(x, v) c = Concat<axis=1>(p, q) y = Conv(c, u)", u=np.ones((1, 8, 1, 1), "f")
    )
    assert groups(plan) == [("x",), ("p", "q", "c")]
    assert [_name(value) for value in plan.groups[1].sources] == ["p", "q"]


@pytest.mark.parametrize(
    "movement",
    [
        "MaxPool<kernel_shape=[2,2]>(p)",
        "Transpose<perm=[0,1,3,2]>(p)",
        "Reshape(p, shape)",
        "Slice(p, start, end)",
        "Pad(p, pads)",
        'Resize<mode="nearest">(p, , scales)',
        'Resize<mode="linear">(p, , scales)',
        "Gather<axis=3>(p, index)",
        "DepthToSpace<blocksize=1>(p)",
        "Identity(p)",
        "GlobalMaxPool(p)",
    ],
)
def test_one_scale_passes_through_what_moves_numbers(movement: str) -> None:
    constants = {
        "shape": np.array([1, 4, 4, 16]),
        "start": np.array([0, 0, 0, 0]),
        "end": np.array([1, 4, 4, 4]),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "index": np.array([0, 2, 4]),
    }
    plan = planned(f"p = Conv(x, w) m = {movement} y = Conv(m, v)", **constants)
    assert groups(plan) == [("x",), ("p", "m")] and not plan.declined
    assert [_name(value) for value in plan.groups[1].sources] == ["p"]


def test_every_output_of_a_split_is_an_integer_if_one_is_read_as_such() -> None:
    body = "p = Conv(x, w) s, t = Split<axis=1, num_outputs=2>(p) c = Conv(s, u) n = Neg(t) y = Add(c, n)"
    plan = planned(body, opset=18, u=np.ones((2, 2, 1, 1), "f"))
    assert groups(plan) == [("x",), ("p", "s", "t")]


def test_an_output_that_nothing_uses_is_no_integer() -> None:
    plan = planned("p = Conv(x, w) m, i = MaxPool<kernel_shape=[2,2]>(p) y = Conv(m, v)")
    assert groups(plan) == [("x",), ("p", "m")]


@pytest.mark.parametrize("pool", ["AveragePool<kernel_shape=[2,2]>(p)", "GlobalAveragePool(p)"])
def test_an_average_has_a_scale_of_its_own(pool: str) -> None:
    assert groups(planned(f"p = Conv(x, w) m = {pool} y = Conv(m, v)")) == [("x",), ("p",), ("m",)]


@pytest.mark.parametrize(
    ("function", "scale", "zero_point"),
    [("Sigmoid", 1 / 256, -128), ("Softmax", 1 / 256, -128), ("Tanh", 1 / 128, 0), ("HardSigmoid", 1 / 255, -128)],
)
def test_functions_of_fixed_range_have_fixed_scales(function: str, scale: float, zero_point: int) -> None:
    from graphopt.passes.quantize.arithmetic import activation_parameters

    plan = planned(f"p = Conv(x, w) m = {function}(p) y = Conv(m, v)")
    group = plan.groups[2]
    assert groups(plan) == [("x",), ("p",), ("m",)] and not group.sources
    parameters = activation_parameters(*group.fixed[0])
    assert parameters.scale == np.float32(scale) and parameters.zero_point == zero_point


def test_hard_swish_is_calibrated() -> None:
    plan = planned("p = Conv(x, w) m = HardSwish(p) y = Conv(m, v)")
    assert groups(plan)[2] == ("m",) and plan.groups[2].sources


def test_both_operands_of_a_matmul_may_be_computed() -> None:
    plan = planned("p = Conv(x, w) q = Conv(x, v) y = MatMul(p, q)")
    assert groups(plan) == [("x",), ("p",), ("q",)] and layers(plan) == ["Conv", "Conv", "MatMul"]


def test_the_addition_behind_a_matmul_is_its_bias() -> None:
    plan = planned(
        "m = MatMul(x, n) a = Add(b8, m) r = Relu(a) y = MatMul(r, n)", n=np.eye(8, dtype="f"), b8=np.ones(8, "f")
    )
    assert groups(plan) == [("x",), ("r",)]
    assert [node.op_type for node in plan.layers[0].tail] == ["Add", "Relu"]


@pytest.mark.parametrize(
    ("product", "array", "axis", "channels"),
    [
        ("Conv(x, k)", np.ones((6, 4, 3, 3), "f"), 0, 6),
        ("ConvTranspose(x, k)", np.ones((4, 5, 3, 3), "f"), 1, 5),
        ("ConvTranspose<group=2>(x, k)", np.ones((4, 5, 3, 3), "f"), 1, 10),
        ("ConvTranspose<group=4>(x, k)", np.ones((4, 1, 3, 3), "f"), 0, 4),
        ("MatMul(x, k)", np.ones((8, 3), "f"), 1, 3),
        ("MatMul(k, x)", np.ones((3, 8), "f"), 0, 3),
    ],
)
def test_weights_have_scales_along_their_output_channels(
    product: str, array: np.ndarray[tuple[int, ...], np.dtype[np.float32]], axis: int, channels: int
) -> None:
    weight = planned(f"y = {product}", k=array).layers[0].weight
    assert weight is not None and (weight.axis, weight.channels) == (axis, channels)


@pytest.mark.parametrize(("attribute", "axis"), [("", 1), ("<transB=1>", 0)])
def test_the_axis_of_gemm_depends_on_trans_b(attribute: str, axis: int) -> None:
    model = parse(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2,4] x) => (float[2,4] y) {'
        f" y = Gemm{attribute}(x, w, b) }}",
        w=np.ones((4, 4), np.float32),
        **B,
    )
    weight = place(model.graph).layers[0].weight
    assert weight is not None and weight.axis == axis


def test_no_pair_stands_before_or_behind_what_computes_in_float() -> None:
    plan = planned("a = Abs(x) s = Add(a, x) p = Conv(s, w) f = Sigmoid(p) y = Neg(f)")
    assert layers(plan) == ["Conv"] and groups(plan) == [("s",)]
    assert reasons(plan)["add_1"] == "no integer layer makes its operands"
    assert reasons(plan)["sigmoid_3"] == "no integer layer reads its result"


def test_a_square_root_keeps_the_transform_before_it_in_float() -> None:
    body = "p = Conv(x, w) q = Mul(p, p) l = Log(q) c = Conv(l, v) r = Relu(c) y = Conv(r, w)"
    plan = planned(body)
    assert [layer.node.name for layer in plan.layers] == ["conv_3", "conv_5"]
    found = reasons(plan)
    assert found["conv_0"] == "'mul_1' (Mul) needs its relative precision"
    assert "Log" in found["mul_1"] or "square" in found["mul_1"]
    assert found["log_2"] == "Log has no integer form"


def test_a_filter_bank_behind_the_transform_stays_in_float_too() -> None:
    plan = planned("p = Conv(x, w) q = Mul(p, p) f = Conv(q, v) l = Log(f) y = Conv(l, w)")
    assert [layer.node.name for layer in plan.layers] == ["conv_4"]


def test_a_learned_layer_before_a_quotient_stays_integer() -> None:
    plan = planned("p = Conv(x, w) r = Relu(p) c = Conv(r, v) e = Exp(c) y = Div(e, e)")
    assert [layer.node.name for layer in plan.layers] == ["conv_0", "conv_2"]


def test_the_norm_of_features_needs_no_float_before_it() -> None:
    body = "p = Conv(x, w) q = Mul(p, p) n = ReduceMean<axes=[1,2,3]>(q) s = Sqrt(n) d = Div(p, s) y = Conv(d, v)"
    assert [layer.node.name for layer in planned(body).layers] == ["conv_0", "conv_5"]


@pytest.mark.parametrize(
    ("body", "node", "reason"),
    [
        ("y = Conv(x, x)", "conv_0", "run time"),
        ("p = Conv(x, w) m = Pad(p, pads, one) y = Conv(m, v)", "pad_1", "another number than 0"),
        ('p = Conv(x, w) m = Resize<mode="cubic">(p, , scales) y = Conv(m, v)', "resize_1", "cubic"),
        ("p = Conv(x, w) m = Sub(p, x) y = Conv(m, v)", "sub_1", "Sub has no integer form"),
        ("p = Conv(x, w) m = Add(p, mask) y = Conv(m, v)", "add_1", "it masks"),
    ],
)
def test_what_cannot_be_an_integer_layer_says_why(body: str, node: str, reason: str) -> None:
    pads, scales = np.array([0, 0, 1, 1, 0, 0, 1, 1]), np.array([1, 1, 2, 2], np.float32)
    mask = np.triu(np.full((8, 8), -1e9, np.float32), 1)
    assert reason in reasons(planned(body, pads=pads, one=np.float32(1), scales=scales, mask=mask))[node]


def test_excluded_names_stay_in_float() -> None:
    plan = planned("p = Conv(x, w) y = Conv(p, v)", exclude=("conv_1*",))
    assert reasons(plan) == {"conv_1": "it is excluded by 'conv_1*'"} and groups(plan) == [("x",)]


@pytest.mark.parametrize(
    ("body", "in_float"),
    [
        ("m = Sqrt(q) c = Conv(m, w) y = Conv(c, v)", ["conv_2", "conv_3"]),
        ("m = Sqrt(q) c = Conv(m, w) r = Relu(c) y = Conv(r, v)", ["conv_2"]),
        ("m = Sqrt(q) r = PRelu(m, slope) y = Conv(r, v)", []),
        ("m = Add(q, tiny) l = Log(m) y = Conv(l, v)", []),
    ],
)
def test_magnitudes_stay_in_float_up_to_what_compresses_them(body: str, in_float: list[str]) -> None:
    plan = planned(f"q = Mul(x, x) {body}", slope=np.ones((4, 1, 1), "f"), tiny=np.float32(1e-6))
    found = {layer: reason for layer, reason in reasons(plan).items() if layer.startswith("conv")}
    assert found == dict.fromkeys(in_float, "it reads magnitudes, of 'mul_0' (Mul), of every size")


def test_double_precision_is_left_alone() -> None:
    model = parse(
        '<ir_version: 8, opset_import: ["" : 17]> g (double[1,4] x) => (double[1,4] y) { y = MatMul(x, w) }',
        w=np.eye(4),
    )
    assert "float32" in reasons(place(model.graph))["matmul_0"]


def test_shape_arithmetic_is_not_reported() -> None:
    model = parse(
        '<ir_version: 8, opset_import: ["" : 17]> g (int64[4] x) => (int64[4] y) { a = Add(x, x) y = Mul(a, x) }'
    )
    assert not place(model.graph).declined
