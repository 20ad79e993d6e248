"""erf and softmax by approximations of our own stay within the rounding of float32, at the ends of its range too."""

from __future__ import annotations

import numpy as np
import pytest

from tests.targets.single_node import assert_as_onnxruntime

EDGES = [0, -0.0, 1e-38, -1e-7, 100, -100, np.inf, -np.inf]


def test_erf() -> None:
    x = np.concatenate([np.linspace(-6, 6, 1001), EDGES]).astype(np.float32)
    assert_as_onnxruntime("Erf", {"x": x})


@pytest.mark.parametrize(("scale", "axis"), [(1, -1), (30, 1), (1000, 0)])
def test_softmax(scale: float, axis: int) -> None:
    x = np.random.default_rng(0).standard_normal((2, 3, 50)).astype(np.float32) * np.float32(scale)
    assert_as_onnxruntime("Softmax", {"x": x}, axis=axis)


def test_softmax_of_what_a_mask_excludes() -> None:
    x = np.random.default_rng(0).standard_normal((3, 9)).astype(np.float32)
    x[1, 3:], x[2] = -np.inf, np.finfo(np.float32).min
    assert_as_onnxruntime("Softmax", {"x": x})
