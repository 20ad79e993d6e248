"""Remove nodes whose output is one of their inputs.

A rule says which input an operator passes on unchanged, and when. The rules are in two tables: `neutral_layout`
(operators that move or select elements: Reshape, Slice, Concat …) and `neutral_values` (operators that compute:
x·1, Dropout in inference, Relu of Relu …). A node between an input or constant of the graph and its output has to
stay, because both names belong to the interface; it is reported as declined.

onnxscript's rules for this (no_op, basic, collapse_slices) know only single-element constants, compared with a
relative tolerance of 1e-5, only the input form of parameters, and a `training_mode` attribute that Dropout does not
have; onnx_ir's IdentityEliminationPass knows Identity alone. Hence the tables here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.ir.reading import is_standard
from graphopt.passes.cleanup.neutral_layout import LAYOUT_RULES
from graphopt.passes.cleanup.neutral_values import VALUE_RULES
from graphopt.passes.cleanup.rewiring import remove_if_unused, replace
from graphopt.pipeline.base import Declined, Pass, PassContext, PassResult

RULES = LAYOUT_RULES | VALUE_RULES


@dataclass(frozen=True)
class EliminateIdentity(Pass):
    """Remove Identity, Dropout in inference, and every other node that passes an input on unchanged."""

    name: ClassVar[str] = "eliminate-identity"
    exact: ClassVar[bool] = True

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        counts: dict[str, int] = {}
        declined: list[Declined] = []
        moved = False
        for graph in model.graphs():
            for node in graph:
                verdict = _passed_on(node)
                if verdict is None:
                    continue
                if isinstance(verdict, str):
                    declined.append(Declined(node.name or "", verdict))
                    continue
                moved |= replace(node.outputs[0], verdict)
                if remove_if_unused(node):
                    counts[node.op_type] = counts.get(node.op_type, 0) + 1
                elif node.outputs[0].is_graph_output():
                    reason = "passes its input on, but both are named by the graph's interface or an outer graph"
                    declined.append(Declined(node.name or "", reason))
        statistics = {f"removed-{operator}": number for operator, number in sorted(counts.items())}
        return PassResult(moved or bool(counts), statistics, tuple(declined))


def _passed_on(node: ir.Node) -> ir.Value | str | None:
    """The input that stands for the first output; a reason if it might but must not; None if it does not."""
    if not is_standard(node) or node.op_type not in RULES or not node.outputs:
        return None
    verdict = RULES[node.op_type](node)
    if isinstance(verdict, ir.Value) and any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return f"passes its input on, but output {node.outputs[1].name!r} is used as well"
    return verdict
