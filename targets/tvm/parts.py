"""Values that are made as parts of another: the operands of a concatenation, in the place of its result.

The concatenation is then no call at all. Its result lives from the first operand on, so that a value may take memory
earlier than before: where that raises the most bytes that live at once, the concatenation stays a copy.
"""

from __future__ import annotations

from dataclasses import replace

from graphopt.targets.tvm.kernels.concatenation import IN_ORDER
from graphopt.targets.tvm.lower import Call, Lowered, Value
from graphopt.targets.tvm.memory_plan import Lifetime, lower_bound
from graphopt.targets.tvm.program import ALIGNMENT

Parts = dict[Value, tuple[Value, int]]  # a value -> the one that it is a part of, and where in it, in bytes


def make_in_place(lowered: Lowered) -> Lowered:
    """The same model without the concatenations whose operands can be made in place."""
    parts: Parts = {}
    least = lower_bound(list(lifetimes(lowered, parts).values()))
    calls = list(lowered.calls)
    for call in lowered.calls:
        found = _parts_of(call, lowered, parts)
        if not found:
            continue
        without = replace(lowered, calls=[other for other in calls if other is not call])
        bound = lower_bound(list(lifetimes(without, parts | found).values()))
        if bound <= least:
            calls, least = without.calls, bound
            parts |= found
    called = {call.function for call in calls}
    functions = {name: function for name, function in lowered.functions.items() if name in called}
    return replace(lowered, functions=functions, calls=calls, parts=parts)


def whole(value: Value, parts: Parts) -> tuple[Value, int]:
    """The value that `value` is a part of, or itself, and where in it."""
    offset = 0
    while value in parts:
        value, inner = parts[value]
        offset += inner
    return value, offset


def lifetimes(lowered: Lowered, parts: Parts) -> dict[Value, Lifetime]:
    """When each value that a call makes is held, without outputs of the model; parts count as the whole."""
    outputs = set(lowered.outputs)
    spans: dict[Value, Lifetime] = {}
    for i, call in enumerate(lowered.calls):
        for value in (*call.outputs, *call.inputs):
            if value.kind == "made" and value not in outputs:
                of, _ = whole(value, parts)
                known = spans.get(of, Lifetime(of.bytes, i, i))
                spans[of] = replace(known, last=i)
    return spans


def _parts_of(call: Call, lowered: Lowered, parts: Parts) -> Parts:
    """Where the operands of a concatenation would lie in its result; none if it is not one, or not all can."""
    attributes = lowered.functions[call.function].attrs
    if len(call.outputs) != 1 or attributes is None or not int(attributes.get(IN_ORDER, 0)):
        return {}
    result = call.outputs[0]
    own = (*call.inputs, result)
    if len(set(own)) < len(own) or any(value.kind != "made" or value in lowered.outputs for value in own):
        return {}
    found: Parts = {}
    offset = 0
    for value in call.inputs:
        if offset % ALIGNMENT or value in parts:
            return {}
        found[value] = result, offset
        offset += value.bytes
    return found if offset == result.bytes else {}
