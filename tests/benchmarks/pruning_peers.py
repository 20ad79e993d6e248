"""Accuracy against the MACs that other tools' structured pruning leaves, without training, as `pruning` measures ours.

    python -m tests.benchmarks.pruning_peers REAL --out FILE.jsonl [--only MODEL …] [--methods METHOD …]
    python -m tests.benchmarks.pruning REAL --out FILE.jsonl --table

Every tool gets the model after clean-up and removes channels by its own measure; how many is found by bisection, so
that the fraction of the MACs is met. onnxsim comes with the extra `test`; Torch-Pruning needs torch, torch-pruning and
onnx2torch, and shortcuts of a strided Slice and a Pad of channels, which it does not follow, as an equal convolution.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

import graphopt.ir as graph_ir
from graphopt.analysis.accuracy import predictions
from graphopt.analysis.cost import layer_costs, total
from graphopt.errors import ModelWarning
from graphopt.ir.reading import integers
from graphopt.pipeline.base import PassContext
from graphopt.pipeline.spec import parse_spec
from tests.benchmarks.pruning import KEPT, Prepared, Row, prepare

_SAMPLES = 256  # that calibrate
_BISECTIONS = 12
_CLOSE = 0.003  # of the MACs, above what is asked

Prune = Callable[[Prepared, float], onnx.ModelProto]  # the fraction of the channels that goes


def _feeds(task: Prepared) -> list[dict[str, np.ndarray[Any, Any]]]:
    return [dict(feeds) for feeds in task.calibrating.first(_SAMPLES)]


def _onnxsim(task: Prepared, sparsity: float, *, everywhere: bool = False) -> onnx.ModelProto:
    import onnxsim

    return onnxsim.apply_structured_pruning(ir.to_proto(task.model), sparsity, global_sparsity=everywhere)


def _onnxsim_activation(task: Prepared, sparsity: float, *, refitted: bool = False) -> onnx.ModelProto:
    import onnxsim

    proto, feeds = ir.to_proto(task.model), _feeds(task)
    pruned = onnxsim.apply_structured_wanda_pruning(proto, feeds, sparsity=sparsity)
    return onnxsim.apply_pruning_finetune(proto, pruned, feeds) if refitted else pruned


def _torch_pruning(importance: str, **options: bool) -> Prune:
    def prune(task: Prepared, sparsity: float) -> onnx.ModelProto:
        import onnx2torch
        import torch
        import torch_pruning

        model = graph_ir.clone(task.model)
        _as_convolutions(model.graph)
        graph_ir.refresh_shapes(model)
        module = onnx2torch.convert(ir.to_proto(model)).eval()
        feeds = _feeds(task)
        (name,) = feeds[0]
        example = torch.from_numpy(feeds[0][name])
        classes = module(example).shape[-1]
        wide = ("out_features", "out_channels")  # a classifier may be a convolution
        last = [part for part in module.modules() if any(getattr(part, key, None) == classes for key in wide)]
        measure = getattr(torch_pruning.importance, importance)()
        pruner = torch_pruning.pruner.BasePruner(
            module, example, importance=measure, pruning_ratio=sparsity, ignored_layers=last, **options
        )
        if "Taylor" in importance and task.labels is not None:
            labels = torch.from_numpy(task.labels[: len(feeds)].astype(np.int64))
            for each, label in zip(feeds, labels, strict=True):  # one by one: reshapes may hold the batch
                torch.nn.functional.cross_entropy(module(torch.from_numpy(each[name])), label[None]).backward()
        pruner.step()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "pruned.onnx"
            torch.onnx.export(module, (example,), file, input_names=[name], opset_version=17, dynamo=False)
            return onnx.load(file)

    return prune


def _as_convolutions(graph: ir.Graph) -> None:
    """A Slice with steps on the spatial axes and a Pad of channels behind it become one convolution."""
    for pad in [node for node in graph if node.op_type == "Pad"]:
        source = pad.inputs[0].producer() if pad.inputs[0] is not None else None
        pads = integers(pad, "pads", 1)
        if source is None or source.op_type != "Slice" or pads is None or source.inputs[0] is None:
            continue
        given, result = source.inputs[0], pad.outputs[0]
        steps = integers(source, "steps", 4)
        if given.shape is None or result.shape is None or steps is None:
            continue
        ins, outs, before = int(given.shape[1]), int(result.shape[1]), pads[1]  # type: ignore[arg-type]  # static
        weight = np.zeros((outs, ins, 1, 1), np.float32)
        weight[before + np.arange(ins), np.arange(ins)] = 1
        value = ir.val(f"{result.name}/weight", const_value=ir.tensor(weight, name=f"{result.name}/weight"))
        graph.register_initializer(value)
        made = ir.node("Conv", [given, value], {"strides": list(steps)})
        graph.insert_before(pad, made)
        made.outputs[0].name = f"{result.name}/convolved"
        ir.convenience.replace_all_uses_with(result, made.outputs[0])
        graph.remove([pad], safe=True)
        if not source.outputs[0].consumers():
            graph.remove([source], safe=True)


METHODS: dict[str, Prune] = {
    "onnxsim, l2": _onnxsim,
    "onnxsim, l2, global": lambda task, sparsity: _onnxsim(task, sparsity, everywhere=True),
    "onnxsim, weight × activation": _onnxsim_activation,
    "onnxsim, weight × activation, finetuned": lambda task, sparsity: _onnxsim_activation(
        task, sparsity, refitted=True
    ),
    "Torch-Pruning, l2": _torch_pruning("GroupMagnitudeImportance"),
    "Torch-Pruning, l2, global": _torch_pruning("GroupMagnitudeImportance", global_pruning=True),
    "Torch-Pruning, l2, isomorphic": _torch_pruning("GroupMagnitudeImportance", global_pruning=True, isomorphic=True),
    "Torch-Pruning, Taylor": _torch_pruning("GroupTaylorImportance"),
    "Torch-Pruning, Taylor, global": _torch_pruning("GroupTaylorImportance", global_pruning=True),
    "Torch-Pruning, Taylor, isomorphic": _torch_pruning("GroupTaylorImportance", global_pruning=True, isomorphic=True),
}


def measure(real: Path, name: str, methods: Sequence[str], kept: Sequence[float]) -> Iterator[Row]:
    """A row for each method and fraction."""
    task = prepare(real, name, select=False)
    before = total(layer_costs(task.model))
    reference, _ = predictions(task.model, task.evaluating)
    for method in methods:
        for fraction in kept:
            start = time.perf_counter()
            model = _pruned_to(METHODS[method], task, fraction * before.macs)
            seconds = time.perf_counter() - start
            after = total(layer_costs(model))
            found, _ = predictions(model, task.evaluating)
            yield Row(
                name,
                method,
                round(1 - fraction, 4),
                "evaluation",
                len(task.evaluating),
                after.macs / before.macs,
                after.params / before.params,
                None if task.truth is None else float(np.mean(reference == task.truth)),
                None if task.truth is None else float(np.mean(found == task.truth)),
                float(np.mean(found == reference)),
                seconds,
            )


def _pruned_to(prune: Prune, task: Prepared, macs: float) -> ir.Model:
    """The model with the most MACs that are not above those asked for."""
    low, high = 0.0, 0.9
    best = None
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        proto = prune(task, middle)
        del proto.graph.value_info[:]  # onnxsim leaves the shapes of before
        model = graph_ir.load(proto)
        parse_spec("clean-up").run(model, PassContext())
        graph_ir.refresh_shapes(model)
        if total(layer_costs(model)).macs <= macs * (1 + _CLOSE):
            best, high = model, middle
        else:
            low = middle
    if best is None:
        raise ValueError(f"nothing was left of at most {macs} MACs")
    return best


def main() -> None:
    """Read the command line, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path, help="folder of real models")
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines to append to")
    parser.add_argument("--only", nargs="+", metavar="MODEL", default=["cifar10_resnet32"])
    parser.add_argument("--methods", nargs="+", metavar="METHOD", choices=METHODS, default=list(METHODS))
    parser.add_argument("--kept", nargs="+", type=float, default=KEPT, help="fractions of the MACs")
    options = parser.parse_args()
    warnings.simplefilter("ignore", ModelWarning)
    for name in options.only:
        for row in measure(options.real, name, options.methods, options.kept):
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(dataclasses.asdict(row)) + "\n")
            print(f"{name} {row.method} {row.kept:.3f}: {row.accuracy} {row.agreement:.4f}", file=sys.stderr)


if __name__ == "__main__":
    main()
