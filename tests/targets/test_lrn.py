"""LRN: windows over channels that leave the tensor, of odd and even size, and powers by square roots."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.analysis.execution import Session
from tests.targets.compiled import lowered, parse, run


def model_of(size: int, beta: float, shape: tuple[int, ...]) -> ir.Model:
    return parse(
        f'<ir_version: 9, opset_import: ["" : 17]> net (float{list(shape)} x) => (float{list(shape)} y) '
        f"{{ y = LRN<size={size}, alpha=0.3, beta={beta}, bias=1.5>(x) }}"
    )


@pytest.mark.parametrize("beta", [0.75, 0.6])
@pytest.mark.parametrize("size", [1, 3, 5, 9])
def test_it_is_onnx_runtimes(size: int, beta: float) -> None:
    x = np.random.default_rng(0).normal(0, 3, (2, 7, 5, 4)).astype(np.float32)
    model = model_of(size, beta, x.shape)
    np.testing.assert_allclose(run(model, {"x": x})["y"], Session(model).run({"x": x})["y"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(2, 6, 9), (1, 5, 3, 4), (1, 5, 3, 2, 2)])
@pytest.mark.parametrize("size", [2, 4])
def test_even_windows_reach_one_channel_further_behind(size: int, shape: tuple[int, ...]) -> None:
    """ONNX Runtime has odd ones alone, of four dimensions; the operator's definition has all."""
    x = np.random.default_rng(0).normal(0, 3, shape).astype(np.float32)
    energy = np.zeros(shape)
    for channel in range(shape[1]):
        near = slice(max(0, channel - (size - 1) // 2), channel + size // 2 + 1)
        energy[:, channel] = np.square(x[:, near], dtype=np.float64).sum(axis=1)
    expected = x / (1.5 + 0.3 / size * energy) ** 0.75
    np.testing.assert_allclose(run(model_of(size, 0.75, shape), {"x": x})["y"], expected, rtol=1e-6, atol=1e-7)


def test_the_default_power_is_two_square_roots() -> None:
    functions = [call.function for call in lowered(model_of(5, 0.75, (1, 7, 5, 4))).calls]
    assert not any("power" in name for name in functions) and any("sqrt" in name for name in functions)
