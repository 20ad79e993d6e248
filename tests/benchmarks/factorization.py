"""What low-rank factors cost a real model's task, and what they save, without training.

    python -m tests.benchmarks.factorization REAL --out FILE.jsonl                # on the evaluation split
    python -m tests.benchmarks.factorization REAL --out FILE.jsonl --select       # within the calibration split
    python -m tests.benchmarks.factorization REAL --out FILE.jsonl --table        # print what is there

REAL has models/*.onnx, data/ and SOURCES.md, which names the splits; of CIFAR-10 all 2,000 pictures of the training set
calibrate. Every method runs on the model after clean-up, for cortex-a76. With --keep FOLDER the models are saved there,
to be built and counted.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import graphopt.ir as graph_ir
from graphopt.analysis.cost import layer_costs, total
from graphopt.analysis.samples import Samples
from graphopt.errors import ModelWarning
from graphopt.passes.factorize.costs import Saving
from graphopt.pipeline.base import PassContext
from graphopt.pipeline.registry import PASSES, TARGETS
from graphopt.pipeline.spec import parse_spec
from tests.benchmarks.pruning import data_of
from tests.benchmarks.quantization import _distance, _outputs, _score
from tests.benchmarks.quantization_tasks import TASKS

METHODS = {
    "weights alone": "whitened=false,refit=false,method=svd",
    "whitened": "refit=false,method=svd",
    "svd": "method=svd",
    "spatial": "method=spatial",
    "tucker2": "method=tucker2",
    "decoupled": "method=decoupled",
    "cp": "method=cp",
    "auto": "",
}
ASKED = (0.1, 0.2, 0.3, 0.4)
MODELS = tuple(TASKS)
SAVINGS = tuple(saving.value for saving in Saving)


@dataclasses.dataclass(frozen=True)
class Row:
    """kept, params: fractions of the original's. score and agreement are the task's, None where it has none."""

    model: str
    method: str
    asked: float
    split: str
    samples: int
    layers: int
    kept: float
    params: float
    metric: str
    float_score: float | None
    score: float | None
    agreement: float | None
    sqnr_db: float | None
    seconds: float
    saving: str = "macs"


def measure(
    real: Path,
    name: str,
    methods: Sequence[str],
    asked: Sequence[float],
    keep: Path | None,
    *,
    saving: str = "macs",
    select: bool = False,
) -> Iterator[Row]:
    """A row for each method and fraction that is asked for."""
    task = TASKS[name]
    model = graph_ir.load(real / "models" / f"{name}.onnx")
    graph_ir.bind_shapes(model, task.shapes)
    parse_spec("clean-up").run(model, PassContext())
    graph_ir.refresh_shapes(model)
    data = data_of(real, name)
    data = data.within_calibration() if select else data
    truth = None if data.truth is None else [data.truth[index] for index in data.evaluating]
    samples = Samples(
        {key: array[data.calibrating] for key, array in data.arrays.items()}, dict.fromkeys(data.arrays, 0)
    )
    before, reference = total(layer_costs(model)), _outputs(model, data, data.evaluating, task.outputs)
    context = PassContext(calibration=samples, target=TARGETS.find("cortex-a76"))
    for method in methods:
        for ratio in asked:
            work = graph_ir.clone(model)
            options = ",".join(filter(None, (f"ratio={ratio},saving={saving},model_lost=1", METHODS[method])))
            start = time.perf_counter()
            result = parse_spec(f"factorize{{{options}}}").run(work, context)
            seconds = time.perf_counter() - start
            graph_ir.refresh_shapes(work)
            graph_ir.verify(work)
            if keep is not None:
                graph_ir.save(work, keep / f"{name}.{method.replace(' ', '-')}.{saving}.{ratio}.onnx")
            after = total(layer_costs(work))
            runs = _outputs(work, data, data.evaluating, task.outputs)
            yield Row(
                name,
                method,
                ratio,
                "within calibration" if select else "evaluation",
                len(data.evaluating),
                int(result.statistics.get("layers-factored", 0)),
                after.macs / before.macs,
                after.params / before.params,
                task.metric if truth is not None else "",
                _score(task, reference, truth),
                _score(task, runs, truth),
                task.agreement(reference, runs) if task.agreement else None,
                _distance(reference, runs, numbers=task.numbers)[0],
                seconds,
                saving,
            )


def table(rows: list[dict[str, Any]]) -> str:
    """The score, or agreement, or SQNR, with the MACs that are left; the last row of each counts."""
    key = ("model", "method", "split", "saving")
    latest = {(*(row[part] for part in key), row["asked"]): row for row in rows}
    ratios = sorted({row["asked"] for row in rows})
    head = ["model", "method", "saving", "n", "float", *(f"asked {ratio}" for ratio in ratios), "s at the last"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for kind in dict.fromkeys(tuple(row[part] for part in key) for row in rows):
        found = [latest.get((*kind, ratio)) for ratio in ratios]
        some = [row for row in found if row is not None]
        cells = [*kind[:2], kind[3], some[0]["samples"], _score_of(some[0], some[0]["float_score"])]
        cells += ["" if row is None else _figure(row) for row in found]
        cells.append(f"{some[-1]['seconds']:.0f}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _score_of(row: dict[str, Any], score: float | None) -> str:
    if score is None:
        return ""
    return f"{100 * score:.1f}" if row["metric"] == "top-1" else f"{score:.3f} {row['metric']}"


def _figure(row: dict[str, Any]) -> str:
    if not row["layers"]:
        return "none"
    text = _score_of(row, row["score"])
    if not text and row["agreement"] is not None:
        text = f"{100 * row['agreement']:.1f} agree"
    return f"{text or format(row['sqnr_db'], '.1f') + ' dB'} ({row['kept']:.3f}, {row['params']:.3f})"


def main() -> None:
    """Measure and append to --out, or print the table of what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path, help="a folder with models, data and SOURCES.md")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl")
    parser.add_argument("--only", nargs="+", metavar="MODEL", choices=MODELS)
    parser.add_argument("--methods", nargs="+", metavar="METHOD", choices=METHODS)
    parser.add_argument("--asked", nargs="+", type=float, default=ASKED, help="fractions to remove")
    parser.add_argument("--saving", choices=SAVINGS, default="macs", help="of what")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="save the models there")
    parser.add_argument("--select", action="store_true", help="within the calibration split")
    parser.add_argument("--table", action="store_true", help="print the table of --out, and measure nothing")
    options = parser.parse_args()
    if options.table:
        print(table([json.loads(line) for line in options.out.read_text(encoding="utf-8").splitlines()]))
        return
    PASSES.find("factorize")
    warnings.simplefilter("ignore", ModelWarning)
    for name in options.only or MODELS:
        methods = options.methods or list(METHODS)
        arguments = (options.real, name, methods, options.asked, options.keep)
        for row in measure(*arguments, saving=options.saving, select=options.select):
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dataclasses.asdict(row)) + "\n")
            print(f"{name} {row.method} {row.kept:.3f}: {row.score} {row.agreement} {row.sqnr_db}", file=sys.stderr)


if __name__ == "__main__":
    main()
