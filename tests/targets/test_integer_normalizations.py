"""Quantized softmax and layer normalization: bit-exact with their definition, within a step of ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt import optimize
from graphopt.deploy.bundle import open_bundle
from graphopt.deploy.toolchain import build_program, launcher, run_program
from graphopt.targets.arm.cores import CORES
from graphopt.targets.tvm.preparation import prepare
from graphopt.targets.tvm.quantized.rewrite import LEFT_IN_FLOAT
from tests.targets.quantized_models import Activation
from tests.targets.test_integer_elementwise import FEW, activations, compute, integers, operator_model

LENGTHS = [1, 3, 5, 7, 16, 17, 50]


def softmax(x: np.ndarray, q: Activation, y: Activation) -> np.ndarray:
    """The definition in `kernels/integer_softmax.py`, in numpy."""
    bits = min(21, 30 - (x.shape[-1] - 1).bit_length())
    wide = x.astype(np.int64)
    difference = wide.max(-1, keepdims=True) - wide
    powers = np.rint(2.0**bits * np.exp(-difference * float(np.float32(q.scale)))).astype(np.int64)
    by = np.float32(1) / np.float32(y.scale) / powers.sum(-1, keepdims=True).astype(np.float32)
    rounded = np.rint(powers.astype(np.float32) * by).astype(np.int64) + y.zero_point
    made: np.ndarray = np.clip(rounded, *y.limits()).astype(y.dtype)
    return made


def test_softmax_along_channels_is_that_of_each_pixel() -> None:
    q, y = Activation(np.int8, 0.07, 3), Activation(np.int8, 1 / 255, -128)
    x = integers(np.random.default_rng(0), q, (2, 5, 3, 7))
    found = compute(operator_model("Softmax", [(q, x.shape)], y, {}, axis=1), {"x0": x})
    expected = softmax(np.ascontiguousarray(x.transpose(0, 2, 3, 1)), q, y).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(found, expected)


def layer_norm(
    x: np.ndarray, q: Activation, gain: np.ndarray, bias: np.ndarray, epsilon: float, y: Activation
) -> np.ndarray:
    """The definition in `kernels/integer_layer_norm.py`, in numpy, along the last axis."""
    n, wide = x.shape[-1], x.astype(np.int64) - (128 if q.dtype is np.uint8 else 0)
    total = wide.sum(-1, keepdims=True)
    spread = n * (wide * wide).sum(-1, keepdims=True) - total * total
    scale = float(np.float32(q.scale))
    by = (1 / np.sqrt(spread.astype(np.float64) + float(np.float32(epsilon)) * n * n / (scale * scale))).astype(
        np.float32
    )
    number = (n * wide - total).astype(np.float32) * by
    number = number * (gain / np.float32(y.scale)) + bias / np.float32(y.scale)
    made: np.ndarray = np.clip(np.rint(number).astype(np.int64) + y.zero_point, *y.limits()).astype(y.dtype)
    return made


@FEW
@given(data=st.data())
def test_softmax_is_bit_exact(data: Any) -> None:
    draw = data.draw
    q = draw(activations())
    y = draw(st.sampled_from([Activation(np.uint8, 1 / 256, 0), Activation(np.int8, 1 / 255, -128)]))
    x = integers(
        np.random.default_rng(draw(st.integers(0, 99))),
        q,
        (2, draw(st.sampled_from([1, 3])), draw(st.sampled_from(LENGTHS))),
    )
    found = compute(operator_model("Softmax", [(q, x.shape)], y, {}), {"x0": x})
    np.testing.assert_array_equal(found, softmax(x, q, y))


@FEW
@given(data=st.data())
def test_layer_normalization_is_bit_exact(data: Any) -> None:
    draw = data.draw
    random = np.random.default_rng(draw(st.integers(0, 99)))
    q, y, length = draw(activations()), draw(activations()), draw(st.sampled_from(LENGTHS))
    x = integers(random, q, (2, draw(st.sampled_from([1, 3])), length))
    x[0, 0] = x[0, 0, 0]  # a row without any variance
    gain, bias = random.standard_normal((2, length)).astype(np.float32)
    model = operator_model("LayerNormalization", [(q, x.shape)], y, {"g": gain, "b": bias}, epsilon=1e-5)
    np.testing.assert_array_equal(compute(model, {"x0": x}), layer_norm(x, q, gain, bias, 1e-5, y))


@pytest.mark.parametrize("operator", ["Softmax", "LayerNormalization"])
def test_long_rows_and_several_axes(operator: str) -> None:
    random = np.random.default_rng(0)
    q, y = Activation(np.int8, 0.03, 3), Activation(np.uint8, 1 / 40, 100)
    if operator == "Softmax":
        y, x = Activation(np.uint8, 1 / 4000, 0), integers(random, q, (2, 4000))
        expected = softmax(x, q, y)
        model = operator_model(operator, [(q, x.shape)], y, {})
    else:
        x = integers(random, q, (2, 130, 129))  # more than what is lifted
        gain = random.standard_normal((130, 129)).astype(np.float32)
        expected = layer_norm(x.reshape(2, -1), q, gain.reshape(-1), np.float32(0), 1e-5, y).reshape(x.shape)
        model = operator_model(operator, [(q, x.shape)], y, {"g": gain}, axis=1)
    np.testing.assert_array_equal(compute(model, {"x0": x}), expected)


@pytest.mark.parametrize(
    ("operator", "shape", "scale", "given", "reason"),
    [
        ("Softmax", (3, 4, 5), 0.01, {"axis": 0}, "it is along neither the last axis nor the channels"),
        ("Softmax", (1, 4097), 0.01, {}, "its rows are longer than 4096"),
        ("Softmax", (3, 4), 1e-5, {}, "its result has a scale that is no step of a probability"),
        ("LayerNormalization", (3, 4), 0.01, {"epsilon": 0.0}, "its rows are longer than 131072, or its epsilon is 0"),
        ("LayerNormalization", (3, 4), 1e-9, {}, "its scale or bias is too large"),
    ],
)
def test_others_stay_in_float_with_the_reason(
    operator: str, shape: tuple[int, ...], scale: float, given: dict[str, Any], reason: str
) -> None:
    q, y = Activation(np.int8, 0.07, 3), Activation(np.int8, scale, 3)
    more = {"g": np.ones(4, np.float32), "b": np.ones(4, np.float32)} if operator == "LayerNormalization" else {}
    (left,) = prepare(operator_model(operator, [(q, shape)], y, more, **given)).meta[LEFT_IN_FLOAT]
    assert left.name == "layer" and left.reason.startswith(reason)


@pytest.mark.emulation
@pytest.mark.parametrize("name", ["cortex-a76", "cortex-a72"])
@pytest.mark.parametrize("operator", ["Softmax", "LayerNormalization"])
def test_arm_gives_the_bits_of_the_host(operator: str, name: str, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    q, y = Activation(np.int8, 0.02, 9), Activation(np.int8, 1 / 40, -20)
    x = integers(random, q, (5, 39))
    gain, bias = random.standard_normal((2, 39)).astype(np.float32)
    if operator == "Softmax":
        model, expected = operator_model(operator, [(q, x.shape)], y, {}), softmax(x, q, y)
    else:
        model = operator_model(operator, [(q, x.shape)], y, {"g": gain, "b": bias}, epsilon=1e-5)
        expected = layer_norm(x, q, gain, bias, 1e-5, y)
    target = next(core for core in CORES if core.name == name)
    optimize(model, target=name, out=tmp_path / "made", name="net", jobs=1)
    bundle = open_bundle(tmp_path / "made")
    build_program(bundle.example, target, bundle.include, bundle.static, tmp_path / "example")
    (tmp_path / "x").write_bytes(x.tobytes())
    run_program((*launcher(target), str(tmp_path / "example"), "-o", str(tmp_path), str(tmp_path / "x")))
    found = np.frombuffer((tmp_path / "output_0.bin").read_bytes(), np.int8).reshape(expected.shape)
    np.testing.assert_array_equal(found, expected)
