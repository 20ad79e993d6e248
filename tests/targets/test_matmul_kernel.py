"""The float32 product kernel: against numpy on the host, with the tiles of every target, and its AArch64 inner loop."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax, tirx
from tvm.script import tirx as T  # noqa: N812

from graphopt.targets.arm.cores import CORES
from graphopt.targets.base import TargetDescription
from graphopt.targets.tvm.codegen import lower_kernels, tvm_target
from graphopt.targets.tvm.kernels import register_tile
from graphopt.targets.tvm.kernels.matmul import LEGALIZE, even_panel, pack_left, pack_right, tile_for
from graphopt.targets.tvm.kernels.register_tile import schedule
from tests.targets.accesses import out_of_bounds

TILES = {
    "aarch64": {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "cortex-a76"},
    "armv7": {"kind": "llvm", "mtriple": "armv7a-linux-gnueabihf", "mattr": ["+neon"]},
    "x86-64-v3": {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64-v3"},
    "x86-64": {"kind": "llvm", "mtriple": "x86_64-linux-gnu", "mcpu": "x86-64"},
}
SIZES = st.sampled_from([1, 2, 3, 5, 7, 8, 12, 13, 17, 24, 33, 49])
PLACES = st.integers(0, 30)  # of tiles in the model's order; the last of fewer
Body = Callable[..., Any]


def cortex_a76() -> TargetDescription:
    return next(core for core in CORES if core.name == "cortex-a76")


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).uniform(-1, 1, shape).astype(np.float32)


def fused(body: Body, arrays: list[np.ndarray], tile: str) -> tvm.IRModule:
    """The module that `body` of the arrays, as parameters, becomes by the kernel's legalization and TVM's fusion."""
    builder = relax.BlockBuilder()
    parameters = [relax.Var(f"p{i}", relax.TensorType(a.shape, "float32")) for i, a in enumerate(arrays)]
    with builder.function("main", params=parameters):
        with builder.dataflow():
            result = builder.emit_output(body(*parameters))
        builder.emit_func_output(result)
    transform = relax.transform
    with tvm.target.Target(TILES[tile]):
        return tvm.transform.Sequential(
            [
                transform.LegalizeOps(LEGALIZE, enable_warning=False),
                transform.AnnotateTIROpPattern(),
                transform.FuseOps(),
                transform.FuseTIR(),
                transform.DeadCodeElimination(),
            ]
        )(builder.get())


def kernels(module: tvm.IRModule) -> dict[Any, tirx.PrimFunc]:
    return {name: f for name, f in module.functions_items() if isinstance(f, tirx.PrimFunc)}


def scheduled(module: tvm.IRModule, place: int = 0) -> tvm.IRModule:
    """The module with its only PrimFunc scheduled by the kernel, in the tiles at a place of the model's order."""
    ((name, function),) = kernels(module).items()
    with mock.patch.object(register_tile, "keep_in_memory"):  # an instruction that this machine does not have
        result = schedule(function, cortex_a76(), place)
    assert result is not None
    module.update_func(name, result)
    return module


def run(module: tvm.IRModule, arrays: list[np.ndarray]) -> np.ndarray:
    executable = tvm.compile(module, target="llvm")
    result: np.ndarray = relax.VirtualMachine(executable, tvm.cpu())["main"](*map(tvm.runtime.tensor, arrays)).numpy()
    return result


def assert_computes(
    body: Body, arrays: list[np.ndarray], expected: np.ndarray, depth: int, tile: str, place: int = 0
) -> None:
    """The kernel takes all of `body`, and its result has no more error than sums of `depth` products in float32."""
    found = run(scheduled(fused(body, arrays, tile), place), arrays)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=(depth + 4) * 2.0**-23)


