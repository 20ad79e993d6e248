"""The kernel of 3×3 convolutions by Winograd: against ONNX Runtime, emulated on ARM, and within its buffers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

import graphopt
from graphopt.targets.arm.cores import CORES
from graphopt.targets.host import HOST
from graphopt.targets.tvm.driver import RUNTIME
from graphopt.targets.tvm.kernels import winograd
from graphopt.targets.tvm.kernels.nchw import Conv2d
from graphopt.targets.tvm.kernels.winograd_loops import LEAST_COLUMNS, rows_in_block, schedule
from tests.targets.accesses import out_of_bounds
from tests.targets.compiled import lowered
from tests.targets.convolutions import Layer, assert_computes

ROUNDING = (
    2.0**-19
)  # for each product of a sum: factors up to 8 and 5 · 5 enlarge what is rounded between the transforms


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every layer that the kernel can compute, whether it pays or not."""
    monkeypatch.setattr(winograd, "pays", lambda _: True)


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    """3×3 layers with odd numbers of channels, images down to a single pixel, and pads on any side."""
    layer = Layer(
        channels=draw(st.sampled_from([1, 3, 5, 7, 17])),
        filters=draw(st.sampled_from([1, 3, 5, 8, 17, 24])),
        image=draw(st.tuples(*[st.sampled_from([1, 2, 3, 4, 5, 7, 9, 14, 17, 27, 34])] * 2)),
        pads=draw(st.tuples(*[st.integers(0, 3)] * 4)),
        batch=draw(st.sampled_from([1, 2])),
        residual=draw(st.booleans()),
    )
    assume(min(layer.result) > 0)
    return layer


@given(
    tiles=st.tuples(*[st.integers(1, 40)] * 2),
    row_bytes=st.integers(1, 1 << 20),
    cache=st.sampled_from([1 << 17, 1 << 18, 1 << 20]),
)
def test_a_block_has_enough_tiles_whatever_the_cache(tiles: tuple[int, int], row_bytes: int, cache: int) -> None:
    rows = rows_in_block(tiles, row_bytes, cache)
    assert tiles[0] % rows == 0
    assert rows * tiles[1] >= min(LEAST_COLUMNS, tiles[0] * tiles[1])
    assert rows * row_bytes <= cache or not any(
        tiles[0] % fewer == 0 and fewer * tiles[1] >= LEAST_COLUMNS for fewer in range(1, rows)
    )


@given(extent=st.integers(1, 60), trimmed=st.booleans())
def test_a_place_is_computed_for_every_tile_whose_results_are_made_of_it(extent: int, trimmed: bool) -> None:
    """By the rows of Aᵀ: of a tile's results the first is of places 0 to 4, the last of 1 to 5, others of 1 to 4."""
    tiles = winograd.Tiles(extent, trimmed)
    made_of = [range(5), range(1, 5), range(1, 5), range(1, 6)]
    needed = {
        (place, tile)
        for tile in range(tiles.count)
        for result in range(winograd.TILE)
        if 0 <= winograd.TILE * tile + result - tiles.shift < extent
        for place in made_of[result]
    }
    computed = {
        (place, tile)
        for places in tiles.alike
        for place in places
        for tile in range(tiles.first(place), tiles.first(place) + tiles.count - tiles.spared(places[0]))
    }
    assert needed <= computed
    assert needed == computed or not trimmed
    assert sorted(place for places in tiles.alike for place in places) == list(range(winograd.WINDOW))


@settings(max_examples=12, deadline=None)
@given(layer=layers())
def test_computes_what_onnx_runtime_does(layer: Layer) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "pays", lambda _: True)
        assert_computes(layer, per_product=ROUNDING)


@settings(max_examples=8, deadline=None)
@given(layer=layers())
def test_nothing_is_accessed_out_of_bounds(layer: Layer) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "pays", lambda _: True)
        scheduled = schedule(layer.function(), HOST)
    assume(scheduled is not None)  # not where all that is read is padding
    assert out_of_bounds(scheduled) == []


@pytest.mark.usefixtures("always")
def test_blocks_of_rows_of_tiles_and_both_orders_of_the_product() -> None:
    """More tiles than the cache holds; more channels than tiles, and more tiles than channels."""
    assert_computes(Layer(40, 72, (56, 56)), per_product=ROUNDING)
    assert_computes(Layer(40, 72, (54, 50), residual=True), per_product=ROUNDING)
    assert_computes(Layer(24, 72, (14, 30)), per_product=ROUNDING)
    assert_computes(Layer(24, 16, (27, 14), batch=2), per_product=ROUNDING)
    assert_computes(Layer(24, 72, (7, 7)), per_product=ROUNDING)


