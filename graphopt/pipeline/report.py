"""What was done to a model, as data: the JSON report of a bundle and of `graphopt inspect`.

docs/report.md explains the fields, report.schema.json fixes them. A report holds no times, dates or paths: the same
command gives the same bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import platform
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

import graphopt
from graphopt.analysis.cost import LayerCost, layer_costs, total
from graphopt.analysis.layer_noise import named_precisions
from graphopt.analysis.quantization import quantization
from graphopt.formatting import Report, plain
from graphopt.ir import fingerprint

if TYPE_CHECKING:
    from graphopt.analysis.accuracy import AccuracyDrop
    from graphopt.analysis.comparison import OutputComparison
    from graphopt.pipeline.manager import PassRecord
    from graphopt.targets.base import Library, TargetDescription, TensorSpec

SCHEMA_VERSION = 1  # raised when a field changes its meaning or goes; new fields may come without
SCHEMA_FILE = Path(__file__).with_name("report.schema.json")

_TOOLS = ("apache-tvm", "numpy", "onnx", "onnx-graphsurgeon", "onnx-ir", "onnxruntime", "onnxscript", "ziglang")


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What the report says about a model at one moment, taken before a pass edits it further."""

    model: dict[str, Any]
    totals: dict[str, int | None]
    layers: tuple[LayerCost, ...]
    precisions: Mapping[str, str]  # by layer, what it computes in
    quantization: dict[str, Any] | None  # None for a model in floats
    unnamed: Mapping[str, str]  # by layer without a name of its own, what passes call it

    @classmethod
    def of(cls, model: ir.Model, *, name: str, file_bytes: int | None) -> Snapshot:
        """Describe `model`, which is called `name`; its file, if any, has `file_bytes` with external data."""
        costs = layer_costs(model)
        sums = dataclasses.asdict(total(costs))
        nodes = sum(node.op_type != "Constant" for node in model.graph.all_nodes())
        return cls(
            model={
                "name": name,
                "fingerprint": fingerprint(model),
                "producer": " ".join(filter(None, (model.producer_name, model.producer_version))),
                "opsets": dict(sorted(model.opset_imports.items())),
                "inputs": [_port(value) for value in model.graph.inputs if not value.is_initializer()],
                "outputs": [_port(value) for value in model.graph.outputs],
            },
            totals={"nodes": nodes, **sums, "file_bytes": file_bytes},
            layers=costs,
            precisions={name: str(precision) for name, precision in named_precisions(model).items()},
            quantization=_quantization(model, costs),
            unnamed={
                f"{node.op_type}_{index}": f"{node.op_type} of '{node.outputs[0].name}'"
                for index, node in enumerate(model.graph)
                if not node.name and node.outputs
            },
        )


def build_report(
    kind: str,
    before: Snapshot,
    *,
    after: Snapshot | None = None,
    passes: Sequence[PassRecord] = (),
    comparison: Sequence[OutputComparison] = (),
    accuracy: AccuracyDrop | None = None,
    target: TargetDescription | None = None,
    recipe: Mapping[str, Any] | None = None,
    library: Library | None = None,
    library_name: str = "",
    tuning: Mapping[str, float] | None = None,
    noise: Mapping[str, float] | None = None,
    sensitivity: Mapping[str, Any] | None = None,
    groups: Sequence[Mapping[str, Any]] | None = None,
    ranks: Sequence[Mapping[str, Any]] | None = None,
    warnings: Iterable[str] = (),
) -> Report:
    """Put a report together.

    Args:
        kind: "optimize" or "inspect".
        before: the model as it was given, its shapes bound.
        after: the optimized model; None if there is none (`inspect`).
        passes: what each pass did, in order; for `inspect`, what each would do on its own.
        comparison: outputs of the optimized model against the original's.
        accuracy: what was lost on calibration data, where it was measured.
        recipe: the resolved recipe as TOML tables.
        library_name: NAME of libNAME.so.
        tuning: what counting tiles came to, in the types of JSON, where that was asked for.
        noise: SQNR in dB by layer, of those that were measured.
        sensitivity: what quantizing one layer alone costs, in the types of JSON, where that was measured.
        groups: the coupled groups of channels, in the types of JSON, where they were asked for.
        ranks: how low the rank of each layer's weight is, likewise.
    """
    final = after or before
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "tools": tool_versions(),
        "model": before.model,
        "target": None if target is None else _target(target),
        "recipe": None if recipe is None else plain(recipe),
        "totals": {"before": before.totals, "after": None if after is None else after.totals},
        "comparison": [plain(dataclasses.asdict(output)) for output in comparison],
        "accuracy": None if accuracy is None else {**dataclasses.asdict(accuracy), "drop": accuracy.drop},
        "quantization": final.quantization,
        "sensitivity": None if sensitivity is None else plain(sensitivity),
        "groups": None if groups is None else plain(groups),
        "ranks": None if ranks is None else plain(ranks),
        "passes": [_pass(record) for record in passes],
        "layers": _layers(final, passes if after is not None else (), library, noise or {}),
        "library": None if library is None else _library(library, library_name, tuning),
        "warnings": list(warnings),
    }


