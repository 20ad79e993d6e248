"""Values that are made as parts of another: operands of a concatenation in its result, and results in their operand.

A concatenation is then no call at all. Its result lives from the first operand on, so that a value may take memory
earlier than before: where that raises the most bytes that live at once, the concatenation stays a copy.

A kernel that is element-wise may write its result over an operand that is not read later. Where that lowers the most
bytes that live at once it does, marked IN_PLACE: its parameters then alias, which LLVM has to be told.
"""

from __future__ import annotations

from dataclasses import replace

from tvm import s_tir, tirx

from graphopt.targets.tvm.kernels.concatenation import IN_ORDER
from graphopt.targets.tvm.kernels.epilogue import are_variables, loads_of
from graphopt.targets.tvm.lower import Call, Lowered, Value
from graphopt.targets.tvm.memory_plan import Lifetime, lower_bound
from graphopt.targets.tvm.program import ALIGNMENT

IN_PLACE = "graphopt.in_place"  # mark on a function whose result may lie over an operand

Parts = dict[Value, tuple[Value, int]]  # a value -> the one that it is a part of, and where in it, in bytes


def make_in_place(lowered: Lowered) -> Lowered:
    """The same model without the concatenations whose operands can be made in place, and with less memory at once."""
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
    return _overwriting(replace(lowered, functions=functions, calls=calls, parts=parts))


def _overwriting(lowered: Lowered) -> Lowered:
    """The same model with element-wise results over their operands, as few as lower the most bytes at once."""
    spans = lifetimes(lowered, lowered.parts)
    over: Parts = {}
    for i, call in enumerate(lowered.calls):
        operand = _overwritten(call, i, lowered, spans)
        if operand is not None:
            over[call.outputs[0]] = operand, 0

    def bound(parts: Parts) -> int:
        return lower_bound(list(lifetimes(lowered, lowered.parts | parts).values()))

    least = bound(over) if over else 0
    if not over or least == bound({}):
        return lowered
    for result in list(over):
        fewer = {value: place for value, place in over.items() if value != result}
        if bound(fewer) == least:
            over = fewer
    marked = {call.function for call in lowered.calls if call.outputs[0] in over}
    functions = {
        name: function.with_attr(IN_PLACE, 1) if name in marked else function
        for name, function in lowered.functions.items()
    }
    return replace(lowered, functions=functions, parts=lowered.parts | over)


def _overwritten(call: Call, number: int, lowered: Lowered, spans: dict[Value, Lifetime]) -> Value | None:
    """The operand that a result can lie over: as large, of the arena, not read later, nor a part of it elsewhere."""
    if len(call.outputs) != 1 or call.outputs[0] not in spans:
        return None
    function = lowered.functions[call.function]
    for value in call.inputs:
        if value in spans and value.bytes == call.outputs[0].bytes and spans[value].last == number:
            same = [i for i, other in enumerate(call.inputs) if whole(other, lowered.parts)[0] == value]
            if all(call.inputs[i] == value and is_element_wise(function, i) for i in same):
                return value
    return None


def is_element_wise(function: tirx.PrimFunc, position: int) -> bool:
    """Whether each element of the result depends, of one parameter, on the same element alone."""
    sch = s_tir.Schedule(function)
    try:
        blocks = [sch.get(block) for block in sch.get_child_blocks(sch.get_sblock("root"))]
    except s_tir.ScheduleError:  # a kernel of our own, of loops without blocks
        return False
    own = [function.params[position]]
    for block in blocks:
        variables = [v.var for v in block.iter_vars]
        store = block.body
        if not isinstance(store, tirx.BufferStore) or any(v.iter_type != tirx.IterVar.DataPar for v in block.iter_vars):
            return False
        own.append(store.buffer)
        extents = [int(v.dom.extent) for v in block.iter_vars]
        accesses = [(store.buffer, store.indices), *((load.source, load.indices) for load in loads_of(store.value))]
        for buffer, indices in accesses:
            elsewhere = [int(e) for e in buffer.ty.shape] != extents or not are_variables(indices, variables, extents)
            if elsewhere and any(buffer.same_as(other) for other in own):
                return False
    return bool(blocks)


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
