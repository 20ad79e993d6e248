"""Ranges of files are copied right wherever holes lie and whatever the kernel can do."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.ir import file_ranges
from graphopt.ir.file_ranges import copy_range, read_range, stored_ranges

BLOCK = 4096


def sparse_file(path: Path, blocks: list[bool]) -> bytes:
    """A file of blocks that are holes or filled; returns its content."""
    content = b"".join(bytes([i % 251 + 1]) * BLOCK if filled else bytes(BLOCK) for i, filled in enumerate(blocks))
    with path.open("wb") as file:
        for i, filled in enumerate(blocks):
            if filled:
                file.seek(i * BLOCK)
                file.write(content[i * BLOCK : (i + 1) * BLOCK])
        file.truncate(len(content))
    return content


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(blocks=st.lists(st.booleans(), min_size=1, max_size=12), data=st.data())
def test_any_range_of_any_sparse_file_is_copied(tmp_path: Path, blocks: list[bool], data: st.DataObject) -> None:
    content = sparse_file(tmp_path / "source", blocks)
    start = data.draw(st.integers(0, len(content)))
    length = data.draw(st.integers(0, len(content) - start))
    position = data.draw(st.integers(0, 3 * BLOCK))
    with (tmp_path / "source").open("rb") as source, (tmp_path / "target").open("wb") as target:
        copy_range(source, start, length, target, position)
        target.truncate(position + length)
    assert (tmp_path / "target").read_bytes() == bytes(position) + content[start : start + length]


def test_holes_stay_holes(tmp_path: Path) -> None:
    sparse_file(tmp_path / "source", [True] + [False] * 1000 + [True])
    if (tmp_path / "source").stat().st_blocks * 512 > 100 * BLOCK:
        pytest.skip("this file system keeps no sparse files")
    with (tmp_path / "source").open("rb") as source, (tmp_path / "target").open("wb") as target:
        copy_range(source, 0, 1002 * BLOCK, target, 0)
    assert (tmp_path / "target").stat().st_blocks * 512 <= 16 * BLOCK


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS])
def test_bytes_are_copied_where_the_kernel_cannot(tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    content = sparse_file(tmp_path / "source", [True, False, True])
    copied = []

    def refuse(source: int, target: int, count: int, *offsets: int) -> int:
        if copied:
            raise OSError(code, os.strerror(code))
        copied.append(os.pwrite(target, os.pread(source, 100, offsets[0]), offsets[1]))  # some of it, then no more
        return copied[0]

    monkeypatch.setattr(os, "copy_file_range", refuse)
    with (tmp_path / "source").open("rb") as source, (tmp_path / "target").open("wb") as target:
        copy_range(source, 0, len(content), target, 0)
    assert (tmp_path / "target").read_bytes() == content


def test_where_holes_cannot_be_told_all_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sparse_file(tmp_path / "source", [False, True])
    with (tmp_path / "source").open("rb") as source:
        monkeypatch.delattr(os, "SEEK_DATA")
        assert list(stored_ranges(source, 5, 100)) == [(5, 100)]


def test_a_file_that_ends_early_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(bytes(10))
    with (tmp_path / "short").open("rb") as file, pytest.raises(OSError, match="became shorter"):
        list(read_range(file, 4, 7))


def test_pieces_join_to_the_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_ranges, "PIECE_BYTES", 16)
    (tmp_path / "file").write_bytes(bytes(range(100)))
    with (tmp_path / "file").open("rb") as file:
        pieces = list(read_range(file, 3, 50))
    assert [len(piece) for piece in pieces] == [16, 16, 16, 2]
    assert b"".join(pieces) == bytes(range(3, 53))
