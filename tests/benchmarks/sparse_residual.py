"""Whether a product of low rank with a sparse or a quantized residual takes fewer bytes than quantized weights alone.

    python -m tests.benchmarks.sparse_residual REAL [--only MODEL …] [--layers N]

For the largest layers of each model, W' in place of W by

    grid            integers times a step
    low rank, grid  U V, and W − U V on a grid: U and V of 8 bits
    sparse          zeros but for the fraction of W that counts most, which is on a grid
    low rank, sparse    U V, and W − U V so

for all steps, ranks and fractions that are tried. Bytes are what the coder of --compress estimates (a palette and rANS
over its indices), the error is E‖(W − W') x‖² / E‖W x‖² on calibration samples, about the mean where there is a bias.
Printed are, at some errors, the bytes of all layers if each takes the kind where it is smaller than the grid, as a
fraction of the grid's, and of how many layers it is the smallest of all.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import graphopt.ir as graph_ir
from graphopt.analysis.samples import Samples
from graphopt.errors import ModelWarning
from graphopt.passes.cleanup import DEFAULT as CLEANUP
from graphopt.passes.factorize.layers import layers
from graphopt.passes.factorize.low_rank import directions, energy_of, factors
from graphopt.passes.factorize.sharing import spread_of
from graphopt.passes.prune.readers import observe
from graphopt.pipeline.base import PassContext, silent
from graphopt.pipeline.manager import run_passes
from graphopt.pipeline.spec import parse_spec
from graphopt.targets.tvm.storage import rans
from graphopt.targets.tvm.storage.coding import MAX_ENTRIES, ROW_BYTES
from tests.benchmarks.pruning import data_of
from tests.benchmarks.quantization_tasks import TASKS

Array = np.ndarray[Any, Any]

MODELS = ("stories260k_lm_t128", "mlperftiny_ad01_autoencoder", "kws_lstm3_mfcc12", "cifar10_resnet32",
          "mobilenet_v1_0.25_128")  # fmt: skip
KINDS = ("grid", "low rank, grid", "sparse", "low rank, sparse")
LEVELS = (10, 15, 20, 25, 30, 35, 40)  # dB
RANKS = (1, 2, 4, 8, 16, 32)
DENSITIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)
STEPS = np.geomspace(0.02, 3.0, 20)  # of the standard deviation
_SAMPLES, _PLACES = 256, 64


def on_grid(array: Array, step: float) -> tuple[Array, float] | None:
    """The nearest multiples of `step`, and the bytes that they are coded in; None if they are too many."""
    steps = np.rint(array / step).astype(np.int64)
    low = int(steps.min())
    counts = np.bincount((steps - low).reshape(-1))
    values = int(np.count_nonzero(counts))
    if len(counts) > MAX_ENTRIES:
        return None
    coded = rans.estimate(np.pad(counts, (0, 256 - len(counts))))
    return steps * step, ROW_BYTES + 4 * values + coded


def points(matrix: Array, covariance: Array) -> Iterator[tuple[str, float, float]]:
    """Kind, bytes and error of all that is tried."""
    whole = energy_of(matrix, covariance)
    weight = np.sqrt(np.diag(covariance))
    for rank in (0, *RANKS):
        if 2 * rank > min(matrix.shape):
            break
        product, more = np.zeros_like(matrix), 0.0
        if rank:
            pair = factors(directions(matrix, covariance).projected(matrix, rank), rank)
            found = [on_grid(each, float(np.abs(each).max()) / 127) for each in pair]
            if None in found:
                continue
            (left, one), (right, two) = found  # type: ignore[misc]  # none is None
            product, more = left @ right, one + two
        rest = matrix - product
        spread = float(rest.std())
        order = np.argsort(-np.abs(rest * weight).reshape(-1))
        for density in (1.0, *DENSITIES):
            kept = np.zeros(rest.size)
            kept[order[: round(density * rest.size)]] = 1
            sparse = rest * kept.reshape(rest.shape)
            for step in STEPS:
                made = on_grid(sparse, step * spread)
                if made is None:
                    continue
                kind = KINDS[(rank > 0) + 2 * (density < 1)]
                yield kind, made[1] + more, energy_of(rest - made[0], covariance) / whole


def least(found: list[tuple[float, float]], error: float) -> float:
    """Bytes at the error, between points none of which another beats: straight in the logarithm of the error."""
    best: list[tuple[float, float]] = []
    for lost, size in sorted(found):
        if not best or size < best[-1][1]:
            best.append((lost, size))
    errors, sizes = (np.array(each) for each in zip(*best, strict=True))
    return float(np.interp(np.log(error), np.log(errors), sizes)) if errors[0] <= error else np.inf


def measure(real: Path, name: str, count: int) -> None:
    """Print a row for each level."""
    task, data = TASKS[name], data_of(real, name)
    model = graph_ir.load(real / "models" / f"{name}.onnx")
    graph_ir.bind_shapes(model, task.shapes)
    run_passes(model, [parse_spec(item) for item in CLEANUP], PassContext(), compare=False)
    arrays = {key: array[data.calibrating] for key, array in data.arrays.items()}
    samples = Samples(arrays, dict.fromkeys(arrays, 0)).first(_SAMPLES)
    found = [layer for layer in layers(model.graph, ())[0] if not layer.lookup and layer.reader() is not None]
    found = sorted(found, key=lambda layer: -layer.matrix.size)[:count]
    readers = {layer.node: reader for layer in found if (reader := layer.reader()) is not None}
    observe(model, readers, samples, _PLACES, 0, silent)
    sizes = np.zeros((len(found), len(LEVELS), len(KINDS)))
    for number, layer in enumerate(found):
        by_kind: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
        covariance = spread_of(layer, readers).covariance
        assert covariance is not None  # it has a reader
        for kind, size, lost in points(layer.matrix, covariance):
            by_kind[kind].append((max(lost, 1e-12), size))
        for at, level in enumerate(LEVELS):
            sizes[number, at] = [least(by_kind[kind], 10 ** (-level / 10)) for kind in KINDS]
    for at, level in enumerate(LEVELS):
        usable = sizes[np.isfinite(sizes[:, at, 0]), at]
        if not len(usable):
            continue
        fractions = np.minimum(usable, usable[:, :1]).sum(axis=0) / usable[:, 0].sum()
        wins = np.bincount(usable.argmin(axis=1), minlength=len(KINDS))
        cells = (f"{fraction:.3f} ({win})" for fraction, win in zip(fractions, wins, strict=True))
        print(
            f"| {name} | {level} dB | {len(usable)} | {usable[:, 0].sum() / 1000:.1f} | {' | '.join(cells)} |",
            flush=True,
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path, help="a folder with models, data and SOURCES.md")
    parser.add_argument("--only", nargs="+", metavar="MODEL", choices=TASKS, default=MODELS)
    parser.add_argument("--layers", type=int, default=6, help="of each model, the largest")
    options = parser.parse_args()
    warnings.simplefilter("ignore", ModelWarning)
    print(f"| model | SQNR of each layer | layers | grid, kB | {' | '.join(KINDS)} |")
    print("| --- | ---: | ---: | ---: |" + " ---: |" * len(KINDS))
    for name in options.only:
        measure(options.real, name, options.layers)


if __name__ == "__main__":
    main()
