"""Names of kernels by content: equal where the same function is compiled for the same core by the same code."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import tvm
from tvm import tirx

from graphopt.targets.base import TargetDescription


def kernel_contents(functions: dict[str, tirx.PrimFunc], target: TargetDescription) -> dict[str, str]:
    """For each function, before it is scheduled, a digest of it, of the target, of this backend, and of TVM."""
    around = f"{_backend_sources()} {tvm.__version__} {target}"
    return {
        name: hashlib.sha256(f"{around} {function.script(name='main')}".encode()).hexdigest()[:32]
        for name, function in functions.items()
    }


@functools.cache
def _backend_sources() -> str:
    """A digest of the code that kernels are made by."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
