"""What the linked libraries hold: few needs, one interface, no traces of where they were made."""

from __future__ import annotations

import dataclasses
import re
import shutil
import struct
from pathlib import Path

import pytest

from graphopt.deploy.header import render_header
from graphopt.errors import InternalError, UnsupportedError
from graphopt.targets.tvm.link import exports, link
from tests.targets.toy import INPUTS, OUTPUTS, TARGETS, Toy, build_toy, output_of, toy_program

ELF = ("host", "arm", "cortex-a76", "armv7")
API = exports("toy", render_header("toy", INPUTS, OUTPUTS))


@pytest.fixture(scope="module", params=ELF)
def toy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return build_toy(tmp_path_factory.mktemp(request.param) / "toy", TARGETS[request.param])


@pytest.fixture(autouse=True, scope="module")
def _readelf() -> None:
    if shutil.which("readelf") is None:
        pytest.skip("needs readelf (Debian: apt-get install binutils)")


def test_the_header_declares_the_interface() -> None:
    assert {"toy_create", "toy_set_threads", "toy_run", "toy_last_error", "toy_destroy", "toy_set_hook"} < set(API)
    assert len(API) == 18


def test_shared_library_needs_libc_libm_and_pthreads_at_most(toy: Toy) -> None:
    needed = re.findall(r"NEEDED.*\[(.*)\]", output_of("readelf", "-dW", toy.shared))
    assert set(needed) <= {"libc.so.6", "libm.so.6", "libpthread.so.0"}


def test_shared_library_exports_the_interface_alone(toy: Toy) -> None:
    rows = [line.split() for line in output_of("readelf", "--dyn-syms", "-W", toy.shared).splitlines()]
    assert sorted(row[7] for row in rows if len(row) > 7 and row[6].isdigit()) == sorted(API)


def test_strong_symbols_of_the_archive_carry_the_name(toy: Toy) -> None:
    rows = [line.split() for line in output_of("readelf", "-sW", toy.static).splitlines()]
    strong = [row[7] for row in rows if len(row) > 7 and row[4] == "GLOBAL" and row[6] != "UND"]
    assert len(strong) > 16
    assert [symbol for symbol in strong if not symbol.startswith("toy_")] == []


def test_no_debugging_information_and_no_path_is_left(toy: Toy) -> None:
    for library in (toy.shared, toy.static):
        assert ".debug" not in output_of("readelf", "-SW", library)
        content = library.read_bytes()
        assert str(toy.work.parent).encode() not in content
        assert b"site-packages" not in content


def test_weights_are_read_only_and_aligned(toy: Toy) -> None:
    sections = output_of("readelf", "-SW", toy.work / "toy.o")
    row = next(line for line in sections.splitlines() if ".rodata.toy_weights" in line)
    flags, alignment = row.split()[-4], row.split()[-1]
    assert (flags, alignment) == ("A", "64")


def test_libraries_are_small(toy: Toy) -> None:
    """Driver, pool and interface: a few kilobytes, whatever zig would link beside them."""
    assert toy.shared.stat().st_size < 16_000
    assert toy.static.stat().st_size < 16_000


def test_same_input_gives_the_same_bytes(toy: Toy, tmp_path: Path) -> None:
    again = build_toy(tmp_path / "elsewhere", toy.target)
    assert again.shared.read_bytes() == toy.shared.read_bytes()
    assert again.static.read_bytes() == toy.static.read_bytes()


def test_apple_targets_get_mach_o(tmp_path: Path) -> None:
    toy = build_toy(tmp_path / "toy", TARGETS["apple-m1"])
    assert toy.shared.name == "libtoy.dylib"
    magic, cpu = struct.unpack("<II", toy.shared.read_bytes()[:8])
    assert (magic, cpu) == (0xFEEDFACF, 0x0100000C)  # MH_MAGIC_64, CPU_TYPE_ARM64
    assert toy.static.read_bytes().startswith(b"!<arch>\n")
    for symbol in API:
        assert f"_{symbol}\0".encode() in toy.static.read_bytes()


def test_a_missing_kernel_is_reported_with_its_symbol(tmp_path: Path) -> None:
    header = tmp_path / "toy.h"
    header.write_text(render_header("toy", INPUTS, OUTPUTS))
    program = toy_program("toy", (1, 2, 3, 4), ())
    with pytest.raises(InternalError, match=r"undefined symbol: toy_(check|scale|add)"):
        link(program, "toy", header, tmp_path / "lib", TARGETS["host"], tmp_path / "work")


def test_a_program_larger_than_the_address_space_is_refused(tmp_path: Path) -> None:
    program = dataclasses.replace(toy_program("toy", (1, 2, 3, 4), ()), arena_bytes=1 << 31)
    with pytest.raises(UnsupportedError, match="a 32-bit program has at most 2147483648"):
        link(program, "toy", tmp_path / "toy.h", tmp_path / "lib", TARGETS["armv7"], tmp_path / "work")
