"""Bytes of models and libraries: float, palettes and int8, with and without compression, and what each costs.

    python -m tests.benchmarks.storage REAL --out FILE.jsonl    # build for cortex-a76, measure on evaluation splits
    python -m tests.benchmarks.storage REAL --out FILE.jsonl --table    # print what is there

REAL is the folder that tests.benchmarks.quantization reads; splits, metrics and runs are those of that benchmark.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx_ir as ir

import graphopt
import graphopt.ir as graph_ir
from graphopt.analysis.samples import Samples
from graphopt.errors import ModelWarning
from tests.benchmarks.quantization import _by_graphopt, _distance, _outputs, _score
from tests.benchmarks.quantization_tasks import TASKS

MODELS = ("squeezenet_v1.1_224", "cifar10_resnet32", "kws_lstm3_mfcc12", "stories260k_lm_t128")
FLOAT = "float"
METHODS = (FLOAT, "palettize", "palettize{entries=64}", "palettize{entries=16}", "quantize")
TARGET = "cortex-a76"
_HEAD = ("model", "method", "metric", "score", "agreement", "SQNR dB", "model.onnx", ".so", ".a", ".so, compressed",
         ".a, compressed", "decoded", "coded as")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Row:
    """One model by one method; bytes of the files, those that end in _compressed with --compress."""

    model: str
    method: str
    samples: int
    metric: str
    score: float | None
    agreement: float | None  # with the float model, as the task means it
    sqnr_db: float | None
    onnx: int
    shared: int
    static: int
    shared_compressed: int
    static_compressed: int
    decoded: int  # of memory, shared by all contexts
    coders: dict[str, tuple[int, int]]  # bytes before and after


def measure(real: Path, name: str, methods: tuple[str, ...]) -> Iterator[Row]:
    """A row for each method."""
    task = TASKS[name]
    model = graph_ir.load(real / "models" / f"{name}.onnx")
    graph_ir.bind_shapes(model, task.shapes)
    data = task.load(real)
    truth = None if data.truth is None else [data.truth[index] for index in data.evaluating]
    arrays = {key: array[data.calibrating] for key, array in data.arrays.items()}
    samples = Samples(arrays, dict.fromkeys(data.arrays, 0))
    reference = _outputs(model, data, data.evaluating, task.outputs)
    for method in methods:
        made = model if method == FLOAT else _by_graphopt(model, method, samples)[0]
        runs = reference if method == FLOAT else _outputs(made, data, data.evaluating, task.outputs)
        metric = task.metric if truth is not None else ""
        agreement = task.agreement(reference, runs) if task.agreement else None
        distance = None if method == FLOAT else _distance(reference, runs, numbers=task.numbers)[0]
        score = _score(task, runs, truth)
        yield Row(name, method, len(data.evaluating), metric, score, agreement, distance, *_sizes(made))


def _sizes(model: ir.Model) -> tuple[Any, ...]:
    """The last fields of a row."""
    with tempfile.TemporaryDirectory() as folder:
        plain, packed = (
            graphopt.optimize(model, TARGET, out=Path(folder) / str(compress), name="net", compress=compress).report
            for compress in (False, True)
        )
    storage = packed["library"]["storage"]
    return (
        plain["totals"]["after"]["file_bytes"],
        *(report["library"][f"{kind}_bytes"] for report in (plain, packed) for kind in ("shared", "static")),
        storage["decoded_bytes"],
        {use["coder"]: (use["bytes"], use["stored_bytes"]) for use in storage["coders"]},
    )


def table(rows: list[Row]) -> str:
    """Rows as a Markdown table, sizes in kB; the last of a model and method counts."""
    latest = {(row.model, row.method): row for row in rows}
    lines = [f"| {' | '.join(_HEAD)} |", "|" + " --- |" * 3 + " ---: |" * 9 + " --- |"]
    for row in latest.values():
        numbers = [f"{number:.4f}" if number is not None else "" for number in (row.score, row.agreement)]
        distance = "" if row.sqnr_db is None else f"{row.sqnr_db:.1f}"
        sizes = (row.onnx, row.shared, row.static, row.shared_compressed, row.static_compressed, row.decoded)
        used = {name: sizes for name, sizes in row.coders.items() if sizes[0] >= 1000}
        coders = ", ".join(f"{name} {before // 1000} to {after // 1000}" for name, (before, after) in used.items())
        cells = [
            row.model,
            row.method,
            row.metric,
            *numbers,
            distance,
            *(f"{size // 1000:,}" for size in sizes),
            coders,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Read the command line, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path, help="folder of real models")
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines to append to")
    parser.add_argument("--only", nargs="+", metavar="MODEL", choices=TASKS, default=MODELS)
    parser.add_argument("--methods", nargs="+", metavar="SPEC", default=METHODS, help=f"'{FLOAT}', or pass specs")
    parser.add_argument("--table", action="store_true", help="print the table of --out, and measure nothing")
    options = parser.parse_args()
    if options.table:
        print(table([Row(**json.loads(line)) for line in options.out.read_text(encoding="utf-8").splitlines()]))
        return
    warnings.simplefilter("ignore", ModelWarning)
    for name in options.only:
        for row in measure(options.real, name, tuple(options.methods)):
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dataclasses.asdict(row)) + "\n")
            print(f"{name} {row.method}: {row.onnx} {row.shared} {row.shared_compressed}", file=sys.stderr)


if __name__ == "__main__":
    main()
