"""Merge chains of casts whose first step loses nothing.

    Cast(Cast(x: A → B) → C)  =  Cast(x: A → C)     if B holds every value of A

An integer fits a wider integer of its sign, a wider signed one, and a float whose mantissa has its bits; a float
fits one with a larger mantissa and exponent. Back to A, the pair vanishes. A float on the way to an integer, or a
narrower type on the way, stays: it rounds. onnxscript's CastCast drops float in double → float → float16, which
rounds twice where the result would round once; hence this rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.ir.reading import is_standard
from graphopt.passes.cleanup.rewiring import remove_if_unused, replace
from graphopt.pipeline.base import Declined, Pass, PassContext, PassResult

D = ir.DataType
# bits of magnitude, and whether there is a sign
INTEGERS = {
    D.BOOL: (1, False),
    D.UINT8: (8, False),
    D.UINT16: (16, False),
    D.UINT32: (32, False),
    D.UINT64: (64, False),
    D.INT8: (7, True),
    D.INT16: (15, True),
    D.INT32: (31, True),
    D.INT64: (63, True),
}
# bits of the mantissa (with the hidden one), and of the exponent
FLOATS = {D.FLOAT16: (11, 5), D.BFLOAT16: (8, 8), D.FLOAT: (24, 8), D.DOUBLE: (53, 11)}


def holds(narrow: ir.DataType, wide: ir.DataType) -> bool:
    """Whether every value of type `narrow` is a value of type `wide`."""
    if narrow == wide:
        return True
    if wide == D.BOOL:
        return False
    if narrow in INTEGERS:
        bits, signed = INTEGERS[narrow]
        if wide in INTEGERS:
            return INTEGERS[wide][0] >= bits and (INTEGERS[wide][1] or not signed)
        return wide in FLOATS and FLOATS[wide][0] >= bits
    if narrow in FLOATS and wide in FLOATS:
        return FLOATS[wide][0] >= FLOATS[narrow][0] and FLOATS[wide][1] >= FLOATS[narrow][1]
    return False


@dataclass(frozen=True)
class MergeCasts(Pass):
    """Merge Cast of Cast where the first one loses nothing."""

    name: ClassVar[str] = "merge-casts"
    exact: ClassVar[bool] = True

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        merged, declined = 0, []
        for graph in model.graphs():
            for node in graph:
                first = _cast_before(node)
                source = first.inputs[0] if first is not None else None
                if first is None or source is None or source.dtype is None:
                    continue
                middle, last = D(first.attributes.get_int("to", 0)), D(node.attributes.get_int("to", 0))
                if not holds(source.dtype, middle) or last not in INTEGERS | FLOATS:
                    reason = f"casts {source.dtype} to {middle} to {last}, and the first step is not without loss"
                    declined.append(Declined(node.name or "", reason))
                    continue
                if source.dtype == last:
                    if not replace(node.outputs[0], source):
                        continue
                else:
                    node.replace_input_with(0, source)
                merged += 1
                remove_if_unused(node)
                remove_if_unused(first)
        return PassResult(bool(merged), {"merged": merged}, tuple(declined))


def _cast_before(node: ir.Node) -> ir.Node | None:
    """The Cast whose result `node`, a Cast, casts on."""
    if not is_standard(node, "Cast") or node.inputs[0] is None:
        return None
    first = node.inputs[0].producer()
    return first if first is not None and is_standard(first, "Cast") else None
