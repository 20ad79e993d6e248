"""Accuracy against the MACs that structured pruning leaves, without training.

    python -m tests.benchmarks.pruning REAL --out FILE.jsonl                # on the evaluation split
    python -m tests.benchmarks.pruning REAL --out FILE.jsonl --select       # within the calibration split
    python -m tests.benchmarks.pruning REAL --out FILE.jsonl --table        # print what is there
    python -m tests.benchmarks.pruning REAL --out FILE.jsonl --target cortex-a76 --keep FOLDER    # to count cycles

REAL has models/*.onnx, data/ and SOURCES.md, which names the splits; of CIFAR-10 all 2,000 pictures of the training set
calibrate. Every method runs on the model after clean-up. MACs are counted in the graph that is left.
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

import numpy as np
import onnx_ir as ir

import graphopt.ir as graph_ir
from graphopt.analysis.accuracy import predictions
from graphopt.analysis.cost import layer_costs, total
from graphopt.analysis.samples import Samples
from graphopt.errors import ModelWarning
from graphopt.passes.prune.normalization import Normalization
from graphopt.pipeline.base import PassContext
from graphopt.pipeline.registry import PASSES, TARGETS
from graphopt.pipeline.spec import parse_spec
from tests.benchmarks.inputs import IMAGENET_MEAN, IMAGENET_STD, _normalized
from tests.benchmarks.quantization_data import Data
from tests.benchmarks.quantization_tasks import TASKS

NAIVE = "importance=l2,allocation=uniform,reconstruct=false"
_GLOBAL = "importance=l2,allocation=global,reconstruct=false,normalization="
METHODS = {
    "l2, uniform": NAIVE,
    "surgeon, uniform": "allocation=uniform,reconstruct=false",
    "surgeon, sensitivity": "reconstruct=false",
    "surgeon, sensitivity, refitted": "",
    "surgeon, divergence, refitted": "sensitivity=divergence,measured=256",
    "surgeon, labels, refitted": "sensitivity=labels,measured=512",
    "taylor, uniform": "importance=taylor,allocation=uniform,reconstruct=false",  # these two need torch
    "fisher, uniform": "importance=fisher,allocation=uniform,reconstruct=false",
    **{f"l2, global by {each.value}": _GLOBAL + each.value for each in Normalization},
}
USUAL = tuple(METHODS)[:4]
KEPT = (0.9, 0.8, 0.7, 0.6, 0.5)
MODELS = (
    "cifar10_resnet20",
    "cifar10_resnet32",
    "mlperftiny_resnet8_cifar10",
    "mlperftiny_kws_dscnn",
    "kws_lstm3_mfcc12",
    "mobilenet_v1_0.25_128",
    "mobilenet_v1_0.75_192",
    "mobilenet_v2_1.0_224",
    "squeezenet_v1.1_224",
)
_CIFAR = ("cifar10_resnet20", "cifar10_resnet32")


@dataclasses.dataclass(frozen=True)
class Row:
    """kept, params: fractions of the original's. accuracy and float_accuracy: top-1, None without classes."""

    model: str
    method: str
    ratio: float
    split: str
    samples: int
    kept: float
    params: float
    float_accuracy: float | None
    accuracy: float | None
    agreement: float
    seconds: float
    target: str = ""


