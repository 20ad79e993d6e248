"""Prune channels: a smaller dense model, without training.

`analysis.channels` finds the units that can go, `importance` ranks those of each group, `allocation` shares out how
many go, `surgery` takes them out, and `reconstruction` refits the rest.
"""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.analysis.channels import Channels, Group, channels
from graphopt.analysis.quantization import quantized_node
from graphopt.analysis.sample_parts import Parts
from graphopt.analysis.samples import Samples
from graphopt.errors import ModelWarning, UsageError
from graphopt.ir import clone, refresh_shapes
from graphopt.ir.reading import is_standard
from graphopt.passes.cleanup.constants import layer_name
from graphopt.passes.factorize.kernel_time import Arithmetic
from graphopt.passes.prune.allocation import (
    Allocation,
    Candidate,
    by_loss,
    by_threshold,
    closest,
    keep_one,
    levels,
    uniform,
)
from graphopt.passes.prune.budget import Budget, Saving
from graphopt.passes.prune.costs import costs_of, fractions_left, kernels_of, missed_by, multiples, uncounted
from graphopt.passes.prune.floors import floor_of, named, parse_floors
from graphopt.passes.prune.gradients import fisher, require_torch, taylor
from graphopt.passes.prune.held_out import HeldOut
from graphopt.passes.prune.importance import NEEDS_DATA, NEEDS_GRADIENTS, Importance, rank, why_not
from graphopt.passes.prune.normalization import Normalization, comparable
from graphopt.passes.prune.numbering import keys, narrowed, numbers_in
from graphopt.passes.prune.readers import Reader, observe, readers
from graphopt.passes.prune.reconstruction import Settings, affordable, reconstruct
from graphopt.passes.prune.sensitivity import Sensitivity, losses, measure_of, unbounded
from graphopt.passes.prune.surgery import remove_units
from graphopt.passes.prune.unseen import unseen_by
from graphopt.passes.prune.variants import AS_IT_IS, REFITTED, Variant, few_apart, judging, least, refusal
from graphopt.pipeline.base import Declined, Pass, PassContext, PassResult, option
from graphopt.pipeline.spec import format_spec

Array = np.ndarray[Any, Any]

_RECORD = "graphopt.prune-channels."  # metadata: with the name of a saving, what the model cost before it was pruned
_WIDTHS = "graphopt.prune-channels.widths"  # the width before of each group that lost units, by `keys`, as JSON
_HELD = "graphopt.prune-channels.held"  # the limit and the options of a run that removed less than asked, to hold it
_EXHAUSTED = "graphopt.prune-channels.exhausted"  # the options of a run that fell short of its ratio
_CLOSE = 1e-3  # a target that is missed by this fraction counts as met


def _not_float32(graph: ir.Graph) -> ir.Node | None:
    """The first product that computes in another type of float."""
    others = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
    products = (node for node in graph if is_standard(node, "Conv", "ConvTranspose", "Gemm", "MatMul"))
    return next((node for node in products if node.outputs[0].dtype in others), None)


