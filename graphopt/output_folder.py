"""The folder that `optimize` writes: it appears whole or not at all, and replaces nothing but an older bundle."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graphopt.errors import UsageError

_MARKS = ("report.json", "model.onnx")  # what tells a bundle from other folders


def check_destination(out: Path) -> None:
    """Raise UsageError unless `out` can be written: it is free, an empty folder, or a bundle; its parent exists."""
    if not out.parent.is_dir():
        raise UsageError(f"{out}: the folder {out.parent} does not exist", advice="create it, or give another with -o")
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir():
        raise UsageError(f"{out} exists and is no folder", advice="give another place with -o")
    if any(out.iterdir()) and not all((out / mark).is_file() for mark in _MARKS):
        raise UsageError(
            f"{out} exists and is not a bundle of graphopt: it has no {' and '.join(_MARKS)}",
            advice="it is left as it is; remove it, or give another place with -o",
        )


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A new folder beside `out` to write into; it takes the place of `out` when the block ends without an error.

    After an error, or Ctrl-C, `out` is as before and nothing else is left. Raises UsageError as check_destination does,
    and if the parent folder cannot be written.
    """
    check_destination(out)
    try:
        room = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise UsageError(
            f"cannot write in {out.parent}: {error.strerror}", advice="give another place with -o"
        ) from error
    try:
        made = room / "new"
        made.mkdir()  # not mkdtemp's folder itself, which nobody else may read
        yield made
        check_destination(out)  # it may have come to be while we worked
        old = room / "old"
        if out.exists() or out.is_symlink():
            out.rename(old)
        try:
            made.rename(out)
        except BaseException:
            if old.exists():
                old.rename(out)
            raise
    finally:
        shutil.rmtree(room, ignore_errors=True)
