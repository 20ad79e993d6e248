"""What native code writes to standard error during a build."""

from __future__ import annotations

import os
import sys

import pytest

from graphopt.targets.tvm.native_warnings import without_native_warnings


def test_only_warnings_of_tvm_are_dropped(capfd: pytest.CaptureFixture[str]) -> None:
    with without_native_warnings():
        os.write(2, b"[21:23:39] /project/include/tvm/topi/transform.h:1261: Warning: Fast mode segfaults\n")
        os.write(2, b"Segmentation fault\n")
        print("progress", file=sys.stderr)
    captured = capfd.readouterr().err
    assert "Fast mode" not in captured
    assert "Segmentation fault" in captured
    assert "progress" in captured


def test_standard_error_is_restored_after_a_failure(capfd: pytest.CaptureFixture[str]) -> None:
    before = sys.stderr
    with pytest.raises(KeyError), without_native_warnings():
        raise KeyError("x")
    assert sys.stderr is before
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "after\n"
