"""Factorize: layers become two of low rank where the target computes these sooner, without training.

`layers` finds the matrices, `low_rank` their directions from the covariance of what the layer reads, `ranks` decides
how far each goes, pruning's `reconstruction` refits all that lies behind under the ranks, and `splitting` rewrites.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.analysis.cost import layer_costs, total
from graphopt.analysis.quantization import quantized_node
from graphopt.analysis.sample_parts import Parts
from graphopt.analysis.samples import Samples
from graphopt.errors import ModelWarning, UsageError
from graphopt.ir import clone
from graphopt.passes.cleanup.constants import layer_name
from graphopt.passes.factorize.accumulated import Accumulated
from graphopt.passes.factorize.costs import Saving
from graphopt.passes.factorize.form import Form, Method, now_costs
from graphopt.passes.factorize.forms import forms_of
from graphopt.passes.factorize.kernel_time import Arithmetic, IntegerKernels, Kernels
from graphopt.passes.factorize.layers import Layer, layers
from graphopt.passes.factorize.low_rank import directions
from graphopt.passes.factorize.ranks import Candidate, Choice, Limits, by_energy, by_loss, by_noise, candidate
from graphopt.passes.factorize.sensitivity import losses, lower
from graphopt.passes.factorize.sharing import split_all, spread_of
from graphopt.passes.prune.held_out import HeldOut, Judged, held_out, largest
from graphopt.passes.prune.least_squares import Constraint
from graphopt.passes.prune.readers import Reader, observe
from graphopt.passes.prune.reconstruction import Settings, affordable, reconstruct
from graphopt.passes.prune.sensitivity import Sensitivity, measure_of
from graphopt.passes.quantize.patches import RECURRENT
from graphopt.pipeline.base import Declined, Pass, PassContext, PassResult, option
from graphopt.pipeline.spec import format_spec

Array = np.ndarray[Any, Any]

_RECORD = "graphopt.factorize."  # metadata: what the model cost before it was factored, and what was asked for
_HELD = "graphopt.factorize.held"  # metadata: the limit and the options of a run that saved less, to hold it
_CLOSE = 1e-3  # a target that is missed by this fraction counts as met


@dataclass(frozen=True)
class _Plan:
    """The layers that may be factored, with what each rank costs the model's output, and the rest with reasons.

    means: of the columns of each candidate's uses, where a bias may take up what is lost of them.
    """

    candidates: tuple[Candidate, ...]
    losses: tuple[Array, ...]
    means: tuple[tuple[Array | None, ...], ...]
    declined: tuple[Declined, ...]


@dataclass(frozen=True)
class Factorize(Pass):
    """Replace weights by products of two smaller ones where that takes the target less time."""

    name: ClassVar[str] = "factorize"
    exact: ClassVar[bool] = False

    ratio: float = option(0.2, "fraction to remove of what `saving` names")
    saving: Saving = option(Saving.MACS, "what is saved: macs, bytes (of weights), or time (estimated for the target)")
    energy: float | None = option(None, "instead of a ratio: fraction of its output's energy that each layer keeps")
    vbmf: bool = option(
        False, "instead of a ratio: ranks that variational Bayes tells from noise, of the weights alone"
    )
    kernels: Arithmetic = option(Arithmetic.FLOAT32, "that will compute the factors: int8 where quantize follows")
    method: Method = option(
        Method.AUTO, "svd, spatial, tucker2, decoupled, cp, or auto: of each layer the one that loses least"
    )
    whitened: bool = option(True, "weigh errors by what the layer reads, not alike in all directions; needs data")
    most_lost: float = option(0.05, "fraction of its output's energy that a layer may lose before it is refitted")
    model_lost: float = option(
        0.05,
        "without max-drop: fraction of its outputs' energy, or nats of their classes, that the model may lose on "
        "held-out samples; 1: no limit",
    )
    least_saved: float = option(0.005, "fraction of the model's cost that a layer must save at its lowest rank")
    slower: float = option(0.0, "fraction of the model's time that a layer may add, to save bytes or MACs")
    refit: bool = option(True, "refit the factors and the layers behind by least squares; needs data")
    multiple: int | None = option(None, "ranks of wide layers are multiples of this; the target's by default")
    sensitivity: Sensitivity = option(
        Sensitivity.OUTPUT, "loss by which layers share out: noise in the output, divergence of class scores, or labels"
    )
    samples: int = option(1024, "of the calibration data, for directions and refitting")
    places: int = option(65536, "of a layer that are looked at, in all samples together")
    measured: int = option(32, "samples on which sensitivity is measured")
    damping: float = option(0.01, "how much each weight is held to its own value where the data say little")
    exclude: tuple[str, ...] = option((), "names of layers that stay, with * and ?")

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Factor layers of the main graph until the fraction `ratio` of what the model cost before is saved.

        Less is saved if need be, found by bisection, so that on samples that nothing was fitted to the model loses no
        more than the context allows, or `model_lost` where the context does not say.

        Raises:
            UsageError: an option is out of its range.
            DataError: the samples do not fit, or a loss is limited that cannot be measured.
        """
        self._check()
        if (quantized := quantized_node(model)) is not None:
            return PassResult(False, declined=(Declined(layer_name(quantized), "its weights are quantized already"),))
        if context.calibration is None:
            warnings.warn(
                "there is no calibration data: ranks are chosen by the weights alone, and nothing is refitted; "
                "give samples with --calib",
                ModelWarning,
                stacklevel=2,
            )
        before = self._cost_of(model, context, self.saving)
        start = float(model.metadata_props.get(_RECORD + self.saving.value, before))
        unmet = not self._by_ratio or before > (1 - self.ratio) * start * (1 + _CLOSE)
        if not unmet or self.ratio == 0 or model.metadata_props.get(_RECORD + "asked") == self._asked:
            return PassResult(False, {f"{self.saving.value}-left": round(before / start, 4) if start else 1.0})
        if context.calibration is None or (context.max_drop is None and self.model_lost >= 1):
            return self._apply(model, self._plan(model, before, context), self._sought, (before, start), context)
        return self._within(model, (before, start), context, context.calibration)

    def _check(self) -> None:
        for name, low, high in (
            ("ratio", 0, 0.99),
            ("energy", 0, 1),
            ("most_lost", 0, 1),
            ("model_lost", 0, 1),
            ("least_saved", 0, 1),
            ("slower", 0, 10),
            ("damping", 1e-9, 100),
        ):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise UsageError(f"{name} is {value}, expected {low} to {high}")
        if self.vbmf and self.energy is not None:
            raise UsageError("vbmf and energy both choose the ranks", advice="give one of them")
        for name in ("samples", "places", "measured", "multiple"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}, expected 1 or more")

    @property
    def _asked(self) -> str:
        if self.vbmf:
            return "vbmf"
        return f"{self.saving.value} {self.ratio}" if self.energy is None else f"energy {self.energy}"

    @property
    def _sought(self) -> float:
        """What bisection lowers: the fraction that goes, or that of its output's energy that each layer may lose."""
        return self.ratio if self.energy is None else 1 - self.energy

    @property
    def _by_ratio(self) -> bool:
        return self.energy is None and not self.vbmf

    def _places_in(self, samples: Samples) -> int:
        """Of each sample."""
        return max(1, -(-self.places // max(1, len(samples))))

    def _cost_of(self, model: ir.Model, context: PassContext, saving: Saving) -> float:
        """Of the whole model, in what is to be saved. Layers that cannot be factored take the time of their MACs."""
        whole = total(layer_costs(model))
        if saving is Saving.MACS:
            return float(whole.macs)
        if saving is Saving.BYTES:
            return float(whole.weight_bytes)
        found, _ = layers(model.graph, ())
        known = sum(now_costs(each, self._kernels(context, each), Saving.TIME) for each in found)
        return known + self._kernels(context).of_products(max(whole.macs - sum(each.macs for each in found), 0))

    def _kernels(self, context: PassContext, layer: Layer | None = None) -> Kernels:
        """Of a layer, or of most. Recurrent layers and embeddings have no integer kernels."""
        stays_float = layer is not None and (layer.lookup or layer.node.op_type in RECURRENT)
        made = IntegerKernels if self.kernels is Arithmetic.INT8 and not stays_float else Kernels
        if context.target is None:
            return made(multiple=1)
        return made.of(context.target.vector_bits, context.target.channel_multiple)

    def _plan(self, model: ir.Model, whole: float, context: PassContext) -> _Plan:
        found, declined = layers(model.graph, self.exclude)
        observed = self._observed(model, found, context)
        multiple = self.multiple or (context.target.channel_multiple if context.target is not None else 1)
        slower = self.slower * self._cost_of(model, context, Saving.TIME) if self.slower else 0.0
        limits = Limits(multiple, self.most_lost, slower)
        candidates, means = [], []
        for each in found:
            spread = spread_of(each, observed)
            if spread.covariance is None and context.calibration is not None and self.whitened and not each.lookup:
                why = "its weight is read both ways" if each.both_ways else "it sums over too many numbers"
                declined.append(Declined(each.name, f"{why}: its rank is chosen by its weight"))
            covariance = spread.covariance if self.whitened else None
            along = directions(each.matrix, covariance, spread.common if self.whitened else None)
            result = candidate(
                each,
                forms_of(each, self.method, covariance, along),
                self._kernels(context, each),
                self.saving,
                limits,
            )
            if not isinstance(result, str) and result.choices[-1].saved < self.least_saved * whole:
                result = (
                    f"it would save {100 * result.choices[-1].saved / whole:.2f} % of the model's {self.saving.value}"
                )
            if isinstance(result, str):
                declined.append(Declined(each.name, result))
            else:
                candidates.append(result)
                means.append(spread.means)
        if context.calibration is not None and self._by_ratio:
            few = context.calibration.first(self.measured)
            measure = measure_of(model, few, self.sensitivity, context.labels)
            measured = losses(model, candidates, means, measure, context.progress)
        else:
            measured = [np.array([choice.lost for choice in each.choices]) for each in candidates]
        return _Plan(tuple(candidates), tuple(measured), tuple(means), tuple(declined))

    def _observed(self, model: ir.Model, found: Sequence[Layer], context: PassContext) -> dict[ir.Node, Reader]:
        if context.calibration is None:
            return {}
        uses = [use for each in found for use in each.uses]
        made = {use.node: reader for use in uses if (reader := use.reader()) is not None}
        few = context.calibration.first(self.samples)
        observe(model, made, few, self._places_in(few), context.seed, context.progress)
        return made

    def _within(
        self, model: ir.Model, costs: tuple[float, float], context: PassContext, samples: Samples
    ) -> PassResult:
        asked = f"{context.max_drop} {format_spec(self)}"
        if model.metadata_props.get(_HELD) == asked:
            return PassResult(False)
        parts, judge, allowed = self._judge(clone(model), context, samples)
        context = replace(context, calibration=parts.fitting, labels=parts.fitting_labels)
        plan = self._plan(model, costs[0], context)

        def attempt(sought: float) -> tuple[ir.Model, PassResult]:
            variant = clone(model)
            return variant, self._apply(variant, _moved(plan, model, variant), sought, costs, context)

        held = largest(self._sought, attempt, judge, *((1,) if self.vbmf else ()))
        if isinstance(held, float) or (held.ratio < self._sought and not held.result.changed):
            reason = f"factors cost more than {allowed}, even for less than {self._sought:.3g} asked"
            return PassResult(False, declined=(*plan.declined, Declined("model", reason)))
        result = held.result
        if held.ratio < self._sought:
            reason = f"{held.ratio:.3f} of {self._sought:.3g} asked was done: more costs more than {allowed}"
            result = replace(result, declined=(*result.declined, Declined("model", reason)))
        if result.changed:
            model.graph = held.model.graph
            model.metadata_props.clear()
            model.metadata_props.update(held.model.metadata_props)
            if held.ratio < self._sought:
                model.metadata_props[_HELD] = asked
                del model.metadata_props[_RECORD + "asked"]
        return result

    def _judge(
        self, model: ir.Model, context: PassContext, samples: Samples
    ) -> tuple[Parts, Callable[[ir.Model], Judged], str]:
        """Samples to fit to and others, what judges a variant of `model` by the others, and what is allowed."""
        wanted, limit = max(self.samples, self.measured), context.max_drop
        if limit is None:
            parts, lost = held_out(samples, wanted, context.labels), self.model_lost
            allowed = f"{100 * lost:.3g} % of the outputs' energy, or {lost:.3g} nats of their classes (model_lost)"
            return parts, Accumulated(model, parts, lost).judge, allowed
        apart = HeldOut(context.original or model, samples, context.labels, wanted)
        allowed = f"the {100 * limit:.2f} points that are allowed"
        return apart.parts, lambda variant: apart.judge(variant, limit), allowed

    def _apply(
        self, model: ir.Model, plan: _Plan, sought: float, costs: tuple[float, float], context: PassContext
    ) -> PassResult:
        """Factor `model` in place, so that of `costs`, now and at the start, a fraction of the second goes.

        sought: as `_sought`.
        """
        before, start = costs
        if self.vbmf:
            choices = by_noise(plan.candidates)
        elif self.energy is not None:
            choices = by_energy(plan.candidates, sought)
        else:
            choices = by_loss(plan.candidates, plan.losses, before - (1 - sought) * start)
        chosen = [
            (each.layer, choice, means)
            for each, choice, means in zip(plan.candidates, choices, plan.means, strict=True)
            if choice is not None
        ]
        declined = list(plan.declined)
        declined += [
            Declined(each.layer.name, "what is asked for is saved elsewhere at less loss")
            for each, choice in zip(plan.candidates, choices, strict=True)
            if choice is None
        ]
        original = clone(model)
        for layer, choice, means in chosen:
            lower([use.node for use in layer.uses], layer, choice, means)
        if self.refit and context.calibration is not None and chosen:
            few = affordable(original, model, context.calibration.first(self.samples))
            settings = Settings(self._places_in(few), self.damping, context.seed)
            constraints = {
                layer.node: _of_rank(choice.form, choice.rank) for layer, choice, _ in chosen if not layer.sharing
            }
            fixed = {use.node: "its weight is shared" for layer, _, _ in chosen for use in layer.sharing}
            _, refused = reconstruct(original, model, None, None, few, settings, context.progress, constraints, fixed)
            declined += refused
        for layer, choice, _ in chosen:
            split_all(model.graph, [use.node for use in layer.uses], choice.form, choice.rank)
        saved = sum(choice.saved for _, choice, _ in chosen)
        if chosen:
            model.metadata_props.setdefault(_RECORD + self.saving.value, repr(start))
            model.metadata_props[_RECORD + "asked"] = self._asked
        statistics: dict[str, int | float | str] = {
            "layers-factored": len(chosen),
            "ranks": ", ".join(_described(layer, choice) for layer, choice, _ in chosen),
            f"{self.saving.value}-left": round((before - saved) / start, 4) if start else 1.0,
        }
        if self._by_ratio and before - saved > (1 - self.ratio) * start * (1 + _CLOSE):
            statistics["short-of-target"] = round((before - saved) / start - 1 + self.ratio, 4)
        return PassResult(bool(chosen), statistics, tuple(dict.fromkeys(declined)))


def _described(layer: Layer, choice: Choice) -> str:
    kind = "" if choice.form.method is Method.SVD else f" {choice.form.method.value}"
    shared = f" of {len(layer.sharing)} layers" if layer.sharing else ""
    return f"{layer.name}{shared}{kind} {choice.rank} of {choice.form.full_rank}"


def _of_rank(form: Form, rank: int) -> Constraint:
    def projected(matrix: Array, covariance: Array) -> Array:
        return form.nearest(matrix[0], covariance[0], rank)[None]

    return projected


def _moved(plan: _Plan, model: ir.Model, copy: ir.Model) -> _Plan:
    """The plan about the same nodes of a copy."""
    nodes: Mapping[ir.Node, ir.Node] = dict(zip(model.graph, copy.graph, strict=True))

    def there(layer: Layer) -> Layer:
        return replace(layer, node=nodes[layer.node], sharing=tuple(map(there, layer.sharing)))

    moved = tuple(replace(each, layer=there(each.layer)) for each in plan.candidates)
    return replace(plan, candidates=moved)
