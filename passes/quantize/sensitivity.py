"""Sensitivity: what each layer's quantization alone does to the outputs.

A layer is quantized as in the whole plan, with the plan's scales: its operands, its weight and its bias; everything
else stays in float. What its result loses by quantization is counted where it is read, because that is what stays or
goes with the reading layer. Noise of independent roundings adds up, so the ratio of noise to signal, 10^(-SQNR/10),
says how much of the whole each layer answers for. Layers that only move numbers add none of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from graphopt.analysis.accuracy import AccuracyDrop, classes_of, drop_between, scores_output
from graphopt.analysis.calibration import histograms
from graphopt.analysis.execution import Session
from graphopt.analysis.macs import UnknownSizeError, macs
from graphopt.analysis.noise import Noise
from graphopt.analysis.observers import Histogram
from graphopt.analysis.samples import Samples
from graphopt.errors import DataError
from graphopt.ir import clone
from graphopt.ir.reading import is_standard, static_shape
from graphopt.passes.cleanup.constants import layer_name
from graphopt.passes.quantize.arithmetic import Parameters
from graphopt.passes.quantize.placement import Group, Plan
from graphopt.passes.quantize.rules import Kind, Layer
from graphopt.passes.quantize.weights import IntegerWeight
from graphopt.pipeline.base import PassContext

Array = np.ndarray[Any, Any]

SAMPLES = 32
_KEPT_BYTES = 256 << 20  # of the float model's outputs; fewer samples are taken where they are larger
_LEAST = 1e-12  # probability below which Softmax's results are not told apart


@dataclass(frozen=True)
class LayerSensitivity:
    """A layer quantized alone.

    layer, op: name and operator of its node.
    key: name of the node's first output, by which `Quantize.rewrite` refuses it.
    sqnr_db: of the worst output; of the centred logarithm of what Softmax makes: of its input.
    drop: accuracy or agreement lost, as a fraction; None where no output looks like class scores.
    macs: None where shapes are open.
    converted: numbers that are quantized for it and dequantized behind it, if the layers around it are in float.
    """

    layer: str
    op: str
    key: str
    sqnr_db: float
    drop: float | None
    macs: int | None
    converted: int

    @property
    def noise(self) -> float:
        """Of the outputs, over their signal."""
        return 0.0 if self.sqnr_db == math.inf else min(10 ** (-self.sqnr_db / 10), 1e30)


@dataclass(frozen=True)
class Sensitivity:
    """Layers in the graph's order; "accuracy", "agreement", or empty if neither can be measured; how many samples."""

    layers: tuple[LayerSensitivity, ...]
    measure: str
    samples: int


class Quantizer(Protocol):
    """What sensitivity asks of the pass that quantizes."""

    def plan(
        self, model: ir.Model, context: PassContext, refused: Mapping[str, str], observed: dict[str, Histogram]
    ) -> Plan: ...

    def parameters(
        self, graph: ir.Graph, plan: Plan, observed: Mapping[str, Histogram]
    ) -> dict[ir.Value, Parameters]: ...

    def weights(self, plan: Plan, parameters: Mapping[ir.Value, Parameters]) -> dict[ir.Node, IntegerWeight]: ...

    def insert(
        self,
        graph: ir.Graph,
        plan: Plan,
        parameters: Mapping[ir.Value, Parameters],
        weights: Mapping[ir.Node, IntegerWeight],
    ) -> None: ...


def sensitivity(
    quantizer: Quantizer, model: ir.Model, context: PassContext, count: int, observed: dict[str, Histogram]
) -> Sensitivity:
    """Measure each layer of the quantizer's plan that rounds.

    Args:
        model: in float; left as it is.
        context: ranges come from all its samples. Its labels decide whether accuracy or agreement is measured.
        count: on how many of the first samples each layer is run; on fewer if their outputs exceed 256 MiB.
        observed: histograms by value; those that the plan needs are added, and those of every operand.

    Raises DataError if there is no sample, or not one label for each.
    """
    samples, labels = context.calibration, context.labels
    if samples is None or not len(samples):
        raise DataError("sensitivity is measured on samples, and there are none", advice="give them with --calib")
    if labels is not None and len(labels) != len(samples):
        raise DataError(f"there are {len(labels)} labels for {len(samples)} samples, expected one for each")
    plan = quantizer.plan(model, context, {}, observed)
    # A layer beside one that stays in float may read what had no range of its own before.
    operands = dict.fromkeys(str(value.name) for layer in plan.layers for value in layer.operand_values())
    if missing := [name for name in operands if name not in observed]:
        observed |= histograms(model, missing, samples, context.progress)
    parameters = quantizer.parameters(model.graph, plan, observed)
    weights = quantizer.weights(plan, parameters)
    layers = [layer for layer in plan.layers if layer.kind is not Kind.MOVE]
    outputs = _Outputs(model)
    with Session(model) as session:
        expected = list(outputs.of(session, samples.first(count), limit=_KEPT_BYTES))
    samples = samples.first(len(expected))
    known = None if labels is None else labels[: len(expected)]
    found: list[LayerSensitivity] = []
    for number, layer in enumerate(layers):
        alone = _alone(model, layer, parameters, weights, quantizer)
        noises = {name: Noise() for name in expected[0].numbers}
        classes: list[Array] = []
        with Session(alone) as session:
            for reference, run in zip(expected, outputs.of(session, samples), strict=True):
                context.progress(number, len(layers), f"sensitivity of {layer_name(layer.node)}")
                for name, noise in noises.items():
                    noise.add(reference.numbers[name], run.numbers[name])
                classes.append(run.classes)
        lost = _lost(expected, classes, known)
        found.append(
            LayerSensitivity(
                layer=layer_name(layer.node),
                op=layer.node.op_type,
                key=str(layer.node.outputs[0].name),
                sqnr_db=min((noise.sqnr_db for noise in noises.values()), default=math.inf),
                drop=None if lost is None else lost.drop,
                macs=_macs(layer.node),
                converted=_converted(layer),
            )
        )
    context.progress(len(layers), len(layers), "sensitivity")
    scored = bool(expected[0].classes.size)
    measure = ("agreement" if labels is None else "accuracy") if scored else ""
    return Sensitivity(tuple(found), measure, len(expected))


