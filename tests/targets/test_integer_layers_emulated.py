"""Random quantized layers give on ARM cores, emulated, the bits of their definition: by each set of instructions."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from graphopt.targets.tvm.preparation import prepare
from graphopt.targets.tvm.quantized.rewrite import LEFT_IN_FLOAT
from tests.targets.random_layers import Layer, convolutions, matrix_products, side_by_side
from tests.targets.test_integer_emulated import check_emulated

FEW = settings(  # each compiles ten layers: no shrinking
    max_examples=2, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
LAYERS = st.tuples(*[convolutions()] * 7, *[matrix_products()] * 3)


@pytest.mark.emulation
@pytest.mark.parametrize("name", ["cortex-a76", "cortex-a72", "cortex-a710", "armv7"])  # sdot, neither, smmla, 32 bits
@FEW
@given(LAYERS, st.integers(0, 5))
def test_random_layers_are_bit_exact(name: str, layers: tuple[Layer, ...], place: int) -> None:
    model = side_by_side(layers)
    assert prepare(model).meta[LEFT_IN_FLOAT] == []
    feeds = {f"l{i}_x": layer.x for i, layer in enumerate(layers)}
    expected = {f"l{i}_y": layer.y for i, layer in enumerate(layers)}
    with tempfile.TemporaryDirectory() as scratch:
        check_emulated(model, name, place, feeds, expected, Path(scratch))
