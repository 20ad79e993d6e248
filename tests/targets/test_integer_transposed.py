"""Quantized ConvTranspose: bit-exact with its definition, within a step of ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.analysis.execution import Session
from graphopt.targets.tvm.preparation import prepare
from graphopt.targets.tvm.quantized.rewrite import LEFT_IN_FLOAT
from tests.targets import compiled
from tests.targets.quantized_models import Activation, layer_model, requantized


def transposed_sums(
    x: np.ndarray, weights: np.ndarray, zero_point: int, strides: Any, pads: Any, more: Any, group: int
) -> np.ndarray:
    """Each input pixel adds its multiple of the kernel to the result: int64 [batch, *sizes, channels]."""
    batch, inputs, *sizes = x.shape
    _, columns, *kernel = weights.shape
    rank = len(sizes)
    full = [s * (n - 1) + k + extra for s, n, k, extra in zip(strides, sizes, kernel, more, strict=True)]
    sums = np.zeros((batch, group, columns, *full), np.int64)
    shifted = (x.astype(np.int64) - zero_point).reshape(batch, group, inputs // group, *sizes)
    grouped = weights.astype(np.int64).reshape(group, inputs // group, columns, *kernel)
    for place in np.ndindex(*sizes):
        here = tuple(slice(s * i, s * i + k) for s, i, k in zip(strides, place, kernel, strict=True))
        product = np.einsum("bgi,gio...->bgo...", shifted[(..., *place)], grouped)
        sums[(..., *here)] += product
    kept = tuple(slice(pads[d], full[d] - pads[d + rank]) for d in range(rank))
    found: np.ndarray = sums[(..., *kept)]
    return np.moveaxis(found.reshape(batch, group * columns, *found.shape[3:]), 1, -1)


@pytest.mark.parametrize(
    ("sizes", "kernel", "strides", "pads", "more", "group"),
    [
        ((5, 7), (2, 2), (2, 2), (0, 0, 0, 0), (0, 0), 1),
        ((5, 3), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 1),
        ((1, 5), (4, 3), (2, 1), (1, 2, 0, 1), (1, 0), 3),
        ((3, 4), (5, 2), (3, 3), (0, 0, 2, 0), (0, 2), 1),
        ((7, 3), (1, 1), (2, 2), (0, 0, 0, 0), (0, 0), 1),
        ((17,), (4,), (2,), (1, 1), (0,), 1),
        ((3, 3), (3, 3), (1, 1), (2, 2, 2, 2), (0, 0), 5),
    ],
)
def test_transposed_convolutions_are_bit_exact(
    sizes: Any, kernel: Any, strides: Any, pads: Any, more: Any, group: int
) -> None:
    random = np.random.default_rng(group)
    qx, qy = Activation(np.uint8, 0.05, 77), Activation(np.int8, 0.3, -9)
    inputs, columns = (5, 5) if group == 5 else (6, 7)  # five channels, each of its own
    x = random.integers(0, 256, (2, inputs, *sizes), np.uint8)
    weights = random.integers(-128, 128, (inputs, columns if group != 5 else 1, *kernel), np.int8)
    scale = random.uniform(0.001, 0.01, weights.shape[1]).astype(np.float32)
    bias = random.integers(-3000, 3000, weights.shape[1] * group, np.int32)
    model = layer_model(
        "ConvTranspose", x, qx, weights, scale, None if group > 1 else bias, qy, weight_axis=1, group=group,
        strides=strides, pads=pads, output_padding=more,
    )  # fmt: skip
    assert prepare(model).meta[LEFT_IN_FLOAT] == []
    sums = transposed_sums(x, weights, qx.zero_point, strides, pads, more, group)
    sums = sums if group > 1 else sums + bias
    multipliers = (np.float32(qx.scale) * np.tile(scale, group)).astype(np.float32) / np.float32(qy.scale)
    found = compiled.run(model, {"x": x})["y"]
    np.testing.assert_array_equal(found, np.moveaxis(requantized(sums, multipliers, qy), -1, 1))
    reference = Session(model).run({"x": x})["y"]
    assert np.abs(found.astype(int) - reference.astype(int)).max() <= 1


@pytest.mark.parametrize("given", [{"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}, {"output_shape": [9, 10]}])
def test_padding_that_the_shape_of_the_result_asks_for(given: dict[str, Any]) -> None:
    random = np.random.default_rng(0)
    q, y = Activation(np.int8, 0.05, 3), Activation(np.int8, 0.2, 5)
    x, weights = random.integers(-128, 128, (1, 3, 5, 5), np.int8), random.integers(-128, 128, (3, 4, 3, 3), np.int8)
    model = layer_model(
        "ConvTranspose", x, q, weights, np.array(0.01, np.float32), None, y, weight_axis=1, strides=(2, 2), **given
    )
    assert prepare(model).meta[LEFT_IN_FLOAT] == []
    found, reference = compiled.run(model, {"x": x})["y"], Session(model).run({"x": x})["y"]
    assert np.abs(found.astype(int) - reference.astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"dilations": (2, 2)}, "it is dilated"),
        ({"pads": (3, 0, 0, 0)}, "its padding exceeds its kernel"),
    ],
)
def test_others_stay_in_float_with_the_reason(given: dict[str, Any], reason: str) -> None:
    random = np.random.default_rng(0)
    q = Activation(np.int8, 0.05, 3)
    x, weights = random.integers(-128, 128, (1, 3, 5, 5), np.int8), random.integers(-128, 128, (3, 4, 3, 3), np.int8)
    model = layer_model("ConvTranspose", x, q, weights, np.array(0.01, np.float32), None, q, weight_axis=1, **given)
    (left,) = prepare(model).meta[LEFT_IN_FLOAT]
    assert left.name == "layer" and left.reason.startswith(reason)
