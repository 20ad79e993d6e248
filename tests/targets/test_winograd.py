"""Winograd's convolution: against exact sums on the host, emulated on ARM, and within its buffers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from graphopt.api import optimize
from graphopt.deploy.bundle import open_bundle
from graphopt.deploy.verify import verify
from graphopt.targets.arm.cores import CORES
from graphopt.targets.host import HOST
from graphopt.targets.tvm.kernels.winograd import A_T, B_T, IN, OUT, G, pack, schedule
from tests.targets.accesses import out_of_bounds
from tests.targets.compiled import run
from tests.targets.convolutions import Layer

ERROR = 2.0**-18  # of the sum of |w|·|x|, as the kernel states


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    """Layers that Winograd's algorithm wins, with tiles that reach beyond the result."""
    layer = Layer(
        channels=draw(st.sampled_from([16, 17, 40])),
        filters=draw(st.sampled_from([16, 24, 33])),
        image=draw(st.tuples(*[st.sampled_from([7, 8, 14, 15, 17, 28])] * 2)),
        pads=draw(st.tuples(*[st.integers(0, 2)] * 4)),
        batch=draw(st.sampled_from([1, 2])),
        residual=draw(st.booleans()),
    )
    assume(layer.by_winograd)
    return layer


def exact(layer: Layer) -> tuple[np.ndarray, np.ndarray]:
    """The layer's result in float64, and for each element the sum of |w|·|x|."""
    feeds, constants = layer.feeds(), {t.name: numpy_helper.to_array(t) for t in layer.model().graph.initializer}
    top, left, bottom, right = layer.pads
    x = np.pad(feeds["x"].astype(float), ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    product = np.einsum("ocuv,bcyxuv->boyx", constants["w"], windows, optimize=True)
    size = np.einsum("ocuv,bcyxuv->boyx", abs(constants["w"]), abs(windows), optimize=True)
    result = np.clip(product + constants["b"][:, None, None], constants["low"], constants["high"])
    return result + feeds.get("r", 0), size


@settings(max_examples=6, deadline=None)
@given(layer=layers())
def test_errors_stay_within_the_stated_bound(layer: Layer) -> None:
    expected, size = exact(layer)
    found = run(layer.loaded(), layer.feeds())["y"]
    assert np.all(abs(found - expected) <= ERROR * size + 2.0**-21)


def test_the_block_itself_computes_the_convolution() -> None:
    layer = Layer(16, 16, (8, 8))
    assert schedule(layer.function(), HOST) is not None
    expected, size = exact(layer)
    found = run(layer.loaded(), layer.feeds(), scheduled=False)["y"]
    assert np.all(abs(found - expected) <= ERROR * size + 2.0**-21)


@pytest.mark.parametrize("image", [(7, 7), (8, 18)])
def test_nothing_is_accessed_out_of_bounds(image: tuple[int, int]) -> None:
    scheduled = schedule(Layer(32, 40, image, batch=2).function(), HOST)
    assert scheduled is not None
    assert out_of_bounds(scheduled) == []


@pytest.mark.emulation
def test_a_layer_runs_emulated_on_arm(tmp_path: Path) -> None:
    target = next(core for core in CORES if core.name == "cortex-a76")
    layer = Layer(17, 24, (14, 15), residual=True)
    optimize(layer.model(), target=target.name, out=tmp_path / "layer", name="layer", jobs=1)
    assert verify(open_bundle(tmp_path / "layer"), target, count=1, tolerance=2e-5).passed


@pytest.mark.parametrize(
    "layer",
    [Layer(16, 16, (16, 16), strides=(2, 2)), Layer(3, 16, (16, 16)), Layer(32, 32, (16, 16), groups=2)],
    ids=["stride 2", "three channels", "grouped"],
)
def test_others_are_left_to_the_direct_kernel(layer: Layer) -> None:
    assert schedule(layer.function(), HOST) is None


def test_the_matrices_are_a_convolution() -> None:
    w, x = np.random.default_rng(0).uniform(-1, 1, (2, IN))
    expected = [w[:3] @ x[i : i + 3] for i in range(OUT)]
    np.testing.assert_allclose(A_T @ ((G @ w[:3]) * (B_T @ x)), expected, rtol=0, atol=1e-12)


@given(filters=st.integers(1, 20), channels=st.integers(1, 4), panel=st.sampled_from([8, 16]))
def test_packing_places_every_weight(filters: int, channels: int, panel: int) -> None:
    weights = np.random.default_rng(0).uniform(-1, 1, (filters, channels, 3, 3)).astype(np.float32)
    packed = pack(weights, panel)
    assert packed.shape == (IN * IN, -(-filters // panel), channels, panel)
    for o, c in ((0, 0), (filters - 1, channels - 1)):
        transformed = G @ weights[o, c].astype(float) @ G.T
        np.testing.assert_allclose(packed[:, o // panel, c, o % panel].reshape(IN, IN), transformed, rtol=1e-6, atol=0)
