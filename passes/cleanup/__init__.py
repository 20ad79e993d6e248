"""Clean-up: exact rewrites that leave fewer and simpler nodes for whatever comes next.

`DEFAULT` is what `optimize` runs, as pass specs: one pass that runs all others in turn until nothing changes.
"""

from __future__ import annotations

PASSES: tuple[str, ...] = (
    # "module:class" of each pass in this folder, loaded through the registry like a user's plug-in
    "graphopt.passes.cleanup.fold_constants:FoldConstants",
    "graphopt.passes.cleanup.fold_batch_norm:FoldBatchNorm",
    "graphopt.passes.cleanup.fold_affine:FoldAffine",
    "graphopt.passes.cleanup.fold_pad:FoldPad",
    "graphopt.passes.cleanup.fuse_matmul_add:FuseMatmulAdd",
    "graphopt.passes.cleanup.fuse_activations:FuseActivations",
    "graphopt.passes.cleanup.clean_up:CleanUp",
    "graphopt.passes.cleanup.eliminate_common_subexpressions:EliminateCommonSubexpressions",
    "graphopt.passes.cleanup.eliminate_dead_code:EliminateDeadCode",
    "graphopt.passes.cleanup.eliminate_identity:EliminateIdentity",
    "graphopt.passes.cleanup.eliminate_zero_states:EliminateZeroStates",
    "graphopt.passes.cleanup.merge_casts:MergeCasts",
    "graphopt.passes.cleanup.merge_concats:MergeConcats",
    "graphopt.passes.cleanup.merge_reshapes:MergeReshapes",
    "graphopt.passes.cleanup.merge_slices:MergeSlices",
    "graphopt.passes.cleanup.merge_transposes:MergeTransposes",
    "graphopt.passes.cleanup.move_transposes:MoveTransposes",
)

DEFAULT: tuple[str, ...] = ("clean-up",)
