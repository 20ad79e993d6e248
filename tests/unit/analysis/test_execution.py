"""Sessions: every type goes in and comes out, and what does not fit is said."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

import graphopt.ir as graph_ir
from graphopt.analysis.execution import Session
from graphopt.errors import DataError, ModelError, UnsupportedError


def parse(text: str, opset: int = 21, **weights: np.ndarray[Any, Any]) -> ir.Model:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}, "my.own" : 1]> {text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    return ir.from_proto(proto)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("float", np.array([1.5, np.nan, -np.inf], np.float32)),
        ("double", np.array([1.5, 1e300, 0])),
        ("float16", np.array([1.5, 65504, 0], np.float16)),
        ("bfloat16", np.array([1.5, 1e38, np.nan], ml_dtypes.bfloat16)),
        ("float8e4m3fn", np.array([1.5, 448, 0], ml_dtypes.float8_e4m3fn)),
        ("float8e5m2", np.array([1.5, 57344, 0], ml_dtypes.float8_e5m2)),
        ("int8", np.array([-128, 127, 0], np.int8)),
        ("uint16", np.array([0, 65535, 1], np.uint16)),
        ("int64", np.array([-(2**63), 2**63 - 1, 0])),
        ("bool", np.array([True, False, True])),
        ("string", np.array(["a", "ä", ""], object)),
    ],
)
def test_every_type_goes_in_and_comes_out_as_it_is(name: str, array: np.ndarray[Any, Any]) -> None:
    model = parse(f"g ({name}[3] x) => ({name}[3] y) {{ y = Identity(x) }}")
    with Session(model) as session:
        found = session.run({"x": array})["y"]
    assert found.dtype == array.dtype
    plain = object if name == "string" else np.float64  # numpy does not take ml_dtypes' NaN for one
    np.testing.assert_array_equal(found.astype(plain), array.astype(plain))


def test_strings_may_be_given_as_numpy_strings() -> None:
    model = parse("g (string[2] x) => (string[2] y) { y = Identity(x) }")
    assert Session(model).run({"x": np.array(["a", "bc"])})["y"].tolist() == ["a", "bc"]


def test_a_sequence_gives_one_entry_for_each_member() -> None:
    model = parse("g (float[2] x) => (seq(float[2]) s, float[2] y) { y = Neg(x) s = SequenceConstruct(x, y) }")
    found = Session(model).run({"x": np.array([1, 2], np.float32)})
    assert {name: array.tolist() for name, array in found.items()} == {"s[0]": [1, 2], "s[1]": [-1, -2], "y": [-1, -2]}


def test_inner_values_can_be_asked_for_and_the_model_stays_as_it_is() -> None:
    model = parse("g (float[2] x) => (float[2] y) { a = Neg(x) b = Exp(a) y = Abs(b) }")
    before = graph_ir.to_text(model)
    found = Session(model, outputs=["a", "x", "y"]).run({"x": np.array([0, 1], np.float32)})
    assert list(found) == ["a", "x", "y"]
    assert found["a"].tolist() == [0, -1]
    assert graph_ir.to_text(model) == before
    with pytest.raises(ModelError, match="has no value 'c' to compute"):
        Session(model, outputs=["c"])


def test_large_weights_are_handed_over_beside_the_model() -> None:
    weight = np.arange(1 << 19, dtype=np.float32).reshape(2, -1)
    model = parse(f"g (float[1,2] x) => (float[1,{1 << 18}] y) {{ y = MatMul(x, w) }}", w=weight)
    found = Session(model).run({"x": np.array([[1, 2]], np.float32)})["y"]
    np.testing.assert_array_equal(found, weight[:1] + 2 * weight[1:])


def test_weights_in_a_file_of_their_own_are_found(tmp_path: Any) -> None:
    weights = {"w": np.ones((2, 1 << 18), np.float32), "b": np.full(1 << 18, 3, np.float32)}
    model = parse(f"g (float[1,2] x) => (float[1,{1 << 18}] y) {{ a = MatMul(x, w) y = Add(a, b) }}", **weights)
    graph_ir.save(model, tmp_path / "m.onnx", external_data="weights")
    found = Session(graph_ir.load(tmp_path / "m.onnx")).run({"x": np.array([[1, 2]], np.float32)})["y"]
    assert (found == 6).all()


def test_an_input_with_a_default_need_not_be_fed() -> None:
    model = parse("g (float[1] x, float[1] w) => (float[1] y) { y = Add(x, w) }", w=np.array([2], np.float32))
    assert Session(model).run({"x": np.array([1], np.float32)})["y"].tolist() == [3]


MODEL = "g (float[N,3] x, int64[1] n) => (float[N,3] y) { c = Cast<to=1>(n) y = Add(x, c) }"


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"x": np.zeros((1, 3), np.float32)}, "missing ['n'], unknown none\n  the inputs are ['n', 'x']"),
        ({"x": np.zeros((1, 3), np.float32), "m": np.zeros(1), "n": np.zeros(1)}, "missing none, unknown ['m']"),
        ({"x": np.zeros((1, 3)), "n": np.zeros(1, np.int64)}, "input 'x': found an array of float64, expected float32"),
        (
            {"x": np.zeros((1, 4), np.float32), "n": np.zeros(1, np.int64)},
            "input 'x': found shape [1, 4], expected [N,3]",
        ),
        ({"x": np.zeros(3, np.float32), "n": np.zeros(1, np.int64)}, "input 'x': found shape [3], expected [N,3]"),
    ],
)
def test_feeds_that_do_not_fit_are_an_error_that_names_the_input(
    feeds: dict[str, np.ndarray[Any, Any]], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        Session(parse(MODEL)).run(feeds)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("g (float[1] x) => (float[1] y) { y = my.own.Foo(x) }", UnsupportedError, "Foo"),
        ("g (float[1] x) => (float[1] y) { y = Fooo(x) }", UnsupportedError, "No Op registered for Fooo"),
        (
            "g (bfloat16[1,1,3,3] x) => (bfloat16[1,1,1,1] y) { y = GlobalLpPool(x) }",
            UnsupportedError,
            "GlobalLpPool",
        ),
        ("g (float[1] x) => (int32[1] y) { y = Relu(x) }", ModelError, "does not match expected type"),
    ],
)
def test_what_onnx_runtime_cannot_load_is_an_error_with_its_reason(text: str, kind: type, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        Session(parse(text))
    assert type(caught.value) is kind
    assert message in caught.value.what and "ONNXRuntimeError" not in caught.value.what


def test_a_failure_while_running_is_a_model_error_with_its_reason() -> None:
    model = parse("g (float[2] x, int64[1] s) => (float[N] y) { y = Reshape(x, s) }")
    with pytest.raises(ModelError, match=r"ONNX Runtime failed while running the model: .*Reshape"):
        Session(model).run({"x": np.zeros(2, np.float32), "s": np.array([3])})


def test_a_model_is_computed_as_written_unless_asked_otherwise() -> None:
    x = np.random.default_rng(0).standard_normal((1, 1, 8, 8)).astype(np.float32)
    weight, scale = np.full((1, 1, 1, 1), 1.1, np.float32), np.full((1, 1, 1, 1), 1.3, np.float32)
    model = parse("g (float[1,1,8,8] x) => (float[1,1,8,8] y) { a = Conv(x, w) y = Mul(a, s) }", w=weight, s=scale)
    np.testing.assert_array_equal(Session(model).run({"x": x})["y"], x * weight * scale)
    np.testing.assert_array_equal(Session(model, optimize=True).run({"x": x})["y"], x * (weight * scale))
    assert (x * weight * scale != x * (weight * scale)).any()
