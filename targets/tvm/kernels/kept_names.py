"""Names that TVM's simplifier leaves in place.

It replaces a name by the value that it is bound to, unless that reads memory: where each of several values is computed
from the one before, and uses it twice, the code would double with each. So values are marked until TIR is final, and
then go through the stack, which LLVM takes out again.
"""

from __future__ import annotations

from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir.expr import TensorLoad

from graphopt.targets.tvm.kernels.requantize import lanes_of, vector

KEPT = "graphopt.kept"
READS_MEMORY = 2  # TVM's CallEffectKind::kReadState


def kept(value: Any) -> Any:
    """A float that is to be bound, with the mark."""
    dtype = str(value.ty.dtype)
    return tirx.call_intrin(dtype, KEPT, value) if dtype.startswith("float") else value


def by_memory(body: tirx.Stmt) -> tirx.Stmt:
    """`body` without marks; each float that is computed from others alone is stored, and read where it is bound."""
    plain = tvm_ffi.structural_map(body, (tvm.ir.Call, lambda call: call.args[0] if _is_kept(call) else call))
    return tvm_ffi.structural_map(plain, [(tirx.Bind, _by_memory), (tirx.SeqStmt, flattened)])


def _is_kept(call: Any) -> bool:
    return getattr(call.op, "name", "") == KEPT


def _by_memory(statement: tirx.Bind) -> tirx.Stmt:
    value = statement.value
    kind, _, _ = str(getattr(value.ty, "dtype", "")).partition("x")
    if not kind.startswith("float") or isinstance(value, (TensorLoad, tirx.Var, tirx.FloatImm)) or _reads(value):
        return statement
    lanes = lanes_of(value)
    buffer = tirx.decl_buffer((lanes,), kind, statement.var.name, scope="local")
    at = vector(0, lanes)
    return tirx.SeqStmt(
        [
            tirx.AllocBuffer(buffer, {"disable_lower_builtin": tirx.IntImm("bool", 1)}),
            tirx.BufferStore(buffer, value, [at]),
            tirx.Bind(statement.var, tirx.BufferLoad(buffer, [at])),
        ]
    )


def _reads(value: Any) -> bool:
    found: list[Any] = []
    tvm_ffi.structural_walk(value, (TensorLoad, found.append))
    return bool(found)


def flattened(sequence: Any) -> Any:
    """A sequence without sequences in it: what is bound in one of those holds for what follows."""
    parts = [part for each in sequence.seq for part in (each.seq if isinstance(each, tirx.SeqStmt) else [each])]
    return tirx.SeqStmt(parts) if len(parts) > len(sequence.seq) else sequence


# A value as it is, of which TVM thinks that it reads memory.
tvm.ir.register_op_attr(KEPT, "TCallEffectKind", READS_MEMORY)
tvm.ir.register_op_attr(KEPT, "TVectorizable", True)
tvm.ir.register_op_attr(KEPT, "default.FLowerIntrinsic", lambda call: call.args[0])  # in TVM's own pipelines
