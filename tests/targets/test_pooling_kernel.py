"""The kernel of pooling: against ONNX Runtime on the host, and within its buffers."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper

from graphopt import ir as gir
from graphopt.targets.host import HOST
from graphopt.targets.tvm.kernels.pooling import schedule
from tests.targets.accesses import out_of_bounds
from tests.targets.compiled import lowered, run


@st.composite
def poolings(draw: st.DrawFn) -> onnx.ModelProto:
    """MaxPool and AveragePool of odd sizes, with what may be fused behind them."""
    operator = draw(st.sampled_from(["MaxPool", "MaxPool", "AveragePool"]))
    shape = (draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 3, 5, 17])), *draw(st.tuples(*[_SIZES] * 2)))
    kernel = draw(st.sampled_from([(3, 3), (2, 2), (1, 3), (5, 2), (7, 7)]))
    pads = draw(st.tuples(*[st.integers(0, size - 1) for size in kernel * 2]))
    attributes = {
        "kernel_shape": kernel,
        "strides": draw(st.sampled_from([(1, 1), (2, 2), (2, 1), (1, 3), (3, 4), (1, 5)])),
        "pads": pads,
    }
    if operator == "MaxPool":
        attributes["dilations"] = draw(st.sampled_from([(1, 1), (1, 1), (2, 1)]))
    else:
        attributes["count_include_pad"] = draw(st.sampled_from([0, 1]))
    reach = [(size - 1) * step for size, step in zip(kernel, attributes.get("dilations", (1, 1)), strict=True)]
    assume(all(shape[2 + i] + pads[i] + pads[2 + i] > reach[i] for i in range(2)))
    nodes = [helper.make_node(operator, ["x"], ["t"], **attributes), helper.make_node("Relu", ["t"], ["y"])]
    return _model(nodes, shape)


_SIZES = st.sampled_from([1, 2, 3, 5, 7, 9, 14, 17, 28])


def _model(nodes: list[onnx.NodeProto], shape: tuple[int, ...]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "pooling",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model)


def _check(model: onnx.ModelProto) -> None:
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    feeds = {"x": np.random.default_rng(0).normal(size=shape).astype(np.float32)}
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds)[0]
    loaded = gir.load(model)
    gir.refresh_shapes(loaded)
    np.testing.assert_allclose(run(loaded, feeds)["y"], expected, rtol=0, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(model=poolings())
def test_computes_what_onnx_runtime_does(model: onnx.ModelProto) -> None:
    _check(model)


@settings(max_examples=10, deadline=None)
@given(model=poolings())
def test_nothing_is_accessed_out_of_bounds(model: onnx.ModelProto) -> None:
    loaded = gir.load(model)
    gir.refresh_shapes(loaded)
    found = [made for f in lowered(loaded).functions.values() if (made := schedule(f, HOST)) is not None]
    assert [out_of_bounds(made) for made in found] == [[]] * len(found)


@pytest.mark.parametrize(
    ("operator", "attributes"),
    [
        ("MaxPool", {"kernel_shape": (3, 3), "strides": (2, 2), "pads": (1, 1, 1, 1)}),
        ("MaxPool", {"kernel_shape": (3, 3), "strides": (2, 2), "ceil_mode": 1}),
        ("AveragePool", {"kernel_shape": (2, 2), "strides": (2, 2)}),
        ("AveragePool", {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1), "count_include_pad": 1}),
    ],
    ids=["padded maximum", "maximum that reaches over the end", "average", "average with padding that counts"],
)
def test_common_poolings_are_the_kernels(operator: str, attributes: dict[str, object]) -> None:
    model = _model([helper.make_node(operator, ["x"], ["y"], **attributes)], (1, 6, 20, 20))
    loaded = gir.load(model)
    gir.refresh_shapes(loaded)
    ((_, function),) = lowered(loaded).functions.items()
    assert schedule(function, HOST) is not None
    _check(model)


def test_averages_of_fewer_elements_at_the_edge_are_left_to_the_default_schedule() -> None:
    node = helper.make_node("AveragePool", ["x"], ["y"], kernel_shape=(3, 3), pads=(1, 1, 1, 1))
    model = _model([node], (1, 6, 20, 20))
    loaded = gir.load(model)
    gir.refresh_shapes(loaded)
    assert all(schedule(function, HOST) is None for function in lowered(loaded).functions.values())
    _check(model)


def test_minus_infinity_stays_where_all_of_a_window_is() -> None:
    model = _model([helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=(3, 3), pads=(1, 1, 1, 1))], (1, 2, 5, 5))
    loaded = gir.load(model)
    gir.refresh_shapes(loaded)
    feeds = {"x": np.full((1, 2, 5, 5), -np.inf, np.float32)}
    np.testing.assert_array_equal(run(loaded, feeds)["y"], np.full((1, 2, 5, 5), -np.inf, np.float32))
