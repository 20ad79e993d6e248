"""Accuracy of int8 models: graphopt beside ONNX Runtime's quantize_static and NNCF, on the same model and samples.

    python -m tests.benchmarks.quantization REAL --out FILE.jsonl --nncf PYTHON   # measure on the evaluation split
    python -m tests.benchmarks.quantization REAL --out FILE.jsonl --select        # compare within calibration alone
    python -m tests.benchmarks.quantization REAL --out FILE.jsonl --table         # print what is there

REAL has models/*.onnx, data/ and SOURCES.md, which names the splits. Pictures need Pillow; PYTHON is the interpreter of
an environment that has NNCF. Every model is run by ONNX Runtime as written, its own optimizations off, so that no
kernel's shortcuts count. `--select` calibrates on the even samples of the calibration split and measures on its odd
ones; the evaluation split is not touched.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import graphopt.ir as graph_ir
from graphopt.analysis.comparison import compare_runs
from graphopt.analysis.execution import Session
from graphopt.analysis.samples import Samples
from graphopt.errors import GraphoptError, ModelWarning
from graphopt.passes.cleanup import DEFAULT as CLEANUP
from graphopt.pipeline.base import PassContext
from graphopt.pipeline.manager import run_passes
from graphopt.pipeline.registry import PASSES
from graphopt.pipeline.spec import parse_spec
from tests.benchmarks.quantization_data import Data
from tests.benchmarks.quantization_peers import NNCF, ONNX_RUNTIME, PeerError, Peers
from tests.benchmarks.quantization_rows import Row, append, read, table
from tests.benchmarks.quantization_tasks import TASKS, Task

Array = np.ndarray[Any, Any]
Runs = list[dict[str, Array]]

DEFAULT = "quantize"
OBSERVERS = ("min-max", "moving-average", "percentile", "entropy", "mse")
VARIANTS = (
    *(f"quantize{{observer={name}}}" for name in OBSERVERS),
    "quantize{weight_observer=min-max}",
    "quantize{symmetric_activations=true}",
    "quantize{per_channel=false}",
)


def _by_graphopt(model: ir.Model, spec: str, samples: Samples) -> tuple[ir.Model, float, int]:
    """Clean-up, and the passes of `spec`, separated by +, as the command runs them; seconds; integer layers."""
    work = graph_ir.clone(model)
    passes = [parse_spec(item) for item in (*CLEANUP, *spec.split("+"))]
    records = run_passes(work, passes, PassContext(calibration=samples), compare=False)
    layers = [record.statistics["integer-layers"] for record in records if "integer-layers" in record.statistics]
    return work, sum(record.seconds for record in records), int(layers[-1]) if layers else 0


def _outputs(model: ir.Model, data: Data, indices: Array, names: Sequence[str]) -> Runs:
    """The outputs `names` (all if empty) of samples; a network that streams runs on its own state from the start."""
    with Session(model, threads=1) as session:
        if not data.carried:
            return [_chosen(session.run(_feeds(data, index)), names) for index in indices]
        state = {key: data.arrays[key][0] for key in data.carried}
        runs = {}
        for index in range(indices.max() + 1):
            outputs = session.run({**_feeds(data, index), **state})
            state = {key: outputs[source] for key, source in data.carried.items()}
            runs[index] = _chosen(outputs, names)
        return [runs[index] for index in indices]


def _feeds(data: Data, index: int) -> dict[str, Array]:
    return {name: np.asarray(array[index]) for name, array in data.arrays.items()}


def _chosen(outputs: dict[str, Array], names: Sequence[str]) -> dict[str, Array]:
    return {name: outputs[name] for name in names} if names else outputs


def _size(model: ir.Model) -> int:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        graph_ir.save(model, file)
        return file.stat().st_size


def measure(real: Path, name: str, methods: Sequence[str], peers: Peers, *, select: bool) -> Iterator[Row]:
    """A row for each method, on the evaluation split, or within the calibration split."""
    task = TASKS[name]
    model = graph_ir.load(real / "models" / f"{name}.onnx")
    graph_ir.bind_shapes(model, task.shapes)
    data = task.load(real)
    data = data.within_calibration() if select else data
    truth = None if data.truth is None else [data.truth[index] for index in data.evaluating]
    feeds = [_feeds(data, index) for index in data.calibrating]
    samples = Samples(
        {key: array[data.calibrating] for key, array in data.arrays.items()}, dict.fromkeys(data.arrays, 0)
    )
    reference = _outputs(model, data, data.evaluating, task.outputs)
    split = "within calibration" if select else "evaluation"
    for method in methods:
        layers, start = None, time.perf_counter()
        try:
            if method in (*ONNX_RUNTIME, *NNCF):
                made = peers.quantized(method, model, feeds)
                seconds = time.perf_counter() - start
            else:
                made, seconds, layers = _by_graphopt(model, method, samples)
            runs = _outputs(made, data, data.evaluating, task.outputs)
        except (PeerError, GraphoptError) as error:
            yield Row(name, method, split, len(data.evaluating), failed=str(error))
            continue
        yield Row(
            name,
            method,
            split,
            len(data.evaluating),
            task.metric if truth is not None else "",
            _score(task, reference, truth),
            _score(task, runs, truth),
            task.agreement(reference, runs) if task.agreement else None,
            *_distance(reference, runs, numbers=task.numbers),
            _size(made),
            _size(model),
            seconds,
            layers,
        )


def _score(task: Task, runs: Runs, truth: list[Any] | None) -> float | None:
    return None if truth is None or task.score is None else task.score(runs, truth)


def _distance(reference: Runs, runs: Runs, *, numbers: bool) -> tuple[float | None, float | None]:
    """SQNR in dB of the worst output, and the largest difference of any."""
    if not numbers:
        return None, None
    compared = compare_runs(reference, runs)
    return min(each.sqnr_db for each in compared), max(each.max_abs for each in compared)


def main() -> None:
    """Read the command line, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path, help="folder of real models")
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines to append to")
    parser.add_argument("--only", nargs="+", metavar="MODEL", choices=TASKS)
    named = ", ".join((*ONNX_RUNTIME, *NNCF))
    parser.add_argument("--methods", nargs="+", metavar="SPEC", help=f"pass specs joined by +, or one of {named}")
    parser.add_argument("--nncf", metavar="PYTHON", help="interpreter of an environment that has NNCF")
    parser.add_argument("--select", action="store_true", help="compare options within the calibration split")
    parser.add_argument("--table", action="store_true", help="print the table of --out, and measure nothing")
    options = parser.parse_args()
    if options.table:
        print(table(read(options.out)))
        return
    PASSES.find("quantize")
    warnings.simplefilter("ignore", ModelWarning)
    methods = options.methods or (
        VARIANTS if options.select else (DEFAULT, *ONNX_RUNTIME, *(NNCF if options.nncf else ()))
    )
    for name in options.only or TASKS:
        for row in measure(options.real, name, methods, Peers(options.nncf), select=options.select):
            append(row, options.out)
            print(_line(row), file=sys.stderr)


def _line(row: Row) -> str:
    if row.failed:
        return f"{row.model} {row.method}: {row.failed}"
    pairs = {row.metric or "score": row.score, "float": row.float_score, "agreement": row.agreement, "dB": row.sqnr_db}
    known = ", ".join(f"{key} {value:.4f}" for key, value in pairs.items() if value is not None)
    return f"{row.model} {row.method}: {known}, {row.seconds:.0f} s"


if __name__ == "__main__":
    main()
