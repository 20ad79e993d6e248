"""Tiles are chosen by a model of the core: they fit its registers, cover the product once, and suit how it issues."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.targets.arm.cores import CORES
from graphopt.targets.base import Issue, TargetDescription
from graphopt.targets.tvm.kernels.epilogue import Axis
from graphopt.targets.tvm.kernels.float_tiles import cut, tilings
from graphopt.targets.tvm.kernels.fused_product import Plan
from graphopt.targets.tvm.kernels.integer_tiles import Extents, cycles, forms
from graphopt.targets.tvm.kernels.issue_model import Loop, from_l2
from graphopt.targets.tvm.kernels.requantize import Instructions, instructions_of

NARROW = Issue(in_order=True, width=2, vectors=1, loads=1, load_bytes=8, latency=4)
WIDE = Issue(in_order=False, width=4, vectors=2, loads=2, load_bytes=32, latency=4)
AARCH64 = [core for core in CORES if core.pointer_bits == 64]
LARGE = Extents(rows=49, columns=960, runs=1, depth=160, pairs=True, octets=False)


def core(name: str) -> TargetDescription:
    return next(core for core in CORES if core.name == name)


def plan(rows: int, columns: int, *, left: int = 0, right: int = 0) -> Plan:
    """A product of those extents, whose factors are packed in panels of `left` rows and `right` columns."""
    return Plan(
        epilogue=None,  # type: ignore[arg-type]
        left=None,
        right=None,
        variables=(),
        k=None,
        batch=Axis(()),
        rows=Axis((rows,)),
        columns=Axis((columns,)),
        depth=64,
        tile_rows=left or 8,
        tile_columns=right or 12,
        lanes=4,
        packed_left=left > 0,
        packed_right=right > 0,
    )


def test_a_loop_takes_what_is_scarcest() -> None:
    assert Loop(arithmetic=40, wide=8, narrow=5, others=4, rounds=2).cycles(WIDE) == pytest.approx(20, rel=0.05)
    assert Loop(arithmetic=4, wide=16, narrow=0, others=4, rounds=1).cycles(WIDE) == pytest.approx(8, rel=0.05)
    assert Loop(arithmetic=4, wide=1, narrow=0, others=0, rounds=4).cycles(WIDE) == pytest.approx(16, rel=0.05)
    assert Loop(arithmetic=12, wide=1, narrow=0, others=0, rounds=1, long=9).cycles(WIDE) == pytest.approx(9, rel=0.05)


def test_a_core_that_issues_in_order_stops_for_loads_wider_than_its_path_alone() -> None:
    assert Loop(arithmetic=40, wide=8, narrow=5, others=4, rounds=2).cycles(NARROW) == 40 + 2 * 8
    assert Loop(arithmetic=40, wide=0, narrow=13, others=4, rounds=2).cycles(NARROW) == 40
    whole = replace(NARROW, load_bytes=16)
    assert Loop(arithmetic=40, wide=8, narrow=5, others=4, rounds=2).cycles(whole) == 40


def test_a_panel_that_the_first_cache_holds_costs_nothing() -> None:
    target = core("cortex-a55")
    assert from_l2(0.75 * target.l1d_bytes, target) == 0
    assert from_l2(target.l1d_bytes, target) > 0
    assert from_l2(target.l1d_bytes, replace(target, l1d_bytes=0)) == 0  # unknown


def test_a_core_that_stops_for_loads_has_more_pixels_of_fewer_columns() -> None:
    """Loads of weights, of 128 bits, are as many as columns, and those of pixels are halves."""
    small, large = (forms(LARGE, Instructions.DOTPROD, core(name))[0] for name in ("cortex-a55", "cortex-a76"))
    assert (small.rows, small.vectors, small.chunk) == (8, 2, 8)
    assert (large.rows, large.vectors) == (5, 4)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(AARCH64),
    st.builds(
        Extents,
        rows=st.integers(1, 400),
        columns=st.integers(1, 70),
        runs=st.integers(1, 5),
        depth=st.integers(1, 80).map(lambda groups: 4 * groups),
        pairs=st.booleans(),
        octets=st.booleans(),
    ),
)
def test_forms_are_distinct_ranked_and_of_whole_operands(target: TargetDescription, extents: Extents) -> None:
    instructions = instructions_of(target)
    found = forms(extents, instructions, target)
    assert len(set(found)) == len(found) > 1
    times = [cycles(form, extents, instructions, target) for form in found]
    assert times == sorted(times) and times[0] > 0
    assert all(form.rows % form.together == 0 and form.chunk % 4 == 0 for form in found)


def test_the_portable_form_is_one() -> None:
    assert len(forms(LARGE, Instructions.PORTABLE, core("armv7"))) == len(forms(LARGE, Instructions.NEON, None)) == 1


def test_half_as_many_registers_hold_smaller_tiles() -> None:
    wide, narrow = (forms(LARGE, kind, core("armv7"))[0] for kind in (Instructions.NEON, Instructions.ARMV7))
    assert narrow.rows * narrow.vectors < wide.rows * wide.vectors


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(AARCH64), st.integers(1, 200), st.integers(1, 200), st.sampled_from(["left", "right", "none"]))
def test_cuts_cover_rows_and_columns_once(target: TargetDescription, rows: int, columns: int, packed: str) -> None:
    widths = {"left": min(rows, 8)} if packed == "left" else {"right": 8} if packed == "right" else {}
    product = plan(rows, columns, **widths)
    for of_rows, of_columns in tilings(product, 1, target):
        for axis, extent in ((of_rows, rows), (of_columns, columns)):
            assert sum(size * count for size, count in axis.sizes) >= extent
            assert axis.size * axis.count <= extent
            assert sum(count for _, count in axis.sizes) == axis.tiles
        if packed != "right":  # what is packed is padded to whole vectors
            assert sum(size * count for size, count in of_columns.sizes) == columns


def test_no_tile_is_left_with_a_single_column() -> None:
    """By itself it takes the latency of its sums, four cycles of each k; beside others one."""
    _, columns = tilings(plan(160, 49, left=8), 1, core("cortex-a76"))[0]
    assert min(size for size, _ in columns.sizes) >= 8


def test_narrow_panels_get_more_columns() -> None:
    _, columns = tilings(plan(5, 960, left=5), 1, core("cortex-a76"))[0]
    assert columns.size > 12


def test_a_lone_row_has_as_many_sums_as_hide_their_latency() -> None:
    (rows, columns), *_ = tilings(plan(1, 128, right=12), 2, core("cortex-a76"))
    assert rows.size == 1 and columns.size // 4 >= 8


def test_a_tile_never_takes_more_registers_than_there_are() -> None:
    for rows, columns in itertools.product((1, 3, 8, 17), (1, 7, 12, 49)):
        for of_rows, of_columns in tilings(plan(rows, columns), 2, core("cortex-a76"))[:-1]:
            for (r, _), (c, _) in itertools.product(of_rows.sizes, of_columns.sizes):
                assert r * (c // 4 + c % 4) <= 32


def test_a_target_without_a_model_keeps_the_marked_tile() -> None:
    assert tilings(plan(100, 49, left=4), 1, core("armv7")) == [(cut(100, 4), cut(49, 12))]
