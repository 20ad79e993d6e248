"""Compressed weights: every coder gives back the bytes, in parts and programs, and damaged streams are refused."""

from __future__ import annotations

import dataclasses
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.targets.tvm.driver import RUNTIME, render_driver, weight_bytes
from graphopt.targets.tvm.program import ALIGNMENT, Buffer, Copy, Place
from graphopt.targets.tvm.storage import rans
from graphopt.targets.tvm.storage.coding import ROW_BYTES, Part, choose, encode
from graphopt.targets.tvm.storage.compression import compress
from tests.targets.storage import Copied, Decoder, copying_program, link_program
from tests.targets.toy import SOURCES, TARGETS, output_of, toy_program

Array = np.ndarray


def quiet(done: int, total: int, what: str) -> None:
    """A progress that is not shown."""


def normal(count: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=count).astype(np.float32)


def palette(count: int, entries: int, seed: int = 0) -> Array:
    """Numbers of a palette, unevenly used."""
    rng = np.random.default_rng(seed)
    index = np.minimum(rng.geometric(4 / entries, count) - 1, entries - 1)
    return normal(entries, seed)[index]


def integers(count: int, seed: int = 0) -> Array:
    return np.clip(np.round(24 * normal(count, seed)), -127, 127).astype(np.int8)


KINDS: dict[str, Callable[[int, int], Array]] = {
    "float32": normal,
    "float16": lambda count, seed: normal(count, seed).astype(np.float16),
    "int8": integers,
    "int32": lambda count, seed: integers(count, seed).astype(np.int32),
    "palette of 16": lambda count, seed: palette(count, 16, seed),
    "palette of 256": lambda count, seed: palette(count, 256, seed),
    "noise": lambda count, seed: np.random.default_rng(seed).integers(0, 256, count, np.uint8),
    "one value": lambda count, seed: np.full(count, 1.5, np.float32),
    "two values": lambda count, seed: np.where(normal(count, seed) > 2, np.float32(1), np.float32(-1)),
}


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    return Decoder(tmp_path_factory.mktemp("decoder"))


def as_bytes(array: Array) -> Array:
    return np.frombuffer(array.tobytes(), np.uint8)


def decoded(decoder: Decoder, data: Array) -> tuple[Array, int]:
    """What comes back from the coded parts of `data`, and how many bytes they take."""
    parts = choose(data)
    assert [part.begin for part in parts] == [0, *(part.end for part in parts[:-1])]
    assert parts[-1].end == len(data)
    pieces = [encode(data, part) for part in parts]
    back = [decoder(part, piece) for part, piece in zip(parts, pieces, strict=True)]
    assert all(piece is not None for piece in back)
    return np.concatenate(back), sum(map(len, pieces))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.one_of(st.integers(1, 40), st.integers(40, 9000)), st.integers(0, 1000))
def test_every_kind_of_number_comes_back(decoder: Decoder, kind: str, count: int, seed: int) -> None:
    data = as_bytes(KINDS[kind](count, seed))
    back, _ = decoded(decoder, data)
    assert np.array_equal(back, data)


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=1, max_size=600))
def test_any_bytes_come_back(decoder: Decoder, content: bytes) -> None:
    data = np.frombuffer(content, np.uint8)
    back, size = decoded(decoder, data)
    assert np.array_equal(back, data) and size <= len(data) + 1


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from((1, 2, 4)),
    st.integers(1, 5000),
    st.integers(1, 256),
    st.integers(0, 100),
)
def test_planes_and_palettes_of_any_width_come_back(
    decoder: Decoder, width: int, count: int, values: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    table = rng.integers(0, 1 << 8 * width, values).astype(f"<u{width}")
    data = as_bytes(table[rng.integers(0, values, count)])
    distinct = len(np.unique(data.view(f"<u{width}")))
    for entries in (0, distinct):
        part = Part(0, len(data), width, entries, 0)
        assert np.array_equal(decoder(part, encode(data, part)), data)


@pytest.mark.parametrize(
    ("kind", "coder", "limit"),
    [
        ("float32", 0, 0.88),  # sign and exponent: 3 of 8 bits or so
        ("float16", 0, 0.88),
        ("int8", 0, 0.88),
        ("palette of 16", 16, 0.11),
        ("palette of 256", 256, 0.24),
        ("two values", 2, 0.006),  # entropy 0.16 bits of 32: Huffman's code takes a whole one
        ("one value", 1, 0.0002),
    ],
)
def test_the_cheapest_coder_is_chosen_and_near_the_entropy(
    decoder: Decoder, kind: str, coder: int, limit: float
) -> None:
    array = KINDS[kind](1 << 17, 3)
    data = as_bytes(array)
    parts = choose(data)
    assert {part.entries for part in parts} == {coder}
    size = sum(len(encode(data, part)) for part in parts)
    assert size < limit * len(data)
    assert abs(sum(part.cost for part in parts) - ROW_BYTES * len(parts) - size) < 0.01 * size + 40
    if coder:
        _, counts = np.unique(array, return_counts=True)
        entropy = float((counts * np.log2(len(array) / counts)).sum()) / 8
        assert size < 1.01 * entropy + 8 * coder + 600


def test_noise_is_stored_as_it_is(decoder: Decoder) -> None:
    data = KINDS["noise"](5000, 0)
    assert rans.encode(data) == b"\0" + data.tobytes()


def test_channels_with_palettes_of_their_own_are_parts(decoder: Decoder) -> None:
    data = as_bytes(np.concatenate([palette(8192, 16, seed) for seed in range(16)]))
    parts = choose(data)
    assert len(parts) == 16 and {part.entries for part in parts} == {16}
    assert np.array_equal(decoded(decoder, data)[0], data)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.integers(20, 3000), st.integers(0, 1000), st.data())
