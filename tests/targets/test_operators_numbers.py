"""Pow, Mod, BitShift, ReduceMax, cumulative sums and others against ONNX Runtime, where types and infinities matter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import ir as gir
from graphopt.errors import UnsupportedError
from tests.targets import compiled
from tests.targets.single_node import assert_as_onnxruntime, model_of

EXAMPLES = settings(max_examples=6, deadline=None)
shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)
rng = np.random.default_rng(11)


@pytest.mark.parametrize("base", [np.float32, np.float64, np.int32, np.int64])
@pytest.mark.parametrize("exponent", [np.float32, np.float64, np.int32, np.int64])
def test_pow_of_any_types_agrees(base: type, exponent: type) -> None:
    inputs = {"x": rng.integers(1, 9, (3, 4)).astype(base), "y": rng.integers(0, 5, (4,)).astype(exponent)}
    assert_as_onnxruntime("Pow", inputs)


@pytest.mark.parametrize("exponent", [0.5, 2.0, 3.0, -1.0, 1.7])
def test_pow_by_a_constant_agrees(exponent: float) -> None:
    inputs = {"x": rng.uniform(0.1, 4, (3, 5)).astype(np.float32), "y": np.array(exponent, np.float32)}
    assert_as_onnxruntime("Pow", inputs, ["y"])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fmod_agrees_at_the_edges(dtype: type) -> None:
    edges = np.array([0.0, -0.0, 1.5, -1.5, 4.0, np.inf, -np.inf, np.nan], dtype)
    inputs = {"x": np.repeat(edges, len(edges)), "y": np.tile(edges, len(edges))}
    assert_as_onnxruntime("Mod", inputs, fmod=1)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint8, np.uint32])
@pytest.mark.parametrize("fmod", [0, 1])
def test_mod_of_integers_agrees(dtype: type, fmod: int) -> None:
    low = 0 if np.issubdtype(dtype, np.unsignedinteger) else -20
    x, y = rng.integers(low, 20, 64).astype(dtype), rng.integers(1, 9, 64).astype(dtype)
    signs = 1 if low == 0 else rng.choice([-1, 1], 64)
    assert_as_onnxruntime("Mod", {"x": x, "y": (y * signs).astype(dtype)}, fmod=fmod)


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
@EXAMPLES
@given(data=st.data(), shape=shapes, keepdims=st.integers(0, 1))
def test_extrema_over_any_axes_agree(op: str, data: st.DataObject, shape: tuple[int, ...], keepdims: int) -> None:
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), unique=True))
    inputs = {"x": rng.uniform(-1, 1, shape).astype(np.float32), "axes": np.array(axes, np.int64) if axes else None}
    assert_as_onnxruntime(op, inputs, ["axes"], keepdims=keepdims, opset=18)


@pytest.mark.parametrize(("op", "infinity"), [("ReduceMax", -np.inf), ("ReduceMin", np.inf)])
def test_the_extremum_of_infinities_is_infinite(op: str, infinity: float) -> None:
    assert_as_onnxruntime(op, {"x": np.full((2, 7), infinity, np.float32)}, axes=[1], keepdims=0)


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize("reverse", [0, 1])
@EXAMPLES
@given(data=st.data(), shape=shapes)
def test_cum_sum_agrees(exclusive: int, reverse: int, data: st.DataObject, shape: tuple[int, ...]) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    inputs = {"x": rng.uniform(-1, 1, shape).astype(np.float32), "axis": np.array(axis, np.int64)}
    assert_as_onnxruntime("CumSum", inputs, ["axis"], exclusive=exclusive, reverse=reverse)


@EXAMPLES
@given(data=st.data(), shape=shapes)
def test_slice_agrees_with_any_bounds_and_steps(data: st.DataObject, shape: tuple[int, ...]) -> None:
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True))
    bound = st.integers(-7, 7)
    inputs: dict[str, np.ndarray | None] = {"x": rng.uniform(-1, 1, shape).astype(np.float32)}
    for name, values in (
        ("starts", bound),
        ("ends", bound | st.just(-(2**63))),  # at 2**63 - 1 and a negative step ONNX Runtime differs from ONNX
        ("axes", None),
        ("steps", st.sampled_from([-3, -2, -1, 1, 2, 3])),
    ):
        inputs[name] = np.array([a if values is None else data.draw(values) for a in axes], np.int64)
    assert_as_onnxruntime("Slice", inputs, ["starts", "ends", "axes", "steps"])


@EXAMPLES
@given(sizes=st.lists(st.integers(0, 4), min_size=1, max_size=4), axis=st.integers(0, 2))
def test_split_agrees_with_empty_parts(sizes: list[int], axis: int) -> None:
    shape = [2, 3, 2]
    shape[axis] = sum(sizes)
    inputs = {"x": rng.uniform(-1, 1, shape).astype(np.float32), "split": np.array(sizes, np.int64)}
    assert_as_onnxruntime("Split", inputs, ["split"], outputs=len(sizes), axis=axis)


@EXAMPLES
@given(
    extents=st.tuples(st.integers(4, 8), st.integers(4, 8)),
    window=st.integers(1, 3),
    stride=st.integers(1, 3),
    pad=st.integers(0, 1),
    column=st.integers(0, 1),
)
def test_max_pool_gives_the_indices(extents: tuple[int, int], window: int, stride: int, pad: int, column: int) -> None:
    assert_as_onnxruntime(
        "MaxPool",
        {"x": rng.uniform(-1, 1, (2, 3, *extents)).astype(np.float32)},
        outputs=2,
        kernel_shape=[window, window],
        strides=[stride, stride],
        pads=[min(pad, window - 1)] * 4,
        storage_order=column,
    )


@pytest.mark.parametrize(("shape", "wanted"), [((4, 5), [9, 11]), ((4, 5), [7, 10]), ((4, 5), [8, 9])])
@pytest.mark.parametrize("auto_pad", ["NOTSET", "SAME_UPPER"])
def test_conv_transpose_makes_the_shape_asked_for(shape: tuple[int, int], wanted: list[int], auto_pad: str) -> None:
    inputs = {
        "x": rng.uniform(-1, 1, (1, 2, *shape)).astype(np.float32),
        "w": rng.uniform(-1, 1, (2, 3, 3, 3)).astype(np.float32),
        "b": rng.uniform(-1, 1, 3).astype(np.float32),
    }
    assert_as_onnxruntime("ConvTranspose", inputs, ["w", "b"], output_shape=wanted, strides=[2, 2], auto_pad=auto_pad)


@pytest.mark.parametrize("length", [None, 4, 7, 16])
@pytest.mark.parametrize(("parts", "onesided"), [(1, 0), (1, 1), (2, 0)])
def test_dft_agrees(length: int | None, parts: int, onesided: int) -> None:
    inputs = {
        "x": rng.uniform(-1, 1, (2, 7, parts)).astype(np.float32),
        "n": None if length is None else np.array(length, np.int64),
    }
    assert_as_onnxruntime("DFT", inputs, ["n"], axis=1, onesided=onesided)


def test_clip_between_bounds_computed_at_run_time_agrees() -> None:
    inputs = {"x": rng.uniform(-2, 2, (3, 5)).astype(np.float32), "low": np.float32(-0.5), "high": np.float32(0.75)}
    assert_as_onnxruntime("Clip", {name: np.asarray(value) for name, value in inputs.items()})


@pytest.mark.parametrize(
    ("op", "attributes", "reason"),
    [
        ("BatchNormalization", {"training_mode": 1}, "training mode"),
        ("RandomNormalLike", {}, "it is random"),
        ("NonZero", {}, "the size of its result depends on the data"),
    ],
)
def test_what_has_no_lowering_is_refused_with_the_reason(op: str, attributes: dict[str, int], reason: str) -> None:
    x = rng.uniform(-1, 1, (2, 3)).astype(np.float32)
    statistics = {name: np.ones(3, np.float32) for name in ("scale", "bias", "mean", "var")}
    inputs = {"x": x} | (statistics if op == "BatchNormalization" else {})
    model = model_of(op, inputs, list(statistics), outputs=3 if statistics.keys() <= inputs.keys() else 1, **attributes)
    with pytest.raises(UnsupportedError, match=reason) as raised:
        compiled.run(gir.load(model), {"x": x})
    assert f"{op} 'node'" in str(raised.value)
