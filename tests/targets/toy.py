"""A small program with hand-written kernels, so that driver and linker are tested without a compiler of models.

scaled = x * [w0 w1 w2 w3 w0 …]          in the arena
sum = scaled + y
copies: scaled, the int64 scalar n, and a constant
"""

from __future__ import annotations

import dataclasses
import struct
import subprocess
from pathlib import Path

from graphopt.deploy.header import render_header
from graphopt.deploy.toolchain import compiler, run_tool
from graphopt.targets.arm.cores import CORES
from graphopt.targets.base import TargetDescription, TensorSpec
from graphopt.targets.host import HOST
from graphopt.targets.tvm.link import link
from graphopt.targets.tvm.program import Buffer, Copy, KernelCall, Place, Program

SOURCES = Path(__file__).parent / "runtime"

INPUTS = (TensorSpec("x", "float32", (3, 8)), TensorSpec("y", "float32", (24,)), TensorSpec("n", "int64", ()))
OUTPUTS = (
    TensorSpec('sum "of" */ both', "float32", (3, 8)),
    TensorSpec("scaled", "float32", (3, 8)),
    TensorSpec("n_out", "int64", ()),
    TensorSpec("constant", "int8", (5,)),
)
CONSTANT = bytes([1, 2, 3, 4, 5])

# The kernels check for 16 bytes; on a host with wider vectors the driver gives them more than that.
TARGETS: dict[str, TargetDescription] = {core.name: core for core in (*CORES, HOST)}


@dataclasses.dataclass(frozen=True)
class Toy:
    """A linked program: header in `include`, libraries in `lib`, what was made on the way in `work`."""

    name: str
    target: TargetDescription
    include: Path
    shared: Path
    static: Path
    work: Path


def toy_program(name: str, factors: tuple[float, float, float, float], objects: tuple[Path, ...]) -> Program:
    """The program; its kernels are in `objects`."""

    def whole(place: Place, index: int) -> Buffer:
        return Buffer(place, index, 0, 96)

    scaled = Buffer(Place.ARENA, 0, 64, 96)
    calls = (
        KernelCall(f"{name}_check", (whole(Place.INPUT, 0),), "check"),
        KernelCall(
            f"{name}_scale", (whole(Place.INPUT, 0), Buffer(Place.WEIGHTS, 0, 64, 16), scaled), "scale é + tanh??/\n"
        ),
        KernelCall(f"{name}_add", (scaled, whole(Place.INPUT, 1), whole(Place.OUTPUT, 0)), "add"),
        Copy(scaled, whole(Place.OUTPUT, 1)),
        Copy(Buffer(Place.INPUT, 2, 0, 8), Buffer(Place.OUTPUT, 2, 0, 8)),
        Copy(Buffer(Place.WEIGHTS, 0, 0, 5), Buffer(Place.OUTPUT, 3, 0, 5)),
    )
    weights = CONSTANT.ljust(64, b"\0") + struct.pack("<4f", *factors)
    return Program(INPUTS, OUTPUTS, calls, weights, 160, objects)


def build_toy(
    folder: Path,
    target: TargetDescription,
    name: str = "toy",
    factors: tuple[float, float, float, float] = (1, 2, 3, 4),
) -> Toy:
    """Compile the kernels with debugging information, as LLVM's objects have it, and link."""
    include, work = folder / "include", folder / "work"
    include.mkdir(parents=True)
    work.mkdir()
    kernels = work / "kernels.o"
    options = ("-O2", "-g", "-fPIC", "-fno-sanitize=all", f"-DPREFIX={name}")
    run_tool((*compiler(target), *options, "-c", str(SOURCES / "kernels.c"), "-o", str(kernels)), "compiling kernels")
    header = include / f"{name}.h"
    header.write_text(render_header(name, INPUTS, OUTPUTS))
    shared, static = link(toy_program(name, factors, (kernels,)), name, header, folder / "lib", target, work)
    return Toy(name, target, include, shared, static, work)


def output_of(*command: str | Path) -> str:
    """What a command prints. Its error output is part of the failure if it fails."""
    finished = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=240)
    assert finished.returncode == 0, f"{command}\nstatus {finished.returncode}\n{finished.stdout}\n{finished.stderr}"
    return finished.stdout
