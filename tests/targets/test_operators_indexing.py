"""Gather, Scatter, OneHot, TopK and their families against ONNX Runtime, over shapes, axes and negative indices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from graphopt import ir as gir
from graphopt.errors import UnsupportedError
from tests.targets import compiled
from tests.targets.single_node import assert_as_onnxruntime, model_of

EXAMPLES = settings(max_examples=5, deadline=None)
shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)
rng = np.random.default_rng(3)


def floats(shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(-1, 1, shape).astype(np.float32)


def indices(shape: tuple[int, ...], extent: int) -> np.ndarray:
    return rng.integers(-extent, extent, shape, dtype=np.int64)


@EXAMPLES
@given(data=st.data(), shape=shapes, picked=st.lists(st.integers(1, 4), max_size=2), constant=st.booleans())
def test_gather_agrees(data: st.DataObject, shape: tuple[int, ...], picked: list[int], constant: bool) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    inputs = {"x": floats(shape), "i": indices(tuple(picked), shape[axis])}
    assert_as_onnxruntime("Gather", inputs, ["i"] if constant else [], axis=axis)


@EXAMPLES
@given(data=st.data(), shape=shapes, constant=st.booleans())
def test_gather_elements_agrees(data: st.DataObject, shape: tuple[int, ...], constant: bool) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    smaller = tuple(data.draw(st.integers(1, extent)) for extent in shape)
    inputs = {"x": floats(shape), "i": indices(smaller, shape[axis])}
    assert_as_onnxruntime("GatherElements", inputs, ["i"] if constant else [], axis=axis)


@EXAMPLES
@given(data=st.data(), shape=st.lists(st.integers(1, 4), min_size=2, max_size=4).map(tuple), constant=st.booleans())
def test_gather_nd_agrees(data: st.DataObject, shape: tuple[int, ...], constant: bool) -> None:
    batch = data.draw(st.integers(0, len(shape) - 1))
    depth = data.draw(st.integers(1, len(shape) - batch))
    outer = (*shape[:batch], data.draw(st.integers(1, 3)))
    columns = [indices(outer, extent) for extent in shape[batch : batch + depth]]
    inputs = {"x": floats(shape), "i": np.stack(columns, axis=-1)}
    assert_as_onnxruntime("GatherND", inputs, ["i"] if constant else [], batch_dims=batch)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
@EXAMPLES
@given(data=st.data(), shape=shapes)
def test_scatter_elements_agrees(reduction: str, data: st.DataObject, shape: tuple[int, ...]) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    smaller = tuple(data.draw(st.integers(1, extent)) for extent in shape)
    positions = indices(smaller, shape[axis])
    if reduction == "none":  # without a reduction duplicates are undefined
        order = np.arange(smaller[axis]).reshape([-1 if k == axis % len(shape) else 1 for k in range(len(shape))])
        positions = np.broadcast_to(order, smaller).copy()
    inputs = {"x": floats(shape), "i": positions, "u": floats(smaller)}
    assert_as_onnxruntime("ScatterElements", inputs, axis=axis, reduction=reduction, opset=18)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
@EXAMPLES
@given(data=st.data(), shape=shapes)
def test_scatter_nd_agrees(reduction: str, data: st.DataObject, shape: tuple[int, ...]) -> None:
    depth = data.draw(st.integers(1, len(shape)))
    count = 1 if reduction == "none" else data.draw(st.integers(1, 4))
    positions = np.stack([indices((count,), extent) for extent in shape[:depth]], axis=-1)
    inputs = {"x": floats(shape), "i": positions, "u": floats((count, *shape[depth:]))}
    assert_as_onnxruntime("ScatterND", inputs, reduction=reduction, opset=18)


@EXAMPLES
@given(data=st.data(), shape=st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple), depth=st.integers(1, 6))
def test_one_hot_agrees(data: st.DataObject, shape: tuple[int, ...], depth: int) -> None:
    axis = data.draw(st.integers(-len(shape) - 1, len(shape)))
    inputs = {
        "i": rng.integers(-depth - 2, depth + 2, shape, dtype=np.int64),  # some are out of range: all off
        "depth": np.array(depth, np.int64),
        "values": np.array([0.25, 3.0], np.float32),
    }
    assert_as_onnxruntime("OneHot", inputs, ["depth"], axis=axis)


@pytest.mark.parametrize("largest", [0, 1])
@EXAMPLES
@given(data=st.data(), shape=shapes)
def test_top_k_agrees_also_on_ties(largest: int, data: st.DataObject, shape: tuple[int, ...]) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    inputs = {
        "x": rng.integers(0, 4, shape).astype(np.float32),
        "k": np.array([data.draw(st.integers(1, shape[axis]))], np.int64),
    }
    assert_as_onnxruntime("TopK", inputs, ["k"], outputs=2, axis=axis, largest=largest)


@pytest.mark.parametrize("k", [1, 5, 100, 1000])
def test_top_k_of_many_agrees(k: int) -> None:
    inputs = {"x": floats((2, 1000)), "k": np.array([k], np.int64)}
    assert_as_onnxruntime("TopK", inputs, ["k"], outputs=2)


@EXAMPLES
@given(data=st.data(), shape=shapes)
def test_compress_by_a_constant_agrees(data: st.DataObject, shape: tuple[int, ...]) -> None:
    axis = data.draw(st.none() | st.integers(-len(shape), len(shape) - 1))
    extent = int(np.prod(shape)) if axis is None else shape[axis]
    condition = np.array(data.draw(st.lists(st.booleans(), min_size=1, max_size=extent)), dtype=bool)
    data_array = floats(shape)
    model = model_of("Compress", {"x": data_array, "c": condition}, ["c"], **({} if axis is None else {"axis": axis}))
    # ONNX infers no size from the condition: the graph has to say it, as an exporter would
    chosen = np.compress(condition, data_array, axis)
    model.graph.output[0].type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, chosen.shape))
    found = compiled.run(gir.load(model), {"x": data_array})["y0"]
    np.testing.assert_array_equal(found, chosen)


@pytest.mark.parametrize("op", ["Gather", "GatherElements"])
def test_an_index_out_of_range_reads_within_the_buffer(op: str) -> None:
    x = np.arange(4, dtype=np.float32)
    model = model_of(op, {"x": x, "i": np.zeros(2, np.int64)})
    found = compiled.run(gir.load(model), {"x": x, "i": np.array([1 << 40, -(1 << 40)])})
    assert found["y0"].tolist() == [3, 0]


def test_a_constant_index_out_of_range_is_refused() -> None:
    inputs = {"x": floats((2, 3)), "i": np.array([0, 3])}
    with pytest.raises(UnsupportedError, match=r"Gather 'node': an index is outside of \[-3, 2\]"):
        compiled.run(gir.load(model_of("Gather", inputs, ["i"], axis=1)), {"x": inputs["x"]})
