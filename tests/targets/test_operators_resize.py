"""Resize against ONNX Runtime, and against ONNX's reference where the two differ."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from graphopt import ir as gir
from graphopt.errors import UnsupportedError
from tests.targets import compiled
from tests.targets.single_node import TOLERANCE, assert_as_onnxruntime, model_of

EXAMPLES = settings(max_examples=6, deadline=None)
lengths = st.integers(1, 9)
rng = np.random.default_rng(5)


def inputs_of(spatial: tuple[int, ...], *, sizes: tuple[int, ...]) -> dict[str, np.ndarray | None]:
    return {
        "x": rng.uniform(-1, 1, (1, 2, *spatial)).astype(np.float32),
        "roi": None,
        "scales": None,
        "sizes": np.array([1, 2, *sizes], np.int64),
    }


def assert_as_reference(inputs: dict[str, np.ndarray | None], **attributes: Any) -> None:
    """The compiled node gives what ONNX's reference implementation gives."""
    model = model_of("Resize", inputs, ["roi", "scales", "sizes"], opset=19, **attributes)
    feeds = {"x": inputs["x"]}
    expected = ReferenceEvaluator(model).run(None, feeds)[0]
    found = compiled.run(gir.load(model), {"x": np.asarray(inputs["x"])})["y0"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("transformation", ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
@EXAMPLES
@given(old=st.tuples(lengths, lengths), new=st.tuples(lengths, lengths))
def test_interpolation_agrees(mode: str, transformation: str, old: tuple[int, int], new: tuple[int, int]) -> None:
    assert_as_onnxruntime(
        "Resize",
        inputs_of(old, sizes=new),
        ["sizes"],
        mode=mode,
        coordinate_transformation_mode=transformation,
        opset=19,
    )


@pytest.mark.parametrize("transformation", ["half_pixel", "align_corners", "asymmetric"])
@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@settings(max_examples=4, deadline=None)
@given(old=st.tuples(lengths, lengths), factor=st.sampled_from([1, 2, 3, 4]))
def test_nearest_agrees(rounding: str, transformation: str, old: tuple[int, int], factor: int) -> None:
    """Whole factors: at others the two round coordinates of different precision."""
    assert_as_onnxruntime(
        "Resize",
        inputs_of(old, sizes=(old[0] * factor, old[1] * factor)),
        ["sizes"],
        mode="nearest",
        nearest_mode=rounding,
        coordinate_transformation_mode=transformation,
        opset=19,
    )


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@EXAMPLES
@given(old=st.tuples(lengths, lengths), new=st.tuples(lengths, lengths))
def test_antialiasing_follows_the_reference(mode: str, old: tuple[int, int], new: tuple[int, int]) -> None:
    assert_as_reference(inputs_of(old, sizes=new), mode=mode, antialias=1)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_elements_beyond_the_border_may_count_for_nothing(mode: str) -> None:
    assert_as_reference(inputs_of((5, 4), sizes=(7, 3)), mode=mode, exclude_outside=1)


@pytest.mark.parametrize("policy", ["stretch", "not_larger", "not_smaller"])
def test_sizes_may_keep_the_aspect_ratio(policy: str) -> None:
    inputs = inputs_of((4, 6), sizes=())
    inputs["sizes"] = np.array([8, 7], np.int64)
    assert_as_reference(inputs, mode="linear", axes=[2, 3], keep_aspect_ratio_policy=policy)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_crops_beyond_the_border_have_the_extrapolation_value(mode: str) -> None:
    inputs = inputs_of((4, 4), sizes=(3, 3))
    inputs["roi"] = np.array([0, 0, -0.4, 0.2, 1, 1, 0.6, 1.4], np.float32)
    assert_as_reference(
        inputs, mode=mode, coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=10.0
    )


def test_an_empty_constant_is_an_absent_input() -> None:
    inputs = inputs_of((4, 4), sizes=(8, 8)) | {"roi": np.zeros(0, np.float32), "scales": np.zeros(0, np.float32)}
    assert_as_onnxruntime("Resize", inputs, ["roi", "scales", "sizes"], mode="linear", opset=13)


def test_three_spatial_axes_agree() -> None:
    assert_as_onnxruntime("Resize", inputs_of((3, 4, 5), sizes=(6, 3, 7)), ["sizes"], mode="linear", opset=19)


def test_float16_is_interpolated_in_float32() -> None:
    inputs = inputs_of((6, 6), sizes=(9, 9))
    half = np.asarray(inputs["x"]).astype(np.float16)
    model = model_of("Resize", inputs | {"x": half}, ["sizes"], mode="cubic", opset=19)
    single = model_of("Resize", inputs | {"x": half.astype(np.float32)}, ["sizes"], mode="cubic", opset=19)
    expected = compiled.run(gir.load(single), {"x": half.astype(np.float32)})["y0"]
    np.testing.assert_array_equal(compiled.run(gir.load(model), {"x": half})["y0"], expected.astype(np.float16))


def test_interpolating_integers_is_refused() -> None:
    inputs = inputs_of((4, 4), sizes=(8, 8))
    inputs["x"] = np.zeros((1, 2, 4, 4), np.uint8)
    model = model_of("Resize", inputs, ["sizes"], mode="linear", opset=19)
    with pytest.raises(UnsupportedError, match="Resize 'node': it interpolates uint8"):
        compiled.run(gir.load(model), {"x": np.zeros((1, 2, 4, 4), np.uint8)})
