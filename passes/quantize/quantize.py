"""Quantize a model to integers of 8 or 16 bits: observe the float model on calibration data, place, insert."""

from __future__ import annotations

import warnings
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import onnx_ir as ir

from graphopt.analysis.calibration import histograms
from graphopt.analysis.observers import Histogram, Observer, range_of
from graphopt.analysis.quantization import quantization, quantized_node
from graphopt.errors import ModelWarning, UsageError
from graphopt.ir import clone
from graphopt.passes.cleanup.constants import layer_name
from graphopt.passes.quantize.arithmetic import Parameters, activation_parameters
from graphopt.passes.quantize.bias_correction import Shifts, corrected
from graphopt.passes.quantize.equalize import Equalize, has_linear_depthwise
from graphopt.passes.quantize.insertion import insert
from graphopt.passes.quantize.maxima import feeding_maxima
from graphopt.passes.quantize.mixed_precision import BackOff, Limit, back_off
from graphopt.passes.quantize.opset import at_least
from graphopt.passes.quantize.placement import Group, Plan, place
from graphopt.passes.quantize.rules import Kind
from graphopt.passes.quantize.schemes import Scheme
from graphopt.passes.quantize.sensitivity import SAMPLES, Sensitivity, sensitivity
from graphopt.passes.quantize.serving import check_served
from graphopt.passes.quantize.weights import IntegerWeight, integer_weight
from graphopt.pipeline.base import Declined, Pass, PassContext, PassResult, option

_FEW_SAMPLES = 10


