"""Concatenation: marked where the result is its operands one after the other in memory.

It is if all axes before the joined one have the extent 1. Such a concatenation needs no copy, if the operands are made
in their places (`targets/tvm/parts.py`).
"""

from __future__ import annotations

import math
from typing import Any

from tvm import relax, tirx, topi

IN_ORDER = "graphopt.in_order"  # attribute of the function: whether its result is its operands in order


def legalize(builder: Any, call: Any) -> Any:
    """relax.concat, as TVM's own legalization does it, with the mark."""
    operands = call.args[0]
    shape = list(call.ty.shape)
    fixed = all(isinstance(extent, tirx.IntImm) for extent in shape)
    if call.attrs.axis is None or not isinstance(operands, relax.Tuple) or not fixed:
        return call.op.get_attr("FLegalize")(builder, call)
    axis = int(call.attrs.axis) % len(shape)
    return builder.call_te(
        topi.concatenate,
        list(operands.fields),
        axis,
        primfunc_name_hint="concatenate",
        primfunc_attrs={IN_ORDER: int(math.prod(int(extent) for extent in shape[:axis]) == 1)},
    )


LEGALIZE = {"relax.concat": legalize}
