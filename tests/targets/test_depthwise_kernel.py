"""The depthwise kernel: against ONNX Runtime on the host, emulated on ARM, and within its buffers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from graphopt import ir as graph_ir
from graphopt.api import optimize
from graphopt.deploy.bundle import open_bundle
from graphopt.deploy.verify import verify
from graphopt.targets.arm.cores import CORES
from graphopt.targets.host import HOST
from graphopt.targets.tvm.kernels.depthwise import BAND_BYTES, Depthwise, schedule
from tests.passes.harness import outputs, parse
from tests.targets.accesses import out_of_bounds
from tests.targets.compiled import run
from tests.targets.convolutions import Layer, assert_computes

PADS = st.tuples(*[st.integers(0, 3)] * 4)


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    """Depthwise layers, with few or several outputs of a channel, and images down to a single pixel."""
    channels = draw(st.sampled_from([1, 3, 5, 7, 17]))
    layer = Layer(
        channels=channels,
        filters=channels * draw(st.sampled_from([1, 1, 2])),
        image=draw(st.tuples(*[st.sampled_from([1, 2, 5, 7, 9, 14, 17, 28])] * 2)),
        kernel=draw(st.sampled_from([(3, 3), (5, 5), (1, 3), (3, 1), (2, 4), (7, 7)])),
        strides=draw(st.sampled_from([(1, 1), (2, 2), (2, 1), (1, 2), (3, 1)])),
        pads=draw(PADS),
        groups=channels,
        batch=draw(st.sampled_from([1, 2])),
        residual=draw(st.booleans()),
    )
    assume(min(layer.result) > 0)
    return layer


@settings(max_examples=12, deadline=None)
@given(layer=layers())
def test_computes_what_onnx_runtime_does(layer: Layer) -> None:
    assert_computes(layer)


WIDE = [
    Layer(2, 2, (112, 112), groups=2),
    Layer(2, 2, (113, 112), strides=(2, 2), groups=2, residual=True),
    Layer(1, 1, (19, 301), kernel=(5, 5), pads=(2, 2, 2, 2)),
]


@pytest.mark.parametrize("layer", WIDE)
def test_images_larger_than_a_band(layer: Layer) -> None:
    rows = layer.image[0] + layer.pads[0] + layer.pads[2]
    assert rows * (layer.image[1] + layer.pads[1] + layer.pads[3]) * 4 > BAND_BYTES
    assert_computes(layer)


@settings(max_examples=8, deadline=None)
@given(layer=st.one_of(layers(), st.sampled_from(WIDE)))
def test_nothing_is_accessed_out_of_bounds(layer: Layer) -> None:
    scheduled = schedule(layer.function(), HOST)
    assert scheduled is not None
    assert out_of_bounds(scheduled) == []


@pytest.mark.emulation
def test_layers_run_emulated_on_arm(tmp_path: Path) -> None:
    target = next(core for core in CORES if core.name == "cortex-a76")
    for number, layer in enumerate(
        [
            Layer(17, 17, (14, 14), groups=17),
            Layer(5, 5, (15, 7), strides=(2, 2), pads=(0, 1, 1, 0), groups=5, residual=True),
            Layer(3, 3, (28, 30), kernel=(5, 5), strides=(2, 2), pads=(2, 2, 2, 2), groups=3),
        ]
    ):
        out = tmp_path / f"layer{number}"
        optimize(layer.model(), target=target.name, out=out, name="layer", jobs=1)
        assert verify(open_bundle(out), target, count=1, tolerance=1e-6).passed


@pytest.mark.parametrize(
    "layer",
    [
        Layer(4, 4, (9, 9), groups=4, dilations=(2, 2), pads=(2, 2, 2, 2)),
        Layer(4, 4, (9, 9), groups=4, strides=(3, 3)),
        Layer(4, 4, (9, 9), groups=2),
        Layer(1, 1, (3, 5000), groups=1),
    ],
    ids=["dilated", "stride 3", "two channels a group", "too wide for a band"],
)
def test_others_fall_to_another_schedule(layer: Layer) -> None:
    assert schedule(layer.function(), HOST) is None
    assert_computes(layer)


@given(rows=st.integers(1, 300), kernel=st.sampled_from([1, 3, 5, 7]), columns=st.integers(1, 400))
def test_bands_fit_their_buffer_and_are_as_even_as_can_be(rows: int, kernel: int, columns: int) -> None:
    layer = Depthwise(1, 1, 1, (rows, columns), (rows, columns), (kernel, 3), (1, 1), (kernel // 2, 1))
    band = layer.band()
    assert 1 <= band <= rows
    assert layer.rows_read(band) * layer.pitch * 4 <= BAND_BYTES
    assert 1 <= layer.tile_rows(band) <= band


def test_what_is_read_twice_behind_a_sum_is_not_taken_for_its_start() -> None:
    """HardSwish is x · (x + 3) / 6, clamped: without a bias its + 3 stands first behind the sums."""
    rng = np.random.default_rng(0)
    text = """<ir_version: 8, opset_import: ["" : 17]> net (float[1,5,9,7] x) => (float[1,5,9,7] y) {
        c = Conv<group = 5, pads = [1, 1, 1, 1]>(x, w)
        y = HardSwish(c)
    }"""
    model = parse(text, w=rng.standard_normal((5, 1, 3, 3)).astype(np.float32))
    feeds = {"x": rng.standard_normal((1, 5, 9, 7)).astype(np.float32)}
    graph_ir.refresh_shapes(model)
    np.testing.assert_allclose(run(model, feeds)["y"], outputs(model, feeds)["y"], rtol=0, atol=1e-5)
