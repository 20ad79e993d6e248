"""Which ONNX nodes a fused kernel computes.

The importer names the last binding of node i `n{i}_…`; the unnamed ones before it belong to the same node. Fusion
keeps neither names nor one function a call (equal groups share one), so each fused call is matched, binding by binding,
with the calls before fusion that have the same callee and arguments.
"""

from __future__ import annotations

import hashlib
import re
from typing import Any

import numpy as np
import tvm
from tvm import relax


def node_indices(unfused: tvm.IRModule, fused: tvm.IRModule) -> list[tuple[int, ...]]:
    """For each call in the fused `main`, in order: the sorted indices of the ONNX nodes it came from."""
    origin: dict[tuple[Any, ...], list[tuple[Any, int]]] = {}
    node_of = _nodes_of_bindings(unfused)
    aliases: dict[Any, Any] = {}  # variables bound to no call, such as items of a kernel with several outputs
    for block in unfused["main"].body.blocks:
        for binding in block.bindings:
            call = binding.value
            if isinstance(call, relax.Call) and getattr(call.op, "name", "") == "relax.call_tir":
                key = (call.args[0].name_hint, tuple(_key(argument, aliases) for argument in call.args[1].fields))
                origin.setdefault(key, []).append((binding.var, node_of[binding.var]))
            else:
                aliases[binding.var] = _key(call, aliases)
    found: list[tuple[int, ...]] = []
    before: dict[Any, Any] = {}  # variable after fusion -> variable before it
    for block in fused["main"].body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.Call) and isinstance(value.op, tvm.ir.GlobalVar):
                inner = fused[value.op]
                scope = dict(zip(inner.params, (_key(a, before) for a in value.args), strict=True))
                nodes = []
                for variable, call in _calls(inner):
                    original, node = _take(origin, call, scope)
                    scope[variable] = original
                    nodes.append(node)
                before[binding.var] = _result(inner, scope)
                found.append(tuple(sorted(set(nodes))))
            elif _is_call(value):
                original, node = _take(origin, value, before)
                before[binding.var] = original
                found.append((node,))
            else:
                before[binding.var] = _key(value, before)
    return found


def _nodes_of_bindings(module: tvm.IRModule) -> dict[Any, int]:
    nodes: dict[Any, int] = {}
    waiting: list[Any] = []
    last = 0
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            waiting.append(binding.var)
            match = re.fullmatch(r"n(\d+)_\d+\w*", binding.var.name)
            if match:
                last = int(match.group(1))
                nodes.update(dict.fromkeys(waiting, last))
                waiting.clear()
    nodes.update(dict.fromkeys(waiting, last))
    return nodes


def _calls(function: relax.Function) -> list[tuple[Any, Any]]:
    return [
        (binding.var, binding.value)
        for block in function.body.blocks
        for binding in block.bindings
        if _is_call(binding.value)
    ]


def _is_call(expression: Any) -> bool:
    return isinstance(expression, relax.Call) and getattr(expression.op, "name", "") == "relax.call_tir"


def _call_key(call: Any, scope: dict[Any, Any]) -> tuple[Any, ...]:
    return (call.args[0].name_hint, tuple(_key(argument, scope) for argument in call.args[1].fields))


def _key(expression: Any, scope: dict[Any, Any]) -> Any:
    """What identifies an argument across fusion: the variable before it, or the constant's content."""
    if isinstance(expression, relax.Var):
        return scope.get(expression, expression)
    if isinstance(expression, relax.TupleGetItem):
        return ("item", _key(expression.tuple_value, scope), expression.index)
    if isinstance(expression, relax.Tuple):
        return ("tuple", *(_key(item, scope) for item in expression.fields))
    if isinstance(expression, tvm.ir.GenericConst):
        return ("constant", *content_key(expression.value.numpy()))
    return ("other", str(expression))


def content_key(array: np.ndarray) -> tuple[Any, ...]:
    """Equal for arrays of equal shape, type and bytes alone."""
    return (array.shape, array.dtype.str, hashlib.sha256(array.tobytes()).digest())


def _take(origin: dict[tuple[Any, ...], list[tuple[Any, int]]], call: Any, scope: dict[Any, Any]) -> tuple[Any, int]:
    candidates = origin[_call_key(call, scope)]
    return candidates.pop(0) if len(candidates) > 1 else candidates[0]


def _result(function: relax.Function, scope: dict[Any, Any]) -> Any:
    body = function.body.body
    for block in function.body.blocks:
        for binding in block.bindings:
            if binding.var not in scope:
                scope[binding.var] = _key(binding.value, scope)
    return _key(body, scope)
