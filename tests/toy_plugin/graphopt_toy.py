"""A toy plug-in, as its own distribution: one pass, found through the entry point in the pyproject.toml beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.pipeline import Pass, PassContext, PassResult, option


@dataclass(frozen=True)
class Rename(Pass):
    """Give the graph another name."""

    name: ClassVar[str] = "toy-rename"
    exact: ClassVar[bool] = True
    to: str = option("toy", "the new name")

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        changed = model.graph.name != self.to
        model.graph.name = self.to
        return PassResult(changed)