@pytest.mark.parametrize("tile", TILES)
@settings(max_examples=6, deadline=None)
@given(m=SIZES, k=SIZES, n=SIZES, place=PLACES)
def test_rows_times_constant_weights(tile: str, m: int, k: int, n: int, place: int) -> None:
    x, weights, bias, residual = random(m, k), random(k, n), random(n), random(m, n)

    def body(x: Any, residual: Any) -> Any:
        product = relax.op.add(relax.op.matmul(x, relax.const(weights)), relax.const(bias))
        return relax.op.add(relax.op.nn.relu(product), residual)

    expected = np.maximum(x.astype(float) @ weights + bias, 0) + residual
    assert_computes(body, [x, residual], expected, k, tile, place)


@pytest.mark.parametrize("tile", TILES)
@settings(max_examples=6, deadline=None)
@given(
    channels=SIZES,
    depth=SIZES,
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    batch=st.integers(1, 2),
    place=PLACES,
)
def test_pointwise_convolution(
    tile: str, channels: int, depth: int, height: int, width: int, batch: int, place: int
) -> None:
    x, weights, bias = random(batch, depth, height, width), random(channels, depth, 1, 1), random(1, channels, 1, 1)
    residual = random(batch, channels, height, width)

    def body(x: Any, residual: Any) -> Any:
        product = relax.op.add(relax.op.nn.conv2d(x, relax.const(weights)), relax.const(bias))
        return relax.op.clip(relax.op.add(product, residual), 0, 6)

    product = np.einsum("ok,bkhw->bohw", weights[:, :, 0, 0].astype(float), x)
    expected = np.clip(product + bias + residual, 0, 6)
    assert_computes(body, [x, residual], expected, depth, tile, place)


@pytest.mark.parametrize(("left", "right"), [((5, 33, 17), (17, 13)), ((2, 3, 7, 5), (2, 3, 5, 26)), ((8, 4), (4, 12))])
def test_products_of_two_activations(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    a, b = random(*left), random(*right)
    expected = a.astype(float) @ b
    assert_computes(lambda a, b: relax.op.nn.gelu_tanh(relax.op.matmul(a, b)), [a, b], _gelu(expected), 40, "aarch64")


def _gelu(x: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))


def test_constant_weights_on_the_left_of_a_batch() -> None:
    weights, x = random(21, 9), random(2, 9, 14)
    body = lambda x: relax.op.matmul(relax.const(weights), x)  # noqa: E731
    assert_computes(body, [x], weights.astype(float) @ x, 9, "aarch64")


def test_leading_axes_are_rows() -> None:
    x, weights, residual = random(2, 5, 7, 16), random(16, 24), random(2, 5, 7, 24)
    body = lambda x, r: relax.op.add(relax.op.matmul(x, relax.const(weights)), r)  # noqa: E731
    assert_computes(body, [x, residual], x.astype(float) @ weights + residual, 16, "aarch64")


def test_several_threads_share_a_large_product_with_edges() -> None:
    x, weights = random(101, 64), random(64, 103)
    module = scheduled(fused(lambda x: relax.op.matmul(x, relax.const(weights)), [x], "aarch64"))
    assert "T.parallel" in module.script()
    assert_computes(lambda x: relax.op.matmul(x, relax.const(weights)), [x], x.astype(float) @ weights, 64, "aarch64")


