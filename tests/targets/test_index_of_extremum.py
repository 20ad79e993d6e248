"""ArgMax and ArgMin along any axis, of any neighbours, agree with ONNX Runtime, infinities and ties included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.targets.single_node import assert_as_onnxruntime


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_axis_and_type_agrees(data: Any) -> None:
    draw = data.draw
    shape = draw(st.lists(st.sampled_from([1, 2, 3, 5, 17]), min_size=1, max_size=4))
    dtype = draw(st.sampled_from([np.float32, np.int32, np.int8, np.uint8]))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    x = random.integers(0, 4, shape).astype(dtype)  # many are equal
    if dtype == np.float32:
        x = np.array([-np.inf, -1.5, 2.5, np.inf], np.float32)[x.astype(int)]
    assert_as_onnxruntime(
        draw(st.sampled_from(["ArgMax", "ArgMin"])),
        {"x": x},
        axis=draw(st.integers(-len(shape), len(shape) - 1)),
        keepdims=draw(st.integers(0, 1)),
        select_last_index=draw(st.integers(0, 1)),
    )


@pytest.mark.parametrize("operator", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_index_of_nothing_but_one_infinity_is_that_of_the_first(operator: str, axis: int) -> None:
    x = np.full((3, 5), -np.inf if operator == "ArgMax" else np.inf, np.float32)
    assert_as_onnxruntime(operator, {"x": x}, axis=axis)
