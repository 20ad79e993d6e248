"""`--max-drop` backs off: `graphopt optimize` leaves layers in float until it holds, and says which and why."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import graphopt.ir as graph_ir
from tests.cli.conftest import Run
from tests.passes.quantize.test_sensitivity import network, weight

SPOILED = 300.0


@pytest.fixture
def spoiled(tmp_path: Path) -> Path:
    """A network that one scale for all channels spoils, and 40 samples beside it."""
    graph_ir.save(network(SPOILED), tmp_path / "net.onnx")
    np.savez(tmp_path / "calib.npz", x=weight(40, 3, 6, 6, seed=7))
    return tmp_path / "net.onnx"


def test_the_layer_that_costs_too_much_is_computed_in_float(spoiled: Path, run: Run) -> None:
    command = ("optimize", spoiled, "-t", "host", "--pass", "quantize{per_channel=false}", "--max-drop", 0.03)
    outcome = run(*command, "--calib", spoiled.with_name("calib.npz"), "-o", spoiled.with_name("out"), "--jobs", 1)
    assert outcome.status == 0, outcome.stderr
    assert "quantization" in outcome.stdout and "of the MACs on integers" in outcome.stdout
    report = json.loads((spoiled.with_name("out") / "report.json").read_text())
    assert report["accuracy"]["measure"] == "agreement" and report["accuracy"]["drop"] <= 0.03
    computes = {layer["name"]: layer["precision"] for layer in report["layers"]}
    assert computes["conv_2"] == "float32" and computes["conv_0"] == computes["gemm_6"] == "int8"
    (declined,) = [layer["declined"] for layer in report["layers"] if layer["name"] == "conv_2"]
    (reason,) = [item["reason"] for item in declined if item["pass"].startswith("quantize")]
    assert reason.startswith("it stays in float to hold a loss of 3 points: alone it brings noise at ")
    noise = {layer["name"]: layer["sqnr_db"] for layer in report["layers"]}
    assert noise["conv_0"] > 20 and noise["conv_2"] is None
    page = (spoiled.with_name("out") / "report.html").read_text()
    assert "left in float" in page and reason in page


def test_without_class_scores_there_is_no_drop_to_hold(tmp_path: Path, run: Run) -> None:
    model = network()
    while len(model.graph.outputs):
        model.graph.outputs.pop()
    model.graph.outputs.append(next(node.outputs[0] for node in model.graph if node.op_type == "Conv"))
    graph_ir.save(model, tmp_path / "net.onnx")
    np.savez(tmp_path / "calib.npz", x=weight(12, 3, 6, 6, seed=7))
    command = ("optimize", tmp_path / "net.onnx", "-t", "host", "--quantize", "int8", "--max-drop", 0.01)
    outcome = run(*command, "--calib", tmp_path / "calib.npz", "-o", tmp_path / "out")
    assert outcome.status == 1 and "accuracy cannot be measured" in outcome.stderr
    assert "quantize{min_sqnr=" in outcome.stderr and not (tmp_path / "out").exists()
