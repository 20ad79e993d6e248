"""Imports run one way, and what is heavy is loaded late."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "graphopt"

# What the modules below a prefix may import of graphopt, beside themselves. The longest prefix that fits decides.
# targets.base is pure description and imports nothing, so that contexts and registries can name its types.
CORE = ("graphopt.errors", "graphopt.ir", "graphopt.analysis", "graphopt.pipeline", "graphopt.targets.base")
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "graphopt": ("graphopt",),  # the public API
    "graphopt.errors": (),
    "graphopt.ir": ("graphopt.errors",),
    "graphopt.analysis": ("graphopt.errors", "graphopt.ir"),
    "graphopt.formatting": (),
    "graphopt.interruption": (),
    "graphopt.pipeline": (
        "graphopt.errors",
        "graphopt.formatting",
        "graphopt.ir",
        "graphopt.analysis",
        "graphopt.targets.base",
    ),
    "graphopt.targets.base": (),
    "graphopt.targets": ("graphopt.errors", "graphopt.ir", "graphopt.analysis", "graphopt.targets.base"),
    "graphopt.targets.tvm": (*CORE, "graphopt.deploy"),  # the driver implements the header, which knows no backend
    "graphopt.passes": CORE,
    "graphopt.deploy": CORE,
    # The public API and the command line alone look up concrete passes and targets.
    "graphopt.__main__": ("graphopt",),
    "graphopt.api": ("graphopt",),
    "graphopt.building": ("graphopt",),
    "graphopt.cli": ("graphopt",),
    "graphopt.console": ("graphopt",),
    "graphopt.inspection": ("graphopt",),
    "graphopt.losses": ("graphopt",),
    "graphopt.output_folder": ("graphopt",),
    "graphopt.resolution": ("graphopt",),
    "graphopt.source": ("graphopt",),
}


def module_name(file: Path) -> str:
    """`passes/x.py` is graphopt.passes.x: the symlinks in graphopt/ are not followed twice."""
    relative = file.relative_to(ROOT).with_suffix("")
    parts = relative.parts if relative.parts[0] == "graphopt" else ("graphopt", *relative.parts)
    return ".".join(part for part in parts if part != "__init__")


def modules() -> list[Path]:
    folders = (PACKAGE, ROOT / "passes", ROOT / "targets")
    files = {file for folder in folders for file in folder.rglob("*.py")}
    linked = (PACKAGE / "passes", PACKAGE / "targets")
    return sorted(file for file in files if not any(file.is_relative_to(link) for link in linked))


def imports(tree: ast.AST, package: str) -> Iterator[str]:
    """The modules that the code imports, at any depth, names of `from` imports included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, (base, node.module)))
            yield from (f"{source}.{alias.name}" for alias in node.names)


def imported(file: Path) -> set[str]:
    name = module_name(file)
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    return set(imports(ast.parse(file.read_text(encoding="utf-8")), package))


def below(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(f"{prefix}.")


def layer(module: str) -> str:
    return max((prefix for prefix in MAY_IMPORT if below(module, prefix)), key=len)


def allowed(module: str, target: str) -> bool:
    """Whether `module` may import `target`; a bare `graphopt.__version__` is nobody's layer."""
    home = layer(module)
    if target in ("graphopt", "graphopt.__version__") or layer(target) == home:
        return True
    return any(below(target, prefix) for prefix in MAY_IMPORT[home])


@pytest.mark.parametrize("file", modules(), ids=module_name)
def test_imports_run_one_way(file: Path) -> None:
    name = module_name(file)
    wrong = [target for target in sorted(imported(file)) if below(target, "graphopt") and not allowed(name, target)]
    assert not wrong, f"{name} imports {wrong}"


@pytest.mark.parametrize("file", modules(), ids=module_name)
def test_only_the_tvm_backend_imports_tvm(file: Path) -> None:
    name = module_name(file)
    heavy = [target for target in imported(file) if below(target, "tvm") or below(target, "tvm_ffi")]
    assert not heavy or below(name, "graphopt.targets.tvm"), f"{name} imports {heavy}"


def test_the_rules_refuse_what_they_should() -> None:
    assert not allowed("graphopt.ir.loading", "graphopt.analysis.cost")
    assert not allowed("graphopt.pipeline.manager", "graphopt.passes.cleanup")
    assert not allowed("graphopt.pipeline.registry", "graphopt.targets.arm")
    assert not allowed("graphopt.targets.base", "graphopt.ir")
    assert not allowed("graphopt.passes.cleanup.x", "graphopt.targets.tvm")
    assert allowed("graphopt.passes.cleanup.x", "graphopt.targets.base")
    assert list(imports(ast.parse("from ..ir import load"), "graphopt.analysis")) == ["graphopt.ir.load"]


def test_every_part_of_the_package_has_its_rule() -> None:
    parts = {".".join(module_name(file).split(".")[:2]) for file in modules()}
    assert parts <= MAY_IMPORT.keys()


def test_passes_and_targets_are_one_module_each_under_one_name() -> None:
    assert (PACKAGE / "passes").readlink() == Path("../passes")
    assert (PACKAGE / "targets").readlink() == Path("../targets")
    for name in ("passes", "targets"):
        command = [sys.executable, "-c", f"import {name}"]
        done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1 and f"import graphopt.{name}, not {name}" in done.stderr


@pytest.mark.parametrize(
    "module", ["graphopt", "graphopt.pipeline.manager", "graphopt.analysis.execution", "graphopt.pipeline.recipe"]
)
def test_importing_it_loads_neither_tvm_nor_onnxruntime(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('tvm', 'tvm_ffi', 'onnxruntime', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
