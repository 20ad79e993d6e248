"""The commands that look and list: inspect, compare, passes, targets."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import onnx
import pytest

import graphopt.ir
from graphopt.pipeline.report import SCHEMA_FILE
from tests.cli.conftest import Run, small_model


def test_inspect_shows_layers_costs_and_what_passes_could_do(model: Path, run: Run) -> None:
    outcome = run("inspect", model)
    assert outcome.status == 0 and outcome.stderr == ""
    for words in ("node_0", "MatMul", "1×3", "fold-constants", "would change", "Parameters", "scores"):
        assert words in outcome.stdout, words


def test_inspect_reports_json_that_fits_the_schema(model: Path, run: Run) -> None:
    report = json.loads(run("inspect", model, "--json").stdout)
    jsonschema.validate(report, json.loads(SCHEMA_FILE.read_text()))
    assert report["kind"] == "inspect" and report["totals"]["after"] is None and report["library"] is None
    assert report["totals"]["before"]["macs"] == 12 and report["totals"]["before"]["params"] == 15
    tried = {item["spec"]: item for item in report["passes"]}
    assert tried["eliminate-identity"]["changed"] and tried["eliminate-identity"]["nodes"] == {"before": 4, "after": 3}


def test_inspect_leaves_the_file_alone(model: Path, run: Run) -> None:
    before = model.read_bytes()
    run("inspect", model)
    assert model.read_bytes() == before and [path.name for path in model.parent.iterdir()] == ["small.onnx"]


def test_inspect_ir_prints_the_text_form_alone(model: Path, run: Run) -> None:
    outcome = run("inspect", model, "--ir")
    assert outcome.status == 0 and outcome.stderr == ""
    assert outcome.stdout.rstrip("\n") == graphopt.ir.to_text(graphopt.ir.load(model)).rstrip("\n")


def test_shapes_that_stay_open_are_said_and_leave_the_macs_open(tmp_path: Path, run: Run) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,T] x, float[T,3] w) => (float[N,3] y) { y = MatMul(x, w) }'
    )
    onnx.save(proto, tmp_path / "open.onnx")
    outcome = run("inspect", tmp_path / "open.onnx", "--json")
    report = json.loads(outcome.stdout)
    assert outcome.status == 0 and "--shape x=1," in outcome.stderr
    assert report["layers"][0]["macs"] is None and report["totals"]["before"]["uncounted"] == 1
    bound = json.loads(run("inspect", tmp_path / "open.onnx", "--shape", "x=2,5", "--json").stdout)
    assert bound["layers"][0]["macs"] == 2 * 5 * 3


def test_compare_finds_equal_models_equal(model: Path, run: Run) -> None:
    result = json.loads(run("compare", model, model, "--json").stdout)
    assert result["same"] and result["interface"] == "" and result["operators"] == {}
    assert result["outputs"][0]["max_abs"] == 0 and result["outputs"][0]["sqnr_db"] == "inf" and result["samples"] == 4


def test_compare_shows_structure_and_outputs(model: Path, bundle: Path, run: Run) -> None:
    outcome = run("compare", model, bundle / "model.onnx", "--tolerance", "1e-5")
    assert outcome.status == 0 and "they differ" in outcome.stdout and "MatMul" in outcome.stdout
    result = json.loads(run("compare", model, bundle / "model.onnx", "--json").stdout)
    assert result["operators"]["MatMul"] == [1, 0] and not result["same"]


def test_compare_takes_no_outputs_from_models_with_other_inputs(model: Path, tmp_path: Path, run: Run) -> None:
    onnx.save(small_model(batch=2), tmp_path / "two.onnx")
    result = json.loads(run("compare", model, tmp_path / "two.onnx", "--json").stdout)
    assert result["outputs"] == [] and result["skipped"] == "the inputs differ" and "input was" in result["interface"]


def test_passes_lists_options_with_types_and_defaults(run: Run) -> None:
    assert "fold-batch-norm" in run("passes").stdout
    listed = {item["name"]: item for item in json.loads(run("passes", "--json").stdout)}
    option = next(o for o in listed["fold-constants"]["options"] if o["name"] == "max_bytes")
    assert option["type"] == "integer" and int(option["default"]) > 0 and option["doc"]
    assert listed["fold-constants"]["exact"] and not listed["quantize"]["exact"]
    assert any(item["default"] for item in listed.values())


def test_passes_lists_those_of_a_plugin(tmp_path: Path, run: Run) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom typing import ClassVar\n"
        "from graphopt import Pass, PassResult, option\n"
        "@dataclass(frozen=True)\nclass Mine(Pass):\n    '''Do nothing, slowly.'''\n"
        "    name: ClassVar[str] = 'mine-of-the-cli-test'\n    exact: ClassVar[bool] = True\n"
        "    speed: float = option(0.5, 'how slowly')\n"
        "    def run(self, model, context):\n        return PassResult(False)\n"
    )
    outcome = run("passes", "--plugin", tmp_path / "mine.py")
    for words in ("mine-of-the-cli-test", "Do nothing, slowly.", "speed=0.5", "how slowly"):
        assert words in outcome.stdout


def test_targets_prints_the_facts(run: Run) -> None:
    outcome = run("targets")
    assert outcome.status == 0 and "cortex-a76" in outcome.stdout and "dotprod" in outcome.stdout
    listed = {item["name"]: item for item in json.loads(run("targets", "--json").stdout)}
    assert listed["cortex-a76"]["triple"].startswith("aarch64") and listed["cortex-a76"]["sources"]


@pytest.mark.parametrize("command", ["optimize", "inspect", "verify", "bench", "passes", "targets", "compare"])
def test_every_command_explains_itself(command: str, run: Run) -> None:
    outcome = run(command, "--help")
    assert outcome.status == 0 and "Usage" in outcome.stdout
