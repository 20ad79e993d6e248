"""Look at a model, or at two side by side, without making anything of it."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import graphopt.ir as graph_ir
from graphopt.analysis.accuracy import load_labels
from graphopt.analysis.comparison import OutputComparison, compare_runs
from graphopt.analysis.sample_functions import Function
from graphopt.analysis.samples import Samples, load_samples, probe_samples
from graphopt.errors import GraphoptError, ModelError, ModelWarning, ShapeError, UsageError
from graphopt.formatting import Report, plain
from graphopt.pipeline.base import Pass, PassContext, Progress, silent
from graphopt.pipeline.manager import PassRecord, run_passes
from graphopt.pipeline.registry import PASSES, TARGETS, load_plugin
from graphopt.pipeline.report import Snapshot, build_report
from graphopt.pipeline.spec import format_spec, parse_spec
from graphopt.source import Source, collected_warnings, file_bytes, title
from graphopt.targets.base import TargetDescription

_PROBES = 4  # inputs made up for a comparison


@dataclasses.dataclass(frozen=True)
class InspectResult:
    """A model with its shapes bound as far as they are known, and the report on it."""

    model: ir.Model
    report: Report


@dataclasses.dataclass(frozen=True)
class CompareResult:
    """Two models side by side.

    same: structure and weights are equal, names of inner values aside.
    interface: what differs between the interfaces, in one sentence; empty if nothing does.
    operators: by operator that both do not use equally often, how often each does.
    outputs: of the second model against the first; empty if they were not compared, and then `skipped` says why.
    samples: on how many inputs.
    warnings: what the loaders said.
    """

    first: Snapshot
    second: Snapshot
    same: bool
    interface: str
    operators: Mapping[str, tuple[int, int]]
    outputs: tuple[OutputComparison, ...]
    skipped: str
    samples: int
    warnings: tuple[str, ...]

    def within(self, tolerance: float) -> bool:
        """Whether the outputs were compared, and each is within `tolerance` of its range."""
        return not self.skipped and all(output.relative <= tolerance for output in self.outputs)

    def to_json(self) -> Report:
        """The result in the types of JSON."""
        return {
            "first": {"model": self.first.model, "totals": self.first.totals},
            "second": {"model": self.second.model, "totals": self.second.totals},
            "same": self.same,
            "interface": self.interface,
            "operators": {op: list(counts) for op, counts in self.operators.items()},
            "outputs": [plain(dataclasses.asdict(output)) for output in self.outputs],
            "skipped": self.skipped,
            "samples": self.samples,
            "warnings": list(self.warnings),
        }


def inspect(
    model: Source,
    *,
    target: str | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    plugins: Sequence[str | Path] = (),
    passes: Sequence[str | Pass] | None = None,
    sensitivity: bool = False,
    calib: str | os.PathLike[str] | Samples | Function | None = None,
    labels: str | os.PathLike[str] | np.ndarray[Any, Any] | None = None,
    samples: int | None = None,
    groups: bool = False,
    ranks: bool = False,
    progress: Progress = silent,
) -> InspectResult:
    """Look at a model: what its layers cost, and what each pass on its own could do to it.

    Args:
        model: as for `optimize`.
        target: what the passes may know of the target.
        shapes: static shapes of inputs. An unknown batch is taken as 1; sizes that stay unknown leave numbers open.
        passes: those to try; by default every registered pass with its default options.
        sensitivity: measure what quantizing each layer alone costs, after clean-up; needs `calib`.
        calib, labels: as for `optimize`; for the sensitivity alone.
        samples: on how many samples each layer is run, 32 by default; ranges are taken from all.
        groups: list the channels that can only be pruned together, after clean-up.
        ranks: list how fast the singular values of each layer fall, and what a low rank would save, after clean-up.
        plugins, progress: as for `optimize`.

    Raises:
        UsageError, ModelError: as their documentation says. A pass that fails is a warning in the report.
        DataError: the samples or labels do not fit.
    """
    _check_data(sensitivity, calib, labels, samples)
    for plugin in plugins:
        load_plugin(plugin)
    description = None if target is None else TARGETS.find(target)
    with collected_warnings(model) as notices:
        loaded = graph_ir.load(model)
        try:
            notices.extend(graph_ir.bind_shapes(loaded, shapes or {}))
        except ShapeError as error:
            if shapes:
                raise
            notices.append(f"shapes stay open: {error.what}; {error.advice}")
        before = Snapshot.of(loaded, name=title(model), file_bytes=file_bytes(model, loaded))
        chosen = _one_of_each() if passes is None else [parse_spec(p) if isinstance(p, str) else p for p in passes]
        context = PassContext(target=description)
        records = []
        for number, item in enumerate(chosen):
            progress(number, len(chosen), format_spec(item))
            try:
                records.append(_dry_run(item, loaded, context))
            except GraphoptError as error:
                notices.append(f"{format_spec(item)} cannot be tried: {error.what}")
        progress(len(chosen), len(chosen), "")
        measured = None
        if sensitivity and calib is not None:
            data = calib if isinstance(calib, Samples) else load_samples(calib, loaded)
            classes = labels if labels is None or isinstance(labels, np.ndarray) else load_labels(Path(labels))
            context = PassContext(target=description, calibration=data, labels=classes, progress=progress)
            measured = _sensitivity(cleaned(loaded, context), context, samples)
        report = build_report(
            "inspect",
            before,
            passes=records,
            target=description,
            sensitivity=measured,
            groups=_groups(cleaned(loaded, PassContext(target=description))) if groups else None,
            ranks=rank_table(cleaned(loaded, PassContext(target=description)), description) if ranks else None,
            warnings=dict.fromkeys(notices),
        )
    return InspectResult(loaded, report)


def _check_data(sensitivity: bool, calib: object, labels: object, samples: int | None) -> None:
    if sensitivity and calib is None:
        raise UsageError("--sensitivity runs the model on samples, and there are none", advice="add --calib DATA")
    for name, given in (("calib", calib), ("labels", labels), ("samples", samples)):
        if given is not None and not sensitivity:
            raise UsageError(f"--{name} is for --sensitivity alone", advice=f"add --sensitivity, or leave --{name} out")
    if samples is not None and samples < 1:
        raise UsageError(f"--samples is {samples}, expected 1 at least")


def cleaned(model: ir.Model, context: PassContext) -> ir.Model:
    """A copy after the exact passes that run by default."""
    from graphopt.passes.cleanup import DEFAULT

    work = graph_ir.clone(model)
    run_passes(work, [parse_spec(spec) for spec in DEFAULT], context, compare=False)
    return work


def _groups(model: ir.Model) -> list[Report]:
    """The coupled groups of channels, in the types of JSON."""
    from graphopt.passes.prune.description import describe_groups

    return [dataclasses.asdict(group) for group in describe_groups(model)]


def rank_table(model: ir.Model, target: TargetDescription | None) -> list[Report]:
    """How low the ranks of the layers are, in the types of JSON."""
    from graphopt.passes.factorize.description import describe_ranks
    from graphopt.passes.factorize.kernel_time import Kernels

    kernels = Kernels() if target is None else Kernels.of(target.vector_bits, target.channel_multiple)
    return [dataclasses.asdict(layer) for layer in describe_ranks(model, kernels)]


def _sensitivity(model: ir.Model, context: PassContext, samples: int | None) -> Report:
    """What quantizing each layer alone costs, the worst first, in the types of JSON."""
    from graphopt.passes.quantize.quantize import Quantize
    from graphopt.passes.quantize.sensitivity import SAMPLES

    found = Quantize().sensitivity(model, context, SAMPLES if samples is None else samples)
    macs = sum(layer.macs or 0 for layer in found.layers)
    layers = [
        {
            "layer": layer.layer,
            "op": layer.op,
            "sqnr_db": layer.sqnr_db,
            "drop": layer.drop,
            "macs": layer.macs,
            "macs_share": None if layer.macs is None or not macs else layer.macs / macs,
        }
        for layer in sorted(found.layers, key=lambda layer: layer.sqnr_db)
    ]
    return {"measure": found.measure, "samples": found.samples, "layers": layers}


def compare(
    first: Source,
    second: Source,
    *,
    inputs: str | os.PathLike[str] | Samples | Function | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
) -> CompareResult:
    """Compare two models: interface, operators, costs, and outputs on the same inputs.

    Args:
        first, second: as for `optimize`.
        inputs: samples, or what `load_samples` makes them of; a few are made up from `seed` by default.
        shapes: static shapes of the inputs of both.

    Raises:
        ModelError, DataError: a model cannot be loaded or computed, or the inputs do not fit.
    """
    with collected_warnings(first, second) as notices:
        models = [graph_ir.load(first), graph_ir.load(second)]
        prints = [graph_ir.fingerprint(model) for model in models]
        interface = graph_ir.Interface.of(models[0]).difference(graph_ir.Interface.of(models[1]))
        for model in models:
            notices.extend(graph_ir.bind_shapes(model, shapes or {}))
    snapshots = [
        Snapshot.of(model, name=title(source), file_bytes=file_bytes(source, model))
        for model, source in zip(models, (first, second), strict=True)
    ]
    counts = [Counter(layer.op for layer in snapshot.layers) for snapshot in snapshots]
    operators = {
        op: (counts[0][op], counts[1][op]) for op in sorted(counts[0] | counts[1]) if counts[0][op] != counts[1][op]
    }
    outputs: tuple[OutputComparison, ...] = ()
    samples, skipped = 0, ""
    ports = [[(p.name, p.type, p.shape) for p in graph_ir.Interface.of(model).inputs] for model in models]
    if ports[0] != ports[1]:
        skipped = "the inputs differ"
    else:
        with collected_warnings(first, second) as more:
            feeds = _samples(models[0], inputs, seed)
        notices += more
        try:
            outputs = compare_runs(*(_outputs(model, feeds) for model in models))
            samples = len(feeds)
        except ModelError as error:
            skipped = f"a model cannot be computed: {error.what}"
    return CompareResult(
        first=snapshots[0],
        second=snapshots[1],
        same=prints[0] == prints[1],
        interface=interface,
        operators=operators,
        outputs=outputs,
        skipped=skipped,
        samples=samples,
        warnings=tuple(dict.fromkeys(notices)),
    )


def _one_of_each() -> list[Pass]:
    return [parse_spec(name) for name in PASSES.names()]


def model_text(model: Source, *, shapes: Mapping[str, Sequence[int]] | None = None) -> str:
    """The stable text form of a model, its dynamic shapes symbolic unless `shapes` binds them."""
    loaded = graph_ir.load(model)
    if shapes:
        graph_ir.bind_shapes(loaded, shapes)
    return graph_ir.to_text(loaded)


def _dry_run(item: Pass, model: ir.Model, context: PassContext) -> PassRecord:
    """What a pass does to a copy of `model`. Outputs are not compared; what it declines is in the record."""
    copy = graph_ir.clone(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ModelWarning)  # about a run that nobody asked for
        (record,) = run_passes(copy, [item], context, compare=False)
    return record


def _samples(model: ir.Model, inputs: str | os.PathLike[str] | Samples | Function | None, seed: int) -> Samples:
    if isinstance(inputs, Samples):
        return inputs
    return probe_samples(model, seed, _PROBES) if inputs is None else load_samples(inputs, model)


def _outputs(model: ir.Model, samples: Samples) -> list[dict[str, np.ndarray[Any, Any]]]:
    from graphopt.analysis.execution import Session

    with Session(model) as session:
        return [session.run(feeds) for feeds in samples]
