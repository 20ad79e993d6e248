"""ConvTranspose in float32 is computed by the kernels of convolutions, and agrees with ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from graphopt import ir as gir
from tests.targets import compiled
from tests.targets.single_node import assert_as_onnxruntime, model_of

rng = np.random.default_rng(0)


def arrays(channels: int, width: int, group: int, kernel: tuple[int, ...], sizes: tuple[int, ...], batch: int) -> Any:
    return {
        "x": rng.uniform(-1, 1, (batch, channels * group, *sizes)).astype(np.float32),
        "w": rng.uniform(-1, 1, (channels * group, width, *kernel)).astype(np.float32),
        "b": rng.uniform(-1, 1, width * group).astype(np.float32),
    }


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_kernel_stride_and_padding_agrees(data: Any) -> None:
    draw = data.draw
    rank = draw(st.integers(1, 2))

    def each(least: int, most: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(least, most)) for _ in range(rank))

    kernel, strides, sizes = each(1, 5), each(1, 3), each(1, 9)
    pads = [draw(st.integers(0, k - 1)) for _ in range(2) for k in kernel]
    more = [draw(st.integers(0, s - 1)) for s in strides]
    full = [s * (n - 1) + k + m for s, n, k, m in zip(strides, sizes, kernel, more, strict=True)]
    assume(all(f > pads[d] + pads[d + rank] for d, f in enumerate(full)))
    channels, width, group, batch = (draw(st.sampled_from(each)) for each in ([1, 3, 8], [1, 5, 7], [1, 2, 3], [1, 2]))
    inputs = arrays(channels, width, group, kernel, sizes, batch)
    inputs["b"] = inputs["b"] if draw(st.booleans()) else None
    assert_as_onnxruntime(
        "ConvTranspose",
        inputs,
        ["w", "b"] if draw(st.booleans()) else ["w"],  # a bias may be an input
        strides=list(strides),
        pads=pads,
        output_padding=more,
        group=group,
    )


@pytest.mark.parametrize(
    ("kernel", "strides", "expected"), [((4, 4), 2, "convolution"), ((2, 2), 2, "matmul"), ((3, 3), 1, "convolution")]
)
def test_it_runs_as_a_convolution(kernel: tuple[int, int], strides: int, expected: str) -> None:
    inputs = arrays(8, 8, 1, kernel, (9, 9), 1)
    model = model_of("ConvTranspose", inputs, ["w", "b"], strides=[strides, strides])
    made = gir.load(model)
    gir.refresh_shapes(made)
    assert any(expected in function for function in compiled.lowered(made).functions)


@pytest.mark.parametrize("weights", ["constant", "computed"])
def test_dilated_kernels_and_those_known_at_run_time_agree(weights: str) -> None:
    inputs = arrays(3, 5, 1, (3, 2), (5, 7), 1)
    given = {"strides": [2, 1], "dilations": [2, 1]} if weights == "constant" else {"strides": [2, 1]}
    assert_as_onnxruntime("ConvTranspose", inputs, ["w", "b"] if weights == "constant" else ["b"], **given)
