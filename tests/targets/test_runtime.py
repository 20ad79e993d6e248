"""The C runtime in a library does what its header says: on the host, under sanitizers, and emulated on ARM."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from graphopt.deploy.toolchain import build_program, launcher, zig
from graphopt.targets.tvm.driver import RUNTIME
from tests.targets.toy import SOURCES, TARGETS, Toy, build_toy, output_of

EXERCISE = SOURCES / "exercise.c"
CASES = re.findall(r'^    \{"(\w+)", \w+\},$', EXERCISE.read_text(), re.MULTILINE)

# qemu-user 7.2 aborts when a forked child of a process with threads makes threads.
EMULATED_CASES = [case for case in CASES if case != "works_after_fork"]

WARNINGS = ("-Wall", "-Wextra", "-Werror")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return build_toy(tmp_path_factory.mktemp("host") / "toy", TARGETS["host"])


@pytest.fixture(scope="module")
def exercise(host: Toy) -> Path:
    program = host.work / "exercise"
    build_program(EXERCISE, host.target, host.include, host.static, program, *WARNINGS)
    return program


def test_the_cases_were_found() -> None:
    assert len(CASES) == 10


@pytest.mark.parametrize("case", CASES)
def test_library(exercise: Path, case: str) -> None:
    assert output_of(exercise, case) == f"{case}\n"


def test_shared_library_does_the_same(host: Toy) -> None:
    program = host.work / "dynamic"
    output_of(
        *zig("cc"), *("-std=c11", "-O2", "-fno-sanitize=all", "-I", host.include, EXERCISE, "-o", program),
        *("-L", host.shared.parent, "-ltoy", f"-Wl,-rpath,{host.shared.parent}", "-lm", "-lpthread"),
    )  # fmt: skip
    assert output_of(program).splitlines() == CASES


def test_a_run_allocates_nothing(host: Toy) -> None:
    program = host.work / "allocations"
    wrapped = [f"-Wl,--wrap={name}" for name in ("malloc", "calloc", "realloc", "posix_memalign")]
    build_program(SOURCES / "allocations.c", host.target, host.include, host.static, program, *wrapped)
    assert output_of(program) == "1 in create, 0 in 100 runs\n"


@pytest.mark.slow
@pytest.mark.parametrize("checked", ["address,undefined", "thread"])
def test_sanitizers_find_nothing(host: Toy, checked: str) -> None:
    """Driver, kernels and program compiled with gcc's checks."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc for its sanitizers (Debian: apt-get install gcc)")
    program = host.work / "checked"
    output_of(
        *("gcc", "-std=c11", "-g", "-O1", f"-fsanitize={checked}", "-fno-sanitize-recover=all", *WARNINGS),
        *("-DPREFIX=toy", "-I", host.include, "-I", RUNTIME, f"-Wa,-I{host.work}"),
        *(host.work / "driver.c", host.work / "weights.S", SOURCES / "kernels.c", EXERCISE),
        *("-o", program, "-lm", "-lpthread"),
    )
    # ThreadSanitizer does not follow the threads of a forked child.
    for case in EMULATED_CASES if checked == "thread" else CASES:
        output_of(program, case)


@pytest.mark.emulation
@pytest.mark.parametrize("target", ["cortex-a76", "armv7"])
def test_library_under_emulation(target: str, tmp_path: Path) -> None:
    toy = build_toy(tmp_path / "toy", TARGETS[target])
    program = tmp_path / "exercise"
    build_program(EXERCISE, toy.target, toy.include, toy.static, program, *WARNINGS)
    for case in EMULATED_CASES:
        output_of(*launcher(toy.target), program, case)


@pytest.mark.emulation
def test_cross_compiler_links_two_libraries_into_one_static_program(tmp_path: Path) -> None:
    first = build_toy(tmp_path / "first", TARGETS["cortex-a76"], "toy")
    second = build_toy(tmp_path / "second", TARGETS["cortex-a76"], "other", (5, 6, 7, 8))
    program = tmp_path / "two"
    output_of(
        *("aarch64-linux-gnu-gcc", "-std=c11", "-O2", *WARNINGS, "-static", "-I", first.include, "-I", second.include),
        *(SOURCES / "two.c", first.static, second.static, "-lm", "-lpthread", "-o", program),
    )
    assert output_of(*launcher(first.target), program) == "both right\n"


def test_two_libraries_in_one_program_on_the_host(host: Toy, tmp_path: Path) -> None:
    other = build_toy(tmp_path / "other", TARGETS["host"], "other", (5, 6, 7, 8))
    program = tmp_path / "two"
    output_of(
        *(*zig("cc"), "-std=c11", "-O2", "-fno-sanitize=all", "-I", host.include, "-I", other.include),
        *(SOURCES / "two.c", other.static, host.static, "-lm", "-lpthread", "-o", program),
    )
    assert output_of(program) == "both right\n"
