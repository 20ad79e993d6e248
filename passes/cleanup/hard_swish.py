"""Find the hard swish and hard sigmoid that an exporter spelt out: x·min(max(x + 3, 0), 6)/6.

Written as onnxscript rules. Its own rules for this (rewriter.rules.common) know division by 6 alone, Clip with inputs
alone, and make HardSwish also where the opset has none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript.rewriter import MatchResult, RewriteRule, RewriteRuleSet

from graphopt.ir.reading import constant, opset_of
from graphopt.passes.cleanup.bounds import Bounds, bounds_of

# The first opset that has HardSwish.
_HARD_SWISH = 14
# Exporters write 1/6 with 7 digits or more.
_RELATIVE = 1e-6


def fuse_hard_swish(model: ir.Model) -> int:
    """Apply the rules to every graph of `model` until none matches; the number of matches rewritten."""
    swish = _to_swish if opset_of(model) >= _HARD_SWISH else _to_product
    # the longer patterns first: they hold the shorter ones
    rules = [
        RewriteRule(_swish_by_div, swish, _by_six, name="HardSwish"),
        RewriteRule(_swish_by_mul, swish, _by_sixth, name="HardSwish"),
        RewriteRule(_sigmoid_by_div, _to_sigmoid, _by_six, name="HardSigmoid"),
        RewriteRule(_sigmoid_by_mul, _to_sigmoid, _by_sixth, name="HardSigmoid"),
    ]
    if swish is _to_swish:
        rules.append(RewriteRule(_swish_of_sigmoid, swish, _is_swish_sigmoid, name="HardSwish"))
    count = 0
    while applied := int(RewriteRuleSet(rules, commute=True).apply_to_model(model)):
        count += applied
    return count


# Patterns. `op` and the values are onnxscript's pattern objects, which have no public types.


def _clipped(op: Any, x: Any, three: Any) -> Any:
    """A Clip in either form: by inputs or, before opset 11, by attributes."""
    return op.Clip(op.Add(x, three), _allow_other_inputs=True, _allow_other_attributes=True, _outputs=["clipped"])


def _swish_by_div(op: Any, x: Any, three: Any, factor: Any) -> Any:
    return op.Div(op.Mul(x, _clipped(op, x, three)), factor, _outputs=["result"])


def _swish_by_mul(op: Any, x: Any, three: Any, factor: Any) -> Any:
    return op.Mul(op.Mul(x, _clipped(op, x, three)), factor, _outputs=["result"])


def _sigmoid_by_div(op: Any, x: Any, three: Any, factor: Any) -> Any:
    return op.Div(_clipped(op, x, three), factor, _outputs=["result"])


def _sigmoid_by_mul(op: Any, x: Any, three: Any, factor: Any) -> Any:
    return op.Mul(_clipped(op, x, three), factor, _outputs=["result"])


def _swish_of_sigmoid(op: Any, x: Any) -> Any:
    return op.Mul(x, op.HardSigmoid(x, _allow_other_attributes=True, _outputs=["sigmoid"]), _outputs=["result"])


# Checks.


def _by_six(context: Any, three: ir.Value, clipped: ir.Value, factor: ir.Value, **_: Any) -> MatchResult:
    return _is_spelt(three, clipped, factor, 6.0)


def _by_sixth(context: Any, three: ir.Value, clipped: ir.Value, factor: ir.Value, **_: Any) -> MatchResult:
    return _is_spelt(three, clipped, factor, 1 / 6)


def _is_spelt(three: ir.Value, clipped: ir.Value, factor: ir.Value, number: float) -> MatchResult:
    result = MatchResult()
    clip = clipped.producer()
    found = None if clip is None else bounds_of(clip)
    if found is None or found[1] != Bounds(0.0, 6.0):
        return result.fail("it is not clipped to 0 … 6")
    if not _equals(three, 3.0):
        return result.fail("what is added is not 3")
    if not _equals(factor, number):
        return result.fail(f"the factor is not {number:.7g}")
    return result


def _is_swish_sigmoid(context: Any, sigmoid: ir.Value, **_: Any) -> MatchResult:
    result = MatchResult()
    node = sigmoid.producer()
    if node is None or not np.isclose(node.attributes.get_float("alpha", 0.2), 1 / 6, rtol=_RELATIVE, atol=0):
        return result.fail("its HardSigmoid has another slope than 1/6")
    if node.attributes.get_float("beta", 0.5) != 0.5:
        return result.fail("its HardSigmoid has another offset than 1/2")
    return result


def _equals(value: ir.Value, number: float) -> bool:
    """Whether `value` is the constant `number`; one of rank 0 or 1, which gives the result no more axes."""
    array = constant(value)
    if array is None or array.size != 1 or array.ndim > 1:
        return False
    return bool(np.isclose(float(array.astype(np.float64).reshape(-1)[0]), number, rtol=_RELATIVE, atol=0))


# Replacements.


def _to_swish(op: Any, x: ir.Value, result: ir.Value, **_: Any) -> Any:
    return op.HardSwish(x, _name=_name_of(result))


def _to_product(op: Any, x: ir.Value, result: ir.Value, **_: Any) -> Any:
    return op.Mul(x, op.HardSigmoid(x, alpha=1 / 6, beta=0.5), _name=_name_of(result))


def _to_sigmoid(op: Any, x: ir.Value, result: ir.Value, **_: Any) -> Any:
    return op.HardSigmoid(x, alpha=1 / 6, beta=0.5, _name=_name_of(result))


def _name_of(value: ir.Value) -> str | None:
    producer = value.producer()
    return None if producer is None else producer.name
