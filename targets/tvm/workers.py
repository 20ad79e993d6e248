"""Kernels compiled in several processes: LLVM takes most of the time of a build, and holds Python's lock meanwhile."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
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
    work_by_target: Sequence[tuple[TargetDescription, dict[str, tirx.PrimFunc]]], workdir: Path, jobs: int
) -> tuple[tuple[Path, ...], list[Kernel]]:
    """Objects below `workdir` and the kernels in them, in the order given; the same for any number of jobs.

    work_by_target: scheduled functions, by symbol, and the target that each lot of them is compiled for.
    """
    targets: list[TargetDescription] = []
    _chunks.clear()
    for target, functions in work_by_target:
        symbols = list(functions)
        for i in range(0, len(symbols), CHUNK):
            _chunks.append({symbol: functions[symbol] for symbol in symbols[i : i + CHUNK]})
            targets.append(target)
    paths = tuple(workdir / f"kernels{i}.o" for i in range(len(_chunks)))
    work = list(zip(range(len(paths)), targets, paths, strict=True))
    if jobs > 1 and len(work) > 1 and "fork" in multiprocessing.get_all_start_methods():
        with ProcessPoolExecutor(min(jobs, len(work)), multiprocessing.get_context("fork")) as pool:
            compiled = list(pool.map(_compile, work))
    else:
        compiled = [_compile(item) for item in work]
    return paths, [kernel for kernels in compiled for kernel in kernels]


def _compile(work: tuple[int, TargetDescription, Path]) -> list[Kernel]:
    index, target, path = work
    return compile_kernels(_chunks[index], tvm_target(target), path)
