"""`graphopt verify` and `graphopt bench` on a bundle for this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.cli.conftest import Run, small_model


def test_verify_agrees_and_shows_the_error_of_each_output(bundle: Path, run: Run) -> None:
    outcome = run("verify", bundle)
    assert outcome.status == 0, outcome.stderr
    assert "scores" in outcome.stdout and "within 0.0001" in outcome.stdout


def test_verify_takes_inputs_and_the_original(bundle: Path, run: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32))
    model = bundle.parent / "small.onnx"
    outcome = run("verify", bundle, "--inputs", tmp_path / "data.npz", "--original", model, "--json")
    result = json.loads(outcome.stdout)
    assert outcome.status == 0 and result["samples"] == 3 and result["reference"] == "original model"
    assert result["outputs"][0]["relative"] <= 1e-4


def test_verify_refuses_another_original(bundle: Path, run: Run, tmp_path: Path) -> None:
    onnx.save(small_model(weight=np.ones((4, 3), np.float32)), tmp_path / "other.onnx")
    outcome = run("verify", bundle, "--original", tmp_path / "other.onnx")
    assert outcome.status == 1 and "fingerprint" in outcome.stderr


def test_a_bundle_that_computes_something_else_misses_the_tolerance(bundle: Path, run: Run, tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt"
    shutil.copytree(bundle, spoilt)
    onnx.save(small_model(weight=np.ones((4, 3), np.float32)), spoilt / "model.onnx")
    outcome = run("verify", spoilt)
    assert outcome.status == 3 and "ToleranceError" in outcome.stderr and "scores" in outcome.stderr


def test_bench_times_the_whole_and_the_layers(bundle: Path, run: Run) -> None:
    result = json.loads(run("bench", bundle, "--repeat", 3, "--json").stdout)
    assert result["unit"] == "ns" and result["runs"] == 3 and result["total"] >= result["least"] > 0
    report = json.loads((bundle / "report.json").read_text())
    assert sum(layer["macs"] for layer in result["layers"]) == report["totals"]["after"]["macs"] > 0
    table = run("bench", bundle, "--repeat", 1)
    assert table.status == 0 and "1 thread" in table.stdout and "MACs per ns" in table.stdout


@pytest.mark.parametrize("option", [("--repeat", 0), ("--threads", -1)])
def test_bench_refuses_numbers_out_of_range(bundle: Path, run: Run, option: tuple[str, int]) -> None:
    assert run("bench", bundle, *option).status == 2
