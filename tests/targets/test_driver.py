"""The text of the driver, and what it refuses."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.errors import InternalError
from graphopt.targets.tvm.driver import c_string, memory_bytes, render_driver
from graphopt.targets.tvm.program import Buffer, Copy, KernelCall, Place
from tests.targets.toy import toy_program

PROGRAM = toy_program("toy", (1, 2, 3, 4), ())


def test_calls_stand_in_order_on_their_memory() -> None:
    calls = [line.strip() for line in render_driver(PROGRAM, "toy").splitlines() if line.startswith("    LAYER(")]
    assert calls == [
        "LAYER(0, toy_check(INPUT(0)));",
        "LAYER(1, toy_scale(INPUT(0), WEIGHTS(64), ARENA(64)));",
        "LAYER(2, toy_add(ARENA(64), INPUT(1), OUTPUT(0)));",
        "LAYER(3, COPY(OUTPUT(1), ARENA(64), 96));",
        "LAYER(4, COPY(OUTPUT(2), INPUT(2), 8));",
        "LAYER(5, COPY(OUTPUT(3), WEIGHTS(0), 5));",
    ]


def test_memory_is_the_arena_and_room_for_copies_of_the_interface() -> None:
    assert memory_bytes(PROGRAM) == 192 + (128 + 128 + 64) + (128 + 128 + 64 + 64)


@pytest.mark.parametrize(
    "buffer",
    [
        Buffer(Place.ARENA, 0, 128, 96),
        Buffer(Place.ARENA, 0, 4, 8),
        Buffer(Place.ARENA, 0, -64, 8),
        Buffer(Place.WEIGHTS, 0, 64, 17),
        Buffer(Place.INPUT, 3, 0, 4),
        Buffer(Place.INPUT, 0, 0, 97),
        Buffer(Place.OUTPUT, 0, 64, 4),
    ],
    ids=str,
)
def test_a_misplaced_buffer_is_refused(buffer: Buffer) -> None:
    program = dataclasses.replace(PROGRAM, calls=(KernelCall("toy_check", (buffer,), "check"),))
    with pytest.raises(InternalError, match="call 0 of the program has a misplaced buffer"):
        render_driver(program, "toy")


def test_a_copy_of_unequal_sizes_is_refused() -> None:
    copy = Copy(Buffer(Place.INPUT, 0, 0, 96), Buffer(Place.OUTPUT, 0, 0, 95))
    with pytest.raises(InternalError, match="the sizes differ"):
        render_driver(dataclasses.replace(PROGRAM, calls=(copy,)), "toy")


def test_a_kernel_without_the_name_of_the_bundle_is_refused() -> None:
    with pytest.raises(InternalError, match="kernel 'toy_check' lacks the prefix 'other_'"):
        render_driver(PROGRAM, "other")


def test_a_kernel_with_two_signatures_is_refused() -> None:
    wrong = KernelCall("toy_check", (), "second")
    with pytest.raises(InternalError, match="'toy_check' is called with 1 arguments and, for 'second', with 0"):
        render_driver(dataclasses.replace(PROGRAM, calls=(PROGRAM.calls[0], wrong)), "toy")


def test_a_program_without_inputs_or_calls_renders() -> None:
    empty = dataclasses.replace(PROGRAM, inputs=(), outputs=(), calls=(), weights=b"", arena_bytes=0)
    source = render_driver(empty, "toy")
    assert "#define LAYER_COUNT 0" in source
    assert "#define INPUTS 1" in source


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(max_size=40), max_size=10).map(lambda texts: [text.replace("\0", "") for text in texts]))
def test_strings_survive_in_c(texts: list[str]) -> None:
    """Names of nodes may hold anything; the preprocessor sees no directive, trigraph or comment in them."""
    for text in texts:
        literal = c_string(text)
        assert literal.isascii() and literal.isprintable() and "??" not in literal
        unescaped = literal[1:-1].replace("\\?", "?").encode("latin-1").decode("unicode_escape")
        assert unescaped.encode("latin-1").decode() == text


def test_the_driver_and_linker_do_not_load_tvm() -> None:
    code = "import sys, graphopt.targets.tvm.link; sys.exit('tvm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
