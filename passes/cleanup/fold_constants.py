"""Compute at compile time what does not depend on the inputs.

Four steps repeat until none changes anything, since each opens the way for the others:
1. Constant nodes become initializers (except those that are outputs of their graph);
2. an If whose condition is constant gives way to the branch taken (`inline_branches`);
3. what is known of shapes is written down (`fold_shapes`): Shape of a static tensor, Gather, Slice, Concat … of
   known dimensions, and a Reshape whose target has one unknown dimension;
4. nodes whose inputs are all constant are computed by ONNX Runtime (`evaluate_constants`).

Random operators, operators of custom domains, and quantization are left alone; an initializer that is also an input
is a default that the caller may override, not a constant. `docs/adr/0004-constant-folding.md` has the measurements
that led to this pass instead of onnxscript's or onnx-graphsurgeon's folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.ir import refresh_shapes
from graphopt.passes.cleanup.evaluate_constants import evaluate_constants
from graphopt.passes.cleanup.fold_shapes import fold_shapes
from graphopt.passes.cleanup.inline_branches import inline_branches
from graphopt.pipeline.base import Declined, Pass, PassContext, PassResult, option


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Compute what does not depend on the inputs; write down known shapes; inline If of a constant condition."""

    name: ClassVar[str] = "fold-constants"
    exact: ClassVar[bool] = True

    max_bytes: int = option(
        16 << 20, "a result of more bytes than this is folded only if the constants it replaces are as large"
    )

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Fold in the main graph and its subgraphs until nothing changes."""
        totals = dict.fromkeys(("constants-lifted", "branches-inlined", "shapes-folded", "nodes-folded"), 0)
        while True:
            counts, declined = self._step(model)
            if not any(counts):
                return PassResult(changed=any(totals.values()), statistics=totals, declined=declined)
            while any(counts):
                totals = {key: total + count for (key, total), count in zip(totals.items(), counts, strict=True)}
                counts, declined = self._step(model)
            refresh_shapes(model)

    def _step(self, model: ir.Model) -> tuple[tuple[int, int, int, int], tuple[Declined, ...]]:
        lifted = _lift_constants(model)
        inlined = inline_branches(model)
        shapes = fold_shapes(model)
        folded, declined = evaluate_constants(model, self.max_bytes)
        return (lifted, inlined, shapes, folded), declined


def _lift_constants(model: ir.Model) -> int:
    before = sum(1 for node in model.graph.all_nodes() if node.op_type == "Constant")
    ir.passes.common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return before - sum(1 for node in model.graph.all_nodes() if node.op_type == "Constant")