def test_a_strided_pointwise_convolution_reads_every_other_pixel() -> None:
    x, weights = random(1, 12, 9, 7), random(20, 12, 1, 1)
    module = fused(lambda x: relax.op.nn.conv2d(x, relax.const(weights), strides=(2, 2)), [x], "aarch64")
    taken = {name: schedule(function, cortex_a76()) for name, function in kernels(module).items()}
    assert sum(function is not None for function in taken.values()) == 1
    for name, function in taken.items():
        if function is not None:
            module.update_func(name, function)
    expected = np.einsum("ok,bkhw->bohw", weights[:, :, 0, 0].astype(float), x[:, :, ::2, ::2])
    np.testing.assert_allclose(run(module, [x]), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tile", TILES)
@settings(max_examples=8, deadline=None)
@given(m=SIZES, k=st.integers(1, 3), n=SIZES, place=PLACES)
def test_nothing_is_accessed_out_of_bounds(tile: str, m: int, k: int, n: int, place: int) -> None:
    row_major = fused(lambda x: relax.op.nn.relu(relax.op.matmul(x, relax.const(random(k, n)))), [random(m, k)], tile)
    planes = fused(lambda x: relax.op.nn.conv2d(x, relax.const(random(m, k, 1, 1))), [random(2, k, 1, n)], tile)
    activations = fused(lambda x, y: relax.op.matmul(x, y), [random(2, m, k), random(2, k, n)], tile)  # noqa: PLW0108
    for module in (row_major, planes, activations):
        (function,) = kernels(scheduled(module, place)).values()
        assert out_of_bounds(function) == []


def test_accesses_out_of_bounds_would_be_found() -> None:
    @T.prim_func(private=True, s_tir=True)
    def beyond(x: T.Buffer((4,), "float32"), y: T.Buffer((4,), "float32")) -> None:  # type: ignore[valid-type]
        for i in range(5):
            if i < 4:
                y[i] = x[i] + x[i + 1]

    assert out_of_bounds(beyond) == ["x[i + 1]"]


@pytest.mark.parametrize(
    ("body", "shapes"),
    [
        (lambda x: relax.op.nn.conv2d(x, relax.const(random(4, 4, 3, 3))), [(1, 4, 8, 8)]),
        (lambda x: relax.op.nn.conv2d(x, relax.const(random(4, 1, 1, 1)), groups=4), [(1, 4, 8, 8)]),
        (lambda x: relax.op.nn.conv2d(x, relax.const(random(4, 4, 1, 1)), padding=(1, 1)), [(1, 4, 8, 8)]),
        (relax.op.matmul, [(3, 4, 5), (1, 5, 6)]),
    ],
    ids=["3x3", "grouped", "padded", "broadcast batch"],
)
def test_other_operators_are_left_to_tvm(body: Body, shapes: list[tuple[int, ...]]) -> None:
    module = fused(body, [random(*shape) for shape in shapes], "aarch64")
    assert all(schedule(function, cortex_a76()) is None for function in kernels(module).values())


def test_a_product_that_is_spread_over_a_larger_tensor_is_stored_first() -> None:
    x, weights, image = random(1, 8, 1, 1), random(12, 8, 1, 1), random(1, 12, 5, 7)

    def body(x: Any, image: Any) -> Any:
        gate = relax.op.sigmoid(relax.op.nn.conv2d(x, relax.const(weights)))
        return relax.op.add(relax.op.multiply(image, gate), image)

    gate = 1 / (1 + np.exp(-np.einsum("ok,bkhw->bohw", weights[:, :, 0, 0].astype(float), x)))
    assert_computes(body, [x, image], image * gate + image, 8, "aarch64")


def test_the_product_itself_is_not_stored() -> None:
    x, weights = random(24, 16), random(16, 36)
    body = lambda x: relax.op.nn.silu(relax.op.matmul(x, relax.const(weights)))  # noqa: E731
    (function,) = kernels(scheduled(fused(body, [x], "aarch64"))).values()
    buffers = re.findall(r"= T\.(?:sblock_)?alloc_\w+\(\((\d+),\)", function.script())
    assert buffers == ["96", "24", *["2"] * 8]  # the tile, and two k of both factors


def inner_loops(assembly: str) -> list[list[str]]:
    """The mnemonics of each loop without an inner one: from a label to the branch back to it."""
    lines = [line.split("//")[0].strip() for line in assembly.splitlines()]
    loops = []
    for end, line in enumerate(lines):
        target = re.match(r"b\.\w+\s+(\S+)$", line)
        start = lines.index(f"{target[1]}:") if target and f"{target[1]}:" in lines[:end] else None
        if start is not None and not any(other.endswith(":") for other in lines[start + 1 : end]):
            loops.append([other.split()[0] for other in lines[start + 1 : end + 1] if other and other[0] != "."])
    return loops


def assembly_of(function: Any, core: TargetDescription | None = None) -> str:
    """What LLVM makes of a scheduled kernel for a core, a Cortex-A76 if none is given."""
    target = tvm_target(core or cortex_a76())
    bound = target.with_host(target)
    module = tvm.IRModule(lower_kernels({"kernel": function}, bound)[0])
    module = tirx.transform.LowerIntrin()(tirx.transform.LowerTVMBuiltin()(module))
    assembly: str = tvm.get_global_func("target.build.llvm")(module, bound).inspect_source("asm")
    return assembly


@pytest.mark.parametrize(
    ("body", "shape", "products", "loads", "most"),
    [
        (lambda x: relax.op.nn.conv2d(x, relax.const(random(64, 96, 1, 1))), (1, 96, 12, 12), 24, 3, 32),
        (lambda x: relax.op.matmul(x, relax.const(random(96, 48))), (64, 96), 48, 14, 70),
    ],
    ids=["packed left", "row-major left"],
)
def test_the_inner_loop_is_multiply_adds_and_little_else(
    body: Body, shape: tuple[int, ...], products: int, loads: int, most: int
) -> None:
    (function,) = kernels(fused(body, [random(*shape)], "aarch64")).values()
    assembly = assembly_of(schedule(function, cortex_a76()))
    main = max(inner_loops(assembly), key=lambda loop: loop.count("fmla"))
    assert main.count("fmla") == products
    assert sum(mnemonic.startswith("ld") for mnemonic in main) <= loads
    assert not any(mnemonic.startswith("st") for mnemonic in main)
    assert len(main) <= most


def test_sums_stay_in_registers_where_a_core_issues_in_order() -> None:
    cortex_a55 = next(core for core in CORES if core.name == "cortex-a55")
    body: Body = lambda x: relax.op.matmul(x, relax.const(random(96, 48)))  # noqa: E731
    (function,) = kernels(fused(body, [random(64, 96)], "aarch64")).values()
    loops = inner_loops(assembly_of(schedule(function, cortex_a55), cortex_a55))
    main = max(loops, key=lambda loop: loop.count("fmla"))
    assert main.count("fmla") >= 24
    assert not any(mnemonic.startswith("st") for mnemonic in main)


@given(extent=st.integers(1, 400), most=st.integers(1, 16), multiple=st.sampled_from([1, 4, 8]))
def test_even_panels_are_no_more_than_the_widest_and_cover_all(extent: int, most: int, multiple: int) -> None:
    most *= multiple
    panel = even_panel(extent, most, multiple)
    assert panel % multiple == 0
    assert panel <= most
    assert -(-extent // panel) == -(-extent // most)


@given(m=st.integers(1, 20), k=st.integers(1, 5), panel=st.integers(1, 12))
def test_packing_places_every_element(m: int, k: int, panel: int) -> None:
    matrix = np.arange(1.0, m * k + 1).reshape(m, k)
    for packed in (pack_left(matrix, panel), pack_right(matrix.T, panel)):
        assert packed.shape == (-(-m // panel), k, panel)
        for i, j in itertools.product(range(m), range(k)):
            assert packed[i // panel, j, i % panel] == matrix[i, j]
        assert np.count_nonzero(packed) == m * k


def test_each_target_has_a_tile_that_fits_its_registers() -> None:
    registers = {"aarch64": 32, "armv7": 16, "x86-64-v3": 16, "x86-64": 16}
    for name, count in registers.items():
        tile = tile_for(tvm.target.Target(TILES[name]))
        assert tile.rows * tile.vectors + tile.vectors + 1 <= count
