from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphopt.ir as graph_ir
from graphopt.passes.cleanup.fold_constants import FoldConstants
from graphopt.pipeline.base import PassContext
from tests.passes.harness import Outcome, check, parse

Array = npt.NDArray[Any]


def header(opset: int = 17) -> str:
    return f'<ir_version: 10, opset_import: ["" : {opset}]>'


def constant_of(outcome: Outcome, name: str) -> Array:
    tensor = outcome.after.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def test_arithmetic_golden(golden: Callable[[str, Outcome], None]) -> None:
    model = parse(
        header() + "g (float[2] x) => (float[2] z) "
        "{ c = Constant<value = float[2] {1., 2.}>() d = Mul(c, w) e = Sqrt(d) z = Add(x, e) }",
        w=np.array([4, 8], np.float32),
    )
    outcome = check(FoldConstants(), model)
    golden("arithmetic", outcome)
    np.testing.assert_array_equal(constant_of(outcome, "e"), [2, 4])


def test_the_shape_arithmetic_of_a_flatten_golden(golden: Callable[[str, Outcome], None]) -> None:
    model = parse(
        header() + "g (float[N,2,3] x) => (float[N,K] z) { s = Shape(x) n = Gather<axis = 0>(s, zero) "
        "u = Unsqueeze(n, axes) t = Concat<axis = 0>(u, minus) z = Reshape(x, t) }",
        zero=np.array(0, np.int64),
        axes=np.array([0], np.int64),
        minus=np.array([-1], np.int64),
    )
    outcome = check(FoldConstants(), model)
    golden("flatten", outcome)
    assert outcome.operators() == ["Reshape"]


@pytest.mark.parametrize("opset", [7, 10, 11, 13, 15, 18, 22])
def test_static_shapes_in_every_opset(opset: int) -> None:
    slices = "Slice<starts = [1], ends = [3]>(s)" if opset < 10 else "Slice(s, one, three)"
    squeeze = "Squeeze<axes = [0]>(d)" if opset < 13 else "Squeeze(d, zero)"
    unsqueeze = "Unsqueeze<axes = [0]>(e)" if opset < 13 else "Unsqueeze(e, zero)"
    model = parse(
        header(opset) + f"g (float[4,2,3] x) => (float[A,B] z) {{ s = Shape(x) t = {slices} d = Gather(s, zero) "
        f"e = {squeeze} f = {unsqueeze} m = Mul(f, two) k = Concat<axis = 0>(m, minus) z = Reshape(x, k) }}",
        zero=np.array([0], np.int64),
        one=np.array([1], np.int64),
        two=np.array([2], np.int64),
        three=np.array([3], np.int64),
        minus=np.array([-1], np.int64),
    )
    outcome = check(FoldConstants(), model)
    assert outcome.operators() == ["Reshape"]
    np.testing.assert_array_equal(constant_of(outcome, "k"), [8, -1])


def test_a_reshape_target_with_one_unknown_dimension_gets_minus_one() -> None:
    model = parse(
        header() + "g (float[N,4,6] x) => (float[M,2,6] z) { r = Relu(x) s = Shape(r) n = Gather<axis = 0>(s, zero) "
        "m = Mul(n, two) t = Concat<axis = 0>(m, rest) z = Reshape(x, t) }",
        zero=np.array([0], np.int64),
        two=np.array([2], np.int64),
        rest=np.array([2, 6], np.int64),
    )
    outcome = check(FoldConstants(), model, feeds={"x": np.ones((3, 4, 6), np.float32)})
    assert outcome.operators() == ["Relu", "Reshape"] or outcome.operators() == ["Reshape"]
    np.testing.assert_array_equal(outcome.after.graph[-1].inputs[1].const_value.numpy(), [-1, 2, 6])  # type: ignore[union-attr]


