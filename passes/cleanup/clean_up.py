"""Run the clean-up passes in turn until a whole round changes nothing.

Each pass opens the way for others: a folded shape makes a Reshape neutral, a cancelled transpose lets two
convolutions be compared. A round runs all of them in the order of `ROUND`; shapes are refreshed after every pass
that changed something. Rounds are bounded, and a model that comes back after a change is reported as the fault of
the passes that undo each other, instead of being rewritten for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.errors import PassError, ShapeError
from graphopt.ir import fingerprint, refresh_shapes
from graphopt.passes.cleanup.eliminate_common_subexpressions import EliminateCommonSubexpressions
from graphopt.passes.cleanup.eliminate_dead_code import EliminateDeadCode
from graphopt.passes.cleanup.eliminate_identity import EliminateIdentity
from graphopt.passes.cleanup.eliminate_zero_states import EliminateZeroStates
from graphopt.passes.cleanup.fold_affine import FoldAffine
from graphopt.passes.cleanup.fold_batch_norm import FoldBatchNorm
from graphopt.passes.cleanup.fold_constants import FoldConstants
from graphopt.passes.cleanup.fold_pad import FoldPad
from graphopt.passes.cleanup.fuse_activations import FuseActivations
from graphopt.passes.cleanup.fuse_matmul_add import FuseMatmulAdd
from graphopt.passes.cleanup.merge_casts import MergeCasts
from graphopt.passes.cleanup.merge_concats import MergeConcats
from graphopt.passes.cleanup.merge_reshapes import MergeReshapes
from graphopt.passes.cleanup.merge_slices import MergeSlices
from graphopt.passes.cleanup.merge_transposes import MergeTransposes
from graphopt.passes.cleanup.move_transposes import MoveTransposes
from graphopt.pipeline.base import Declined, Pass, PassContext, PassResult, option

# Folding into weights comes before equal weights and nodes are merged: what is shared cannot be folded into.
# Activations come before affine operators: the division of a hard swish would go into the convolution behind it.
ROUND: tuple[Pass, ...] = (
    EliminateDeadCode(),
    FoldConstants(),
    EliminateIdentity(),
    EliminateZeroStates(),
    MergeCasts(),
    FuseActivations(),
    FoldPad(),
    FoldBatchNorm(),
    FoldAffine(),
    FuseMatmulAdd(),
    MergeReshapes(),
    MergeTransposes(),
    MoveTransposes(),
    MergeSlices(),
    MergeConcats(),
    EliminateCommonSubexpressions(),
    EliminateDeadCode(),
)


@dataclass(frozen=True)
class CleanUp(Pass):
    """Fold, merge and eliminate, round after round, until nothing changes."""

    name: ClassVar[str] = "clean-up"
    exact: ClassVar[bool] = True

    max_rounds: int = option(20, "stop after this many rounds, settled or not")

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Clean up `model`. Raises PassError if passes undo each other's work."""
        totals: dict[str, int] = {}
        declined: list[Declined] = []
        seen: dict[str, int] = {}
        rounds, changing = 0, [""]
        while changing and rounds < self.max_rounds:
            rounds += 1
            declined.clear()  # what counts is what is declined in the end
            changing = []
            for number, step in enumerate(ROUND):
                context.progress(number, len(ROUND), f"{step.name}, round {rounds}")
                result = _apply(step, model, context)
                declined.extend(result.declined)
                if result.changed:
                    changing.append(step.name)
                for key, value in result.statistics.items():
                    if isinstance(value, int):
                        totals[f"{step.name}.{key}"] = totals.get(f"{step.name}.{key}", 0) + value
            if changing:
                _refuse_loop(seen, fingerprint(model), rounds, changing)
        statistics = {key: value for key, value in totals.items() if value}
        return PassResult(
            changed=rounds > 1 or bool(changing),
            statistics={"rounds": rounds, "settled": "no" if changing else "yes", **statistics},
            declined=tuple(dict.fromkeys(declined)),
        )


def _apply(step: Pass, model: ir.Model, context: PassContext) -> PassResult:
    """Run one pass and refresh the shapes; shapes that contradict each other then are the pass's fault."""
    result = step.run(model, context)
    if result.changed:
        try:
            refresh_shapes(model)
        except ShapeError as error:
            raise PassError(
                f"clean-up: after pass '{step.name}': {error.what}",
                where=error.where,
                advice=f"leave the pass out to go on; `--pass {step.name}` alone may reproduce the fault",
            ) from error
    return result


def _refuse_loop(seen: dict[str, int], state: str, number: int, changing: list[str]) -> None:
    """Raise if an earlier round, which was followed by changes, ended in the same state."""
    if state in seen:
        raise PassError(
            f"clean-up: round {number} ends with the model of round {seen[state]}; "
            f"among {', '.join(dict.fromkeys(changing))} there are passes that undo each other",
            advice="run them one by one with --pass to find the two, and leave one out; this is a fault of graphopt",
        )
    seen[state] = number
