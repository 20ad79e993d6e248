"""`optimize --tune`: tiles that a counter finds cheapest are in the library and the recipe, which needs no counter."""

from __future__ import annotations

import json
import shlex
import sys
import tomllib
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.cli.conftest import Run, small_model

COUNTER = """
import json, pathlib, sys
runs = pathlib.Path(sys.argv[1])  # each run costs less than the one before: the last tile is the cheapest
runs.write_text(runs.read_text() + "x" if runs.exists() else "x")
print(json.dumps({"instructions": 100 - len(runs.read_text())}))
"""


@pytest.fixture
def counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    script = tmp_path / "counter.py"
    script.write_text(COUNTER)
    return shlex.join([sys.executable, str(script), str(tmp_path / "runs")])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """One product of 17 rows, which has a choice of tiles."""
    path = tmp_path / "rows.onnx"
    onnx.save(small_model(17), path)
    return path


def test_counted_tiles_are_said_kept_and_built_again_from_the_recipe(
    model: Path, counter: str, run: Run, tmp_path: Path
) -> None:
    plain, tuned, again = (tmp_path / name for name in ("plain", "tuned", "again"))
    assert run("optimize", model, "--target", "cortex-a76", "-o", plain).status == 0
    outcome = run("optimize", model, "--target", "cortex-a76", "-o", tuned, "--tune", counter)
    assert outcome.status == 0, outcome.stderr
    assert "tiles    of 1 kernels counted, 1 changed: 5.1% less in all of them" in outcome.stdout
    recipe = tomllib.loads((tuned / "recipe.toml").read_text())
    assert list(recipe["tiles"].values()) == [5]
    tuning = json.loads((tuned / "report.json").read_text())["library"]["tuning"]
    assert tuning == {"kernels": 1, "changed": 1, "before": 99.0, "after": 94.0}
    assert "1 are others than the model of the core chooses" in (tuned / "report.html").read_text()

    outcome = run("optimize", model, "--recipe", tuned / "recipe.toml", "-o", again)
    assert (outcome.status, outcome.stderr) == (0, "")
    static = [(folder / "lib" / "librows.a").read_bytes() for folder in (plain, tuned, again)]
    assert static[1] == static[2] != static[0]


def test_tiles_of_another_model_are_not_used_and_bring_a_warning(
    model: Path, counter: str, run: Run, tmp_path: Path
) -> None:
    run("optimize", model, "--target", "cortex-a76", "-o", tmp_path / "tuned", "--tune", counter)
    other = tmp_path / "other.onnx"
    onnx.save(small_model(18, np.ones((4, 3), np.float32)), other)
    outcome = run("optimize", other, "--recipe", tmp_path / "tuned" / "recipe.toml", "-o", tmp_path / "out")
    assert outcome.status == 0
    assert "1 of the recipe's 1 tiles are of kernels that are not built here" in " ".join(outcome.stderr.split())


def test_a_target_with_variants_is_not_tuned(model: Path, counter: str, run: Run, tmp_path: Path) -> None:
    outcome = run("optimize", model, "--target", "arm", "-o", tmp_path / "out", "--tune", counter)
    assert outcome.status == 2
    assert "tiles are tuned for one core" in outcome.stderr
    assert not (tmp_path / "out").exists()


def test_a_counter_that_cannot_be_read_leaves_no_bundle(model: Path, run: Run, tmp_path: Path) -> None:
    command = shlex.join([sys.executable, "-c", "print(1)"])
    outcome = run("optimize", model, "--target", "cortex-a76", "-o", tmp_path / "out", "--tune", command)
    assert outcome.status == 4
    assert "printed no JSON object with 'instructions'" in outcome.stderr
    assert not (tmp_path / "out").exists()
