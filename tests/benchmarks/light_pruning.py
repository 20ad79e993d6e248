"""Prune the onnx package's light models, or the real ones, by 30 % of their MACs, and run what is left in ONNX Runtime.

    python -m tests.benchmarks.light_pruning --out rows.jsonl [--real REAL] [--keep FOLDER] [--counter COMMAND]
    python -m tests.benchmarks.light_pruning --out rows.jsonl --table

No accuracy is measured (the light models have random weights, `tests.benchmarks.light_models`; for the real ones
`pruning` does that): channels go by their norm, the same fraction of each group, and nothing is refitted. A model that
keeps its MACs is there with what stays and why. MACs are counted in the graph that is left. `--keep` saves both graphs.
With `--counter` both are built for the target, and COMMAND counts a program after `--`, as for `graphopt bench`; its
first model of a core gives the cycles. Models that `--out` has in full are not measured again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

import graphopt
import graphopt.ir as graph_ir
from graphopt.analysis.cost import layer_costs, total
from graphopt.analysis.execution import Session
from graphopt.analysis.samples import probe_samples
from graphopt.errors import GraphoptError, ModelWarning
from graphopt.pipeline.base import PassContext
from graphopt.pipeline.registry import TARGETS
from graphopt.pipeline.spec import parse_spec
from tests.benchmarks.inputs import CASES
from tests.benchmarks.light_models import FOLDER, randomize
from tests.benchmarks.measuring import cycles


@dataclasses.dataclass(frozen=True)
class Row:
    """MACs before and after; reasons: of layers that keep their channels, with how many there are of each.

    refused: why the model was not read, or is not built; empty if it was pruned as far as it goes.
    cycles_before, cycles_after: estimated for the two bundles; None without a counter.
    """

    model: str
    before: int
    after: int
    finite: bool
    seconds: float
    reasons: dict[str, int]
    refused: str = ""
    cycles_before: float | None = None
    cycles_after: float | None = None


def light(file: Path) -> ir.Model:
    """With random weights."""
    proto = onnx.load(file)
    randomize(proto)
    return graph_ir.load(proto)


def real(file: Path) -> ir.Model:
    """As it is, with the shapes that its inputs have."""
    model = graph_ir.load(file)
    graph_ir.bind_shapes(model, CASES[file.stem].shapes or {})
    return model


def measure(
    file: Path,
    load: Callable[[Path], ir.Model],
    ratio: float,
    target: str,
    keep: Path | None,
    counter: Sequence[str],
) -> Row:
    """One model."""
    try:
        model = load(file)
    except GraphoptError as error:
        return Row(file.stem, 0, 0, False, 0.0, {}, error.what)
    parse_spec("clean-up").run(model, PassContext())
    graph_ir.refresh_shapes(model)
    before = total(layer_costs(model)).macs
    if keep is not None:
        graph_ir.save(model, keep / f"{file.stem}.onnx")
    refused = ""
    try:
        cycles_before = _cycles(model, target, counter)
    except GraphoptError as error:
        refused, counter, cycles_before = error.what, (), None
    start = time.perf_counter()
    spec = parse_spec(f"prune-channels{{ratio={ratio},importance=l2,allocation=uniform,reconstruct=false}}")
    result = spec.run(model, PassContext(target=TARGETS.find(target)))
    seconds = time.perf_counter() - start
    graph_ir.refresh_shapes(model)
    graph_ir.verify(model)
    if keep is not None:
        graph_ir.save(model, keep / f"{file.stem}.pruned.onnx")
    with Session(model) as session:
        outputs = session.run(next(iter(probe_samples(model, 0, 1))))
    finite = all(bool(np.isfinite(array).all()) for array in outputs.values())
    reasons = Counter(each.reason.partition(": ")[2] or each.reason for each in result.declined)
    after = total(layer_costs(model)).macs
    cycles_after = _cycles(model, target, counter)
    return Row(file.stem, before, after, finite, seconds, dict(reasons), refused, cycles_before, cycles_after)


def _cycles(model: ir.Model, target: str, counter: Sequence[str]) -> float | None:
    if not counter:
        return None
    with tempfile.TemporaryDirectory() as folder:
        graphopt.optimize(graph_ir.clone(model), target, out=Path(folder) / "out", name="net")
        return cycles(Path(folder) / "out", target, counter)


def table(rows: Iterable[Row]) -> str:
    """As Markdown; the last row of a model counts."""
    head = ("model", "MACs, million", "left", "M cycles before", "after", "left", "s", "what stays")
    lines = [f"| {' | '.join(head)} |", "| --- |" + " ---: |" * 6 + " --- |"]
    for row in {row.model: row for row in rows}.values():
        if not row.before:
            lines.append(f"| {row.model} |" + " |" * 6 + f" {row.refused} |")
            continue
        stays = "; ".join([row.refused] * bool(row.refused) + [f"{each} ({n})" for each, n in row.reasons.items()])
        figures = f"{row.before / 1e6:,.2f} | {row.after / row.before:.3f} | {_ratio(row)} | {row.seconds:.1f}"
        lines.append(f"| {row.model} | {figures} | {stays} |")
    return "\n".join(lines)


def _ratio(row: Row) -> str:
    if row.cycles_before is None or row.cycles_after is None:
        return " | | "
    left = row.cycles_after / row.cycles_before
    return f"{row.cycles_before / 1e6:,.3f} | {row.cycles_after / 1e6:,.3f} | {left:.3f}"


def _finished(file: Path, *, counted: bool) -> list[Row]:
    """The rows of a file that need no more measuring; none if there is no file."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    rows = [Row(**json.loads(line)) for line in lines]
    return [row for row in rows if row.refused or row.cycles_after is not None or not counted]


def main() -> None:
    """Read the command line, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines to append to")
    parser.add_argument("--real", type=Path, help="folder of real models, to prune those in models/")
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--target", default="cortex-a76", help="whose multiple of channels is kept")
    parser.add_argument("--only", nargs="+", metavar="MODEL", help="names without .onnx")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="save the graphs")
    parser.add_argument("--counter", default="", metavar="COMMAND", help="counts a program that follows it")
    parser.add_argument("--table", action="store_true", help="print the table of --out, and measure nothing")
    options = parser.parse_args()
    if options.table:
        print(table(_finished(options.out, counted=False)))
        return
    warnings.simplefilter("ignore", ModelWarning)
    folder, load = (FOLDER, light) if options.real is None else (options.real / "models", real)
    counter = shlex.split(options.counter)
    finished = {row.model for row in _finished(options.out, counted=bool(counter))}
    for file in sorted(folder.glob("*.onnx")):
        if file.stem in finished or (options.only and file.stem not in options.only):
            continue
        row = measure(file, load, options.ratio, options.target, options.keep, counter)
        with options.out.open("a", encoding="utf-8") as out:
            out.write(json.dumps(dataclasses.asdict(row)) + "\n")
        left = row.refused or f"{row.after / row.before:.3f} of the MACs, finite: {row.finite}"
        print(f"{row.model}: {left}", file=sys.stderr)


if __name__ == "__main__":
    main()
