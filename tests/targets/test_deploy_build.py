"""samples/deploy_build: a user's CMake project around a bundle, cross-compiled and run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import graphopt
from tests.targets.toy import output_of

PROJECT = Path(__file__).parents[2] / "samples" / "deploy_build"


def build_and_test(bundle: Path, build: Path, *options: str) -> str:
    """Configure, build and test the project; what ctest prints."""
    output_of("cmake", "-S", PROJECT, "-B", build, f"-DCMAKE_PREFIX_PATH={bundle}", *options)
    output_of("cmake", "--build", build)
    return output_of("ctest", "--test-dir", build, "--output-on-failure")


def expected(compiler: str) -> list[str]:
    """The programs that the project builds; one in C++ where there is a compiler for it."""
    return ["classify_static", "classify_shared", *(["classify_cpp"] if shutil.which(compiler) else [])]


@pytest.mark.slow
@pytest.mark.emulation
def test_the_project_runs_under_emulation_wherever_the_bundle_lies(samples: Path, tmp_path: Path) -> None:
    graphopt.optimize(samples / "digits_resnet.onnx", "arm", out=tmp_path / "made")
    moved = (tmp_path / "made").rename(tmp_path / "moved bundle")
    printed = build_and_test(moved, tmp_path / "build", f"-DCMAKE_TOOLCHAIN_FILE={PROJECT / 'aarch64.cmake'}")
    assert "100% tests passed" in printed
    assert all(f"{name} ." in printed for name in expected("aarch64-linux-gnu-g++"))


@pytest.mark.slow
def test_the_project_runs_on_this_machine(samples: Path, tmp_path: Path) -> None:
    if shutil.which("cmake") is None or shutil.which("cc") is None:
        pytest.skip("needs cmake and a C compiler (Debian: apt-get install cmake gcc)")
    graphopt.optimize(samples / "digits_resnet.onnx", "host", out=tmp_path / "bundle")
    printed = build_and_test(tmp_path / "bundle", tmp_path / "build")
    assert "100% tests passed" in printed
    assert all(f"{name} ." in printed for name in expected("c++"))