def test_a_damaged_stream_is_refused_or_gives_bytes_inside_its_target(
    decoder: Decoder, kind: str, count: int, seed: int, draw: st.DataObject
) -> None:
    """The guard behind the target is checked by `Decoder`; a stream that is cut is always refused."""
    data = as_bytes(KINDS[kind](count, seed))
    part = min((Part(0, len(data), 1, 0, 0), *choose(data)), key=lambda part: part.end - part.begin)
    stored = bytearray(encode(data, part))
    cut = draw.draw(st.integers(0, len(stored) - 1))
    assert decoder(part, bytes(stored[:cut])) is None
    assert decoder(part, bytes(stored) + b"\0") is None
    for _ in range(draw.draw(st.integers(1, 4))):
        stored[draw.draw(st.integers(0, len(stored) - 1))] = draw.draw(st.integers(0, 255))
    decoder(part, bytes(stored))


def test_the_decoder_never_leaves_its_buffers(tmp_path: Path) -> None:
    """Thousands of damaged streams under gcc's sanitizers, in buffers of exactly their size."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc for its sanitizers (Debian: apt-get install gcc)")
    program = tmp_path / "fuzz"
    checks = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    output_of(
        *("gcc", "-std=c99", "-D_GNU_SOURCE", "-O1", "-g", *checks, "-Wall", "-Wextra", "-Werror"),
        *("-I", RUNTIME, SOURCES / "fuzz_decoder.c", "-o", program),
    )
    rng = np.random.default_rng(7)
    sound = []
    for index in range(300):
        data = as_bytes(KINDS[sorted(KINDS)[index % len(KINDS)]](int(rng.integers(1, 400)), index))
        part = choose(data)[0]
        sound.append((data, part, encode(data, part)))
    records = bytearray()
    for index in range(3000):
        data, part, right = sound[index % len(sound)]
        stored = bytearray(right)
        for _ in range(rng.integers(0, 4)):
            stored[rng.integers(min(len(stored), 24) if rng.random() < 0.5 else len(stored))] = rng.integers(256)
        if rng.random() < 0.2:
            stored = stored[: rng.integers(len(stored) + 1)]
        width = int(rng.choice((1, 2, 4))) if rng.random() < 0.1 else part.width
        entries = int(rng.integers(1, 300)) if rng.random() < 0.1 else part.entries
        fields = np.array([len(stored), len(data) // width * width, width, entries], "<u4")
        records += fields.tobytes() + stored
    (tmp_path / "streams.bin").write_bytes(records)
    decoded_right, refused = map(int, re.findall(r"\d+", output_of(program, tmp_path / "streams.bin")))
    assert decoded_right + refused == 3000 and min(decoded_right, refused) > 500


CONSTANTS = [
    palette(5000, 16),
    normal(3000),
    np.arange(4, dtype=np.int64),  # too small to be worth a stream
    integers(4001),
    KINDS["noise"](3000, 1),
    np.zeros(1000, np.float32),
]


def test_constants_move_where_that_saves_bytes() -> None:
    program = copying_program(CONSTANTS)
    made, storage = compress(program, quiet)
    places = [call.source.place for call in made.calls if isinstance(call, Copy)]
    decoded, raw = Place.DECODED, Place.WEIGHTS
    assert places == [decoded, decoded, raw, decoded, raw, decoded]
    assert all(call.source.offset % ALIGNMENT == 0 for call in made.calls if isinstance(call, Copy))
    assert storage.bytes == len(program.weights) and storage.stored_bytes == len(made.weights) < 20000
    assert storage.decoded_bytes == made.decoded_bytes
    assert [use.coder for use in storage.coders] == ["raw", "palette", "planes"]
    assert sum(use.bytes for use in storage.coders) == sum(array.nbytes for array in CONSTANTS)
    assert 0 <= len(made.weights) - sum(use.stored_bytes for use in storage.coders) < ALIGNMENT
    assert 0 <= weight_bytes(made) - sum(array.nbytes for array in CONSTANTS) < ALIGNMENT * len(CONSTANTS)


def test_constants_that_overlap_stay_together_and_unused_ones_go() -> None:
    program = copying_program([normal(2000), palette(2000, 16)])
    second = program.calls[1]
    assert isinstance(second, Copy)
    inside = Buffer(Place.WEIGHTS, 0, second.source.offset + 4 * ALIGNMENT, 256)
    view = Copy(inside, Buffer(Place.ARENA, 0, 0, 256))
    made, storage = compress(dataclasses.replace(program, calls=(second, view), arena_bytes=256), quiet)
    sources = [call.source for call in made.calls if isinstance(call, Copy)]
    assert [source.offset for source in sources] == [0, 4 * ALIGNMENT]
    assert {source.place for source in sources} == {Place.DECODED} and storage.decoded_bytes == 8000


def test_a_program_without_weights_stays_as_it_is() -> None:
    program = copying_program([])
    made, storage = compress(program, quiet)
    assert made == program and (storage.stored_bytes, storage.coders) == (0, ())


def test_kernels_read_the_decoded_memory() -> None:
    program = toy_program("toy", (1, 2, 3, 4), ())
    weights = bytearray(4096) + program.weights[64:]
    moved = dataclasses.replace(
        program,
        calls=tuple(
            dataclasses.replace(call, arguments=tuple(
                dataclasses.replace(b, offset=0, bytes=4096) if b.place is Place.WEIGHTS else b for b in call.arguments
            ))
            if hasattr(call, "arguments") else call
            for call in program.calls
        ),
        weights=bytes(weights),
    )  # fmt: skip
    made, _ = compress(moved, quiet)
    source = render_driver(made, "toy")
    assert "LAYER(1, toy_scale(INPUT(0), DECODED(0), ARENA(64)));" in source
    assert "#define DECODED_BYTES 4096" in source


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the linked program, compressed, as `packed`."""
    folder = tmp_path_factory.mktemp("packed")
    made, _ = compress(copying_program(CONSTANTS), quiet)
    link_program(made, "packed", folder, TARGETS["host"])
    return folder


