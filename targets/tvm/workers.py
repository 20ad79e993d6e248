"""Kernels compiled in several processes: LLVM takes most of the time of a build, and holds Python's lock meanwhile."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tvm import tirx

from graphopt.targets.base import TargetDescription
from graphopt.targets.tvm.codegen import Kernel, compile_kernels, tvm_target

CHUNK = 8  # kernels an object: few enough to share out, enough that objects stay few

# What the workers compile. They are forked and inherit it, because TVM's JSON cannot carry scheduled functions
# (0.27: ToJSONGraph crashes).
_chunks: list[dict[str, tirx.PrimFunc]] = []


def compile_in_parallel(
    functions: dict[str, tirx.PrimFunc], target: TargetDescription, workdir: Path, jobs: int
) -> tuple[tuple[Path, ...], list[Kernel]]:
    """Objects below `workdir` and the kernels in them, in the order of `functions`; the same for any number of jobs."""
    symbols = list(functions)
    _chunks[:] = [
        {symbol: functions[symbol] for symbol in symbols[i : i + CHUNK]} for i in range(0, len(symbols), CHUNK)
    ]
    paths = tuple(workdir / f"kernels{i}.o" for i in range(len(_chunks)))
    work = [(i, target, path) for i, path in enumerate(paths)]
    if jobs > 1 and len(work) > 1 and "fork" in multiprocessing.get_all_start_methods():
        with ProcessPoolExecutor(min(jobs, len(work)), multiprocessing.get_context("fork")) as pool:
            compiled = list(pool.map(_compile, work))
    else:
        compiled = [_compile(item) for item in work]
    return paths, [kernel for kernels in compiled for kernel in kernels]


def _compile(work: tuple[int, TargetDescription, Path]) -> list[Kernel]:
    index, target, path = work
    return compile_kernels(_chunks[index], tvm_target(target), path)
