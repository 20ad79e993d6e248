"""What each layer of a bundle costs: timed on this machine, or counted by a tool that runs the program emulated.

Inputs are zero: kernels take as long whatever the numbers are.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from graphopt.deploy.bundle import Bundle
from graphopt.deploy.header import environment, interface_fields
from graphopt.deploy.toolchain import build_program, launcher, run_program, runs_natively
from graphopt.errors import InternalError, UsageError
from graphopt.pipeline.base import Progress, silent
from graphopt.targets.base import TargetDescription


@dataclass(frozen=True)
class LayerTime:
    """A layer, by the names of the model's nodes that it computes, and its cost in the unit of the benchmark."""

    name: str
    cost: float
    macs: int = 0
    cycles: float | None = None  # if a counter estimates them


@dataclass(frozen=True)
class Benchmark:
    """What a run of the model costs."""

    unit: str  # "ns", or "instructions"
    total: float  # the median of all runs, or one counted run
    least: float  # the fastest run
    runs: int
    threads: int
    layers: tuple[LayerTime, ...]  # the least of each over all runs
    counts: dict[str, Any]  # all that the counter said of the whole run; empty for times


def bench(
    bundle: Bundle,
    target: TargetDescription,
    *,
    threads: int = 1,
    repeat: int = 10,
    counter: Sequence[str] = (),
    layers: bool = True,
    progress: Progress = silent,
) -> Benchmark:
    """Time a bundle on this machine, or count its instructions.

    Args:
        target: the description of `bundle.target`.
        threads: 0 takes one a processor. A counted run has one.
        repeat: timed runs, after one warm-up. With a counter there is one.
        counter: a command that runs the program after `--` and prints a JSON object with `instructions` for what ran
            between the markers `hint #0x71` and `hint #0x72`, and may have `cycles`: an estimate, or objects with an
            estimate `cycles` by model of a processor, of which the first counts. Empty: measure time.
        layers: count each layer too, with one run of the program for each.

    Raises:
        UsageError: the machine cannot run programs of the target and there is no counter.
        InternalError: the counter failed, or printed something else.
    """
    if repeat < 1:
        raise UsageError(f"a benchmark of {repeat} runs; expected at least 1")
    if not counter and not runs_natively(target):
        raise UsageError(
            f"this machine cannot run programs for '{target.name}', and times under emulation mean nothing",
            advice="count instructions with --counter COMMAND, or copy the bundle to the machine",
        )
    with tempfile.TemporaryDirectory() as folder:
        progress(0, 1, "build the program")
        program = _program(bundle, target, Path(folder))
        if counter:
            found = _count(counter, launcher(target), program, layers, progress)
        else:
            progress(0, 1, "run the bundle")
            found = _time(program, threads, repeat)
    return replace(found, layers=_with_macs(found.layers, bundle.macs))


def count_layers(
    bundle: Bundle,
    target: TargetDescription,
    counter: Sequence[str],
    layers: Sequence[int],
    *,
    progress: Progress = silent,
) -> list[float]:
    """What some layers cost, in the cycles that the counter estimates, else in its instructions.

    Args:
        counter: as for `bench`.
        layers: numbers of kernel calls.

    Raises InternalError if the counter failed, or printed something else.
    """
    with tempfile.TemporaryDirectory() as folder:
        program = _program(bundle, target, Path(folder))
        costs = []
        for done, layer in enumerate(layers):
            progress(done, len(layers), f"layer {layer}")
            counts = _counted(counter, program, layer)
            cycles = _cycles(counts)
            costs.append(float(counts["instructions"]) if cycles is None else cycles)
    return costs


def _program(bundle: Bundle, target: TargetDescription, folder: Path) -> Path:
    """The benchmark of a bundle, compiled in `folder`."""
    source, program = folder / "bench.c", folder / "bench"
    fields = interface_fields(bundle.name, bundle.inputs, bundle.outputs)
    source.write_text(environment().get_template("bench.c.jinja").render(fields), encoding="utf-8")
    build_program(source, target, bundle.include, bundle.static, program)
    return program


def _with_macs(layers: Sequence[LayerTime], macs: Sequence[int]) -> tuple[LayerTime, ...]:
    if len(layers) != len(macs):
        return tuple(layers)
    return tuple(replace(layer, macs=count) for layer, count in zip(layers, macs, strict=True))


def _time(program: Path, threads: int, repeat: int) -> Benchmark:
    lines = run_program((str(program), "time", str(threads), str(repeat))).splitlines()
    totals = [float(line) for line in lines[:repeat]]
    rows = [line.partition("\t") for line in lines[repeat:]]
    layers = tuple(LayerTime(name, float(cost)) for cost, _, name in rows)
    return Benchmark("ns", statistics.median(totals), min(totals), repeat, threads, layers, {})


def _count(
    counter: Sequence[str], emulator: Sequence[str], program: Path, layers: bool, progress: Progress
) -> Benchmark:
    whole = _counted(counter, program, -1)
    names = run_program((*emulator, str(program), "names")).splitlines() if layers else []
    costs = []
    for index, name in enumerate(names):
        progress(index, len(names), name)
        counts = _counted(counter, program, index)
        costs.append(LayerTime(name, float(counts["instructions"]), cycles=_cycles(counts)))
    total = float(whole["instructions"])
    return Benchmark("instructions", total, total, 1, 1, tuple(costs), whole)


def _cycles(counts: Mapping[str, Any]) -> float | None:
    found = counts.get("cycles")
    if isinstance(found, Mapping):
        first = next(iter(found.values()), None)
        found = first.get("cycles") if isinstance(first, Mapping) else first
    return float(found) if isinstance(found, int | float) else None


def _counted(counter: Sequence[str], program: Path, layer: int) -> dict[str, Any]:
    printed = run_program((*counter, "--", str(program), "count", str(layer)))
    try:
        counts: dict[str, Any] = json.loads(printed)
        float(counts["instructions"])
    except (ValueError, KeyError, TypeError) as error:
        raise InternalError(
            f"the counter '{' '.join(counter)}' printed no JSON object with 'instructions': {error}",
            where="\n".join(printed.splitlines()[:10]),
        ) from error
    return counts
