"""Each fault ends in its exit status and one clear message, without a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

import graphopt
from graphopt import api
from tests.cli.conftest import Run, small_model

NO_FILE = "there-is-no-such.onnx"

# arguments, exit status, words of the message; MODEL stands for the path of a good model, FOLDER for its folder
CASES = {
    "missing model": (("optimize", NO_FILE, "-t", "host"), 1, "no such file"),
    "missing model, inspect": (("inspect", NO_FILE), 1, "no such file"),
    "missing model, compare": (("compare", "MODEL", NO_FILE), 1, "no such file"),
    "text for a model": (("inspect", "FOLDER/readme.txt"), 1, "ModelError"),
    "unknown target": (("optimize", "MODEL", "-t", "cortex-a75"), 2, "cortex-a76"),
    "unknown target, inspect": (("inspect", "MODEL", "-t", "cortex-a75"), 2, "cortex-a76"),
    "unknown command": (("optimise", "MODEL"), 2, "No such command"),
    "unknown option": (("optimize", "MODEL", "--fast"), 2, "No such option"),
    "no model": (("optimize",), 2, "Missing argument"),
    "unknown pass": (("optimize", "MODEL", "--pass", "fold-constant"), 2, "fold-constants"),
    "unknown pass option": (("optimize", "MODEL", "--pass", "fold-constants{size=1}"), 2, "no option 'size'"),
    "ratio out of range": (("optimize", "MODEL", "--prune", "1.5"), 2, "a fraction from 0"),
    "--max-drop out of range": (("optimize", "MODEL", "--max-drop", "2"), 2, "a fraction from 0 to 1"),
    "labels without data": (("optimize", "MODEL", "--labels", "l.npy"), 2, "--labels is about the samples"),
    "missing data": (("optimize", "MODEL", "-t", "host", "--calib", "no.npz"), 1, "no such file"),
    "bad shape": (("inspect", "MODEL", "--shape", "x"), 2, "expected NAME=SIZE"),
    "bad size": (("inspect", "MODEL", "--shape", "x=1,a"), 2, "expected NAME=SIZE"),
    "shape given twice": (("inspect", "MODEL", "--shape", "x=1,4", "--shape", "x=1,4"), 2, "given twice"),
    "shape of no input": (("inspect", "MODEL", "--shape", "y=1,4"), 1, "no input 'y'"),
    "shape that contradicts": (("inspect", "MODEL", "--shape", "x=1,5"), 1, "contradicts"),
    "missing plug-in": (("passes", "--plugin", "no.py"), 2, "no such file"),
    "plug-in that raises": (("inspect", "MODEL", "--plugin", "FOLDER/broken.py"), 2, "line 2"),
    "missing recipe": (("optimize", "MODEL", "--recipe", "no.toml"), 2, "cannot be read"),
    "library name": (("optimize", "MODEL", "--name", "3d"), 2, "cannot name a library"),
    "missing parent": (("optimize", "MODEL", "-t", "host", "-o", "FOLDER/a/b"), 2, "does not exist"),
    "out is a file": (("optimize", "MODEL", "-t", "host", "-o", "MODEL"), 2, "is no folder"),
    "verify a folder that is no bundle": (("verify", "FOLDER"), 1, "is not a bundle"),
    "bench a missing folder": (("bench", "FOLDER/none"), 1, "is not a folder"),
    "compare with other inputs": (("compare", "MODEL", "FOLDER/other.onnx", "--tolerance", "1"), 3, "inputs differ"),
    "compare outside tolerance": (("compare", "MODEL", "FOLDER/near.onnx", "--tolerance", "1e-6"), 3, "does not agree"),
}  # fmt: skip


@pytest.fixture
def folder(model: Path) -> Path:
    """The good model's folder, with bad company."""
    (model.parent / "readme.txt").write_text("This is not a model.\n" * 20)
    (model.parent / "broken.py").write_text("# a plug-in\nraise RuntimeError('oops')\n")
    other, near = small_model(), small_model()
    other.graph.input[0].name = other.graph.node[0].input[0] = "z"
    onnx.save(other, model.parent / "other.onnx")
    near.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.full(3, 1.01, np.float32), "b"))
    onnx.save(near, model.parent / "near.onnx")
    return model.parent


@pytest.mark.parametrize("case", CASES)
def test_a_fault_has_its_status_and_one_message(case: str, model: Path, folder: Path, run: Run) -> None:
    arguments, status, words = CASES[case]
    before = sorted(path.name for path in folder.iterdir())
    filled = [a.replace("MODEL", str(model)).replace("FOLDER", str(folder)) for a in arguments]
    outcome = run(*filled)
    assert outcome.status == status, outcome.stderr
    assert words in outcome.stderr and "Traceback" not in outcome.stderr
    assert sorted(path.name for path in folder.iterdir()) == before


def test_quantize_none_asks_for_nothing(model: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("optimize", model, "-t", "host", "--jobs", 1, "--quantize", "none", "--prune", 0).status == 0


def test_an_operator_without_lowering_is_named(tmp_path: Path, run: Run) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "com.acme" : 1]> g (float[1,4] x) => (float[1,4] y)'
        " { y = com.acme.Magic(x) }"
    )
    proto.graph.node[0].name = "abracadabra"
    onnx.save(proto, tmp_path / "custom.onnx")
    outcome = run("optimize", tmp_path / "custom.onnx", "-t", "host")
    assert outcome.status == 1 and "com.acme" in outcome.stderr and "abracadabra" in outcome.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["custom.onnx"]
    assert run("inspect", tmp_path / "custom.onnx").status == 0  # nothing has to compute it there


def test_a_surprise_is_status_4_and_its_traceback_comes_on_demand(
    model: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*arguments: object, **options: object) -> None:
        raise RuntimeError("surprise")

    monkeypatch.setattr(api, "build", build)
    quiet = run("optimize", model, "-t", "host")
    assert quiet.status == 4 and "RuntimeError: surprise" in quiet.stderr
    assert "--traceback" in quiet.stderr and "Traceback" not in quiet.stderr
    loud = run("optimize", model, "-t", "host", "--traceback")
    assert loud.status == 4 and "Traceback" in loud.stderr


def test_names_from_the_model_are_neither_markup_nor_control_sequences(tmp_path: Path, run: Run) -> None:
    proto = small_model()
    proto.graph.node[0].name = "[red]\x1b[31mlayer[/red]"
    onnx.save(proto, tmp_path / "odd.onnx")
    outcome = run("inspect", tmp_path / "odd.onnx")
    assert outcome.status == 0 and "\x1b" not in outcome.stdout and "[red]\\x1b[31mlayer[/red]" in outcome.stdout


def test_version_and_module(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "graphopt", "--version"], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(graphopt.__file__).parent.parent)}, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, f"graphopt {graphopt.__version__}\n", "")


def test_ctrl_c_while_it_compiles_ends_with_130_and_leaves_nothing(tmp_path: Path) -> None:
    onnx.save(small_model(), tmp_path / "small.onnx")
    process = subprocess.Popen(
        [sys.executable, "-m", "graphopt", "optimize", "small.onnx", "-t", "host", "--jobs", "2"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(graphopt.__file__).parent.parent)},
    )  # fmt: skip
    while not any(path.name.startswith(".small.host") for path in tmp_path.iterdir()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the command
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "interrupted" in stderr and "Traceback" not in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]