def output_noise(original: ir.Model, rewritten: ir.Model, samples: Samples) -> float:
    """SQNR of the worst output over all samples, in dB, as `LayerSensitivity` has it."""
    outputs = _Outputs(original)
    noises: dict[str, Noise] = {}
    with Session(original) as first, Session(rewritten) as second:
        for expected, found in zip(outputs.of(first, samples), outputs.of(second, samples), strict=True):
            for name, array in expected.numbers.items():
                noises.setdefault(name, Noise()).add(array, found.numbers[name])
    return min((noise.sqnr_db for noise in noises.values()), default=math.inf)


@dataclass(frozen=True)
class _Run:
    numbers: Mapping[str, Array]  # outputs to compare
    classes: Array  # [rows]; empty where no output looks like class scores


class _Outputs:
    """What is compared of a model's outputs: numbers, and classes."""

    def __init__(self, model: ir.Model) -> None:
        producers = {str(value.name): value.producer() for value in model.graph.outputs}
        self._softmax = {name for name, node in producers.items() if node is not None and is_standard(node, "Softmax")}

    def of(self, session: Session, samples: Samples, *, limit: float = math.inf) -> Iterator[_Run]:
        """Runs on the samples, until their outputs come to `limit` bytes."""
        size = 0
        for feeds in samples:
            outputs = {name: array for name, array in session.run(feeds).items() if array.dtype.kind not in "OUST"}
            scores = scores_output(outputs)
            classes = classes_of(outputs[scores]) if scores else np.zeros(0, np.int64)
            yield _Run({name: self._numbers(name, array) for name, array in outputs.items()}, classes)
            size += sum(array.nbytes for array in outputs.values())
            if size >= limit:
                return

    def _numbers(self, name: str, array: Array) -> Array:
        if name not in self._softmax:
            return array
        logarithm = np.log(np.maximum(array, _LEAST))
        centred: Array = logarithm - logarithm.mean(axis=-1, keepdims=True)
        return centred


def _lost(expected: Sequence[_Run], classes: Sequence[Array], labels: Array | None) -> AccuracyDrop | None:
    if not expected[0].classes.size:
        return None
    before = np.concatenate([run.classes for run in expected])
    return drop_between(before, np.concatenate(classes), "", labels)


def _alone(
    model: ir.Model,
    layer: Layer,
    parameters: Mapping[ir.Value, Parameters],
    weights: Mapping[ir.Node, IntegerWeight],
    quantizer: Quantizer,
) -> ir.Model:
    """A copy of `model` in which `layer` computes on integers, and nothing else does."""
    copy = clone(model)
    nodes = dict(zip(model.graph, copy.graph, strict=True))
    moved = replace(
        layer,
        node=nodes[layer.node],
        tail=tuple(nodes[node] for node in layer.tail),
        bias=None if layer.bias is None else replace(layer.bias, node=nodes[layer.bias.node]),
    )
    scales = {
        there: parameters[here] for here, there in zip(layer.operand_values(), moved.operand_values(), strict=True)
    }
    groups = tuple(Group((value,), (value,), ()) for value in scales)
    held = {} if layer.weight is None else {moved.node: weights[layer.node]}
    quantizer.insert(copy.graph, Plan((moved,), groups, ()), scales, held)
    return copy


def _macs(node: ir.Node) -> int | None:
    try:
        return macs(node)
    except UnknownSizeError:
        return None


def _converted(layer: Layer) -> int:
    shapes = [static_shape(value) for value in (*layer.operand_values(), *layer.results)]
    return sum(math.prod(shape) for shape in shapes if shape is not None)
