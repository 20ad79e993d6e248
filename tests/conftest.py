"""Options of the whole test suite, and what tests need of the machine: an emulator, a compiler, more models."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

EMULATION_TOOLS = ("qemu-aarch64", "qemu-arm", "aarch64-linux-gnu-gcc")  # Debian: qemu-user, gcc-aarch64-linux-gnu


if os.environ.get("GRAPHOPT_REQUIRE_EMULATION") == "1":
    # in CI a commit passes or fails by itself, not by the examples of a day
    settings.register_profile("ci", derandomize=True)
    settings.load_profile("ci")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-goldens", action="store_true", help="rewrite tests/golden from what the code gives now")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `emulation` without the tools; fail it if GRAPHOPT_REQUIRE_EMULATION=1 says they must be."""
    if item.get_closest_marker("emulation") is None:
        return
    missing = [tool for tool in EMULATION_TOOLS if shutil.which(tool) is None]
    if not missing:
        return
    reason = f"needs {', '.join(missing)} (Debian: apt-get install qemu-user gcc-aarch64-linux-gnu)"
    if os.environ.get("GRAPHOPT_REQUIRE_EMULATION") == "1":
        pytest.fail(f"{reason}, and GRAPHOPT_REQUIRE_EMULATION=1 forbids skipping it", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def samples() -> Path:
    """The folder of the trained sample models and their data."""
    return Path(__file__).parent.parent / "samples"


@pytest.fixture(scope="session")
def real_models() -> Path:
    """The folder that GRAPHOPT_REAL_MODELS names; tests that use it are skipped without."""
    folder = os.environ.get("GRAPHOPT_REAL_MODELS")
    if not folder:
        pytest.skip("needs GRAPHOPT_REAL_MODELS to name a folder of ONNX models")
    path = Path(folder)
    assert path.is_dir(), f"GRAPHOPT_REAL_MODELS names {path}, which is not a folder"
    return path
