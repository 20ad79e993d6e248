"""TIR kernels to relocatable objects of plain C functions: `int32_t symbol(void *arg0, void *arg1, …)`.

TVM's own entry points take packed arguments that each call would have to build and check. Here a kernel's parameters
become raw pointers, and the scratch buffers that it allocates outside of parallel loops become further parameters,
so that the memory plan owns them and nothing is allocated during a run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir import PointerType, PrimType
from tvm.tirx.stmt import Return

from graphopt.errors import InternalError, UnsupportedError
from graphopt.targets.base import TargetDescription
from graphopt.targets.tvm.kernels.elementary import in_arithmetic
from graphopt.targets.tvm.kernels.kept_names import by_memory
from graphopt.targets.tvm.kernels.winograd import WEIGHTS

STACK_BYTES = 16384  # allocations up to this go on the stack


@dataclass(frozen=True)
class Kernel:
    """A compiled function: its symbol, and the bytes of the scratch buffers that follow its parameters.

    winograd: which parameter takes transformed weights (`kernels.winograd`), their filters, channels and panel; if any.
    """

    symbol: str
    scratch: tuple[int, ...]
    winograd: tuple[int, ...] | None = None


def tvm_target(description: TargetDescription) -> tvm.target.Target:
    """TVM's target for a core; for the machine at hand, LLVM's description of it."""
    config: dict[str, Any] = {"kind": "llvm", "mtriple": description.triple, "mcpu": description.mcpu}
    if description.llvm_attributes:
        config["mattr"] = list(description.llvm_attributes)
    return tvm.target.Target(config)


def compile_kernels(functions: dict[str, tirx.PrimFunc], target: tvm.target.Target, path: Path) -> list[Kernel]:
    """Compile scheduled PrimFuncs, by symbol, into one object at `path`.

    Raises UnsupportedError for a function that calls back into TVM's runtime.
    """
    bound = target.with_host(target)
    lowered, kernels = lower_kernels(functions, bound)
    module = tvm.IRModule(lowered)
    module = tirx.transform.FP8StorageLegalize()(module)
    module = tirx.transform.BF16StorageLegalize()(module)
    module = tirx.transform.LowerTVMBuiltin()(module)
    module = tirx.transform.LowerIntrin()(module)
    tvm.get_global_func("target.build.llvm")(module, bound).write_to_file(str(path))
    return kernels


def lower_kernels(
    functions: dict[str, tirx.PrimFunc], bound: tvm.target.Target
) -> tuple[dict[str, tirx.PrimFunc], list[Kernel]]:
    """Scheduled PrimFuncs as plain functions of pointers, by symbol, and their scratch buffers: all but LLVM's part.

    bound: the target, with itself as its host.
    """
    kernels = []
    lowered = {}
    for symbol, function in functions.items():
        module = tvm.IRModule({symbol: function.with_attr("global_symbol", symbol)})
        module = _lower_to_flat_loops(tirx.transform.BindTarget(bound)(module))
        plain, scratch = _with_pointer_parameters(module[symbol])
        plain = plain.with_body(by_memory(in_arithmetic(plain.body)))
        _refuse_runtime_calls(symbol, plain)
        lowered[symbol] = plain
        mark = function.attrs.get(WEIGHTS) if function.attrs else None
        kernels.append(Kernel(symbol, scratch, None if mark is None else tuple(map(int, mark))))
    return lowered, kernels


def _lower_to_flat_loops(module: tvm.IRModule) -> tvm.IRModule:
    """TVM's default pipeline for schedulable TIR without its GPU passes and its packed calling convention."""
    with tvm.transform.PassContext(config={"tirx.disable_vectorize": False}):
        return tvm.transform.Sequential(
            [
                s_tir.transform.CanonicalizeLoop(),
                s_tir.transform.LowerInitBlock(),
                s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
                s_tir.transform.ConvertBlocksToOpaque(),
                s_tir.transform.CompactBufferAllocation(),
                s_tir.transform.LowerMatchBuffer(),
                s_tir.transform.StmtSimplify(),
                s_tir.transform.AnnotateIrregularLoop(),
                s_tir.transform.LowerOpaqueBlock(),
                tirx.transform.FlattenBuffer(),
                tirx.transform.BF16ComputeLegalize(),
                tirx.transform.NarrowDataType(32),
                s_tir.transform.LoopPartition(),
                tirx.transform.VectorizeLoop(True),
                tirx.transform.StorageRewrite(),
                s_tir.transform.HoistIfThenElse(),
                tirx.transform.UnrollLoop(),
                s_tir.transform.RenormalizeSplitPattern(),
                tirx.transform.StmtSimplify(),
                tirx.transform.RemoveNoOp(),
                s_tir.transform.RewriteUnsafeSelect(),
                tirx.transform.CommonSubexprElim(),
                tirx.transform.FP8ComputeLegalize(),
                tirx.transform.VerifyMemory(),
            ]
        )(module)


