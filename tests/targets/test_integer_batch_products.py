"""Products of two quantized activations: bit-exact with their definition, read in place where they can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from graphopt import ir as gir
from graphopt import optimize
from graphopt.analysis.execution import Session
from graphopt.deploy.bundle import open_bundle
from graphopt.deploy.toolchain import build_program, launcher, run_program
from graphopt.targets.arm.cores import CORES
from graphopt.targets.tvm.preparation import prepare
from graphopt.targets.tvm.quantized.rewrite import LEFT_IN_FLOAT
from tests.targets import compiled
from tests.targets.quantized_models import Activation, requantized

FEW = settings(  # each compiles a model: no shrinking
    max_examples=8, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
SIZES = [1, 3, 5, 7, 16, 17, 33]


def product_model(
    a: tuple[Activation, tuple[int, ...]], b: tuple[Activation, tuple[int, ...]], y: Activation | None, moves: Any = ()
) -> Any:
    """MatMul of `a` and `b`; moves: operators on the integers a or b between the input and the product."""
    arrays: dict[str, np.ndarray] = {}
    nodes, values = [], []
    for name, (q, shape) in {"a": a, "b": b}.items():
        arrays |= {f"{name}_s": np.float32(q.scale), f"{name}_z": np.array(q.zero_point, q.dtype)}
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(q.dtype))
        values.append(helper.make_tensor_value_info(f"{name}_q", kind, shape))
        parameters = [f"{name}_s", f"{name}_z"]
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", *parameters], [f"{name}_0"]))
        last = f"{name}_0"
        for i, (of, operator, more, attributes) in enumerate(moves):
            if of == name:
                inputs = [f"{name}_{i}_{j}" for j in range(len(more))]
                arrays |= {key: np.array(array) for key, array in zip(inputs, more, strict=True)}
                moved = f"{name}_m{i}"
                nodes.append(helper.make_node(operator, [last, *inputs], [f"{moved}_f"], **attributes))
                nodes.append(helper.make_node("QuantizeLinear", [f"{moved}_f", *parameters], [f"{moved}_q"]))
                nodes.append(helper.make_node("DequantizeLinear", [f"{moved}_q", *parameters], [moved]))
                last = moved
        arrays[f"{name}_last"] = np.array(0)  # only its name counts
        values[-1].doc_string = last
    nodes.append(helper.make_node("MatMul", [values[0].doc_string, values[1].doc_string], ["y_f"], name="layer"))
    result = helper.make_tensor_value_info("y_f", onnx.TensorProto.FLOAT, None)
    if y is not None:
        arrays |= {"y_s": np.float32(y.scale), "y_z": np.array(y.zero_point, y.dtype)}
        nodes.append(helper.make_node("QuantizeLinear", ["y_f", "y_s", "y_z"], ["y"]))
        result = helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(np.dtype(y.dtype)), None)
    used = {name for node in nodes for name in node.input}
    initializers = [numpy_helper.from_array(np.asarray(v), k) for k, v in arrays.items() if k in used]
    graph = helper.make_graph(nodes, "product", values, [result], initializers)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    model = gir.load(onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True))
    gir.refresh_shapes(model)
    return model


def integers(random: np.random.Generator, q: Activation, shape: tuple[int, ...]) -> np.ndarray:
    return random.integers(*q.limits(), shape, q.dtype, endpoint=True)


def sums(a: np.ndarray, qa: Activation, b: np.ndarray, qb: Activation) -> np.ndarray:
    made: np.ndarray = np.matmul(a.astype(np.int64) - qa.zero_point, b.astype(np.int64) - qb.zero_point)
    return made


def multiplier(qa: Activation, qb: Activation, scale: float) -> np.ndarray:
    return np.asarray(np.float32(np.float32(qa.scale) * np.float32(qb.scale)) / np.float32(scale))


@st.composite
def activations(draw: Any) -> Activation:
    dtype = draw(st.sampled_from([np.int8, np.uint8]))
    limits = np.iinfo(dtype)
    return Activation(dtype, 0.02, draw(st.sampled_from([limits.min, limits.max, 0, 7])))


@FEW
@given(data=st.data())
def test_products_of_activations_are_bit_exact(data: Any) -> None:
    draw = data.draw
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    rows, depth, columns = (draw(st.sampled_from(SIZES)) for _ in range(3))
    batch_a, batch_b = draw(st.sampled_from([((), ()), ((3,), (3,)), ((2, 1), (1, 3)), ((2, 3), ()), ((1,), (2, 2))]))
    qa, qb = draw(activations()), draw(activations())
    a, b = integers(random, qa, (*batch_a, rows, depth)), integers(random, qb, (*batch_b, depth, columns))
    expected = sums(a, qa, b, qb)
    y = Activation(draw(st.sampled_from([np.int8, np.uint8])), max(float(np.abs(expected).max()), 1) * 4e-4 / 100, 3)
    model = product_model((qa, a.shape), (qb, b.shape), y)
    prepared = prepare(model)
    assert prepared.meta[LEFT_IN_FLOAT] == [] and "MatMul" not in {node.op_type for node in prepared.graph}
    found = compiled.run(model, {"a_q": a, "b_q": b})["y"]
    np.testing.assert_array_equal(found, requantized(expected, multiplier(qa, qb, y.scale), y))
    reference = Session(model).run({"a_q": a, "b_q": b})["y"]
    assert np.abs(found.astype(int) - reference.astype(int)).max() <= 1


@pytest.mark.parametrize("depth", [6, 24])
def test_a_product_that_is_not_quantized_sums_integers(depth: int) -> None:
    random = np.random.default_rng(depth)
    qa, qb = Activation(np.uint8, 0.02, 77), Activation(np.int8, 0.03, -5)
    a, b = integers(random, qa, (2, 7, depth)), integers(random, qb, (2, depth, 18))
    model = product_model((qa, a.shape), (qb, b.shape), None, [("a", "Reshape", [a.shape], {})])
    assert prepare(model).meta[LEFT_IN_FLOAT] == []
    expected = sums(a, qa, b, qb).astype(np.float32) * multiplier(qa, qb, 1.0)
    np.testing.assert_allclose(compiled.run(model, {"a_q": a, "b_q": b})["y_f"], expected, rtol=2e-7)


HEADS: Any = [  # [tokens, 3 · heads · 8] cut into heads, of which a and b take different ones
    ("a", "Reshape", [[9, 3, 5, 8]], {}),
    ("a", "Gather", [0], {"axis": 1}),
    ("a", "Transpose", [], {"perm": [1, 0, 2]}),
    ("b", "Reshape", [[9, 3, 5, 8]], {}),
    ("b", "Slice", [[2], [3], [1]], {}),
    ("b", "Transpose", [], {"perm": [1, 2, 3, 0]}),
    ("b", "Squeeze", [[0]], {}),
]


def test_heads_are_read_where_they_lie() -> None:
    random = np.random.default_rng(0)
    qa, qb, y = Activation(np.int8, 0.02, 4), Activation(np.int8, 0.03, 0), Activation(np.int8, 0.05, 9)
    a, b = integers(random, qa, (9, 120)), integers(random, qb, (9, 120))
    model = product_model((qa, a.shape), (qb, b.shape), y, HEADS)
    assert [node.op_type for node in prepare(model).graph] == ["IntegerBatchProduct"]
    heads = [x.reshape(9, 3, 5, 8) for x in (a, b)]
    expected = sums(heads[0][:, 0].transpose(1, 0, 2), qa, heads[1][:, 2].transpose(1, 2, 0), qb)
    found = compiled.run(model, {"a_q": a, "b_q": b})["y"]
    np.testing.assert_array_equal(found, requantized(expected, multiplier(qa, qb, y.scale), y))


def test_what_no_kernel_reads_in_place_is_copied() -> None:
    random = np.random.default_rng(0)
    q, y = Activation(np.int8, 0.02, 4), Activation(np.int8, 0.05, 9)
    a, b = integers(random, q, (6, 5)), integers(random, q, (6, 7))
    model = product_model((q, a.shape), (q, b.shape), y, [("a", "Transpose", [], {"perm": [1, 0]})])
    assert [node.op_type for node in prepare(model).graph] == ["IntegerTransposition", "IntegerBatchProduct"]
    found = compiled.run(model, {"a_q": a, "b_q": b})["y"]
    np.testing.assert_array_equal(found, requantized(sums(a.T, q, b, q), multiplier(q, q, y.scale), y))


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [((4,), (4, 3), "a factor is a vector"), ((1, 40000), (40000, 1), "its sums may overflow 32 bits")],
)
def test_other_products_stay_in_float_with_the_reason(a: tuple[int, ...], b: tuple[int, ...], reason: str) -> None:
    q = Activation(np.int8, 0.02, 127)
    (left,) = prepare(product_model((q, a), (q, b), q)).meta[LEFT_IN_FLOAT]
    assert left.name == "layer" and left.reason.startswith(reason)


@pytest.mark.emulation
@pytest.mark.parametrize("name", ["cortex-a76", "cortex-a72"])
def test_arm_gives_the_bits_of_the_host(name: str, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    q, y = Activation(np.uint8, 0.02, 100), Activation(np.int8, 0.05, 9)
    a, b = integers(random, q, (2, 9, 35)), integers(random, q, (35, 37))
    model = product_model((q, a.shape), (q, b.shape), y)
    expected = requantized(sums(a, q, b, q), multiplier(q, q, y.scale), y)
    target = next(core for core in CORES if core.name == name)
    optimize(model, target=name, out=tmp_path / "made", name="net", jobs=1)
    bundle = open_bundle(tmp_path / "made")
    program = tmp_path / "example"
    build_program(bundle.example, target, bundle.include, bundle.static, program)
    for name, array in (("a", a), ("b", b)):
        (tmp_path / name).write_bytes(array.tobytes())
    run_program((*launcher(target), str(program), "-o", str(tmp_path), str(tmp_path / "a"), str(tmp_path / "b")))
    found = np.frombuffer((tmp_path / "output_0.bin").read_bytes(), np.int8).reshape(expected.shape)
    np.testing.assert_array_equal(found, expected)
