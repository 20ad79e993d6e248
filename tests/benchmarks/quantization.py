"""Accuracy of int8 models: graphopt beside ONNX Runtime's quantize_static, on the same model and calibration data.

    python -m tests.benchmarks.quantization REAL --out FILE.jsonl            # measure on the evaluation split
    python -m tests.benchmarks.quantization REAL --out FILE.jsonl --select   # compare options, calibration split alone
    python -m tests.benchmarks.quantization REAL --out FILE.jsonl --table    # print what is there

REAL has models/*.onnx, data/ and SOURCES.md, which names the splits. Pictures need Pillow. Every model is run by ONNX
Runtime as written, its own optimizations off, so that no kernel's shortcuts count. `--select` calibrates on the even
samples of the calibration split and measures on its odd ones; the evaluation split is not touched.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import graphopt.ir as graph_ir
from graphopt.analysis.comparison import compare_runs
from graphopt.analysis.execution import Session
from graphopt.analysis.samples import Samples
from graphopt.errors import ModelWarning
from graphopt.pipeline.base import PassContext
from graphopt.pipeline.registry import PASSES
from graphopt.pipeline.spec import parse_spec
from tests.benchmarks.inputs import CASES, IMAGENET_MEAN, IMAGENET_STD, _centre, _normalized

Array = np.ndarray[Any, Any]
Labelled = tuple[Array, Array | None]  # samples along a new first axis, and their classes where there are any

ORT = "ONNX Runtime min-max"
DEFAULT = "quantize"
OBSERVERS = ("min-max", "moving-average", "percentile", "entropy", "mse")
VARIANTS = (
    *(f"quantize{{observer={name}}}" for name in OBSERVERS),
    "quantize{weight_observer=mse}",
    "quantize{symmetric_activations=true}",
    "quantize{per_channel=false}",
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One model by one method. accuracy and float_accuracy are fractions, None without classes."""

    model: str
    method: str
    split: str
    samples: int
    float_accuracy: float | None
    accuracy: float | None
    agreement: float  # fraction of samples with the same largest output as the float model
    sqnr_db: float
    bytes: int  # of the file
    float_bytes: int
    seconds: float  # to quantize, calibration included