def test_two_unknown_dimensions_stay_unless_the_input_has_them_in_place() -> None:
    def model(first: int, second: int) -> ir.Model:
        return parse(
            header() + "g (float[N,T,6] x) => (float[A,B,C,D] z) { s = Shape(x) n = Gather<axis = 0>(s, i) "
            "m = Gather<axis = 0>(s, j) t = Concat<axis = 0>(n, m, rest) z = Reshape(x, t) }",
            i=np.array([first], np.int64),
            j=np.array([second], np.int64),
            rest=np.array([2, 3], np.int64),
        )

    feeds = {"x": np.arange(120, dtype=np.float32).reshape(4, 5, 6)}
    in_place = check(FoldConstants(), model(0, 1), feeds=feeds)
    np.testing.assert_array_equal(in_place.after.graph[-1].inputs[1].const_value.numpy(), [0, 0, 2, 3])  # type: ignore[union-attr]
    swapped = check(FoldConstants(), model(1, 0), feeds=feeds, changes=False)
    assert "Concat" in swapped.operators()


def test_all_outputs_of_a_split_are_folded() -> None:
    model = parse(
        header() + "g (float[2] x) => (float[2] z) { a, b = Split(w) c = Add(a, b) d = Mul(c, a) z = Add(x, d) }",
        w=np.array([1, 2, 3, 4], np.float32),
    )
    outcome = check(FoldConstants(), model)
    np.testing.assert_array_equal(constant_of(outcome, "d"), [4, 12])


def test_constants_used_at_several_depths_are_folded() -> None:
    model = parse(
        header() + "g (float[2] x) => (float[2] z) { a, b = Split(w) c = Add(a, b) y = Add(x, b) z = Mul(y, c) }",
        w=np.array([1, 2, 3, 4], np.float32),
    )
    outcome = check(FoldConstants(), model)
    assert sorted(outcome.after.graph.initializers) == ["b", "c"]


def test_a_constant_output_of_the_graph_keeps_its_name() -> None:
    model = parse(
        header() + "g (float[2] x) => (float[2] y, float[2] z) { y = Add(w, w) z = Add(x, y) }",
        w=np.array([1, 2], np.float32),
    )
    outcome = check(FoldConstants(), model)
    assert [value.name for value in outcome.after.graph.outputs] == ["y", "z"]
    assert [node.op_type for node in outcome.after.graph] == ["Constant", "Add"]


@pytest.mark.parametrize("taken", [True, False])
def test_the_branch_of_a_constant_condition_is_inlined(taken: bool) -> None:
    model = parse(
        header() + "g (float[2] x) => (float[A] z) { t = Relu(x) y = If(c) <"
        "then_branch = a () => (float[2] p) { t1 = Mul(x, w) p = Add(t1, t) },"
        "else_branch = b () => (float[2] q) { t1 = Sub(x, w) q = Add(t1, t) }> z = Neg(y) }",
        c=np.array(taken),
        w=np.array([1, 2], np.float32),
    )
    outcome = check(FoldConstants(), model)
    assert outcome.operators() == ["Relu", "Mul" if taken else "Sub", "Add", "Neg"]


def test_nested_branches_with_equal_names_are_inlined_side_by_side() -> None:
    branch = (
        "If(c) <then_branch = a{0} () => (float[2] p) {{ t = Mul(x, w) p = If(c) <then_branch = i () => (float[2] r) "
        "{{ u = Add(t, t) r = Neg(u) }}, else_branch = j () => (float[2] s) {{ s = Relu(t) }}> }},"
        "else_branch = b () => (float[2] q) {{ q = Sub(x, w) }}>"
    )
    model = parse(
        header() + f"g (float[2] x) => (float[A] y, float[B] z) {{ y = {branch.format(0)} z = {branch.format(1)} }}",
        c=np.array(True),
        w=np.array([1, 2], np.float32),
    )
    assert check(FoldConstants(), model).operators() == ["Mul", "Add", "Neg", "Mul", "Add", "Neg"]


def test_branches_that_give_outer_values_keep_the_names_of_the_outputs() -> None:
    model = parse(
        header() + "g (float[2] x) => (float[2] r, float[A] y, float[B] z) { r = Relu(x) y, z = If(c) <"
        "then_branch = a () => (float[2] k, float[2] l) { k = Identity(r) l = Identity(w) },"
        "else_branch = b () => (float[2] m, float[2] n) { m = Neg(x) n = Neg(x) }> }",
        c=np.array(True),
        w=np.array([1, 2], np.float32),
    )
    outcome = check(FoldConstants(), model)
    assert [value.name for value in outcome.after.graph.outputs] == ["r", "y", "z"]
    assert [node.op_type for node in outcome.after.graph] == ["Relu", "Identity", "Constant"]