def _with_pointer_parameters(function: tirx.PrimFunc) -> tuple[tirx.PrimFunc, tuple[int, ...]]:
    """`function` with pointers for buffers, and with its large root allocations as further pointers."""
    in_parallel = _allocated_in_parallel(function.body)
    scratch: list[tirx.Buffer] = []

    def lift(allocation: tirx.AllocBuffer) -> tirx.Stmt:
        buffer = allocation.buffer
        if buffer_bytes(buffer) <= STACK_BYTES:
            return tirx.AllocBuffer(
                buffer, {"disable_lower_builtin": tirx.IntImm("bool", 1)}
            )  # else TVM asks for workspace
        if any(buffer.same_as(other) for other in in_parallel):
            raise InternalError(
                f"kernel {function.attrs['global_symbol']!r} allocates {buffer_bytes(buffer)} bytes for "
                f"{buffer.name!r} inside a parallel loop; at most {STACK_BYTES} fit on the stack"
            )
        scratch.append(buffer)
        return tirx.Evaluate(0)

    body = tvm_ffi.structural_map(function.body, (tirx.AllocBuffer, lift), order="post")
    parameters, declarations = [], []
    for buffer in (*function.params, *scratch):
        pointer = tirx.Var(f"{buffer.name}_pointer", PointerType(PrimType(str(buffer.ty.dtype.dtype)), "global"))
        parameters.append(pointer)
        if isinstance(buffer.ty.elem_offset, tirx.Var):  # views are never passed: pointers lead to the first element
            declarations.append(tirx.Bind(buffer.ty.elem_offset, tirx.const(0, str(buffer.ty.elem_offset.ty.dtype))))
        declarations.append(tirx.DeclBuffer(buffer, data=pointer))
    body = tirx.SeqStmt([*declarations, body, Return(tirx.const(0, "int32"))])
    plain = tirx.PrimFunc(parameters, body, ret_type=PrimType("int32"), attrs=function.attrs)
    return plain, tuple(buffer_bytes(buffer) for buffer in scratch)


def _allocated_in_parallel(body: tirx.Stmt) -> list[tirx.Buffer]:
    found: list[tirx.Buffer] = []

    def note_allocation(allocation: tirx.AllocBuffer) -> None:
        found.append(allocation.buffer)

    def note_loop(loop: tirx.For) -> None:
        if loop.kind == tirx.ForKind.PARALLEL:
            tvm_ffi.structural_walk(loop.body, (tirx.AllocBuffer, note_allocation))

    tvm_ffi.structural_walk(body, (tirx.For, note_loop))
    return found


def buffer_bytes(buffer: tirx.Buffer) -> int:
    """Bytes of a buffer of static shape."""
    dtype = tvm.runtime.DataType(str(buffer.ty.dtype.dtype))
    return math.prod(int(extent) for extent in buffer.ty.shape) * (int(dtype.bits * dtype.lanes + 7) // 8)


def _refuse_runtime_calls(symbol: str, function: tirx.PrimFunc) -> None:
    called: list[str] = []

    def note(call: Any) -> None:
        name = getattr(call.op, "name", "")
        if name.startswith("tirx.tvm_call") and "packed" in name:
            called.append(str(call.args[0]))

    tvm_ffi.structural_walk(function.body, (tvm.ir.Call, note))
    if called:
        raise UnsupportedError(
            f"kernel {symbol!r} calls {', '.join(called)} of TVM's runtime, which no bundle contains"
        )