@functools.cache
def tool_versions() -> dict[str, str]:
    """Versions of graphopt, Python and of what graphopt is built on; nothing is imported to find them."""
    versions = {"graphopt": graphopt.__version__, "python": platform.python_version()}
    for name in _TOOLS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _port(value: ir.Value) -> dict[str, Any]:
    shape = None
    if value.shape is not None:
        shape = [size if isinstance(size, int) else (size.value or "?") for size in value.shape]
    return {"name": value.name, "type": "unknown" if value.dtype is None else value.dtype.name.lower(), "shape": shape}


def _quantization(model: ir.Model, costs: Sequence[LayerCost]) -> dict[str, Any] | None:
    found = quantization(model)
    if found is None:
        return None
    precise = named_precisions(model)
    integer = sum(cost.macs or 0 for cost in costs if cost.name in precise and precise[cost.name].integer)
    schemes = {"activations": found.activations, "weights": found.weights}
    return {
        "form": found.form,
        **{
            name: None if scheme is None else {**plain(dataclasses.asdict(scheme)), "text": str(scheme)}
            for name, scheme in schemes.items()
        },
        "integer_macs": integer,
        "operators": {
            op: dict(zip(("integer", "small_weights", "float"), counts, strict=True))
            for op, counts in found.operators.items()
        },
    }


def _target(target: TargetDescription) -> dict[str, Any]:
    names = (
        "name",
        "summary",
        "triple",
        "mcpu",
        "features",
        "vector_bits",
        "l1d_bytes",
        "l2_bytes",
        "channel_multiple",
    )
    return {name: plain(getattr(target, name)) for name in names}


def _pass(record: PassRecord) -> dict[str, Any]:
    return {
        "spec": record.spec,
        "exact": record.exact,
        "changed": record.changed,
        "nodes": {"before": record.nodes_before, "after": record.nodes_after},
        "params": {"before": record.params_before, "after": record.params_after},
        "macs": {"before": record.macs_before, "after": record.macs_after},
        "statistics": plain(record.statistics),
        "declined": [dataclasses.asdict(declined) for declined in record.declined],
        "comparison": [plain(dataclasses.asdict(output)) for output in record.comparison],
        "comparison_skipped": record.comparison_skipped,
        "samples": record.samples,
        "tolerance": plain(record.tolerance),
    }


def _layers(
    model: Snapshot, passes: Sequence[PassRecord], library: Library | None, noise: Mapping[str, float]
) -> list[dict[str, Any]]:
    declined: defaultdict[str, list[dict[str, str]]] = defaultdict(list)
    for record in passes:
        for item in record.declined:
            declined[item.layer].append({"pass": record.spec, "reason": item.reason})
    kernels: defaultdict[str, list[str]] = defaultdict(list)
    for call in () if library is None else library.layers:
        for node in call["nodes"]:
            kernels[node].append(call["kernel"])
        for node, reason in call.get("in_float", {}).items():
            declined[node].append({"pass": "lowering", "reason": f"stays in float: {reason}"})
    return [
        {
            "name": cost.name,
            "op": cost.op,
            "inputs": plain(cost.inputs),
            "outputs": plain(cost.outputs),
            "params": cost.params,
            "macs": cost.macs,
            "weight_bytes": cost.weight_bytes,
            "activation_bytes": cost.activation_bytes,
            "precision": model.precisions.get(cost.name),
            "sqnr_db": plain(noise.get(cost.name)),
            "kernels": list(dict.fromkeys(kernels[cost.name])),
            "notes": list(cost.notes),
            "declined": [*declined[cost.name], *declined[model.unnamed.get(cost.name, "")]],
        }
        for cost in model.layers
    ]


def _library(library: Library, name: str, tuning: Mapping[str, float] | None) -> dict[str, Any]:
    return {
        "name": name,
        "shared_bytes": library.shared.stat().st_size,
        "static_bytes": library.static.stat().st_size,
        "arena_bytes": library.arena_bytes,
        "weight_bytes": library.weight_bytes,
        "storage": None if library.storage is None else plain(dataclasses.asdict(library.storage)),
        "tuning": None if tuning is None else dict(tuning),
        "inputs": [_tensor(spec) for spec in library.inputs],
        "outputs": [_tensor(spec) for spec in library.outputs],
        "calls": [{"kernel": call["kernel"], "nodes": list(call["nodes"])} for call in library.layers],
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "type": spec.dtype, "shape": list(spec.shape)}
