"""What a model costs before and after it is pruned, and what is left of that."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from graphopt.analysis.channels import channels
from graphopt.passes.cleanup.constants import layer_name
from graphopt.passes.factorize.kernel_time import Arithmetic, IntegerKernels, Kernels
from graphopt.passes.prune.budget import Budget, Saving
from graphopt.pipeline.base import PassContext
from graphopt.targets.base import TargetDescription


def kernels_of(context: PassContext, arithmetic: Arithmetic) -> Kernels:
    """Of the target, or any that has no tiles."""
    made = IntegerKernels if arithmetic is Arithmetic.INT8 else Kernels
    if context.target is None:
        return made(multiple=1)
    return made.of(context.target.vector_bits, context.target.channel_multiple)


def multiples(target: TargetDescription | None, asked: int | None, arithmetic: Arithmetic) -> tuple[int, ...]:
    """Of which what stays of wide groups is one: `asked`, or that of the target, and where its steps lead too far, the
    numbers of one of its vectors; of integers, whose tiles are as narrow, these at once.
    """
    if asked is not None or target is None:
        return (asked or 1,)
    lanes = Kernels.of(target.vector_bits, target.channel_multiple).lanes
    wide = target.channel_multiple
    return (lanes,) if arithmetic is Arithmetic.INT8 or wide <= lanes else (wide, lanes)


def costs_of(model: ir.Model, context: PassContext, arithmetic: Arithmetic) -> dict[Saving, float]:
    """What the model costs now."""
    found, kernels = channels(model.graph), kernels_of(context, arithmetic)
    return {saving: Budget(model, found, saving, kernels).total for saving in Saving}


def fractions_left(
    costs: Mapping[Saving, float], record: Mapping[Saving, float], saving: Saving
) -> dict[str, int | float | str]:
    """The fractions that are left, of the MACs and of what is to be saved."""
    return {
        f"{kind.value}-left": round(costs[kind] / record[kind], 4) if record[kind] else 1.0
        for kind in dict.fromkeys((Saving.MACS, saving))
    }


def missed_by(cost: float, start: float, aim: float) -> float:
    """By which fraction the target is missed."""
    return round((cost - aim) / start, 4) if start else 0.0


def uncounted(graph: ir.Graph) -> str:
    """Why a graph has nothing that can be counted."""
    for value in graph.inputs:
        if value.shape is not None and not value.shape.is_static():
            return f"give sizes that are open with --shape, as of input '{value.name}' {value.shape}"
    for node in graph:
        if any(each.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for each in node.attributes.values()):
            return f"{layer_name(node)} ({node.op_type}) computes in graphs of its own, whose channels are not followed"
    return "no layer has any"
