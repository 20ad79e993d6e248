"""`graphopt optimize`: the bundle, its report, and that failures leave nothing behind."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest

import graphopt
from graphopt import api
from graphopt.errors import InternalError
from graphopt.pipeline.report import SCHEMA_FILE
from tests.cli.conftest import Run, small_model

FILES = {
    "model.onnx", "include/small.h", "lib/libsmall.so", "lib/libsmall.a", "lib/cmake/small/smallConfig.cmake",
    "example.c", "recipe.toml", "report.json", "report.html",
}  # fmt: skip


def files(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_bundle_holds_what_the_contract_lists(bundle: Path) -> None:
    assert bundle.name == "small.host" and set(files(bundle)) >= FILES
    assert [path.name for path in bundle.parent.iterdir() if path.name.startswith(".")] == []


def test_the_report_fits_its_schema_and_tells_the_bundle(bundle: Path) -> None:
    report = json.loads((bundle / "report.json").read_text())
    jsonschema.validate(report, json.loads(SCHEMA_FILE.read_text()))
    assert report["kind"] == "optimize" and report["target"]["name"] == "host"
    assert report["totals"]["before"]["nodes"] == 4 and report["totals"]["after"]["nodes"] < 4
    assert report["totals"]["after"]["file_bytes"] == (bundle / "model.onnx").stat().st_size
    assert report["totals"]["before"]["macs"] == 12
    assert report["library"]["shared_bytes"] == (bundle / "lib" / "libsmall.so").stat().st_size
    kernels = {call["kernel"] for call in report["library"]["calls"]}
    assert kernels and all(set(layer["kernels"]) <= kernels for layer in report["layers"])
    assert any(layer["kernels"] for layer in report["layers"])


def test_the_report_holds_neither_times_nor_paths(bundle: Path) -> None:
    for name in ("report.json", "report.html", "recipe.toml"):
        text = (bundle / name).read_text()
        assert str(bundle.parent) not in text and "seconds" not in text


def test_the_same_command_gives_the_same_bytes_and_replaces_the_bundle(bundle: Path, run: Run) -> None:
    before = files(bundle)
    assert run("optimize", bundle.parent / "small.onnx", "--target", "host", "--jobs", 2).status == 0
    assert files(bundle) == before


def test_the_written_recipe_gives_the_same_bytes(bundle: Path, run: Run, tmp_path: Path) -> None:
    model = bundle.parent / "small.onnx"
    outcome = run("optimize", model, "--recipe", bundle / "recipe.toml", "-o", tmp_path / "again", "--jobs", 1)
    assert outcome.status == 0, outcome.stderr
    assert files(tmp_path / "again") == files(bundle)


def test_json_alone_goes_to_stdout(model: Path, run: Run, monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    outcome = run("optimize", model, "-t", "host", "--jobs", 1, "--json")
    assert outcome.status == 0 and outcome.stderr == ""
    assert json.loads(outcome.stdout) == json.loads((model.parent / "small.host" / "report.json").read_text())


def test_the_table_says_what_was_made(model: Path, run: Run) -> None:
    outcome = run("optimize", model, "-t", "host", "--jobs", 1, "--name", "tiny")
    assert outcome.status == 0
    assert "wrote" in outcome.stdout and str(model.parent / "small.host") in outcome.stdout
    assert (model.parent / "small.host" / "lib" / "libtiny.so").is_file()


def test_an_unknown_batch_is_taken_as_one_and_said_once(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "batched.onnx"
    onnx.save(small_model("N"), path)
    outcome = run("optimize", path, "-t", "host", "--jobs", 1)
    assert outcome.status == 0
    assert outcome.stderr.count("warning:") == 1 and "taken as 1" in outcome.stderr


def test_weights_that_are_not_finite_bring_a_warning_that_names_them(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "odd.onnx"
    onnx.save(small_model(weight=np.full((4, 3), np.nan, np.float32)), path)
    outcome = run("optimize", path, "-t", "host", "--jobs", 1, "--json")
    assert outcome.status == 0 and "'w'" in outcome.stderr
    assert str(tmp_path) not in outcome.stdout


class TestNothingIsLeftBehind:
    """After a failure the folder of the model is as it was, and so is an older bundle."""

    @pytest.fixture(params=[KeyboardInterrupt, InternalError("the linker failed"), RuntimeError("surprise")])
    def fault(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> BaseException:
        def build(*arguments: object, **options: object) -> None:
            folder = arguments[2]
            assert isinstance(folder, Path)
            (folder / "half-written").write_text("x")
            raise request.param

        monkeypatch.setattr(api, "build", build)
        return request.param  # type: ignore[no-any-return]

    def test_without_an_older_bundle(self, model: Path, run: Run, fault: BaseException) -> None:
        outcome = run("optimize", model, "-t", "host")
        assert outcome.status == (130 if fault is KeyboardInterrupt else 4)
        assert [path.name for path in model.parent.iterdir()] == ["small.onnx"]

    def test_with_an_older_bundle(self, bundle: Path, run: Run, fault: BaseException) -> None:
        before = files(bundle)
        run("optimize", bundle.parent / "small.onnx", "-t", "host")
        assert files(bundle) == before
        assert {path.name for path in bundle.parent.iterdir()} == {"small.onnx", "small.host"}


def test_a_folder_that_is_no_bundle_is_not_replaced(model: Path, run: Run) -> None:
    precious = model.parent / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("years of work")
    outcome = run("optimize", model, "-t", "host", "-o", precious)
    assert outcome.status == 2 and "is not a bundle" in outcome.stderr
    assert (precious / "thesis.tex").read_text() == "years of work"


def test_labels_measure_what_a_lossy_pass_costs_and_max_drop_holds_it(
    model: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spoil.py").write_text(
        "from dataclasses import dataclass\nfrom typing import ClassVar\nimport numpy as np\nimport onnx_ir as ir\n"
        "from graphopt import Pass, PassResult\n"
        "@dataclass(frozen=True)\nclass Spoil(Pass):\n    '''Negate the weight.'''\n"
        "    name: ClassVar[str] = 'spoil'\n    exact: ClassVar[bool] = False\n"
        "    def run(self, model, context):\n"
        "        for value in model.graph.initializers.values():\n"
        "            if value.shape == [4, 3]:\n"
        "                value.const_value = ir.tensor(-value.const_value.numpy())\n"
        "                return PassResult(True)\n"
        "        return PassResult(False)\n"
    )
    data = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    np.savez(tmp_path / "calib.npz", x=data)
    plain = ("optimize", model, "-t", "host", "--jobs", 1, "--plugin", tmp_path / "spoil.py", "--pass", "spoil")
    measured = run(*plain, "--calib", tmp_path / "calib.npz", "--json")
    assert measured.status == 0, measured.stderr
    accuracy = json.loads(measured.stdout)["accuracy"]
    assert accuracy["measure"] == "agreement" and accuracy["before"] == 1 and accuracy["drop"] > 0.02
    assert "points of agreement" in measured.stderr

    missed = run(*plain, "--calib", tmp_path / "calib.npz", "--max-drop", 0.01, "-o", tmp_path / "other")
    assert missed.status == 3 and "allowed were 1.00" in missed.stderr and not (tmp_path / "other").exists()

    without = run(*plain, "--max-drop", 0.01)
    assert without.status == 2 and "--max-drop is about the samples of --calib" in without.stderr


def test_the_api_takes_a_model_in_memory(tmp_path: Path) -> None:
    result = graphopt.optimize(small_model(), "host", out=tmp_path / "out", jobs=1)
    assert result.out == tmp_path / "out" and result.library.shared.is_file()
    assert result.model().graph.outputs[0].name == "scores"
    assert set(result.timings) >= {"load", "passes", "build", "write"}
    with pytest.raises(graphopt.UsageError, match="needs a place"):
        graphopt.optimize(small_model(), "host")
