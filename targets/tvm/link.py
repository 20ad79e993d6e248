"""Link kernels, weights and driver into a shared and a static library, with zig's compiler and linker.

All goes into one relocatable object first (ELF), without debugging information: the archive then has one member, and
symbols are resolved once. Nothing in the result depends on where or when it was made.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from graphopt.errors import InternalError
from graphopt.targets.base import TargetDescription
from graphopt.targets.tvm.driver import RUNTIME, check_memory, render_driver, render_weights
from graphopt.targets.tvm.program import Program

# -fno-sanitize: zig checks undefined behaviour unless told otherwise, with a runtime of its own.
# -ftls-model: one pointer a thread. As static thread-local storage it costs no call, and no symbol of the dynamic loader.
_COMPILE = (
    *("-std=c11", "-O2", "-g0", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"),
    *("-fno-sanitize=all", "-fno-stack-protector", "-fno-unwind-tables", "-fno-asynchronous-unwind-tables"),
    "-ftls-model=initial-exec",
)

# LLVM's objects carry debugging information. ld.lld does not strip it from relocatable output, so a script discards it.
_JOIN = "SECTIONS { /DISCARD/ : { *(.debug*) *(.rela.debug*) *(.rel.debug*) *(.comment) *(.llvm_addrsig) } }\n"


def link(
    program: Program, name: str, header: Path, folder: Path, target: TargetDescription, workdir: Path
) -> tuple[Path, Path]:
    """Write the shared and the static library lib`name` into `folder`, and return their paths.

    `header` is the C header that the driver implements; `workdir` takes what is made on the way.
    Raises UnsupportedError if the model is too large for the target, InternalError if a tool fails.
    """
    check_memory(program, name, target.pointer_bits)
    objects = [*compile_driver(program, name, header, target, workdir), *program.objects]
    folder.mkdir(parents=True, exist_ok=True)
    if is_mach_o(target):
        return _link_mach_o(name, objects, folder, target)
    return _link_elf(name, objects, folder, target, workdir, exports(name, header.read_text()))


def compile_driver(
    program: Program, name: str, header: Path, target: TargetDescription, workdir: Path
) -> tuple[Path, Path]:
    """The objects of the driver and of the weights."""
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "driver.c").write_text(render_driver(program, name, alignment=target.vector_bits // 8))
    (workdir / "weights.S").write_text(render_weights(name))
    (workdir / "weights.bin").write_bytes(program.weights)
    for source in ("driver.c", "weights.S"):
        # Relative names: an object must not tell where it was made.
        command = (*compiler(target), *_COMPILE, "-I", str(header.parent.resolve()), "-I", str(RUNTIME))
        run((*command, "-c", source, "-o", Path(source).stem + ".o"), f"compiling {source} of '{name}'", cwd=workdir)
    return workdir / "driver.o", workdir / "weights.o"


def exports(name: str, header: str) -> list[str]:
    """The functions that the header declares as the interface of the library."""
    return re.findall(rf"^{name.upper()}_API [^;(]*?\b({name}_\w+)\(", header, re.MULTILINE)


def is_mach_o(target: TargetDescription) -> bool:
    """Whether the target's objects are Mach-O: Apple's systems. All others are ELF."""
    return any(system in target.triple for system in ("apple", "macos", "darwin"))


def zig(tool: str) -> tuple[str, ...]:
    """The command of one of zig's tools, such as cc, ar or ld.lld."""
    return (sys.executable, "-m", "ziglang", tool)


def compiler(target: TargetDescription) -> tuple[str, ...]:
    """The C compiler for the target, for code that the chosen core can run."""
    return (*zig("cc"), *(("-target", target.zig_target) if target.zig_target else ()))


def run(command: Sequence[str], what: str, *, cwd: Path | None = None) -> str:
    """Run a tool and return its output. Raises InternalError with the end of its messages if it fails."""
    finished = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if finished.returncode != 0:
        raise InternalError(
            f"{what}: '{' '.join(command[2:4] if command[0] == sys.executable else command[:1])}' "
            f"failed with status {finished.returncode}",
            where="\n".join(finished.stderr.strip().splitlines()[-20:]),
            advice="a fault of graphopt or of the installed ziglang package; please report it with the model",
        )
    return finished.stdout


def _link_elf(
    name: str, objects: Sequence[Path], folder: Path, target: TargetDescription, workdir: Path, public: Sequence[str]
) -> tuple[Path, Path]:
    shared, static = folder / f"lib{name}.so", folder / f"lib{name}.a"
    whole, join = workdir / f"{name}.o", workdir / "join.ld"
    join.write_text(_JOIN)
    run((*zig("ld.lld"), "-r", "-T", str(join), "-o", str(whole), *map(str, objects)), f"joining objects of '{name}'")
    (workdir / "exports.map").write_text(f"{{ global: {'; '.join(public)}; local: *; }};\n")
    run(
        (
            *compiler(target),
            *("-shared", "-s", "-o", str(shared), whole.name),
            *(f"-Wl,-soname,{shared.name}", "-Wl,--version-script,exports.map", "-Wl,-z,defs"),
            # Without gc-sections, all of zig's compiler runtime comes along: 200 KB for one division on ARMv7.
            *("-Wl,--build-id=none", "-Wl,--gc-sections", "-lm", "-lpthread"),
        ),
        f"linking {shared.name}",
        cwd=workdir,
    )
    _archive(static, [whole])
    return shared, static


def _link_mach_o(name: str, objects: Sequence[Path], folder: Path, target: TargetDescription) -> tuple[Path, Path]:
    shared, static = folder / f"lib{name}.dylib", folder / f"lib{name}.a"
    run(
        (
            *compiler(target),
            *("-shared", "-s", "-o", str(shared), *map(str, objects)),
            f"-Wl,-install_name,@rpath/{shared.name}",
        ),
        f"linking {shared.name}",
    )
    _archive(static, objects, "--format=darwin")
    return shared, static


def _archive(static: Path, objects: Sequence[Path], *options: str) -> None:
    static.unlink(missing_ok=True)
    run((*zig("ar"), *options, "rcsD", str(static), *map(str, objects)), f"archiving {static.name}")
