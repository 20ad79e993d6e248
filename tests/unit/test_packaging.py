"""The repository as an installable package, and the commands that its README promises."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from graphopt.passes import cleanup

ROOT = Path(__file__).parent.parent.parent
PACKAGES = {"graphopt": "graphopt", "passes": "graphopt/passes", "targets": "graphopt/targets"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the sources, symlinks kept."""
    source = tmp_path_factory.mktemp("source")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    (source / "dist").mkdir()
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    return next((source / "dist").glob("graphopt-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked, as an installer leaves it."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def readme_commands() -> list[str]:
    return re.findall(
        r"^```sh\n(.*?)\n```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def test_wheel_has_every_file_of_the_packages_behind_the_symlinks(installed: Path) -> None:
    for folder, package in PACKAGES.items():
        for path in (ROOT / folder).rglob("*"):
            inside = path.relative_to(ROOT / folder)
            behind_symlink = folder == "graphopt" and inside.parts[0] in ("passes", "targets")
            if path.is_file() and "__pycache__" not in inside.parts and not behind_symlink:
                assert (installed / package / inside).is_file(), f"{folder}/{inside} is missing from the wheel"
    assert (installed / "graphopt" / "py.typed").is_file()


def test_wheel_installs_nothing_beside_graphopt(installed: Path) -> None:
    assert {path.name.partition("-")[0] for path in installed.iterdir()} == {"graphopt"}


def test_installed_wheel_finds_its_passes_and_targets_through_entry_points(installed: Path) -> None:
    look = (
        "import graphopt; from graphopt.pipeline.registry import PASSES, TARGETS;"
        "assert not PASSES.broken() and not TARGETS.broken(), (PASSES.broken(), TARGETS.broken());"
        "print(graphopt.__file__, *PASSES.names(), *TARGETS.names(), sep='\\n')"
    )
    command = [sys.executable, "-c", look]
    run = subprocess.run(
        command, cwd=installed, env={"PYTHONPATH": str(installed)}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    found = run.stdout.splitlines()
    assert Path(found[0]).is_relative_to(installed)
    assert {"arm", "cortex-a76", "host", "fold-constants"} <= set(found)


def test_readme_opens_with_two_commands_of_one_line_that_name_no_registry() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = readme_commands()
    assert len(commands) == 2
    assert all("\n" not in command for command in commands)
    assert not re.search(r"pypi\.|index-url|https?://(?!keepachangelog)", text)


def test_first_command_of_readme_names_a_sample_and_a_target_that_exist() -> None:
    found = re.search(r"graphopt optimize (\S+) --target (\S+)$", readme_commands()[0])
    assert found is not None
    assert (ROOT / found[1]).is_file()
    assert found[2] in tomllib.loads((ROOT / "targets" / "cores.toml").read_text(encoding="utf-8"))


def test_every_clean_up_pass_has_an_entry_point() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(cleanup.PASSES) <= set(project["entry-points"]["graphopt.passes"].values())


def test_test_extra_does_not_bring_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    everyday = [*project["dependencies"], *(project["optional-dependencies"][extra] for extra in ("test", "dev"))]
    assert not re.search(r"\b(torch|scikit-learn)\b", str(everyday))