def data_of(real: Path, name: str) -> Data:
    if name not in _CIFAR:
        return TASKS[name].load(real)
    train, test = (np.load(real / "data" / f"cifar10_{part}_u8.npz") for part in ("train", "test"))
    pictures = np.concatenate([train["x"], test["x"][:2000]])
    classes = [*train["y"], *test["y"][:2000]]
    scale = (255 * np.array(IMAGENET_MEAN), 255 * np.array(IMAGENET_STD))
    count = len(train["x"])
    array = _normalized(list(pictures), *scale)
    return Data({"input": array}, classes, np.arange(count), np.arange(count, len(pictures)), {})


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A model after clean-up, its samples in two parts, and their classes: labels of those that calibrate."""

    model: ir.Model
    calibrating: Samples
    evaluating: Samples
    labels: np.ndarray[Any, Any] | None
    truth: np.ndarray[Any, Any] | None


def prepare(real: Path, name: str, *, select: bool) -> Prepared:
    """The model `name` with its data; `select` parts the calibration split."""
    model = graph_ir.load(real / "models" / f"{name}.onnx")
    graph_ir.bind_shapes(model, TASKS[name].shapes)
    parse_spec("clean-up").run(model, PassContext())
    graph_ir.refresh_shapes(model)
    data = data_of(real, name)
    data = data.within_calibration() if select else data
    parts = data.calibrating, data.evaluating
    calibrating, evaluating = (
        Samples({key: array[indices] for key, array in data.arrays.items()}, dict.fromkeys(data.arrays, 0))
        for indices in parts
    )
    labels, truth = (
        None if data.truth is None else np.array([data.truth[index] for index in indices]) for indices in parts
    )
    return Prepared(model, calibrating, evaluating, labels, truth)


def measure(
    real: Path,
    name: str,
    methods: Sequence[str],
    kept: Sequence[float],
    *,
    select: bool,
    target: str = "",
    keep: Path | None = None,
) -> Iterator[Row]:
    """A row for each method and fraction; `keep` is a folder for the models, `target` the one they are pruned for."""
    description = TARGETS.find(target) if target else None
    task = prepare(real, name, select=select)
    model, calibrating, evaluating, truth = task.model, task.calibrating, task.evaluating, task.truth
    before = total(layer_costs(model))
    reference, _ = predictions(model, evaluating)
    for method in methods:
        for fraction in kept:
            work = graph_ir.clone(model)
            options = ",".join(filter(None, (f"ratio={round(1 - fraction, 4)}", METHODS[method])))
            start = time.perf_counter()
            parse_spec(f"prune-channels{{{options}}}").run(
                work, PassContext(target=description, calibration=calibrating, labels=task.labels)
            )
            seconds = time.perf_counter() - start
            graph_ir.refresh_shapes(work)
            graph_ir.verify(work)
            if keep is not None:
                keep.mkdir(parents=True, exist_ok=True)
                graph_ir.save(model, keep / f"{name}.onnx")
                graph_ir.save(work, keep / f"{name}.{fraction}.onnx")
            after = total(layer_costs(work))
            found, _ = predictions(work, evaluating)
            yield Row(
                name,
                method,
                round(1 - fraction, 4),
                "within calibration" if select else "evaluation",
                len(evaluating),
                after.macs / before.macs,
                after.params / before.params,
                None if truth is None else float(np.mean(reference == truth)),
                None if truth is None else float(np.mean(found == truth)),
                float(np.mean(found == reference)),
                seconds,
                target,
            )


def table(rows: list[dict[str, Any]]) -> str:
    """Top-1, or agreement where there are no classes, by method and fraction; the last row of each counts."""
    rows = [{**row, "method": " for ".join(filter(None, (row["method"], row.get("target"))))} for row in rows]
    latest = {(row["model"], row["method"], row["ratio"], row["split"]): row for row in rows}
    ratios = sorted({row["ratio"] for row in rows})
    head = ["model", "method", "n", "float", *(f"{1 - ratio:.1f}" for ratio in ratios), "s at the last"]
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    for model, method, split in dict.fromkeys((row["model"], row["method"], row["split"]) for row in rows):
        found = [latest.get((model, method, ratio, split)) for ratio in ratios]
        some = next(row for row in found if row is not None)
        cells = [model, method, some["samples"], _percent(some["float_accuracy"])]
        cells += ["" if row is None else _figure(row) for row in found]
        cells.append(f"{[row for row in found if row is not None][-1]['seconds']:.0f}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.1f}"


def _figure(row: dict[str, Any]) -> str:
    score = _percent(row["accuracy"]) or f"{_percent(row['agreement'])} agree"
    short = "" if row["kept"] <= 1 - row["ratio"] + 0.005 else f" ({row['kept']:.2f} left)"
    return score + short


def main() -> None:
    """Read the command line, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path, help="folder of real models")
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines to append to")
    parser.add_argument("--only", nargs="+", metavar="MODEL", choices=MODELS)
    parser.add_argument("--methods", nargs="+", metavar="METHOD", choices=METHODS)
    parser.add_argument("--kept", nargs="+", type=float, default=KEPT, help="fractions of the MACs")
    parser.add_argument("--select", action="store_true", help="within the calibration split")
    parser.add_argument("--target", default="", help="whose multiple of channels is kept; none without")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="save the models before and after")
    parser.add_argument("--table", action="store_true", help="print the table of --out, and measure nothing")
    options = parser.parse_args()
    if options.table:
        print(table([json.loads(line) for line in options.out.read_text(encoding="utf-8").splitlines()]))
        return
    PASSES.find("prune-channels")
    warnings.simplefilter("ignore", ModelWarning)
    for name in options.only or MODELS:
        for row in measure(
            options.real,
            name,
            options.methods or USUAL,
            options.kept,
            select=options.select,
            target=options.target,
            keep=options.keep,
        ):
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dataclasses.asdict(row)) + "\n")
            print(f"{name} {row.method} {row.kept:.3f}: {row.accuracy} {row.agreement:.4f}", file=sys.stderr)


if __name__ == "__main__":
    main()
