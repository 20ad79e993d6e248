"""A pass of your own: graphopt optimize MODEL.onnx --target arm --plugin samples/custom_pass.py --pass hard-sigmoid"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
from onnxscript.rewriter import pattern

from graphopt.pipeline import Pass, PassContext, PassResult, option


@dataclass(frozen=True)
class HardSigmoid(Pass):
    """Compute Sigmoid by three straight lines instead of an exponential."""

    name: ClassVar[str] = "hard-sigmoid"
    exact: ClassVar[bool] = False  # graphopt measures what it costs
    slope: float = option(1 / 6, "slope of the middle line: 1/6 as in MobileNetV3, 0.25 to follow Sigmoid at zero")

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        rule = pattern.RewriteRule(
            lambda op, x: op.Sigmoid(x), lambda op, x: op.HardSigmoid(x, alpha=self.slope, beta=0.5)
        )
        count = pattern.RewriteRuleSet([rule]).apply_to_model(model)
        return PassResult(changed=count > 0, statistics={"rewritten": count})
