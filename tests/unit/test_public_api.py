"""The public names of graphopt: a snapshot, so that a change is meant, and light to import."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import graphopt

ROOT = Path(graphopt.__file__).resolve().parent.parent

PUBLIC = """
CompareResult DataError Declined GraphoptError InspectResult InternalError ModelError ModelWarning OptimizeResult Pass
PassContext PassError PassInfo PassResult Preprocess Recipe Samples ShapeError ToleranceError UnsupportedError
UsageError VerifyError __version__ bench broken_plugins compare inspect list_passes list_targets load load_recipe
load_samples model_text optimize option save verify
""".split()


def test_the_public_names_are_these() -> None:
    assert graphopt.__all__ == PUBLIC
    assert dir(graphopt) == PUBLIC


def test_every_public_name_is_there_and_documented() -> None:
    for name in PUBLIC:
        value = getattr(graphopt, name)
        assert name == "__version__" or value.__doc__, name


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((ROOT / "graphopt" / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        (alias.asname, node.module) for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen == set(graphopt._HOME.items())


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(graphopt, "optimise")


def test_importing_graphopt_loads_nothing_heavy() -> None:
    code = "import sys, graphopt; print(*sorted({n.partition('.')[0] for n in sys.modules}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.split()
    assert not {"tvm", "onnxruntime", "onnx", "numpy", "onnx_ir", "rich", "typer"} & set(loaded)


def test_the_version_is_the_packages() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == graphopt.__version__