def test_initializers_of_a_branch_come_along() -> None:
    proto = onnx.parser.parse_model(
        header() + "g (float[2] x) => (float[A] y) { y = If(c) <"
        "then_branch = a () => (float[2] k) { k = Add(x, w) }, else_branch = b () => (float[2] m) { m = Neg(x) }> }"
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "c"))
    then = next(attribute for attribute in proto.graph.node[0].attribute if attribute.name == "then_branch")
    then.g.initializer.append(onnx.numpy_helper.from_array(np.array([1, 2], np.float32), "w"))
    assert sorted(check(FoldConstants(), graph_ir.load(proto)).after.graph.initializers) == ["w"]


def test_inside_a_loop() -> None:
    model = parse(
        header() + "g (float[2] x) => (float[A] z) { z = Loop(n, keep, x) <"
        "body = b (int64 i, bool k, float[2] v) => (bool k2, float[2] w2) "
        "{ k2 = Identity(k) d = Mul(w, w) e = Sqrt(d) w2 = Add(v, e) }> }",
        n=np.array(3, np.int64),
        keep=np.array(True),
        w=np.array([1, 2], np.float32),
    )
    outcome = check(FoldConstants(), model)
    assert [node.op_type for node in outcome.after.graph.all_nodes()] == ["Loop", "Identity", "Add"]


def test_random_operators_stay_with_what_depends_on_them() -> None:
    model = parse(
        header() + "g (float[2] x) => (float[A] z) { r = RandomNormalLike<seed = 1.0>(w) s = Mul(r, w) z = Add(x, s) }",
        w=np.array([1, 2], np.float32),
    )
    outcome = FoldConstants().run(model, PassContext())
    assert not outcome.changed
    assert outcome.declined[0].reason == "RandomNormalLike is random"


def test_custom_operators_stay() -> None:
    model = parse(
        '<ir_version: 10, opset_import: ["" : 17, "mine" : 1]> g (float[2] x) => (float[A] z) '
        "{ r = mine.Op(w) z = Add(x, r) }",
        w=np.array([1, 2], np.float32),
    )
    result = FoldConstants().run(model, PassContext())
    assert not result.changed
    assert result.declined[0].reason == "Op is of the custom domain 'mine'"


def test_quantized_weights_stay_quantized() -> None:
    model = parse(
        header() + "g (float[2] x) => (float[A] z) { d = DequantizeLinear(q, s) z = Add(x, d) }",
        q=np.array([1, 2], np.int8),
        s=np.array(0.5, np.float32),
    )
    assert "kept for the quantization" in check(FoldConstants(), model, changes=False).reasons()["dequantizelinear_0"]


def test_large_results_stay_and_small_ones_behind_them_too() -> None:
    model = parse(
        header() + "g (float[4] x) => (float[A,B] z) { e = Expand(w, s) z = Mul(x, e) }",
        w=np.arange(4, dtype=np.float32),
        s=np.array([100, 4], np.int64),
    )
    outcome = check(FoldConstants(max_bytes=1599), model, changes=False)
    assert "its result has 1600 bytes, more than max_bytes=1599" in outcome.reasons()["expand_0"]
    assert check(FoldConstants(max_bytes=1600), model).operators() == ["Mul"]


def test_a_large_result_that_replaces_constants_as_large_is_folded() -> None:
    model = parse(
        header() + "g (float[3,4] x) => (float[A,B] z) { t = Transpose(w) z = MatMul(x, t) }",
        w=np.ones((5, 4), np.float32),
    )
    assert check(FoldConstants(max_bytes=0), model).operators() == ["MatMul"]


def test_what_onnx_runtime_refuses_is_named_and_the_rest_is_folded() -> None:
    model = parse(
        header() + "g (int32[4] x) => (int32[A] y, int32[B] z) "
        "{ d = Div(w, zero) e = Add(w, w) y = Add(x, e) n = Neg(d) z = Add(x, n) }",
        w=np.arange(4, dtype=np.int32),
        zero=np.zeros(4, np.int32),
    )
    result = FoldConstants().run(model, PassContext())
    assert result.changed
    assert [declined.layer for declined in result.declined] == ["div_0"]
    assert "ONNX Runtime cannot compute it" in result.declined[0].reason
    assert [node.op_type for node in model.graph] == ["Div", "Add", "Neg", "Add"]