@dataclass(frozen=True)
class PruneChannels(Pass):
    """Remove whole channels, with everything that is coupled to them, and refit what is left."""

    name: ClassVar[str] = "prune-channels"
    exact: ClassVar[bool] = False

    ratio: float = option(0.3, "fraction to remove, of what `saving` says")
    importance: Importance = option(
        Importance.SURGEON,
        "what a channel is judged by; variance, magnitude, activation and surgeon need data, taylor and fisher also "
        "class scores and torch",
    )
    allocation: Allocation = option(Allocation.SENSITIVITY, "how much each group gives; sensitivity needs data")
    normalization: Normalization = option(
        Normalization.CUMULATED, "what the global allocation compares: a unit with all below it, by its group or class"
    )
    sensitivity: Sensitivity = option(
        Sensitivity.OUTPUT,
        "what is measured: noise in outputs but probabilities, divergence of class scores, or labels' cross entropy",
    )
    saving: Saving = option(Saving.MACS, "what goes: MACs, params, bytes of weights, channels, or estimated time")
    kernels: Arithmetic = option(Arithmetic.FLOAT32, "that will compute the model: int8 where quantize follows")
    reconstruct: bool = option(True, "refit the layers behind by least squares; needs data")
    steps: int = option(1, "in how many rounds")
    least: float = option(0.1, "fraction of its channels that each group keeps at least")
    floors: tuple[str, ...] = option((), "of groups with a layer of that name, as NAME:FRACTION with * and ?")
    multiple: int | None = option(None, "what stays of wide groups is a multiple of this; by default the target's")
    samples: int = option(1024, "of the calibration data, for ranking and refitting")
    places: int = option(65536, "of a layer that are looked at, in all samples together")
    measured: int = option(32, "samples on which sensitivity is measured")
    damping: float = option(0.01, "how much each weight is held to its own value where the data say little")
    hidden_width: bool = option(False, "also channels that a LayerNormalization sums over")
    exclude: tuple[str, ...] = option((), "names of layers whose channels stay, with * and ?")

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Prune the main graph to (1 - ratio) of what the model cost before it was pruned first.

        Where the context limits what may be lost, less is removed if need be, found by bisection, and judged on samples
        that nothing was fitted to.

        Raises:
            UsageError: an option is out of its range.
            DataError: the samples do not fit, or a loss is limited that cannot be measured.
        """
        self._check()
        if (quantized := quantized_node(model)) is not None:
            return PassResult(False, declined=(Declined(layer_name(quantized), "its weights are quantized already"),))
        if (other := _not_float32(model.graph)) is not None:
            reason = "it computes in another type than float32: prune before compute-float16"
            return PassResult(False, declined=(Declined(layer_name(other), reason),))
        samples, limit = context.calibration, context.max_drop
        if samples is None or limit is None:
            return self._prune(model, context)
        return self._within(model, context, samples, limit)

    def _within(self, model: ir.Model, context: PassContext, samples: Samples, limit: float) -> PassResult:
        """As much of the ratio as the limit allows, fitted to some of the samples and judged on the others."""
        asked = f"{limit} {format_spec(self)}"
        if model.metadata_props.get(_HELD) == asked:
            return PassResult(False)
        original = context.original or clone(model)
        apart = HeldOut(original, samples, context.labels, max(self.samples, self.measured))
        fitting = replace(context, calibration=apart.parts.fitting, labels=apart.parts.fitting_labels)

        def attempt(ratio: float) -> tuple[ir.Model, PassResult]:
            candidate = clone(model)
            return candidate, replace(self, ratio=ratio)._prune(candidate, fitting)

        held = apart.largest(self.ratio, limit, attempt)
        if isinstance(held, float):
            reason = (
                f"removing {held:.3f} of the {self.saving.value} costs more than the {100 * limit:.2f} points allowed"
            )
            return PassResult(False, declined=(Declined("model", reason),))
        if held.result.changed:
            model.graph = held.model.graph
            model.metadata_props.clear()
            model.metadata_props.update(held.model.metadata_props)
            if held.ratio < self.ratio:
                model.metadata_props[_HELD] = asked
        return held.result

    def _prune(self, model: ir.Model, context: PassContext) -> PassResult:
        costs = costs_of(model, context, self.kernels)
        record = {kind: float(model.metadata_props.get(_RECORD + kind.value, costs[kind])) for kind in Saving}
        before, start = costs[self.saving], record[self.saving]
        aim = (1 - self.ratio) * start
        if before == 0:
            reason = f"none of its {self.saving.value} can be counted: {uncounted(model.graph)}"
            return PassResult(False, declined=(Declined("model", reason),))
        if self.ratio == 0 or before <= aim * (1 + _CLOSE):
            return PassResult(False, fractions_left(costs, record, self.saving))
        if model.metadata_props.get(_EXHAUSTED) == self._limits(context):
            return PassResult(
                False, fractions_left(costs, record, self.saving) | {"short-of-target": missed_by(before, start, aim)}
            )
        plan = self if context.calibration is not None else self._without_data()
        statistics: dict[str, int | float | str] = {
            "importance": plan.importance.value,
            "allocation": plan.allocation.value,
        }
        declined: dict[Declined, None] = {}
        original = clone(model)
        whole = channels(original.graph, hidden_width=self.hidden_width)
        widths = {key: group.width for key, group in zip(keys(whole.groups), whole.groups, strict=True)}
        widths |= json.loads(model.metadata_props.get(_WIDTHS, "{}"))
        kept = np.ones(whole.count, bool)
        samples = context.calibration
        parts = None if samples is None else few_apart(samples, self.samples, self.measured, context.labels)
        unseen = {} if parts is None or not plan.reconstruct else unseen_by(original, whole, parts.fitting)
        for step in range(1, self.steps + 1):
            found = channels(model.graph, hidden_width=self.hidden_width)
            wanted = before * (aim / before) ** (step / self.steps)
            choices, refused = plan._choose(model, found, wanted, widths, parts, unseen, context)
            declined |= dict.fromkeys(refused)
            made = plan._variants(original, model, whole, kept, choices, parts, unseen, context)
            best = next(made, None)
            if best is None:
                break
            if parts is not None and plan.reconstruct:
                sensitivity = judging(original, parts.apart, self.sensitivity)
                measure = measure_of(original, parts.apart, sensitivity, parts.apart_labels)
                best, judged = least(best, made, measure)
                statistics |= {"variant": best.name, "held-out-samples": len(parts.apart_places), **judged}
                declined |= dict.fromkeys(refusal(best, judged, len(parts.apart_places)))
            declined |= dict.fromkeys(best.refused)
            model.graph, kept = best.model.graph, best.kept
        gone = int((~kept).sum())
        costs = costs_of(model, context, self.kernels)
        short = costs[self.saving] > aim * (1 + _CLOSE)
        if gone:
            for kind in Saving:
                model.metadata_props.setdefault(_RECORD + kind.value, repr(record[kind]))
            model.metadata_props[_WIDTHS] = json.dumps(
                narrowed(model.graph, widths, hidden_width=self.hidden_width), sort_keys=True
            )
            model.metadata_props.pop(_EXHAUSTED, None)
            if short:
                model.metadata_props[_EXHAUSTED] = self._limits(context)
        statistics |= {"units-removed": gone, **fractions_left(costs, record, self.saving)}
        if short and gone:
            statistics["short-of-target"] = missed_by(costs[self.saving], start, aim)
        return PassResult(gone > 0, statistics, tuple(declined))

    def _limits(self, context: PassContext) -> str:
        """What decides how far a run can go, whatever its ratio."""
        limits = (
            self.saving.value,
            self.kernels.value,
            self.allocation.value,
            self.least,
            multiples(context.target, self.multiple, self.kernels),
            self.steps,
        )
        return json.dumps([*limits, self.hidden_width, self.exclude, self.floors])

    def _places_in(self, samples: Samples) -> int:
        """Of each sample."""
        return max(1, -(-self.places // max(1, len(samples))))

    def _check(self) -> None:
        for name, low, high in (("ratio", 0, 0.99), ("least", 0, 1), ("damping", 1e-9, 100)):
            if not low <= getattr(self, name) <= high:
                raise UsageError(f"{name} is {getattr(self, name)}, expected {low} to {high}")
        for name in ("steps", "samples", "places", "measured"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}, expected 1 or more")
        if self.multiple is not None and self.multiple < 1:
            raise UsageError(f"multiple is {self.multiple}, expected 1 or more")
        parse_floors(self.floors)
        if self.importance in NEEDS_GRADIENTS:
            require_torch()

    def _without_data(self) -> PruneChannels:
        warnings.warn(
            "there is no calibration data: channels are judged by their weights, all groups give the same fraction, "
            "and nothing is refitted; give samples with --calib",
            ModelWarning,
            stacklevel=3,
        )
        importance = Importance.L2 if self.importance in NEEDS_DATA else self.importance
        allocation = Allocation.UNIFORM if self.allocation is Allocation.SENSITIVITY else self.allocation
        return replace(self, importance=importance, allocation=allocation, reconstruct=False)

    def _variants(
        self,
        original: ir.Model,
        model: ir.Model,
        whole: Channels,
        kept: Array,
        choices: Iterable[tuple[str, Array]],
        parts: Parts | None,
        unseen: Mapping[int, str],
        context: PassContext,
    ) -> Iterator[Variant]:
        """`model` with what stays by each of the choices, refitted if it should be, and as it is."""
        first = None
        for name, stays in choices:
            if stays.all() or (first is not None and np.array_equal(stays, first)):
                continue
            first = stays
            pruned = clone(model)
            found = channels(pruned.graph, hidden_width=self.hidden_width)
            left = kept.copy()
            left[numbers_in(whole, kept, found)[~stays]] = False
            remove_units(pruned.graph, found, ~stays)
            refresh_shapes(pruned)
            refused: tuple[Declined, ...] = ()
            if self.reconstruct and parts is not None:
                refitted = clone(pruned)
                few = affordable(original, refitted, parts.fitting)
                settings = Settings(self._places_in(few), self.damping, context.seed)
                fixed = {node: unseen[place] for place, node in enumerate(refitted.graph) if place in unseen}
                done, refused = reconstruct(
                    original, refitted, whole, left, few, settings, context.progress, fixed=fixed
                )
                if done:
                    yield Variant(name + REFITTED, refitted, left, plain=False, refused=refused)
                    refused = ()
            yield Variant(name + AS_IT_IS, pruned, left, plain=True, refused=refused)

    def _choose(
        self,
        model: ir.Model,
        found: Channels,
        target: float,
        widths: Mapping[str, int],
        parts: Parts | None,
        unseen: Mapping[int, str],
        context: PassContext,
    ) -> tuple[Iterator[tuple[str, Array]], tuple[Declined, ...]]:
        """The units that stay, bool [count], so that `target` is left: shared out by losses of readers that are
        refitted, then, where it differs, by those of readers that are not. `widths` before pruning, by `keys`.
        """
        groups, declined = self._free(found)
        budget = Budget(model, found, self.saving, kernels_of(context, self.kernels))
        measured, refused = self._observed(model, groups, found, parts, context)
        rng = context.rng()
        floors = parse_floors(self.floors)
        gradients = None
        if parts is not None and self.importance in NEEDS_GRADIENTS:
            score = taylor if self.importance is Importance.TAYLOR else fisher
            gradients = score(model, groups, found, parts.fitting, parts.fitting_labels, context.progress)
        before = {id(group): widths.get(key) for key, group in zip(keys(found.groups), found.groups, strict=True)}
        rankings = [rank(group, found, measured, self.importance, rng, gradients) for group in groups]
        least = [floor_of(group, self.least, floors) for group in groups]
        attempts = [
            [
                Candidate(ranking, levels(group.width, least=floor, multiple=multiple, before=before[id(group)]))
                for group, ranking, floor in zip(groups, rankings, least, strict=True)
            ]
            for multiple in multiples(context.target, self.multiple, self.kernels)
        ]
        fixed = {node for place, node in enumerate(model.graph) if place in unseen or not self.reconstruct}
        refitted = {node: each for node, each in measured.items() if node not in fixed}
        sharing = self._sharing(model, found, groups, refitted, budget, target, parts, context)
        choices: Iterator[tuple[str, Array]] = (
            (name, keep_one(found, closest(map(share, attempts), budget, target), rankings)) for name, share in sharing
        )
        declined += [Declined(layer_name(node), f"it is not refitted: {reason}") for node, reason in refused.items()]
        return choices, tuple(declined)

    def _free(self, found: Channels) -> tuple[list[Group], list[Declined]]:
        groups, declined = [], []
        for group in found.groups:
            if group.protection:
                declined.append(Declined(group.name, f"{group.width} channels stay: {group.protection[0]}"))
            elif any(named(group, pattern) for pattern in self.exclude):
                declined.append(Declined(group.name, f"{group.width} channels stay: excluded by the options"))
            elif reason := why_not(group, self.importance):
                declined.append(Declined(group.name, f"{group.width} channels stay: {reason}"))
            elif group.width > 1:
                groups.append(group)
        return groups, declined

    def _observed(
        self,
        model: ir.Model,
        groups: Sequence[Group],
        found: Channels,
        parts: Parts | None,
        context: PassContext,
    ) -> tuple[dict[ir.Node, Reader], dict[ir.Node, str]]:
        needed = self.importance in NEEDS_DATA or self.allocation is Allocation.SENSITIVITY
        if parts is None or not needed:
            return {}, {}
        measured, refused = readers(groups, found)
        observe(model, measured, parts.fitting, self._places_in(parts.fitting), context.seed, context.progress)
        return measured, refused

    def _sharing(
        self,
        model: ir.Model,
        found: Channels,
        groups: Sequence[Group],
        refitted: Mapping[ir.Node, Reader],
        budget: Budget,
        target: float,
        parts: Parts | None,
        context: PassContext,
    ) -> Iterator[tuple[str, Callable[[Sequence[Candidate]], Array]]]:
        """What stays of candidates: names of ways to share out, and the ways. `refitted`: readers that will be."""
        kept = np.ones(found.count, bool)
        if self.allocation is Allocation.GLOBAL:

            def by_scores(candidates: Sequence[Candidate]) -> Array:
                scores = comparable(groups, [each.ranking for each in candidates], self.normalization)
                return by_threshold(candidates, scores, budget, kept, target)

            yield "", by_scores
            return
        if self.allocation is Allocation.UNIFORM or parts is None:
            widths = [group.width for group in groups]
            yield "", lambda candidates: uniform(candidates, widths, budget, kept, target)
            return
        measure = measure_of(model, parts.apart, unbounded(model, parts.apart, self.sensitivity), parts.apart_labels)

        def by_losses(readers: Mapping[ir.Node, Reader], candidates: Sequence[Candidate]) -> Array:
            lost = losses(model, found, groups, candidates, readers, measure, context.progress)
            return by_loss(candidates, lost, budget, kept, target)

        yield "", functools.partial(by_losses, refitted)
        if self.reconstruct:
            yield "ranked-without-", functools.partial(by_losses, {})
