"""Link kernels, weights and driver into a shared and a static library, with zig's compiler and linker.

All goes into one relocatable object first (ELF), without debugging information: the archive then has one member, and
symbols are resolved once. Nothing in the result depends on where or when it was made.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from graphopt.deploy.toolchain import compiler, is_mach_o, run_tool, zig
from graphopt.targets.base import TargetDescription
from graphopt.targets.tvm.driver import RUNTIME, check_memory, render_driver, render_weights
from graphopt.targets.tvm.program import Program

# -fno-sanitize: zig checks undefined behaviour unless told otherwise, with a runtime of its own.
# -ftls-model: one pointer a thread. Static thread-local storage costs no call, and no symbol of the loader.
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
        run_tool(
            (*command, "-c", source, "-o", Path(source).stem + ".o"), f"compiling {source} of '{name}'", cwd=workdir
        )
    return workdir / "driver.o", workdir / "weights.o"


def exports(name: str, header: str) -> list[str]:
    """The functions that the header declares as the interface of the library."""
    return re.findall(rf"^{name.upper()}_API [^;(]*?\b({name}_\w+)\(", header, re.MULTILINE)


def _link_elf(
    name: str, objects: Sequence[Path], folder: Path, target: TargetDescription, workdir: Path, public: Sequence[str]
) -> tuple[Path, Path]:
    shared, static = folder / f"lib{name}.so", folder / f"lib{name}.a"
    whole, join = workdir / f"{name}.o", workdir / "join.ld"
    join.write_text(_JOIN)
    run_tool(
        (*zig("ld.lld"), "-r", "-T", str(join), "-o", str(whole), *map(str, objects)), f"joining objects of '{name}'"
    )
    (workdir / "exports.map").write_text(f"{{ global: {'; '.join(public)}; local: *; }};\n")
    run_tool(
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
    run_tool(
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
    run_tool((*zig("ar"), *options, "rcsD", str(static), *map(str, objects)), f"archiving {static.name}")