def test_bfloat16_keeps_its_type() -> None:
    model = parse(
        header(22) + "g (bfloat16[2] x) => (bfloat16[2] z) { c = Cast<to = 16>(w) z = Identity(c) }",
        w=np.array([1.5, 2.25], np.float32),
    )
    result = FoldConstants().run(model, PassContext())
    assert result.changed
    assert model.graph.outputs[0].dtype == ir.DataType.BFLOAT16


@pytest.mark.parametrize(
    "attribute", ["value_int = 3", "value_float = 3.0", "value_ints = [3, 4]", "value_floats = [3.0, 4.0]"]
)
def test_every_form_of_a_constant_is_lifted(attribute: str) -> None:
    kind = "int64" if "int" in attribute else "float"
    text = header(13) + f"g ({kind}[2] x) => ({kind}[2] z) {{ c = Constant<{attribute}>() z = Add(x, c) }}"
    outcome = check(FoldConstants(), parse(text))
    assert [node.op_type for node in outcome.after.graph] == ["Add"]


def test_models_of_ir_version_3_take_new_initializers() -> None:
    text = (
        '<ir_version: 3, opset_import: ["" : 9]> g (float[2] x) => (float[2] z) '
        "{ c = Constant<value = float[2] {1., 2.}>() d = Add(c, c) z = Add(x, d) }"
    )
    assert check(FoldConstants(), parse(text)).operators() == ["Add"]


def test_a_node_that_cannot_be_computed_does_not_keep_others_from_folding() -> None:
    model = parse(
        header(22) + "g (bfloat16[2] x) => (bfloat16[2] z) { c = Cast<to = 16>(w) d = Add(c, c) z = Add(x, d) }",
        w=np.array([1.5, 2.25], np.float32),
    )
    result = FoldConstants().run(model, PassContext())
    assert [node.op_type for node in model.graph] == ["Add", "Add"]
    assert [declined.layer for declined in result.declined] == ["add_1"]


def test_an_input_with_a_default_is_not_a_constant() -> None:
    proto = onnx.parser.parse_model(
        header() + "g (float[2] x, float[2] w) => (float[2] z) { d = Mul(w, w) z = Add(x, d) }"
    )
    model = graph_ir.load(proto)
    value = model.graph.inputs[1]
    value.const_value = ir.Tensor(np.ones(2, np.float32), name="w")
    model.graph.initializers.add(value)
    assert not FoldConstants().run(model, PassContext()).changed


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_random_shape_arithmetic_keeps_its_outputs(data: st.DataObject) -> None:
    """A Reshape whose target is computed from the shape of its input in a random way that keeps the element count."""
    dims = data.draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    static = data.draw(st.lists(st.booleans(), min_size=len(dims), max_size=len(dims)))
    order = data.draw(st.permutations(range(len(dims))))
    declared = ",".join(
        str(dim) if known else f"D{axis}" for axis, (dim, known) in enumerate(zip(dims, static, strict=True))
    )
    body, weights = ["s = Shape(x)"], dict[str, Array]()
    entries = []
    for axis in order:
        weights[f"i{axis}"] = np.array(axis, np.int64)
        body.append(f"g{axis} = Gather<axis = 0>(s, i{axis}) u{axis} = Unsqueeze(g{axis}, zero)")
        entries.append(f"u{axis}")
    weights["zero"], weights["one"], weights["two"] = (np.array([number], np.int64) for number in (0, 1, 2))
    if data.draw(st.booleans()):  # split one dimension in d·2 / 2
        body.append(f"m = Mul({entries[0]}, two) n = Div(m, two)")
        entries[0] = "n"
    if data.draw(st.booleans()):
        body.append(f"w = Add({entries[-1]}, one) v = Sub(w, one)")
        entries[-1] = "v"
    body.append(f"t = Concat<axis = 0>({', '.join(entries)}) z = Reshape(x, t)")
    outs = ",".join("ABCD"[: len(dims)])
    model = parse(header() + f"g (float[{declared}] x) => (float[{outs}] z) {{ {' '.join(body)} }}", **weights)
    feeds = {"x": np.arange(np.prod(dims), dtype=np.float32).reshape(dims)}
    outcome = check(FoldConstants(), model, feeds=feeds, changes=None)
    if sum(not known for known in static) <= 1:
        assert outcome.operators() == ["Reshape"]