@dataclass(frozen=True)
class Quantize(Pass):
    """Put QuantizeLinear and DequantizeLinear where integer kernels compute, calibrated on samples."""

    name: ClassVar[str] = "quantize"
    exact: ClassVar[bool] = False

    scheme: Scheme = option(Scheme.INT8, "the integers to compute on")
    observer: Observer = option(Observer.MSE, "how the range of an activation is chosen")
    weight_observer: Observer = option(Observer.MSE, "how the range of a weight is chosen: min-max or mse")
    per_channel: bool = option(True, "a scale for each output channel of a weight")
    symmetric_activations: bool = option(False, "activations with the zero point 0")
    correct_bias: bool = option(True, "biases take up what quantization adds to the mean of a channel")
    equalize: bool = option(True, "run equalize first if a depthwise layer has no activation behind it")
    exclude: tuple[str, ...] = option((), "names of nodes that stay in float, with * and ?")
    max_drop: float | None = option(None, "accuracy (agreement) that it may cost, else layers stay in float")
    min_sqnr: float | None = option(None, "dB of signal over noise that outputs must keep, else layers stay in float")

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Quantize the main graph. A model that holds quantized operators already is left alone.

        Raises:
            UsageError: the target's instructions do not serve the scheme, or there is no such observer of weights.
            ModelError: the model's opset is too old for the scheme and cannot be converted.
            DataError: there is no sample, or the samples do not fit.
        """
        self._check(context)
        if (layer := quantized_node(model)) is not None:
            return _twice(model, layer)
        plan = place(model.graph, exclude=self.exclude)
        if not plan.layers:
            return PassResult(False, {"integer-layers": 0}, plan.declined)
        if context.calibration is None:
            return _without_data(plan)
        if len(context.calibration) < _FEW_SAMPLES:
            warnings.warn(
                f"activations are calibrated on {len(context.calibration)} samples; a hundred serve well",
                ModelWarning,
                stacklevel=2,
            )
        converted = at_least(model, self.scheme.opset)
        equalized = self._equalize(model, context)
        limit = Limit(context.max_drop if self.max_drop is None else self.max_drop, self.min_sqnr)
        observed: dict[str, Histogram] = {}
        shifts: Shifts = {}
        held = BackOff({}, {})
        if limit:
            held = back_off(
                model,
                limit,
                context,
                lambda candidate, refused: self.rewrite(candidate, context, refused, observed, shifts),
                lambda: sensitivity(self, model, context, SAMPLES, observed).layers,
            )
        result = self.rewrite(model, context, held.refused, observed, shifts)
        statistics = {**result.statistics, **equalized.statistics, **held.statistics}
        return replace(result, changed=result.changed or converted or equalized.changed, statistics=statistics)

    def _equalize(self, model: ir.Model, context: PassContext) -> PassResult:
        """Balance channels in place where one scale would serve them worst; nothing to report for other models."""
        if not self.equalize or self.scheme is not Scheme.INT8 or not has_linear_depthwise(model.graph):
            return PassResult(False)
        result = Equalize().run(model, context)
        return PassResult(result.changed, {"equalized-channels": result.statistics["equalized-channels"]})

    def rewrite(
        self,
        model: ir.Model,
        context: PassContext,
        refused: Mapping[str, str],
        observed: dict[str, Histogram],
        shifts: Shifts,
    ) -> PassResult:
        """Quantize all that can be, but the nodes whose first output `refused` names, with reasons.

        observed, shifts: what was measured before, of the float model; what is missing is added.
        """
        plan = self.plan(model, context, refused, observed)
        if not plan.layers:
            return PassResult(False, {"integer-layers": 0}, plan.declined)
        parameters = self.parameters(model.graph, plan, observed)
        weights = self.weights(plan, parameters)
        samples = context.calibration
        if self.correct_bias and samples is not None:
            layers = corrected(model, plan.layers, parameters, weights, samples, context.progress, shifts)
            plan = replace(plan, layers=layers)
        self.insert(model.graph, plan, parameters, weights)
        statistics = {
            "integer-layers": len(plan.layers),
            "products": sum(layer.kind is Kind.PRODUCT for layer in plan.layers),
            "quantized-values": len(parameters),
            "scales": len(plan.groups),
            "samples": len(samples) if samples is not None else 0,
        }
        return PassResult(True, statistics, plan.declined)

    def sensitivity(self, model: ir.Model, context: PassContext, count: int = SAMPLES) -> Sensitivity:
        """What quantizing each layer alone does to the outputs, on the first `count` samples; `model` is left as it is.

        Raises:
            UsageError: as `run` does, and if the model is quantized already.
            DataError: there is no sample, or the samples or labels do not fit.
        """
        self._check(context)
        if (layer := quantized_node(model)) is not None:
            raise UsageError(
                f"the model is quantized already (see '{layer_name(layer)}'): sensitivity is measured on a float model"
            )
        work = clone(model)
        at_least(work, self.scheme.opset)
        self._equalize(work, context)
        return sensitivity(self, work, context, count, {})

    def _check(self, context: PassContext) -> None:
        check_served(context.target, self.scheme.value)
        if self.weight_observer not in (Observer.MIN_MAX, Observer.MSE):
            raise UsageError(f"weight_observer is '{self.weight_observer.value}', expected min-max or mse")
        if self.max_drop is not None and not 0 <= self.max_drop <= 1:
            raise UsageError(f"max_drop is {self.max_drop}, expected a fraction from 0 to 1")

    def plan(
        self, model: ir.Model, context: PassContext, refused: Mapping[str, str], observed: dict[str, Histogram]
    ) -> Plan:
        """A plan of values that are finite on the samples; their histograms are added to `observed`."""
        samples = context.calibration
        kept = {node: refused[name] for node in model.graph if (name := str(node.outputs[0].name)) in refused}
        while True:
            plan = place(model.graph, exclude=self.exclude, refused=kept)
            names = [str(value.name) for group in plan.groups for value in group.sources]
            missing = [name for name in names if name not in observed]
            if missing and samples is not None:
                observed |= histograms(model, missing, samples, context.progress)
            bad = {name: observed[name] for name in names if observed[name].not_finite or not observed[name].total}
            if not bad:
                return plan
            for layer in plan.layers:
                for value in (*layer.operand_values(), *layer.results):
                    if value.name in bad:
                        what = "is NaN or infinite" if bad[value.name].not_finite else "is empty"
                        kept[layer.node] = f"'{value.name}' {what} on the calibration data"

    def weights(self, plan: Plan, parameters: Mapping[ir.Value, Parameters]) -> dict[ir.Node, IntegerWeight]:
        """The weights of the plan's layers as integers."""
        return {
            layer.node: integer_weight(
                layer if self.scheme.integer_bias else replace(layer, bias=None),
                parameters[layer.operand_values()[0]].scale,
                per_channel=self.per_channel,
                mse=self.weight_observer is Observer.MSE,
            )
            for layer in plan.layers
            if layer.weight is not None
        }

    def insert(
        self,
        graph: ir.Graph,
        plan: Plan,
        parameters: Mapping[ir.Value, Parameters],
        weights: Mapping[ir.Node, IntegerWeight],
    ) -> None:
        """Write the plan into the graph."""
        insert(graph, plan, parameters, weights, symmetric=self.symmetric_activations, scheme=self.scheme)

    def parameters(self, graph: ir.Graph, plan: Plan, observed: Mapping[str, Histogram]) -> dict[ir.Value, Parameters]:
        """The scale and zero point of each value of the plan of `graph`."""
        chosen: dict[ir.Value, Parameters] = {}
        whole = feeding_maxima(graph)
        for group in plan.groups:
            low, high = self._range(group, observed, whole)
            parameters = activation_parameters(low, high, symmetric=self.symmetric_activations, dtype=self.scheme.dtype)
            chosen |= dict.fromkeys(group.values, parameters)
        return chosen

    def _range(
        self, group: Group, observed: Mapping[str, Histogram], whole: Container[ir.Value]
    ) -> tuple[float, float]:
        """The union over what makes the numbers of the group; nothing is cut off the values in `whole`."""
        ranges = [
            range_of(observed[str(value.name)], self._observer(value, whole), symmetric=self.symmetric_activations)
            for value in group.sources
        ]
        ranges += map(self.scheme.fixed, group.fixed)
        return min(low for low, _ in ranges), max(high for _, high in ranges)

    def _observer(self, value: ir.Value, whole: Container[ir.Value]) -> Observer:
        chosen = self.scheme.observer(self.observer)
        return Observer.MIN_MAX if chosen is Observer.MSE and value in whole else chosen


def _twice(model: ir.Model, layer: ir.Node) -> PassResult:
    found = quantization(model)
    form = "in a subgraph" if found is None else found.form
    by = f" by {model.producer_name}" if model.producer_name else ""
    reason = "the model is quantized already"
    warnings.warn(f"nothing is quantized: {reason} ({form}{by}); give the float model", ModelWarning, stacklevel=3)
    return PassResult(False, declined=(Declined(layer_name(layer), reason),))


def _without_data(plan: Plan) -> PassResult:
    reason = "there is no calibration data, and without it no activation is quantized"
    warnings.warn(f"nothing is quantized: {reason}; give samples with --calib", ModelWarning, stacklevel=3)
    declined = [Declined(layer_name(layer.node), reason) for layer in plan.layers]
    return PassResult(False, {"integer-layers": 0}, (*declined, *plan.declined))
