"""example.c: a whole program that reads, runs, writes, and says what is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from graphopt.deploy import Bundle
from graphopt.deploy.toolchain import build_program, launcher, zig
from tests.targets.toy import TARGETS, output_of
from tests.unit.deploy.toy_bundle import make_bundle

STRICT = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "toy.host")


@pytest.fixture(scope="module")
def example(bundle: Bundle) -> Path:
    program = bundle.folder / "build" / "example"
    build_program(bundle.example, TARGETS["host"], bundle.include, bundle.static, program, *STRICT)
    return program


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, **environment}
    return subprocess.run([str(part) for part in command], env=variables, capture_output=True, text=True, check=False)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    arrays = (np.arange(24, dtype=np.float32), np.ones(24, np.float32), np.array(-5, np.int64))
    paths = [tmp_path / f"{index}.in" for index in range(3)]
    for path, array in zip(paths, arrays, strict=True):
        path.write_bytes(array.tobytes())
    return paths


def test_without_files_inputs_are_zero(example: Path) -> None:
    assert output_of(example).splitlines() == [
        'sum "of" */ both [3, 8]: 0 0 0 0 0 0 0 0 ...',
        "scaled [3, 8]: 0 0 0 0 0 0 0 0 ...",
        "n_out []: 0",
        "constant [5]: 1 2 3 4 5",
    ]


@pytest.mark.parametrize(
    "environment", [{}, {"REPEAT": "0"}, {"REPEAT": "7", "THREADS": "3"}, {"THREADS": "0"}], ids=str
)
def test_files_go_in_and_come_out(
    example: Path, files: list[Path], environment: dict[str, str], tmp_path: Path
) -> None:
    finished = run(example, "-o", tmp_path, *files, **environment)
    assert finished.returncode == 0, finished.stderr
    assert f"  written to {tmp_path}/output_3.bin\n" in finished.stdout
    total = np.frombuffer((tmp_path / "output_0.bin").read_bytes(), np.float32)
    np.testing.assert_array_equal(total, np.arange(24) * np.tile([1, 2, 3, 4], 6) + 1)
    assert np.frombuffer((tmp_path / "output_2.bin").read_bytes(), np.int64) == [-5]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["-x", "1"], 2, "unknown option -x"),
        (["-t"], 2, "a value is missing after -t"),
        (["-t", "many"], 2, "not a number from 0 to 1024"),
        (["a"], 2, "not that of the inputs"),
        (["missing", "1.in", "2.in"], 1, "cannot read missing: No such file"),
        (["1.in", "2.in", "2.in"], 1, "2.in has less than the 96 bytes of input 'y'"),
        (["1.in", "1.in", "1.in"], 1, "1.in has more than the 8 bytes of input 'n'"),
        (["-o", "missing"], 1, "cannot write missing/output_0.bin: No such file"),
    ],
)
def test_errors_name_the_fault(
    example: Path, files: list[Path], arguments: list[str], status: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files[0].parent)
    finished = run(example, *arguments)
    assert finished.returncode == status
    assert said in finished.stderr


def test_a_kernel_that_fails_ends_the_program(example: Path, files: list[Path]) -> None:
    files[0].write_bytes(np.full(24, 1e6, np.float32).tobytes())
    finished = run(example, *files)
    assert (finished.returncode, finished.stdout) == (1, "")
    assert finished.stderr == "example: error 4: layer 0, check: the kernel failed: a value is too large\n"


def test_repeat_must_be_a_number(example: Path) -> None:
    assert "REPEAT is not a number" in run(example, REPEAT="often").stderr


@pytest.mark.parametrize("dialect", ["c11", "c17"])
def test_it_compiles_strictly_with_gcc_and_clang(bundle: Bundle, dialect: str, tmp_path: Path) -> None:
    arguments = (f"-std={dialect}", *STRICT, "-c", "-o", tmp_path / "example.o", "-I", bundle.include, bundle.example)
    output_of(*zig("cc"), *arguments)
    if shutil.which("gcc"):
        output_of("gcc", *arguments)


@pytest.mark.emulation
def test_the_command_in_its_comment_builds_it_with_a_cross_compiler(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "toy.arm", "arm")
    program = tmp_path / "example"
    output_of(
        *("aarch64-linux-gnu-gcc", "-static", "-O2", "-I", bundle.include, bundle.example, bundle.static),
        *("-lm", "-lpthread", "-o", program),
    )
    assert "constant [5]: 1 2 3 4 5\n" in output_of(*launcher(TARGETS["arm"]), program, "-t", "2")
    text = output_of("aarch64-linux-gnu-objdump", "-d", program)
    assert "hint\t#0x71" in text and "hint\t#0x72" in text