def test_what_pays_is_taken_and_what_does_not_is_left() -> None:
    def kernel(layer: Layer) -> str:
        ((name, _),) = lowered(layer.loaded(), next(c for c in CORES if c.name == "cortex-a76")).functions.items()
        return name

    assert "winograd" in kernel(Layer(64, 64, (56, 56)))
    assert "winograd" in kernel(Layer(512, 512, (7, 7)))
    for other in (
        Layer(3, 8, (56, 56)),
        Layer(64, 64, (56, 56), strides=(2, 2)),
        Layer(64, 64, (56, 56), dilations=(2, 2), pads=(2, 2, 2, 2)),
        Layer(64, 64, (56, 56), kernel=(5, 5)),
        Layer(64, 64, (56, 56), groups=2),
        Layer(512, 512, (3, 3)),
    ):
        assert "winograd" not in kernel(other)


def test_the_library_transforms_weights_to_the_bit_as_numpy_does(tmp_path: Path) -> None:
    """The C code of the runtime on the host, also for a panel that is not full."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(10, 3, 3, 3)).astype(np.float32)
    expected = winograd.transformed(weights, 8)
    source = tmp_path / "transform.c"
    source.write_text(
        f'#include "{RUNTIME / "winograd.h"}"\n#include <stdio.h>\n'
        "static unsigned char in[10 * 27 * 4] __attribute__((aligned(8)));\n"
        f"static unsigned char out[{expected.nbytes}] __attribute__((aligned(8)));\n"
        "int main(void) { struct winograd of = {0, 0, 0, 10, 3, 8};\n"
        "fread(in, 1, sizeof in, stdin); transform_winograd(&of, in, out); fwrite(out, 1, sizeof out, stdout); }"
    )
    program = tmp_path / "transform"
    sanitizers = "-fsanitize=address,undefined"
    subprocess.run(["gcc", "-O1", sanitizers, "-fno-sanitize-recover", source, "-o", program], check=True)
    made = subprocess.run([program], input=weights.tobytes(), stdout=subprocess.PIPE, check=True).stdout
    found = np.frombuffer(made, np.float32).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=2.0**-23, atol=0)
    assert np.count_nonzero(found) == 36 * 10 * 3


def test_the_sum_of_the_transforms_is_the_convolution_in_exact_arithmetic() -> None:
    """Y = Aᵀ [(G w Gᵀ) ⊙ (Bᵀ x B)] A, in float64."""
    rng = np.random.default_rng(1)
    w, x = rng.normal(size=(3, 3)), rng.normal(size=(6, 6))
    u = winograd.transformed(w[None, None].astype(np.float32), 1).reshape(6, 6).astype(np.float64)
    b = np.array([[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0]])
    b = np.vstack([b, [[0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]])
    a = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])
    expected = [[np.sum(w * x[i : i + 3, j : j + 3]) for j in range(4)] for i in range(4)]
    np.testing.assert_allclose(a @ (u * (b @ x @ b.T)) @ a.T, expected, atol=1e-5)


def twins() -> onnx.ModelProto:
    """Two layers that share their weights, and a third."""
    rng = np.random.default_rng(0)
    constants = {name: rng.normal(0, 0.06, (32, 32, 3, 3)).astype(np.float32) for name in ("w", "v")}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w"], ["c"], pads=[1] * 4),
        helper.make_node("Conv", ["c", "v"], ["y"], pads=[1] * 4),
    ]
    shape = (1, 32, 24, 24)
    graph = helper.make_graph(
        nodes,
        "twins",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.slow
@pytest.mark.emulation
@pytest.mark.parametrize("compress", [False, True])
def test_a_library_keeps_the_plain_weights_and_transforms_shared_ones_once(tmp_path: Path, compress: bool) -> None:
    result = graphopt.optimize(twins(), "cortex-a76", out=tmp_path / "out", name="twins", jobs=1, compress=compress)
    assert all("winograd" in str(layer["kernel"]) for layer in result.library.layers)
    plain, made = 2 * 32 * 32 * 9 * 4, 2 * 32 * 32 * 36 * 4
    assert made <= result.library.weight_bytes <= plain + made + (plain if compress else 0) + 1024
    assert result.report["library"]["shared_bytes"] < plain + 100_000
    assert all(output.relative < 1e-5 for output in graphopt.verify(tmp_path / "out").outputs)


def test_the_kernel_knows_only_unit_strides() -> None:
    """`Winograd` is a `Conv2d` and adds no field: what is recognized is all that the loops read."""
    assert winograd.Winograd.__dataclass_fields__.keys() == Conv2d.__dataclass_fields__.keys()
