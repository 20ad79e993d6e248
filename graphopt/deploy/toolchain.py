"""The C compiler that comes with graphopt (zig's), and running what it makes: natively or under an emulator."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from graphopt.errors import InternalError, UsageError
from graphopt.targets.base import TargetDescription

# What an emulator's command belongs to, where the name of the package is not that of the command.
_PACKAGES = {"qemu-aarch64": "qemu-user", "qemu-arm": "qemu-user"}


def zig(tool: str) -> tuple[str, ...]:
    """The command of one of zig's tools, such as cc, ar or ld.lld."""
    return (sys.executable, "-m", "ziglang", tool)


def compiler(target: TargetDescription) -> tuple[str, ...]:
    """The C compiler for the target."""
    return (*zig("cc"), *(("-target", target.zig_target) if target.zig_target else ()))


def program_compiler(target: TargetDescription) -> tuple[str, ...]:
    """The compiler for programs that run here, if need be under an emulator: without the files of the target's system.

    They are linked statically. glibc cannot be, without those files: with the distribution's cross compiler, if it is
    installed; else with musl, which zig brings along as source and builds once (90 s of processor time).
    """
    system = target.zig_target.partition(".")[0]
    if "-linux-gnu" not in system:
        return compiler(target)
    if cross := shutil.which(f"{system}-gcc"):
        return (cross, "-static")
    return (*zig("cc"), "-target", system.replace("-linux-gnu", "-linux-musl"), "-static")


def is_mach_o(target: TargetDescription) -> bool:
    """Whether the target's objects are Mach-O: Apple's systems. All others are ELF."""
    return any(system in target.triple for system in ("apple", "macos", "darwin"))


def run_tool(command: Sequence[str], what: str, *, cwd: Path | None = None) -> str:
    """Run a tool and return its output. Raises InternalError with the end of its messages if it fails."""
    finished = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        tool = " ".join(command[2:4]) if command[0] == sys.executable else command[0]
        raise InternalError(
            f"{what}: '{tool}' failed with status {finished.returncode}",
            where="\n".join(finished.stderr.strip().splitlines()[-20:]),
            advice="a fault of graphopt or of the installed ziglang package; please report it with the model",
        )
    return finished.stdout


def build_program(
    source: Path, target: TargetDescription, include: Path, archive: Path, program: Path, *options: str
) -> None:
    """Compile one C file against a bundle's header and static library."""
    run_tool(
        (
            *program_compiler(target),
            *("-std=c11", "-O2", "-fno-sanitize=all", *options),
            *(
                "-I",
                str(include.resolve()),
                "-o",
                str(program.resolve()),
                str(source.resolve()),
                str(archive.resolve()),
            ),
            *(() if is_mach_o(target) else ("-lm", "-lpthread")),
        ),
        f"building {source.name}",
    )


def launcher(target: TargetDescription) -> tuple[str, ...]:
    """The command before a program of the target: its emulator, or nothing where the program runs natively.

    Raises UsageError if neither is possible here.
    """
    if target.emulator and shutil.which(target.emulator[0]):
        return target.emulator
    if runs_natively(target):
        return ()
    if not target.emulator:
        raise UsageError(
            f"programs for '{target.name}' ({target.triple}) cannot run on this machine "
            f"({platform.system()} on {platform.machine()}), and there is no emulator for them",
            advice="copy the bundle to such a machine and run its example.c there",
        )
    command = target.emulator[0]
    raise UsageError(
        f"running programs for '{target.name}' needs the emulator {command}, which is not installed",
        advice=f"on Debian and Ubuntu: apt install {_PACKAGES.get(command, command)}",
    )


def runs_natively(target: TargetDescription) -> bool:
    """Whether this machine has the target's system and instruction set."""
    system, machine = platform.system(), platform.machine()
    if is_mach_o(target):
        return (system, machine) == ("Darwin", "arm64")
    return system == "Linux" and target.triple.partition("-")[0] == machine


def run_program(
    command: Sequence[str], *, environment: Mapping[str, str] | None = None, timeout: float | None = None
) -> str:
    """Run a program made by `build_program` and return what it printed. Raises InternalError if it fails."""
    try:
        finished = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env=None if environment is None else dict(environment),
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        raise InternalError(f"'{Path(command[0]).name}' did not finish within {timeout} s") from error
    if finished.returncode != 0:
        signal = f"was killed by signal {-finished.returncode}" if finished.returncode < 0 else ""
        raise InternalError(
            f"'{' '.join(Path(part).name for part in command[:4])}' "
            + (signal or f"failed with status {finished.returncode}"),
            where="\n".join(finished.stderr.strip().splitlines()[-20:]),
        )
    return finished.stdout
