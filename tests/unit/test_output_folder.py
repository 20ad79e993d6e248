"""A bundle's folder appears whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from graphopt.errors import UsageError
from graphopt.output_folder import check_destination, replacing


def fill(folder: Path, text: str) -> None:
    for name in ("report.json", "model.onnx"):
        (folder / name).write_text(text)


def test_a_new_folder_appears_with_usual_permissions(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with replacing(out) as folder:
        fill(folder, "new")
        assert not out.exists() and folder.parent.parent == tmp_path
    (tmp_path / "plain").mkdir()
    assert (out / "report.json").read_text() == "new"
    assert out.stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "plain"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_error_nothing_is_left(tmp_path: Path, error: type[BaseException]) -> None:
    def work() -> None:
        with replacing(tmp_path / "out") as folder:
            fill(folder, "half")
            raise error

    with pytest.raises(error):
        work()
    assert list(tmp_path.iterdir()) == []


def test_an_older_bundle_is_replaced_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    fill(out, "old")
    (out / "stale").write_text("x")
    with replacing(out) as folder:
        fill(folder, "new")
    assert {path.name: path.read_text() for path in out.iterdir()} == {"report.json": "new", "model.onnx": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_after_an_error_an_older_bundle_is_as_before(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    fill(out, "old")
    with pytest.raises(ValueError), replacing(out):
        raise ValueError
    assert (out / "report.json").read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_rename_that_fails_brings_the_older_bundle_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    fill(out, "old")
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError("no space")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no space"), replacing(out) as folder:
        fill(folder, "new")
    assert (out / "report.json").read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    (tmp_path / "file").write_text("x")
    for path, words in (
        (tmp_path / "full", "is not a bundle"),
        (tmp_path / "file", "is no folder"),
        (tmp_path / "none" / "out", "does not exist"),
    ):
        with pytest.raises(UsageError, match=words):
            check_destination(path)
    (tmp_path / "empty").mkdir()
    check_destination(tmp_path / "empty")


def test_a_folder_that_fills_while_we_work_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def work() -> None:
        with replacing(out) as folder:
            fill(folder, "new")
            out.mkdir()
            (out / "thesis.tex").write_text("x")

    with pytest.raises(UsageError, match="is not a bundle"):
        work()
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_parent_without_permission_is_a_usage_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UsageError, match="cannot write"), replacing(tmp_path / "out"):
            pass
    finally:
        tmp_path.chmod(0o700)
