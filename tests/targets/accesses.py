"""Evaluates the indices of a scheduled function: which accesses reach outside of their buffer."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir.expr import Call, TensorLoad

Scope = list[tuple[Any, np.ndarray]]
OPERATIONS: dict[type, Any] = {
    tirx.Add: np.add,
    tirx.Sub: np.subtract,
    tirx.Mul: np.multiply,
    tirx.FloorDiv: np.floor_divide,
    tirx.FloorMod: np.mod,
    tirx.Min: np.minimum,
    tirx.Max: np.maximum,
    tirx.GT: np.greater,
    tirx.LT: np.less,
    tirx.GE: np.greater_equal,
    tirx.And: np.logical_and,
}


def out_of_bounds(function: tirx.PrimFunc) -> list[str]:
    """The accesses that reach outside of their buffer, for any values of the loops around them."""
    found: list[str] = []

    def access(buffer: Any, indices: Any, scope: Scope, runs: Any) -> None:
        for index, extent in zip(indices, buffer.ty.shape, strict=True):
            outside = [(at < 0) | (at >= int(extent)) for at in _ends(index, scope)]
            if any(np.any(where & runs) for where in outside):
                found.append(f"{buffer.name}[{', '.join(map(str, indices))}]")

    def loads(e: Any, scope: Scope, runs: Any) -> None:
        def note(load: TensorLoad) -> TensorLoad:
            access(load.source, load.indices, scope, runs)
            return load

        tvm_ffi.structural_map(e, (TensorLoad, note))

    def walk(s: Any, scope: Scope, runs: Any) -> None:
        if isinstance(s, tirx.SeqStmt):
            known = list(scope)
            for inner in s.seq:
                walk(inner, known, runs)
                # bits of a float are no index
                bound = isinstance(inner, tirx.Bind) and not isinstance(inner.value, Call)
                if bound and str(inner.value.ty.dtype).startswith("int"):
                    known.append((inner.var, _value(inner.value, known)))
        elif isinstance(s, tirx.For):
            outer = [(variable, array[..., None]) for variable, array in scope]
            walk(s.body, [*outer, (s.loop_var, np.arange(int(s.extent)))], np.asarray(runs)[..., None])
        elif isinstance(s, s_tir.SBlockRealize):
            walk(s.block.body, scope, runs)
        elif isinstance(s, tirx.IfThenElse):
            condition = _value(s.condition, scope)
            walk(s.then_case, scope, runs & condition)
            if s.else_case is not None:
                walk(s.else_case, scope, runs & ~condition)
        elif isinstance(s, tirx.BufferStore):
            access(s.buffer, s.indices, scope, runs)
            loads(s.value, scope, runs)
        elif isinstance(s, tirx.Bind):
            loads(s.value, scope, runs)
        else:
            assert isinstance(s, tirx.AllocBuffer), type(s)

    walk(function.body, [], np.True_)
    return found


def _ends(index: Any, scope: Scope) -> list[Any]:
    """The first and the last of the positions that an index names."""
    if not isinstance(index, tirx.Ramp):
        return [_value(index, scope)]
    first = _value(index.base, scope)
    return [first, first + (int(index.lanes) - 1) * int(index.stride)]


def _value(e: Any, scope: Scope) -> Any:
    if isinstance(e, tirx.IntImm):
        return np.int64(int(e))
    if isinstance(e, tirx.Cast):
        return _value(e.value, scope)
    if isinstance(e, tirx.Var):
        return next(array for variable, array in scope if variable.same_as(e))
    return OPERATIONS[type(e)](_value(e.a, scope), _value(e.b, scope))