def test_a_library_gives_the_same_bytes_compressed_or_not(compressed: Path, tmp_path: Path) -> None:
    plain, _ = link_program(copying_program(CONSTANTS), "plain", tmp_path, TARGETS["host"])
    packed = compressed / "lib" / "libpacked.so"
    assert packed.stat().st_size < plain.stat().st_size - 15000
    for library in (Copied(plain, "plain"), Copied(packed, "packed")):
        for got, expected in zip(library.outputs(CONSTANTS), CONSTANTS, strict=True):
            assert got.tobytes() == expected.tobytes()
    assert Copied(plain, "plain").sizes["decoded_bytes"]() == 0
    assert Copied(packed, "packed").sizes["decoded_bytes"]() > 30000


def test_contexts_are_made_and_destroyed_at_once(compressed: Path) -> None:
    library = Copied(compressed / "lib" / "libpacked.so", "packed")
    wrong: list[int] = []
    start = threading.Barrier(4)

    def use() -> None:
        start.wait()
        for _ in range(100):
            got = library.outputs(CONSTANTS)
            wrong.extend(i for i, (a, b) in enumerate(zip(got, CONSTANTS, strict=True)) if a.tobytes() != b.tobytes())

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def write_expected(folder: Path) -> Path:
    path = folder / "expected.bin"
    path.write_bytes(b"".join(array.tobytes() for array in CONSTANTS))
    return path


@pytest.mark.parametrize("checked", ["address,undefined", "thread"])
def test_shared_memory_under_sanitizers(compressed: Path, tmp_path: Path, checked: str) -> None:
    """Four threads; memory that is short at every place it can be; nothing leaks, races or is used after its end."""
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc for its sanitizers (Debian: apt-get install gcc)")
    program = tmp_path / "checked"
    work = compressed / "work"
    output_of(
        *("gcc", "-std=c11", "-g", "-O1", f"-fsanitize={checked}", "-fno-sanitize-recover=all", "-Wall", "-Wextra"),
        *("-Werror", "-I", compressed / "include", "-I", RUNTIME, f"-Wa,-I{work}", "-Wl,--wrap=posix_memalign"),
        *(work / "driver.c", work / "weights.S", SOURCES / "compressed.c", "-o", program, "-lm", "-lpthread"),
    )
    assert output_of(program, write_expected(tmp_path)) == "right\n"


@pytest.mark.emulation
@pytest.mark.parametrize("target", ["cortex-a72", "armv7"])
def test_a_compressed_library_under_emulation(target: str, tmp_path: Path) -> None:
    from graphopt.deploy.toolchain import build_program, launcher

    made, _ = compress(copying_program(CONSTANTS), quiet)
    _, static = link_program(made, "packed", tmp_path / "packed", TARGETS[target])
    program = tmp_path / "program"
    build_program(
        SOURCES / "compressed.c", TARGETS[target], tmp_path / "packed" / "include", static, program,
        "-Wl,--wrap=posix_memalign",
    )  # fmt: skip
    assert output_of(*launcher(TARGETS[target]), program, write_expected(tmp_path)) == "right\n"
