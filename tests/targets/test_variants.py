"""A library for any 64-bit ARM carries kernels for processors that have more, and chooses among them at run time."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from graphopt import optimize
from graphopt.deploy.bundle import Bundle, open_bundle
from graphopt.deploy.header import render_header
from graphopt.deploy.toolchain import build_program, compiler, run_program, run_tool
from graphopt.errors import InternalError
from graphopt.targets.arm.cores import CORES
from graphopt.targets.base import TensorSpec
from graphopt.targets.tvm.driver import RUNTIME, render_driver
from graphopt.targets.tvm.link import link
from graphopt.targets.tvm.program import Buffer, KernelCall, Place, Program, VariantCalls
from graphopt.targets.tvm.variants import schedule_all
from tests.targets import compiled
from tests.targets.test_integer_emulated import check_outputs, inputs, network, written

ARM = next(core for core in CORES if core.name == "arm")
MAC = next(core for core in CORES if core.name == "apple-m1")
# qemu's processors, and the variant that each should run. Those with fewer instructions would stop at a wrong kernel.
PROCESSORS = {
    "cortex-a53": "plain",
    "cortex-a72": "plain",
    "cortex-a76": "dotprod",
    "max,sve-default-vector-length=16,sme=off": "i8mm",
}

NAMES = """#include "NAME.h"
#include <stdio.h>
int main(void)
{
    NAME_context *context = NAME_create();
    if (!context)
        return 1;
    puts(NAME_variant(context));
    NAME_destroy(context);
    return 0;
}
"""
WHICH = """#include "toy.h"
#include <stdio.h>
int main(void)
{
    float which = -1;
    void *outputs[] = {&which};
    toy_context *context = toy_create();
    if (!context || toy_run(context, NULL, outputs) != TOY_OK)
        return 1;
    printf("%s %d\\n", toy_variant(context), (int)which);
    toy_destroy(context);
    return 0;
}
"""
KERNELS = """#include <stdint.h>
int32_t toy_plain(void *y) { *(float *)y = 0; return 0; }
int32_t toy_dotprod(void *y) { *(float *)y = 1; return 0; }
int32_t toy_i8mm(void *y) { *(float *)y = 2; return 0; }
"""


def calls(kernel: str) -> tuple[KernelCall]:
    return (KernelCall(f"toy_{kernel}", (Buffer(Place.OUTPUT, 0, 0, 4),), "which"),)


def toy(objects: tuple[Path, ...]) -> Program:
    """A program whose kernels tell which of them ran."""
    variants = tuple(VariantCalls(variant.name, variant.features, calls(variant.name)) for variant in ARM.variants)
    outputs = (TensorSpec("which", "float32", (1,)),)
    return Program((), outputs, calls("plain"), b"", 0, objects, variants=variants)


def quantized() -> Any:
    return compiled.lowered(network(), ARM)


def test_only_kernels_that_differ_are_carried_twice() -> None:
    plain, *others = schedule_all(quantized().functions, ARM, "net_kernel")
    assert others[0].variant == ARM.variants[0]
    assert list(plain.functions) == list(plain.symbols.values())
    for lot in others:
        assert lot.variant is not None
        differing = {symbol for name, symbol in lot.symbols.items() if symbol != plain.symbols[name]}
        assert 0 < len(differing) < len(plain.symbols)
        assert set(lot.functions) <= differing
        assert all(symbol.endswith(f"_{lot.variant.name}") for symbol in lot.functions)


def test_a_core_carries_only_its_own() -> None:
    a76 = next(core for core in CORES if core.name == "cortex-a76")
    assert len(schedule_all(quantized().functions, a76, "net_kernel")) == 1


def test_variants_that_the_driver_cannot_choose_are_refused() -> None:
    unknown = VariantCalls("sve", ("sve",), calls("plain"))
    shorter = VariantCalls("dotprod", ("dotprod",), ())
    for variant, message in ((unknown, "processor.h does not look for"), (shorter, "has 0 calls, the program has 1")):
        program = Program((), (TensorSpec("which", "float32", (1,)),), calls("plain"), b"", 0, (), variants=(variant,))
        with pytest.raises(InternalError, match=message):
            render_driver(program, "toy")


def test_the_choice_compiles_for_apple_too(tmp_path: Path) -> None:
    source = tmp_path / "features.c"
    source.write_text(
        '#include <stddef.h>\n#include <stdint.h>\n#include "processor.h"\n'
        "unsigned features(void) { return processor_features(); }\n"
    )
    for target in (MAC, ARM):
        made = tmp_path / f"{target.name}.o"
        options = ("-std=c11", "-Wall", "-Wextra", "-Werror", "-I", str(RUNTIME))
        run_tool((*compiler(target), *options, "-c", str(source), "-o", str(made)), "compiling processor.h")
        assert (b"_sysctlbyname" in made.read_bytes()) == (target is MAC)


@pytest.fixture(scope="module")
def which(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    for name, text in (("kernels.c", KERNELS), ("which.c", WHICH)):
        (folder / name).write_text(text)
    run_tool((*compiler(ARM), "-O2", "-fPIC", "-c", "kernels.c", "-o", "kernels.o"), "compiling kernels", cwd=folder)
    program = toy((folder / "kernels.o",))
    header = folder / "toy.h"
    header.write_text(render_header("toy", program.inputs, program.outputs))
    _, static = link(program, "toy", header, folder / "lib", ARM, folder / "work")
    build_program(folder / "which.c", ARM, folder, static, folder / "which")
    return folder / "which"


@pytest.mark.emulation
@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_best_kernels_that_a_processor_has_run(processor: str, which: Path) -> None:
    run = subprocess.run(["qemu-aarch64", "-cpu", processor, which], check=True, capture_output=True, text=True)
    name = PROCESSORS[processor]
    assert run.stdout == f"{name} {['plain', 'dotprod', 'i8mm'].index(name)}\n"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("arm")
    optimize(network(), target="arm", out=folder / "made", name="net", jobs=1)
    return open_bundle(folder / "made")


@pytest.mark.emulation
def test_every_processor_computes_the_same_bits(bundle: Bundle, tmp_path: Path) -> None:
    feeds = inputs()
    expected, files = compiled.run(network(), feeds), written(feeds, tmp_path)
    (tmp_path / "names.c").write_text(NAMES.replace("NAME", "net"))
    build_program(bundle.example, ARM, bundle.include, bundle.static, tmp_path / "example")
    build_program(tmp_path / "names.c", ARM, bundle.include, bundle.static, tmp_path / "names")
    carried = {lot.variant.name for lot in schedule_all(quantized().functions, ARM, "") if lot.variant}
    assert "dotprod" in carried
    for processor, best in PROCESSORS.items():
        emulator = ("qemu-aarch64", "-cpu", processor)
        name = best if best in carried or best == "plain" else "dotprod"
        assert run_program((*emulator, str(tmp_path / "names"))) == f"{name}\n"
        run_program((*emulator, str(tmp_path / "example"), "-o", str(tmp_path), *files))
        check_outputs(bundle, tmp_path, expected)
