"""Products by Strassen's algorithm: against numpy in float64, their rounding errors, and which products take it."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax

from graphopt.targets.arm.cores import CORES
from graphopt.targets.tvm.kernels import register_tile, strassen
from graphopt.targets.tvm.kernels.fused_product import take_apart
from tests.targets.accesses import out_of_bounds
from tests.targets.test_matmul_kernel import TILES, Body, cortex_a76, fused, kernels, random, run

ROWS = st.sampled_from([16, 17, 24, 31, 33, 49])
FILTERS = st.sampled_from([16, 24, 31, 32, 40])  # of which panels are whole vectors
DEPTHS = st.sampled_from([2, 4, 6, 10, 14, 34])
COLUMNS = st.sampled_from([32, 33, 36, 49, 61, 64])
# The bound of one step over n is (4.5 n² + 48 n) u, that of sums in order n² u (N. Higham, Accuracy and Stability
# of Numerical Algorithms, 2002, section 23.2): the tests of `register_tile` allow (n + 4) 2⁻²³.
ROUNDING = 4.5 * 2.0**-23
BEYOND = 48 / 4.5


def scheduled(module: tvm.IRModule) -> tvm.IRModule | None:
    """The module with its only PrimFunc scheduled, whether that pays or not; None if its size does not allow it."""
    ((name, function),) = kernels(module).items()
    with (
        mock.patch.object(register_tile, "keep_in_memory"),  # an instruction that this machine does not have
        mock.patch.object(strassen, "pays", return_value=True),
    ):
        result = strassen.schedule(function, cortex_a76())
    if result is None:
        return None
    module.update_func(name, result)
    return module


def assert_computes(body: Body, arrays: list[np.ndarray], expected: np.ndarray, depth: int, tile: str) -> None:
    """The kernel takes `body`, and has an error within its bound."""
    module = scheduled(fused(body, arrays, tile))
    assert module is not None
    np.testing.assert_allclose(run(module, arrays), expected, rtol=0, atol=(depth + 4 + BEYOND) * ROUNDING)


@pytest.mark.parametrize("tile", TILES)
@settings(max_examples=6, deadline=None)
@given(m=ROWS, k=DEPTHS, n=COLUMNS, batch=st.integers(1, 2))
def test_rows_times_constant_weights(tile: str, m: int, k: int, n: int, batch: int) -> None:
    x, weights, bias, residual = random(batch, m, k), random(k, n), random(n), random(batch, m, n)

    def body(x: Any, residual: Any) -> Any:
        product = relax.op.add(relax.op.matmul(x, relax.const(weights)), relax.const(bias))
        return relax.op.add(relax.op.nn.relu(product), residual)

    expected = np.maximum(x.astype(float) @ weights + bias, 0) + residual
    assert_computes(body, [x, residual], expected, k, tile)


@pytest.mark.parametrize("tile", ["aarch64", "armv7"])  # panels of six rows are no whole vectors
@settings(max_examples=6, deadline=None)
@given(channels=FILTERS, depth=DEPTHS, columns=COLUMNS, batch=st.integers(1, 2))
def test_pointwise_convolution(tile: str, channels: int, depth: int, columns: int, batch: int) -> None:
    x, weights, bias = random(batch, depth, 1, columns), random(channels, depth, 1, 1), random(1, channels, 1, 1)
    residual = random(batch, channels, 1, columns)

    def body(x: Any, residual: Any) -> Any:
        product = relax.op.add(relax.op.nn.conv2d(x, relax.const(weights)), relax.const(bias))
        return relax.op.clip(relax.op.add(product, residual), 0, 6)

    product = np.einsum("ok,bkhw->bohw", weights[:, :, 0, 0].astype(float), x)
    assert_computes(body, [x, residual], np.clip(product + bias + residual, 0, 6), depth, tile)


@pytest.mark.parametrize(("m", "n"), [(32, 24), (16, 48), (35, 55)])
def test_products_of_two_activations(m: int, n: int) -> None:
    a, b = random(2, m, 18), random(2, 18, n)
    assert scheduled(fused(relax.op.matmul, [a, b], "aarch64")) is not None
    assert_computes(relax.op.matmul, [a, b], a.astype(float) @ b, 18, "aarch64")


@settings(max_examples=8, deadline=None)
@given(m=ROWS, filters=FILTERS, k=st.sampled_from([2, 4, 6]), n=COLUMNS)
def test_nothing_is_accessed_out_of_bounds(m: int, filters: int, k: int, n: int) -> None:
    weights = relax.const(random(k, n))
    row_major = fused(lambda x: relax.op.nn.relu(relax.op.matmul(x, weights)), [random(m, k)], "aarch64")
    kernel = relax.const(random(filters, k, 1, 1))
    planes = fused(lambda x: relax.op.nn.conv2d(x, kernel), [random(2, k, 1, n)], "aarch64")
    activations = fused(relax.op.matmul, [random(2, m, k), random(2, k, n)], "aarch64")
    for module in map(scheduled, (row_major, planes, activations)):
        assert module is not None
        (function,) = kernels(module).values()
        assert out_of_bounds(function) == []


def test_the_error_is_at_most_three_times_that_of_sums_in_order() -> None:
    x, weights = random(128, 384), random(384, 96)
    body: Body = lambda x: relax.op.matmul(x, relax.const(weights))  # noqa: E731
    exact = x.astype(float) @ weights
    by_strassen, plain = fused(body, [x], "aarch64"), fused(body, [x], "aarch64")
    ((name, function),) = kernels(plain).items()
    with mock.patch.object(register_tile, "keep_in_memory"):
        plain.update_func(name, register_tile.schedule(function, cortex_a76()))
    made = scheduled(by_strassen)
    assert made is not None
    found, usual = (np.sqrt(np.mean((run(module, [x]) - exact) ** 2)) for module in (made, plain))
    assert 1.5 * usual < found < 3 * usual


def taken(body: Body, *shapes: tuple[int, ...]) -> bool:
    """Whether the kernel takes the product for a Cortex-A76."""
    (function,) = kernels(fused(body, [random(*shape) for shape in shapes], "aarch64")).values()
    return strassen.schedule(function, cortex_a76()) is not None


def test_large_products_take_it() -> None:
    assert taken(lambda x: relax.op.matmul(x, relax.const(random(384, 384))), (128, 384))
    assert taken(lambda x: relax.op.nn.conv2d(x, relax.const(random(384, 96, 1, 1))), (1, 96, 14, 14))


@pytest.mark.parametrize(
    ("body", "shapes"),
    [
        (lambda x: relax.op.matmul(x, relax.const(random(383, 384))), [(128, 383)]),
        (lambda x: relax.op.matmul(x, relax.const(random(384, 384))), [(1, 384)]),
        (lambda x: relax.op.matmul(x, relax.const(random(384, 384))), [(24, 384)]),
        (lambda x: relax.op.nn.conv2d(x, relax.const(random(96, 16, 1, 1))), [(1, 16, 56, 56)]),
        (lambda x: relax.op.nn.conv2d(x, relax.const(random(13, 64, 1, 1))), [(1, 64, 28, 28)]),
        (relax.op.matmul, [(12, 128, 32), (12, 32, 128)]),
    ],
    ids=["odd depth", "one row", "few rows", "short sums", "odd panels", "short sums of activations"],
)
def test_products_that_do_not_gain_are_left(body: Body, shapes: list[tuple[int, ...]]) -> None:
    assert not taken(body, *shapes)


def test_only_cores_of_64_bits_take_it() -> None:
    body: Body = lambda x: relax.op.matmul(x, relax.const(random(384, 384)))  # noqa: E731
    (function,) = kernels(fused(body, [random(128, 384)], "armv7")).values()
    armv7 = next(core for core in CORES if core.name == "armv7")
    assert strassen.schedule(function, armv7) is None
    assert strassen.tile_count(function, armv7) is None


def test_it_is_the_first_choice_before_all_tiles_of_the_plain_product() -> None:
    body: Body = lambda x: relax.op.matmul(x, relax.const(random(384, 384)))  # noqa: E731
    (function,) = kernels(fused(body, [random(128, 384)], "aarch64")).values()
    plain = register_tile.tile_count(function, cortex_a76())
    assert plain
    assert strassen.tile_count(function, cortex_a76()) == plain + 1
    second, first_plain = (
        strassen.schedule(function, cortex_a76(), 1),
        register_tile.schedule(function, cortex_a76(), 0),
    )
    assert second is not None
    assert first_plain is not None
    assert second.script() == first_plain.script()


def test_several_threads_share_the_tiles_of_the_larger_factor() -> None:
    body: Body = lambda x: relax.op.matmul(x, relax.const(random(384, 384)))  # noqa: E731
    module = scheduled(fused(body, [random(128, 384)], "aarch64"))
    assert module is not None
    assert module.script().count("T.parallel") == 2  # the sums of the smaller factor, and the tiles


@given(tiles=st.integers(1, 200), tile_bytes=st.integers(64, 1 << 20))
def test_the_scratch_is_bounded_and_four_threads_wait_for_few_tiles(tiles: int, tile_bytes: int) -> None:
    together = strassen._together(tiles, tile_bytes)
    assert together * tile_bytes <= max(strassen.SCRATCH + 3 * tile_bytes, strassen.THREADS * tile_bytes)
    assert together == tiles or together % strassen.THREADS == 0


def test_another_function_is_none_of_it() -> None:
    (function,) = kernels(fused(lambda x: relax.op.nn.relu(x), [random(8, 8)], "aarch64")).values()  # noqa: PLW0108
    assert take_apart(function) is None
    assert strassen.schedule(function, cortex_a76()) is None
    assert strassen.tile_count(function, cortex_a76()) is None
