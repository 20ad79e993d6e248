"""The arena of each model beside the most bytes that live at once, for docs/benchmarks.md.

    python -m tests.benchmarks.memory MODEL.onnx … [--shape NAME=1,512]

Everything runs up to the memory plan. Kernels are lowered, which tells their scratch buffers, but not compiled.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from tvm import tirx

import graphopt
from graphopt.errors import GraphoptError
from graphopt.targets.base import TargetDescription
from graphopt.targets.tvm import backend, codegen
from graphopt.targets.tvm.memory_plan import Lifetime, lower_bound, plan
from graphopt.targets.tvm.program import ALIGNMENT


class Planned(Exception):  # noqa: N818 (it ends the build)
    """The lifetimes that a build would plan."""

    def __init__(self, lifetimes: Sequence[Lifetime]) -> None:
        super().__init__()
        self.lifetimes = list(lifetimes)


def lower_only(
    work: Sequence[tuple[TargetDescription, dict[str, tirx.PrimFunc]]], workdir: Path, jobs: int
) -> tuple[tuple[Path, ...], list[codegen.Kernel]]:
    kernels = []
    for target, functions in work:
        made = codegen.tvm_target(target)
        kernels += codegen.lower_kernels(functions, made.with_host(made))[1]
    return (), kernels


def stop(lifetimes: Sequence[Lifetime], alignment: int) -> Any:
    raise Planned(lifetimes)


def lifetimes_of(model: Path, shapes: dict[str, list[int]]) -> list[Lifetime]:
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(backend, "compile_in_parallel", lower_only),
        mock.patch.object(backend, "plan", stop),
    ):
        try:
            graphopt.optimize(model, "cortex-a76", out=Path(folder) / "out", name="net", jobs=1, shapes=shapes)
        except Planned as planned:
            return planned.lifetimes
    raise AssertionError("nothing was planned")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--shape", action="append", default=[])
    options = parser.parse_args()
    shapes = {name: [int(n) for n in text.split(",")] for name, text in (s.split("=") for s in options.shape)}
    print("| model | live at once, kB | arena, kB | ratio |\n|---|---:|---:|---:|")
    for model in options.models:
        try:
            lifetimes = lifetimes_of(model, shapes)
        except GraphoptError as error:
            print(f"| {model.stem} | {str(error).splitlines()[0][:80]} | | |", flush=True)
            continue
        bound, arena = lower_bound(lifetimes), plan(lifetimes, ALIGNMENT)[1]
        print(f"| {model.stem} | {bound / 1e3:,.1f} | {arena / 1e3:,.1f} | {arena / max(bound, 1):.3f} |", flush=True)


if __name__ == "__main__":
    main()
