"""Fuse activations that exporters spell out: bounds on bounds (`bounds`), and the hard swish (`hard_swish`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.passes.cleanup.bounds import merge_bounds
from graphopt.passes.cleanup.hard_swish import fuse_hard_swish
from graphopt.pipeline.base import Pass, PassContext, PassResult


@dataclass(frozen=True)
class FuseActivations(Pass):
    """Merge Relu, Clip, Max and Min in a row, and find HardSwish and HardSigmoid that are spelt out."""

    name: ClassVar[str] = "fuse-activations"
    exact: ClassVar[bool] = True

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Fuse in the main graph and its subgraphs."""
        merged, declined = merge_bounds(model)
        swishes = fuse_hard_swish(model)
        return PassResult(
            changed=merged + swishes > 0,
            statistics={"bounds-merged": merged, "hard-swishes": swishes},
            declined=tuple(declined),
        )
