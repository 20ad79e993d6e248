"""TVM's C++ code writes warnings of its own internals to standard error; a user can do nothing about them."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from typing import TextIO

_WARNING = re.compile(rb"^\[\d\d:\d\d:\d\d\] \S+\.(cc|h):\d+: Warning: .*\n?", re.MULTILINE)
_STDERR = 2


@contextlib.contextmanager
def without_native_warnings() -> Iterator[None]:
    """Hold back what native code writes to standard error, and pass on all but TVM's warnings afterwards.

    Python's `sys.stderr` (progress bars, warnings) goes where it went before.
    """
    try:
        python_stderr, terminal = sys.stderr, os.dup(_STDERR)
    except OSError:  # no standard error at all: nothing to hold back
        yield
        return
    with tempfile.TemporaryFile() as held, os.fdopen(terminal, "w", buffering=1, encoding="utf-8") as direct:
        python_stderr.flush()
        follows = _writes_to_standard_error(python_stderr)
        os.dup2(held.fileno(), _STDERR)
        if follows:
            sys.stderr = direct
        try:
            yield
        finally:
            sys.stderr = python_stderr
            os.dup2(terminal, _STDERR)
            held.seek(0)
            os.write(_STDERR, _WARNING.sub(b"", held.read()))


def _writes_to_standard_error(stream: TextIO) -> bool:
    try:
        return stream.fileno() == _STDERR
    except (OSError, ValueError):  # replaced by a test or a notebook
        return False
