"""The commands that look and list: inspect, compare, passes, targets."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
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


def test_inspect_measures_sensitivity(model: Path, run: Run) -> None:
    rng = np.random.default_rng(0)
    data, labels = model.with_name("data.npz"), model.with_name("labels.npy")
    np.savez(data, x=rng.normal(size=(12, 4)).astype(np.float32))
    np.save(labels, np.zeros(12, np.int64))
    outcome = run("inspect", model, "--sensitivity", "--calib", data, "--samples", "5")
    assert outcome.status == 0
    for words in ("each layer quantized alone, on 5 samples", "lost agreement", "Gemm", "100.0 %"):
        assert words in outcome.stdout, words
    report = json.loads(run("inspect", model, "--sensitivity", "--calib", data, "--labels", labels, "--json").stdout)
    jsonschema.validate(report, json.loads(SCHEMA_FILE.read_text()))
    found = report["sensitivity"]
    assert found["measure"] == "accuracy" and found["samples"] == 12
    (layer,) = found["layers"]
    assert layer["op"] == "Gemm" and layer["macs"] == 12 and layer["macs_share"] == 1 and layer["sqnr_db"] > 20


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sensitivity"], "add --calib"),
        (["--calib", "data.npz"], "--calib is for --sensitivity alone"),
        (["--labels", "labels.npy"], "--labels is for --sensitivity alone"),
        (["--samples", "3"], "--samples is for --sensitivity alone"),
        (["--sensitivity", "--calib", "data.npz", "--samples", "0"], "expected 1 at least"),
    ],
)
def test_data_and_sensitivity_belong_together(arguments: list[str], words: str, model: Path, run: Run) -> None:
    outcome = run("inspect", model, *arguments)
    assert outcome.status == 2 and words in outcome.stderr and outcome.stdout == ""


def test_inspect_shows_how_a_model_is_quantized(tmp_path: Path, run: Run) -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17], producer_name: "some.tool">
        g (float[1,4] x) => (float[1,3] y) {
            q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) v = DequantizeLinear(w, s) y = MatMul(d, v) }"""
    )
    constants = {"s": np.float32(0.1), "z": np.int8(1), "w": np.ones((4, 3), np.int8)}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items())
    onnx.save(proto, tmp_path / "int8.onnx")
    shown = run("inspect", tmp_path / "int8.onnx").stdout
    for words in ("QDQ; activations int8, asymmetric, per tensor; weights int8, symmetric", "made by some.tool"):
        assert words in shown
    report = json.loads(run("inspect", tmp_path / "int8.onnx", "--json").stdout)
    assert report["quantization"]["operators"] == {"MatMul": {"integer": 1, "small_weights": 0, "float": 0}}
    data = tmp_path / "data.npz"
    np.savez(data, x=np.zeros((3, 4), np.float32))
    refused = run("inspect", tmp_path / "int8.onnx", "--sensitivity", "--calib", data)
    assert refused.status == 2 and "quantized already" in refused.stderr


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


def test_groups_are_listed_with_what_protects_them(tmp_path: Path, run: Run) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[1,3] x) => (float[1,2] y) {
        [first] h = MatMul(x, w0) [second] r = Relu(h) [last] y = MatMul(r, w1) }"""
    proto = onnx.parser.parse_model(text)
    for name, shape in (("w0", (3, 4)), ("w1", (4, 2))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), name))
    onnx.save(proto, tmp_path / "two.onnx")
    free, held = json.loads(run("inspect", tmp_path / "two.onnx", "--groups", "--json").stdout)["groups"]
    assert (free["name"], free["width"], free["readers"], free["macs"]) == ("first", 4, ["last"], 20)
    assert (free["least"], free["most"], free["protection"]) == (1.0, 1.0, [])
    assert held["protection"] == ["they reach the output 'y'"]
    shown = run("inspect", tmp_path / "two.onnx", "--groups").stdout
    assert "groups of channels" in shown and "they reach the output 'y'" in shown
    assert json.loads(run("inspect", tmp_path / "two.onnx", "--json").stdout)["groups"] is None


def test_ranks_of_an_embedding_have_no_macs_to_save(tmp_path: Path, run: Run) -> None:
    table = np.random.default_rng(0).normal(size=(90, 16)).astype(np.float32)
    text = '<ir_version: 8, opset_import: ["" : 17]> g (int64[4] i) => (float[4,16] y) { y = Gather (t, i) }'
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(table, "t"))
    onnx.save(proto, tmp_path / "table.onnx")
    (layer,) = json.loads(run("inspect", tmp_path / "table.onnx", "--ranks", "--json").stdout)["ranks"]
    assert layer["break_even"] == 0 and {saving["macs"] for saving in layer["savings"]} == {None}
    assert layer["savings"][0]["params"] == pytest.approx(1 - layer["savings"][0]["rank"] * 106 / 1440)
    assert "never" in run("inspect", tmp_path / "table.onnx", "--ranks").stdout


def test_ranks_are_listed_with_what_they_would_save(tmp_path: Path, run: Run) -> None:
    rng = np.random.default_rng(0)
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[64,96] x) => (float[64,128] y) {
        [low] h = MatMul(x, w0) [full] y = MatMul(h, w1) }"""
    proto = onnx.parser.parse_model(text)
    weights = {"w0": rng.normal(size=(96, 8)) @ rng.normal(size=(8, 128)), "w1": np.eye(128)}
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    onnx.save(proto, tmp_path / "two.onnx")
    low, full = json.loads(run("inspect", tmp_path / "two.onnx", "--ranks", "--json").stdout)["ranks"]
    assert (low["layer"], low["outputs"], low["features"], low["full_rank"]) == ("low", 128, 96, 96)
    assert (
        low["profile"][0] == 1 and low["profile"] == sorted(low["profile"], reverse=True) and low["profile"][-1] < 1e-9
    )
    assert 8 < low["break_even"] < 96 * 128 / (96 + 128)
    best = low["savings"][-1]
    assert best["rank"] == 8 and best["macs"] == pytest.approx(1 - 8 * (96 + 128) / (96 * 128)) == best["params"]
    assert [saving["rank"] for saving in full["savings"]] == [116, 122, 127] and full["savings"][0]["macs"] < 0
    shown = run("inspect", tmp_path / "two.onnx", "--ranks").stdout
    assert "ranks of weights" in shown and "−85 % MACs" in shown and "█" in shown
    assert json.loads(run("inspect", tmp_path / "two.onnx", "--json").stdout)["ranks"] is None


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
