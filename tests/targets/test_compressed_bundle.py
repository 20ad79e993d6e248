"""Bundles with compressed weights: outputs equal to the bit, verify and bench as ever, and what the report says."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest

import graphopt
from graphopt.deploy.toolchain import build_program, launcher, run_program
from graphopt.pipeline.report import SCHEMA_FILE
from graphopt.pipeline.report_html import to_html
from tests.targets.toy import TARGETS

MODEL = """<ir_version: 8, opset_import: ["" : 17]>
g (float[1,8,9,9] x) => (float[1,40] y) {
  a = Conv<pads=[1,1,1,1]>(x, w1, b1) b = Relu(a) c = Conv(b, w2)
  d = GlobalAveragePool(c) e = Flatten(d) y = MatMul(e, w3)
}"""


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    proto = onnx.parser.parse_model(MODEL)
    rng = np.random.default_rng(0)
    for name, shape in {"w1": (32, 8, 3, 3), "b1": (32,), "w2": (64, 32, 1, 1), "w3": (64, 40)}.items():
        array = rng.normal(size=shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for index, node in enumerate(proto.graph.node):
        node.name = f"node_{index}"
    return proto


def outputs(bundle: Path, target: str, folder: Path) -> bytes:
    """What the bundle's example program computes for one input."""
    folder.mkdir()
    entry, program = folder / "x.bin", folder / "program"
    entry.write_bytes(np.random.default_rng(1).normal(size=(1, 8, 9, 9)).astype(np.float32).tobytes())
    description = TARGETS[target]
    build_program(bundle / "example.c", description, bundle / "include", bundle / "lib" / "libnet.a", program)
    run_program((*launcher(description), str(program), "-o", str(folder), str(entry)))
    return (folder / "output_0.bin").read_bytes()


@pytest.fixture(scope="module")
def bundles(model: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> dict[str, graphopt.OptimizeResult]:
    folder = tmp_path_factory.mktemp("bundles")
    cases = {"plain": {}, "compressed": {"compress": True}, "palettized": {"compress": True, "passes": ["palettize"]}}
    return {
        name: graphopt.optimize(model, "host", out=folder / name, name="net", jobs=1, **options)
        for name, options in cases.items()
    }


def test_outputs_are_equal_to_the_bit(bundles: dict[str, graphopt.OptimizeResult], tmp_path: Path) -> None:
    plain, compressed = (outputs(bundles[name].out, "host", tmp_path / name) for name in ("plain", "compressed"))
    assert plain == compressed and len(plain) == 160 and np.isfinite(np.frombuffer(plain, np.float32)).all()


def test_the_library_is_smaller_by_what_the_report_says(bundles: dict[str, graphopt.OptimizeResult]) -> None:
    plain, compressed, palettized = (bundles[name].report["library"] for name in ("plain", "compressed", "palettized"))
    assert plain["storage"] is None
    assert compressed["weight_bytes"] == pytest.approx(plain["weight_bytes"], abs=256)
    for library, share in ((compressed, 0.9), (palettized, 0.45)):
        storage = library["storage"]
        assert storage["stored_bytes"] < share * storage["bytes"]
        saved = plain["shared_bytes"] - library["shared_bytes"]
        # The decoder's code, and the padding of pages.
        assert saved > storage["bytes"] - storage["stored_bytes"] - 12288 and saved > 0
        assert 0 < storage["decoded_bytes"] <= library["weight_bytes"]
        assert sum(use["stored_bytes"] for use in storage["coders"]) <= storage["stored_bytes"]
    assert next(use for use in palettized["storage"]["coders"] if use["coder"] == "palette")["bytes"] > 27000


def test_verify_and_bench_take_compressed_bundles(bundles: dict[str, graphopt.OptimizeResult]) -> None:
    for name in ("compressed", "palettized"):
        assert all(output.relative < 1e-5 for output in graphopt.verify(bundles[name].out).outputs)
    assert len(graphopt.bench(bundles["compressed"].out, repeat=2).layers) == len(bundles["compressed"].library.layers)


def test_report_and_recipe_tell_of_it(bundles: dict[str, graphopt.OptimizeResult]) -> None:
    result = bundles["compressed"]
    report = json.loads((result.out / "report.json").read_text())
    jsonschema.validate(report, json.loads(SCHEMA_FILE.read_text()))
    assert "weights compressed from" in to_html(report)
    assert "weights compressed" not in to_html(bundles["plain"].report)
    assert tomllib.loads((result.out / "recipe.toml").read_text())["compress"] is True
    assert "compress" not in tomllib.loads((bundles["plain"].out / "recipe.toml").read_text())


def test_palettes_leave_no_kernel_that_runs(bundles: dict[str, graphopt.OptimizeResult]) -> None:
    """Codebooks are looked up when the library is made, not in each run."""
    plain, palettized = (bundles[name].report["library"]["calls"] for name in ("plain", "palettized"))
    assert palettized == plain


@pytest.mark.slow
@pytest.mark.emulation
@pytest.mark.parametrize("target", ["cortex-a72", "armv7"])
def test_outputs_are_equal_under_emulation(model: onnx.ModelProto, tmp_path: Path, target: str) -> None:
    """On ARMv7 also: its kernels divide, which the compiler's runtime alone does not serve."""
    found = set()
    for compress in (False, True):
        name = f"compress_{compress}"
        result = graphopt.optimize(model, target, out=tmp_path / name, name="net", jobs=1, compress=compress)
        found.add(outputs(result.out, target, tmp_path / f"run_{name}"))
    assert len(found) == 1