def _imagenet(data: Path, *, bgr: bool, background: int, calibrate: bool) -> Labelled:
    """100 pictures whose class is divisible by 10 calibrate, the other 400 evaluate."""
    with (data / "imagenet_labels.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (int(row["class_index"]) % 10 == 0) == calibrate]
    pictures = [_centre(data / "imagenet" / row["file"], 224) for row in rows]
    scale: tuple[Any, Any] = ((104, 117, 123), (1, 1, 1)) if bgr else ((128,) * 3, (128,) * 3)
    classes = np.array([int(row["class_index"]) + background for row in rows])
    return _normalized(pictures, *scale, bgr=bgr), classes


def _cifar(data: Path, *, calibrate: bool) -> Labelled:
    """200 pictures of the training set calibrate, 2,000 of the test set evaluate."""
    name, count = ("train", 200) if calibrate else ("test", 2000)
    archive = np.load(data / f"cifar10_{name}_u8.npz")
    mean, std = 255 * np.array(IMAGENET_MEAN), 255 * np.array(IMAGENET_STD)
    return _normalized(list(archive["x"][:count]), mean, std), archive["y"][:count]


def _cifar_bytes(data: Path, *, calibrate: bool) -> Labelled:
    name, count = ("train", 200) if calibrate else ("test", 2000)
    archive = np.load(data / f"cifar10_{name}_u8.npz")
    return archive["x"][:count, None].astype(np.float32), archive["y"][:count]


def _speech(data: Path, *, calibrate: bool) -> Labelled:
    """MFCC of continuous speech, without classes: the first third calibrates."""
    prepare = CASES["mlperftiny_kws_dscnn"].inputs
    if prepare is None:
        raise ValueError("the case has inputs")
    arrays = prepare(data, data, 300)["input_1"]
    return (arrays[:100] if calibrate else arrays[100:]), None


MODELS: dict[str, Callable[[Path, bool], Labelled]] = {
    "mobilenet_v2_1.0_224": lambda data, calibrate: _imagenet(data, bgr=False, background=1, calibrate=calibrate),
    "squeezenet_v1.1_224": lambda data, calibrate: _imagenet(data, bgr=True, background=0, calibrate=calibrate),
    "cifar10_resnet20": lambda data, calibrate: _cifar(data, calibrate=calibrate),
    "cifar10_resnet32": lambda data, calibrate: _cifar(data, calibrate=calibrate),
    "mlperftiny_resnet8_cifar10": lambda data, calibrate: _cifar_bytes(data, calibrate=calibrate),
    "mlperftiny_kws_dscnn": lambda data, calibrate: _speech(data, calibrate=calibrate),
}


def _by_graphopt(model: ir.Model, spec: str, samples: Samples) -> ir.Model:
    """Clean-up, and the passes of `spec`, separated by +, as the command runs them."""
    work = graph_ir.clone(model)
    for item in ("clean-up", *spec.split("+")):
        parse_spec(item).run(work, PassContext(calibration=samples))
        graph_ir.refresh_shapes(work)
        graph_ir.verify(work)
    return work


def _by_onnxruntime(model: ir.Model, samples: Samples) -> ir.Model:
    """quantize_static in QDQ format, int8 for both, a scale for each output channel, min-max."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds: Iterator[dict[str, Array]] = iter(samples)

        def get_next(self) -> dict[str, Array] | None:
            return next(self.feeds, None)

    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        graph_ir.save(model, source)
        quantize(
            source,
            result,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        return graph_ir.load(result.read_bytes())


def _outputs(model: ir.Model, samples: Samples) -> list[dict[str, Array]]:
    with Session(model) as session:
        return [session.run(feeds) for feeds in samples]


def _size(model: ir.Model) -> int:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        graph_ir.save(model, file)
        return file.stat().st_size


def _accuracy(runs: list[dict[str, Array]], classes: Array | None) -> float | None:
    return None if classes is None else float(np.mean(_largest(runs) == classes))


def _largest(runs: list[dict[str, Array]]) -> Array:
    return np.array([next(iter(run.values())).argmax() for run in runs])


def measure(real: Path, name: str, methods: list[str], *, select: bool) -> Iterator[Row]:
    """A row for each method, on the evaluation split, or within the calibration split."""
    model = graph_ir.load(real / "models" / f"{name}.onnx")
    graph_ir.bind_shapes(model, {})
    calibration, known = MODELS[name](real / "data", True)
    if select:
        evaluation, classes = calibration[1::2], None if known is None else known[1::2]
        calibration = calibration[::2]
    else:
        evaluation, classes = MODELS[name](real / "data", False)
    entry = str(model.graph.inputs[0].name)
    calibrating, evaluating = (Samples({entry: array}, {entry: 0}) for array in (calibration, evaluation))
    reference = _outputs(model, evaluating)
    for method in methods:
        start = time.perf_counter()
        made = _by_onnxruntime(model, calibrating) if method == ORT else _by_graphopt(model, method, calibrating)
        seconds = time.perf_counter() - start
        runs = _outputs(made, evaluating)
        yield Row(
            name,
            method,
            "within calibration" if select else "evaluation",
            len(evaluating),
            _accuracy(reference, classes),
            _accuracy(runs, classes),
            float(np.mean(_largest(runs) == _largest(reference))),
            compare_runs(reference, runs)[0].sqnr_db,
            _size(made),
            _size(model),
            seconds,
        )


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table; the last of a model, method and split counts."""
    latest = {(row["model"], row["method"], row["split"]): row for row in rows}
    lines = ["| model | method | n | float | int8 | agreement | SQNR dB | bytes | of float | s |", "|" + " --- |" * 10]
    for row in latest.values():
        fractions = [f"{row[key]:.4f}" if row[key] is not None else "" for key in ("float_accuracy", "accuracy")]
        size = f"{row['bytes']:,} | {row['bytes'] / row['float_bytes']:.2f}"
        cells = [row["model"], row["method"], row["samples"], *fractions, f"{row['agreement']:.4f}"]
        cells += [f"{row['sqnr_db']:.1f}", size, f"{row['seconds']:.0f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    """Read the command line, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path, help="folder of real models")
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines to append to")
    parser.add_argument("--only", nargs="+", metavar="MODEL", choices=MODELS)
    parser.add_argument("--methods", nargs="+", metavar="SPEC", help=f"pass specs joined by +, or '{ORT}'")
    parser.add_argument("--select", action="store_true", help="compare options within the calibration split")
    parser.add_argument("--table", action="store_true", help="print the table of --out, and measure nothing")
    options = parser.parse_args()
    if options.table:
        print(table([json.loads(line) for line in options.out.read_text(encoding="utf-8").splitlines()]))
        return
    PASSES.find("quantize")
    warnings.simplefilter("ignore", ModelWarning)
    methods = options.methods or (list(VARIANTS) if options.select else [DEFAULT, ORT])
    for name in options.only or MODELS:
        for row in measure(options.real, name, methods, select=options.select):
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dataclasses.asdict(row)) + "\n")
            print(f"{name} {row.method}: {row.agreement:.4f} {row.sqnr_db:.1f} dB {row.seconds:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
