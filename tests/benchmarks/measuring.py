"""Build a model with the command line, run it, compare it with ONNX Runtime on the original, and write the table."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from graphopt.deploy import open_bundle
from graphopt.deploy.bench import bench
from graphopt.pipeline.registry import TARGETS

TOLERANCE = 1e-4  # of an output's range
ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass
class Row:
    """One model's measurement. Bytes, seconds and MACs; MACs are of one inference of the optimized model."""

    model: str
    inputs: str
    samples: int
    status: str = ""  # agrees, differs, refused, failed
    message: str = ""  # why it was refused or failed
    nodes_before: int = 0
    nodes_after: int = 0
    macs: int = 0
    relative: float = math.nan  # the worst output's largest error over its range
    sqnr_db: float = math.nan  # the worst output's
    top1: float | None = None
    shared_bytes: int = 0
    context_bytes: int = 0  # the arena
    build_seconds: float = 0.0
    build_peak_bytes: int = 0  # resident, the largest process
    verify_seconds: float = 0.0
    outputs: list[dict[str, Any]] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Finished:
    """What a command left."""

    status: int
    stdout: str
    stderr: str
    seconds: float
    peak_bytes: int


def graphopt(arguments: Sequence[str], *, limit: float = 3600) -> Finished:
    """Run the command line in a process of its own, so that its memory and a crash are its own too."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        process = subprocess.Popen(
            ["timeout", str(limit), sys.executable, "-m", "graphopt", *arguments], stdout=out, stderr=err, cwd=ROOT
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
        out.seek(0)
        err.seek(0)
        return Finished(process.returncode, out.read(), err.read(), seconds, usage.ru_maxrss * 1024)


def cycles(bundle: Path, target: str, counter: Sequence[str]) -> float | None:
    """Of one inference on zeros, as the counter's first model of a core estimates them; None without a counter."""
    if not counter:
        return None
    found = bench(open_bundle(bundle), TARGETS.find(target), counter=counter, layers=False)
    return float(next(iter(found.counts["cycles"].values()))["cycles"])


def measure(
    row: Row,
    model: Path,
    *,
    target: str,
    inputs: Mapping[str, np.ndarray[Any, Any]] | None,
    shapes: Mapping[str, tuple[int, ...]],
    keep: Path | None = None,
    options: Sequence[str] = (),
) -> Row:
    """Build, run and compare `model`, and fill `row`.

    keep: where the bundle stays, if given.
    options: more of `optimize`.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = keep or Path(folder, "bundle")
        bound = [f"--shape={name}={','.join(map(str, shape))}" for name, shape in shapes.items()]
        built = graphopt(["optimize", str(model), "--target", target, "-o", str(out), "--json", *bound, *options])
        row.build_seconds, row.build_peak_bytes = built.seconds, built.peak_bytes
        if built.status:
            row.message = _error(built)
            row.status = "refused" if built.status == 1 and _names_operator(row.message, model) else "failed"
            return row
        _read_report(row, json.loads(built.stdout))
        arguments = ["verify", str(out), "--original", str(model), "--tolerance", "inf", "--json"]
        if inputs is not None:
            np.savez(Path(folder, "inputs.npz"), allow_pickle=False, **inputs)
            arguments += ["--inputs", str(Path(folder, "inputs.npz"))]
        verified = graphopt(arguments)
    row.verify_seconds = verified.seconds
    if verified.status:
        row.status, row.message = "failed", _error(verified)
        return row
    result = json.loads(verified.stdout)
    row.outputs, row.samples = result["outputs"], result["samples"]
    row.relative = max((float(output["relative"]) for output in row.outputs), key=_nan_last)
    row.sqnr_db = min(float(output["sqnr_db"]) for output in row.outputs)
    row.top1 = min((o["top1_agreement"] for o in row.outputs if o["top1_agreement"] is not None), default=None)
    row.status = "agrees" if row.relative <= TOLERANCE else "differs"
    return row


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _error(finished: Finished) -> str:
    """The message that the command ends with, after warnings of graphopt and of the compiler."""
    start = re.search(r"^\w+Error: ", finished.stderr, re.MULTILINE)
    return finished.stderr[start.start() :] if start else f"exit status {finished.status}: {finished.stderr[-500:]}"


def _names_operator(message: str, model: Path) -> bool:
    nodes = onnx.load(model, load_external_data=False).graph.node
    return not {node.op_type for node in nodes}.isdisjoint(re.findall(r"\w+", message))


def _read_report(row: Row, report: Mapping[str, Any]) -> None:
    before, after, library = report["totals"]["before"], report["totals"]["after"], report["library"]
    row.nodes_before, row.nodes_after, row.macs = before["nodes"], after["nodes"], after["macs"]
    row.shared_bytes = library["shared_bytes"]
    row.context_bytes = library["arena_bytes"]


def write_line(file: Path, row: Row) -> None:
    """Append the row to a file of JSON lines; a later line of the same model takes the place of an earlier one."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(dataclasses.asdict(row)) + "\n")


def read_lines(file: Path) -> list[Row]:
    """The last row of each model, in the order in which the models came first."""
    rows: dict[str, Row] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        row = Row(**json.loads(line))
        rows[row.model] = row
    return list(rows.values())


def table(rows: Iterable[Row]) -> str:
    """A table in Markdown, and below it the messages of models that did not build or run, and remarks on outputs."""
    rows = sorted(rows, key=lambda row: row.model)
    lines = [
        "| model | inputs | result | nodes | MACs, M | relative error | SQNR, dB | same top-1 "
        "| .so, KB | context, KB | build, s |",
        "|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
        *map(_cells, rows),
    ]
    notes = [f"- {row.model}: {' '.join(row.message.split())}" for row in rows if row.message]
    notes += [
        f"- {row.model}, {output['name']}: {output['note']}" for row in rows for output in row.outputs if output["note"]
    ]
    return "\n".join([*lines, *([""] if notes else []), *notes, ""])


def _cells(row: Row) -> str:
    inputs = f"{row.samples} × {row.inputs}"
    if row.status in ("refused", "failed"):
        return f"| {row.model} | {inputs} | **{row.status}** |" + " |" * 8
    result = row.status if row.status == "agrees" else f"**{row.status}**"
    top1 = "–" if row.top1 is None else f"{100 * row.top1:.0f} %"
    sqnr = "∞" if math.isinf(row.sqnr_db) and row.sqnr_db > 0 else f"{row.sqnr_db:.0f}"
    cells = (
        row.model,
        inputs,
        result,
        f"{row.nodes_before} → {row.nodes_after}",
        f"{row.macs / 1e6:.1f}",
        f"{row.relative:.1e}",
        sqnr,
        top1,
        f"{row.shared_bytes / 1e3:,.0f}",
        f"{row.context_bytes / 1e3:,.0f}",
        f"{row.build_seconds:.0f}",
    )
    return "| " + " | ".join(cells) + " |"
