"""The kernel of dense convolutions: against ONNX Runtime on the host, emulated on ARM, and within its buffers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from graphopt.api import optimize
from graphopt.deploy.bundle import open_bundle
from graphopt.deploy.verify import verify
from graphopt.targets.arm.cores import CORES
from graphopt.targets.host import HOST
from graphopt.targets.tvm.kernels import winograd
from graphopt.targets.tvm.kernels.direct_convolution import pack, schedule
from tests.targets.accesses import out_of_bounds
from tests.targets.convolutions import Layer, assert_computes


@pytest.fixture(autouse=True, scope="module")
def _without_winograd() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "pays", lambda _: False)
        yield


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    """Dense and grouped layers with odd numbers of channels, and images down to a single pixel."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels = groups * draw(st.sampled_from([2, 3, 5, 7]))
    layer = Layer(
        channels=channels,
        filters=groups * draw(st.sampled_from([1, 3, 5, 8, 17])),
        image=draw(st.tuples(*[st.sampled_from([1, 2, 5, 7, 9, 14, 17, 27])] * 2)),
        kernel=draw(st.sampled_from([(3, 3), (3, 3), (5, 5), (1, 3), (3, 1), (2, 4), (7, 7)])),
        strides=draw(st.sampled_from([(1, 1), (2, 2), (2, 1), (1, 2), (3, 1), (3, 3), (1, 4), (4, 4)])),
        pads=draw(st.tuples(*[st.integers(0, 3)] * 4)),
        dilations=draw(st.sampled_from([(1, 1), (1, 1), (2, 2), (1, 3)])),
        groups=groups,
        batch=draw(st.sampled_from([1, 2])),
        residual=draw(st.booleans()),
    )
    assume(min(layer.result) > 0)
    return layer


@settings(max_examples=12, deadline=None)
@given(layer=layers())
def test_computes_what_onnx_runtime_does(layer: Layer) -> None:
    assert_computes(layer)


def test_a_first_layer_and_an_image_read_where_it_lies() -> None:
    assert_computes(Layer(3, 32, (64, 96), strides=(2, 2)))
    assert_computes(Layer(16, 24, (12, 30), pads=(0, 0, 0, 0)))


def test_wide_windows_of_one_channel_and_many_results_are_not_taken_for_depthwise() -> None:
    layer = Layer(1, 24, (49, 10), kernel=(10, 4), strides=(2, 2), pads=(4, 1, 5, 1))
    assert schedule(layer.function(), HOST) is not None
    assert_computes(layer)


def test_windows_that_read_nothing_but_padding_or_nothing_of_it() -> None:
    layer = Layer(2, 1, (1, 1), strides=(2, 2), pads=(1, 1, 3, 3), dilations=(2, 2))
    assert schedule(layer.function(), HOST) is None
    assert_computes(layer)
    assert_computes(Layer(2, 3, (3, 3), pads=(0, 0, 0, 0)))


@settings(max_examples=8, deadline=None)
@given(layer=layers())
def test_nothing_is_accessed_out_of_bounds(layer: Layer) -> None:
    scheduled = schedule(layer.function(), HOST)
    assume(scheduled is not None)  # not where all that is read is padding
    assert out_of_bounds(scheduled) == []


@pytest.mark.emulation
def test_layers_run_emulated_on_arm(tmp_path: Path) -> None:
    target = next(core for core in CORES if core.name == "cortex-a76")
    for number, layer in enumerate(
        [
            Layer(3, 20, (33, 30), strides=(2, 2), pads=(0, 0, 1, 1)),
            Layer(10, 34, (7, 7), groups=2, residual=True),
            Layer(3, 12, (37, 61), kernel=(5, 5), strides=(4, 4), pads=(0, 0, 0, 0)),
            Layer(1, 24, (49, 10), kernel=(10, 4), strides=(2, 2), pads=(4, 1, 5, 1)),
        ]
    ):
        out = tmp_path / f"layer{number}"
        optimize(layer.model(), target=target.name, out=out, name="layer", jobs=1)
        assert verify(open_bundle(out), target, count=1, tolerance=2e-6).passed


@pytest.mark.parametrize(
    "layer",
    [Layer(4, 4, (9, 11), strides=(1, 5)), Layer(4, 4, (9, 9), kernel=(1, 1), pads=(0, 0, 0, 0))],
    ids=["stride 5", "pointwise"],
)
def test_others_fall_to_another_schedule(layer: Layer) -> None:
    assert schedule(layer.function(), HOST) is None
    assert_computes(layer)


@given(groups=st.integers(1, 3), width=st.integers(1, 20), panel=st.integers(1, 8))
def test_packing_places_every_weight(groups: int, width: int, panel: int) -> None:
    weights = np.arange(1.0, groups * width * 12 + 1).reshape(groups * width, 2, 3, 2)
    packed = pack(weights, groups, panel)
    assert packed.shape == (groups, -(-width // panel), 2, 3, 2, -(-panel // 4) * 4)
    assert np.count_nonzero(packed) == weights.size
    for group, o in itertools.product(range(groups), range(width)):
        found = packed[group, o // panel, :, :, :, o % panel]
        np.testing.assert_array_equal(found, weights[group * width + o])
