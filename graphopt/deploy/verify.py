"""Run a bundle and compare it with ONNX Runtime on the original model."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.choices import choices, judge_all
from graphopt.analysis.comparison import OutputComparison, compare_runs
from graphopt.analysis.execution import Session
from graphopt.analysis.samples import Samples, probe_samples
from graphopt.deploy.bundle import Bundle
from graphopt.deploy.header import DTYPES
from graphopt.deploy.toolchain import build_program, launcher, run_program
from graphopt.errors import DataError, ToleranceError
from graphopt.ir import bind_shapes, fingerprint, load
from graphopt.pipeline.base import Progress, silent
from graphopt.targets.base import TargetDescription, TensorSpec

Feeds = dict[str, np.ndarray[Any, Any]]

TOLERANCE = 1e-4  # of an output's range: what float32 kernels that add in another order stay within
# The same where activations are rounded to few bits: the last digit of a float may move one by a whole step, and layers
# behind it carry that on. ONNX Runtime with and without its optimizations differs by 2e-3 on an encoder of six layers
# and by 1.5e-2 on a language model of five, both quantized dynamically.
ROUNDED_TOLERANCE = 5e-2
_ROUNDING = frozenset({"DynamicQuantizeLinear", "MatMulInteger", "QuantizeLinear"})


@dataclass(frozen=True)
class Verification:
    """What `verify` measured."""

    reference: str  # which model the bundle was compared with
    samples: int
    command: tuple[str, ...]  # what ran the program: an emulator, or nothing for a native run
    outputs: tuple[OutputComparison, ...]
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether each output is within the tolerance."""
        return all(output.relative <= self.tolerance for output in self.outputs)


def verify(
    bundle: Bundle,
    target: TargetDescription,
    *,
    samples: Samples | None = None,
    original: str | Path | ir.Model | None = None,
    tolerance: float | None = None,
    threads: int = 1,
    count: int = 4,
    seed: int = 0,
    progress: Progress = silent,
) -> Verification:
    """Build example.c around the static library, run it on each sample, and compare with ONNX Runtime.

    Args:
        target: the description of `bundle.target`.
        samples: inputs; `count` are made up from `seed` by default.
        original: the model that the bundle was made from; the bundle's own model.onnx by default.
        tolerance: the largest relative error of an output (`OutputComparison.relative`); of indices that ArgMax
            chose, the largest difference of the scores (`analysis.choices`). TOLERANCE by default, ROUNDED_TOLERANCE
            for a model whose activations are quantized or float16.
        threads: that the library computes on; 0 takes one a processor.

    Raises:
        ToleranceError: an output differs by more than `tolerance`.
        DataError: `original` is another model than the one that the bundle was made from, or has other inputs.
        UsageError: programs of the target cannot run here.
    """
    command = launcher(target)  # first: without it there is nothing to do
    model, reference = _reference(bundle, original)
    chosen = probe_samples(model, seed, count) if samples is None else samples
    if tolerance is None:
        built = model if original is None else load(bundle.model)
        rounds = any(_rounds(node) for node in built.graph)
        tolerance = ROUNDED_TOLERANCE if rounds else TOLERANCE
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        progress(0, len(chosen), "build the program")
        program = work / "example"
        build_program(bundle.example, target, bundle.include, bundle.static, program)
        found = []
        for number, feeds in enumerate(chosen):
            progress(number, len(chosen), "run the bundle")
            found.append(_run(bundle, (*command, str(program)), feeds, threads, work))
        progress(len(chosen), len(chosen), "run the reference")
    picks = choices(model)
    names = [spec.name for spec in bundle.outputs]
    with Session(model, outputs=list(dict.fromkeys([*names, *(pick.scores for pick in picks)]))) as session:
        expected = [session.run(feeds) for feeds in chosen]
    outputs = compare_runs([{name: run[name] for name in names} for run in expected], found)
    outputs = judge_all(outputs, picks, expected, found)
    result = Verification(reference, len(chosen), command, outputs, tolerance)
    if not result.passed:
        worst = max(outputs, key=lambda output: output.relative if not math.isnan(output.relative) else math.inf)
        raise ToleranceError(
            f"{bundle.folder}: output '{worst.name}' differs from the {reference} by {worst.relative:.2g} of its "
            f"range, allowed is {tolerance:.2g}",
            where="\n".join(describe(output) for output in outputs),
            advice="if a lossy pass caused it, compare with the bundle's model.onnx, or allow more with --tolerance",
        )
    return result


def _rounds(node: ir.Node) -> bool:
    """Whether `node` rounds activations to few bits."""
    return node.op_type in _ROUNDING or any(output.dtype == ir.DataType.FLOAT16 for output in node.outputs)


def describe(output: OutputComparison) -> str:
    """One line about an output."""
    agreement = "" if output.top1_agreement is None else f", same top-1 {100 * output.top1_agreement:.1f} %"
    note = f" ({output.note})" if output.note else ""
    return (
        f"{output.name}: max error {output.max_abs:.3g}, relative {output.relative:.3g}, "
        f"SQNR {output.sqnr_db:.1f} dB{agreement}{note}"
    )


def _reference(bundle: Bundle, original: str | Path | ir.Model | None) -> tuple[ir.Model, str]:
    model = load(bundle.model if original is None else original)
    shapes = {spec.name: spec.shape for spec in bundle.inputs}
    names = {str(value.name) for value in model.graph.inputs} - set(model.graph.initializers)
    if names != set(shapes):
        raise DataError(
            f"the model's inputs are {', '.join(sorted(names))}, those of the bundle {', '.join(sorted(shapes))}",
            advice="give the model that the bundle was made from",
        )
    bind_shapes(model, shapes)
    if original is None:
        return model, "bundle's model.onnx"
    found = fingerprint(model)
    if found != bundle.fingerprint:
        raise DataError(
            f"the model's fingerprint is {found[:16]}…, but {bundle.folder} was made from {bundle.fingerprint[:16]}…",
            advice="give the model that the bundle was made from, or none to compare with the bundle's model.onnx",
        )
    return model, "original model"


def _run(bundle: Bundle, command: Sequence[str], feeds: Feeds, threads: int, work: Path) -> Feeds:
    """One inference of the program; no file of an earlier one is left."""
    files = [work / f"input_{index}.bin" for index in range(len(bundle.inputs))]
    for file, spec in zip(files, bundle.inputs, strict=True):
        array = np.asarray(feeds[spec.name], order="C")  # of rank 0 too
        if array.shape != spec.shape:
            raise DataError(
                f"a sample of input '{spec.name}' has shape {list(array.shape)}, the bundle takes {list(spec.shape)}"
            )
        file.write_bytes(array.tobytes())
    results = [work / f"output_{index}.bin" for index in range(len(bundle.outputs))]
    for result in results:
        result.unlink(missing_ok=True)
    run_program(
        (*command, "-t", str(threads), "-o", str(work), *map(str, files)),
        environment={**os.environ, "REPEAT": "0"},
    )
    return {spec.name: _read(result, spec) for spec, result in zip(bundle.outputs, results, strict=True)}


def _read(file: Path, spec: TensorSpec) -> np.ndarray[Any, Any]:
    return np.frombuffer(file.read_bytes(), ir.DataType(DTYPES[spec.dtype]).numpy()).reshape(spec.shape)
