"""Gains and shifts by channel are bit-exact with their definition, and within a step of ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.targets.tvm.preparation import prepare
from graphopt.targets.tvm.quantized.rewrite import LEFT_IN_FLOAT
from tests.targets.quantized_models import Activation
from tests.targets.test_integer_elementwise import FEW, activations, compute, integers, operator_model


def mapped(
    x: np.ndarray, q: Activation, y: Activation, a: np.ndarray, b: np.ndarray, slope: np.ndarray | None = None
) -> np.ndarray:
    """The definition in `kernels/integer_affine.py`, in numpy; a, b and slope spread over x."""
    step = np.float64(np.float32(q.scale)) / np.float64(np.float32(y.scale))
    t = (x.astype(np.int64) - q.zero_point).astype(np.float32)
    gain = np.broadcast_to((a * step).astype(np.float32), x.shape)
    if slope is not None:
        gain = np.where(t < 0, (a * slope * step).astype(np.float32), gain)
    number = t * gain + (b / np.float64(np.float32(y.scale))).astype(np.float32)
    made: np.ndarray = np.clip(np.rint(number).astype(np.int64) + y.zero_point, *y.limits()).astype(y.dtype)
    return made


def spread(array: np.ndarray, rank: int) -> np.ndarray:
    """[channels] along axis 1 of `rank` axes."""
    return np.asarray(array, np.float64).reshape(1, -1, *[1] * (rank - 2))


@FEW
@given(data=st.data())
def test_batch_normalization_is_bit_exact(data: Any) -> None:
    draw = data.draw
    channels = draw(st.sampled_from([2, 3, 5, 7, 16, 17, 40]))
    shape = (draw(st.integers(1, 2)), channels, *[draw(st.integers(1, 5)) for _ in range(draw(st.integers(0, 2)))])
    q, y, random = draw(activations()), draw(activations()), np.random.default_rng(draw(st.integers(0, 99)))
    scale, bias, mean = (random.standard_normal(channels).astype(np.float32) for _ in range(3))
    variance = random.uniform(0.1, 2, channels).astype(np.float32)
    more = {"scale": scale, "bias": bias, "mean": mean, "variance": variance}
    x = integers(random, q, shape)
    found = compute(operator_model("BatchNormalization", [(q, shape)], y, more, epsilon=0.25), {"x0": x})
    a = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + 0.25)
    b = bias.astype(np.float64) - mean.astype(np.float64) * a
    np.testing.assert_array_equal(found, mapped(x, q, y, spread(a, len(shape)), spread(b, len(shape))))


@FEW
@given(data=st.data())
def test_operators_with_constants_by_channel_are_bit_exact(data: Any) -> None:
    draw = data.draw
    operator = draw(st.sampled_from(["Add", "Sub", "Mul", "Div", "PRelu"]))
    channels = draw(st.sampled_from([2, 3, 7, 16, 17]))
    shape = (draw(st.integers(1, 2)), channels, *[draw(st.integers(2, 5)) for _ in range(2)])
    axis = draw(st.sampled_from([1, 3]))
    q, y, random = draw(activations()), draw(activations()), np.random.default_rng(draw(st.integers(0, 99)))
    c = random.uniform(0.5, 2, [n if k == axis else 1 for k, n in enumerate(shape)][draw(st.sampled_from([0, 1])) :])
    c = c.astype(np.float32)
    x = integers(random, q, shape)
    found = compute(operator_model(operator, [(q, shape)], y, {"c": c}), {"x0": x})
    wide, one, zero = c.astype(np.float64), np.ones(()), np.zeros(())
    a, b, slope = {
        "Add": (one, wide, None),
        "Sub": (one, -wide, None),
        "Mul": (wide, zero, None),
        "Div": (1 / wide, zero, None),
        "PRelu": (one, zero, wide),
    }[operator]
    np.testing.assert_array_equal(found, mapped(x, q, y, a, b, slope))


@pytest.mark.parametrize("operator", ["Add", "Mul"])
def test_constants_that_vary_along_two_axes_stay_in_float(operator: str) -> None:
    q = Activation(np.int8, 0.05, 3)
    c = np.random.default_rng(0).standard_normal((1, 3, 1, 5)).astype(np.float32)
    prepared = prepare(operator_model(operator, [(q, (1, 3, 4, 5))], q, {"c": c}))
    assert [left.reason for left in prepared.meta[LEFT_IN_FLOAT]] == ["its inputs are not both quantized to 8 bits"]
