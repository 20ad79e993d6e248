"""Random quantized layers give on ARM cores, emulated, the bits of their definition: by each set of instructions."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from graphopt.building import build
from graphopt.deploy.bundle import Bundle
from graphopt.deploy.toolchain import build_program, launcher, run_program
from graphopt.targets.arm.cores import CORES
from graphopt.targets.base import Tiling
from graphopt.targets.tvm.preparation import prepare
from graphopt.targets.tvm.quantized.rewrite import LEFT_IN_FLOAT
from tests.targets.random_layers import Layer, convolutions, matrix_products, side_by_side
from tests.targets.test_integer_emulated import check_outputs, written

FEW = settings(  # each compiles ten layers: no shrinking
    max_examples=2, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
LAYERS = st.tuples(*[convolutions()] * 7, *[matrix_products()] * 3)


@pytest.mark.emulation
@pytest.mark.parametrize("name", ["cortex-a76", "cortex-a72", "cortex-a710", "armv7"])  # sdot, neither, smmla, 32 bits
@FEW
@given(LAYERS, st.integers(0, 5))
def test_random_layers_are_bit_exact(name: str, layers: tuple[Layer, ...], place: int) -> None:
    target = next(core for core in CORES if core.name == name)
    model = side_by_side(layers)
    assert prepare(model).meta[LEFT_IN_FLOAT] == []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        tiling = Tiling(others=place)
        library = build(
            model, target, folder, name="net", jobs=1, compress=False, tiling=tiling, progress=lambda *_: None
        )
        bundle = Bundle(folder, "net", name, library.inputs, library.outputs, "")
        program = folder / "example"
        build_program(bundle.example, target, bundle.include, bundle.static, program)
        feeds = {f"l{i}_x": layer.x for i, layer in enumerate(layers)}
        run_program((*launcher(target), str(program), "-o", scratch, *written(feeds, folder)))
        check_outputs(bundle, folder, {f"l{i}_y": layer.y for i, layer in enumerate(layers)})
