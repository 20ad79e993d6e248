"""Passes one after another: what a chain costs a real model's task, its bytes, and its cycles.

    python -m tests.benchmarks.chains REAL --only MODEL --chains CHAIN … --counter COMMAND --out FILE.jsonl
    python -m tests.benchmarks.chains REAL --out FILE.jsonl --table

A chain is specs of passes, joined by +; "float" has none. Passes run for cortex-a76 on the calibration split, behind
clean-up; scores are of the evaluation split by ONNX Runtime. The bundle is built for cortex-a76; COMMAND counts a
program after `--`, as for `graphopt bench`, and its first model of a core gives the cycles.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import graphopt
import graphopt.ir as graph_ir
from graphopt.analysis.cost import layer_costs, total
from graphopt.analysis.samples import Samples
from graphopt.errors import ModelWarning
from graphopt.passes.cleanup import DEFAULT as CLEANUP
from graphopt.pipeline.base import PassContext
from graphopt.pipeline.manager import run_passes
from graphopt.pipeline.registry import TARGETS
from graphopt.pipeline.spec import parse_spec
from tests.benchmarks.measuring import cycles
from tests.benchmarks.pruning import data_of
from tests.benchmarks.quantization import _distance, _outputs, _score
from tests.benchmarks.quantization_tasks import TASKS

FLOAT = "float"
CHAINS = (FLOAT, "quantize", "factorize{ratio=0.1}+quantize", "prune-channels{ratio=0.1}+quantize",
          "factorize{ratio=0.1}+prune-channels{ratio=0.1}+quantize")  # fmt: skip
TARGET = "cortex-a76"


@dataclasses.dataclass(frozen=True)
class Row:
    """kept: fraction of the MACs. model_bytes: of model.onnx. library_bytes: of the static library.

    cycles: estimated by the counter's first model of a core; None without a counter.
    """

    model: str
    chain: str
    samples: int
    metric: str
    score: float | None
    agreement: float | None
    sqnr_db: float
    kept: float
    model_bytes: int
    library_bytes: int
    cycles: float | None


def measure(real: Path, name: str, chains: Sequence[str], counter: Sequence[str]) -> Iterator[Row]:
    """A row for each chain."""
    task = TASKS[name]
    model = graph_ir.load(real / "models" / f"{name}.onnx")
    graph_ir.bind_shapes(model, task.shapes)
    data = data_of(real, name)
    truth = None if data.truth is None else [data.truth[index] for index in data.evaluating]
    arrays = {key: array[data.calibrating] for key, array in data.arrays.items()}
    context = PassContext(calibration=Samples(arrays, dict.fromkeys(arrays, 0)), target=TARGETS.find(TARGET))
    reference = _outputs(model, data, data.evaluating, task.outputs)
    run_passes(model, [parse_spec(item) for item in CLEANUP], context, compare=False)
    before = total(layer_costs(model)).macs
    for chain in chains:
        work = graph_ir.clone(model)
        passes = [] if chain == FLOAT else [parse_spec(item) for item in chain.split("+")]
        run_passes(work, passes, context, compare=False)
        runs = _outputs(work, data, data.evaluating, task.outputs)
        with tempfile.TemporaryDirectory() as folder:
            built = graphopt.optimize(work, TARGET, out=Path(folder) / "out", name="net").report
            counted = cycles(Path(folder) / "out", TARGET, counter)
        yield Row(
            name,
            chain,
            len(data.evaluating),
            task.metric if truth is not None else "",
            _score(task, runs, truth),
            task.agreement(reference, runs) if task.agreement else None,
            _distance(reference, runs, numbers=task.numbers)[0],
            total(layer_costs(work)).macs / before,
            built["totals"]["after"]["file_bytes"],
            built["library"]["static_bytes"],
            counted,
        )


def table(rows: Sequence[Row]) -> str:
    """As Markdown; the last row of a model and chain counts."""
    latest = {(row.model, row.chain): row for row in rows}
    head = ("model", "chain", "score", "agreement", "SQNR dB", "MACs left", "model.onnx kB", ".a kB", "M cycles")
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * 2 + " ---: |" * 7]
    for row in latest.values():
        score = "" if row.score is None else f"{row.score:.4f} {row.metric}"
        agreement = "" if row.agreement is None else f"{row.agreement:.3f}"
        sizes = (f"{size // 1000:,}" for size in (row.model_bytes, row.library_bytes))
        cycles = "" if row.cycles is None else f"{row.cycles / 1e6:.3f}"
        cells = (row.model, row.chain, score, agreement, f"{row.sqnr_db:.1f}", f"{row.kept:.3f}", *sizes, cycles)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and append to --out, or print the table of what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path, help="a folder with models, data and SOURCES.md")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl")
    parser.add_argument("--only", nargs="+", metavar="MODEL", choices=TASKS, default=["cifar10_resnet32"])
    parser.add_argument("--chains", nargs="+", metavar="CHAIN", default=CHAINS, help=f"'{FLOAT}', or specs joined by +")
    parser.add_argument("--counter", default="", metavar="COMMAND", help="counts a program that follows it")
    parser.add_argument("--table", action="store_true", help="print the table of --out, and measure nothing")
    options = parser.parse_args()
    if options.table:
        read: list[dict[str, Any]] = [json.loads(line) for line in options.out.read_text(encoding="utf-8").splitlines()]
        print(table([Row(**row) for row in read]))
        return
    warnings.simplefilter("ignore", ModelWarning)
    for name in options.only:
        for row in measure(options.real, name, options.chains, shlex.split(options.counter)):
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dataclasses.asdict(row)) + "\n")
            print(f"{name} {row.chain}: {row.score} {row.agreement} {row.cycles}", file=sys.stderr)


if __name__ == "__main__":
    main()
