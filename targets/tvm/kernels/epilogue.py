"""What FuseTIR put behind a kernel's main block: bias, activation, residual, computed on its sums.

A kernel emits one marked block, which FuseOps and FuseTIR fuse with the operators behind it. `take_epilogue` finds the
block by its mark and sorts what follows: element-wise stages run on each sum on its way to memory (`finish`), others in
loops of their own after the kernel's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import tvm
import tvm_ffi
from tvm import s_tir, tirx
from tvm.ir.expr import TensorLoad
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.tvm.kernels.kept_names import kept

# Functions that a loop of vectors cannot have: TVM takes such a loop apart, and loses what is bound in it.
SCALAR_FUNCTIONS = frozenset(
    f"tirx.{name}"
    for name in (
        *(
            "acos",
            "acosh",
            "asin",
            "asinh",
            "atan",
            "atan2",
            "atanh",
            "copysign",
            "cosh",
            "fmod",
            "hypot",
            "isnan",
            "ldexp",
        ),
        *("log1p", "nearbyint", "nextafter", "rsqrt", "sinh", "call_pure_extern"),
    )
)
PARALLEL_MACS = 1 << 17  # below, waking a thread costs more than it saves: some 10 µs of work


@dataclass(frozen=True)
class Axis:
    """A flattened group of axes."""

    extents: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.extents)

    def unravel(self, position: Any) -> list[Any]:
        """The indices of a flat position."""
        indices: list[Any] = []
        for extent in reversed(self.extents[1:]):
            indices.insert(0, position % extent)
            position = position // extent
        return [position, *indices] if self.extents else []


@dataclass(frozen=True)
class Stage:
    """An operator behind the main block: `target[indices] = value` for all values of `variables`."""

    target: Any
    indices: tuple[Any, ...]
    value: Any
    variables: tuple[Any, ...]
    extents: tuple[int, ...]

    def reads(self) -> list[TensorLoad]:
        """The elements that one element is computed from."""
        return loads_of(self.value)


@dataclass(frozen=True)
class Epilogue:
    """The operators behind the main block, whose result would be `product`."""

    function: tirx.PrimFunc
    product: Any
    stages: tuple[Stage, ...]  # element-wise on the product: computed on the sums
    rest: tuple[Stage, ...]  # what follows them: loops of their own

    def stored(self, buffer: Any) -> bool:
        """Whether a buffer is memory: a parameter, or read or written by the rest."""
        parameters = any(buffer.same_as(parameter) for parameter in self.function.params)
        return parameters or any(
            buffer.same_as(other) for stage in self.rest for other in (stage.target, *(r.source for r in stage.reads()))
        )

    def addend(self) -> Any | None:
        """What the first stage adds to the product, if that is all it does: sums start from it."""
        if not self.stages or self.stored(self.product) or not isinstance(self.stages[0].value, tirx.Add):
            return None
        if any(load.source.same_as(self.product) for stage in self.stages[1:] for load in stage.reads()):
            return None  # as x + 3 of HardSwish, which reads x once more
        sides = self.stages[0].value.a, self.stages[0].value.b
        reads = [any(load.source.same_as(self.product) for load in loads_of(side)) for side in sides]
        plain = [isinstance(side, TensorLoad) for side in sides]
        for this, other in ((0, 1), (1, 0)):
            if reads[this] and plain[this] and not reads[other]:
                return sides[other]
        return None

    def start(self, coordinates: Sequence[Any]) -> Any:
        """What the sum of one element (or vector) starts from."""
        addend = self.addend()
        if addend is None:
            return tirx.const(0, str(self.product.ty.dtype.dtype))
        return substitute(addend, list(zip(self.stages[0].variables, coordinates, strict=True)))

    def finish(self, coordinates: Sequence[Any], total: Any) -> None:
        """Take one element (or vector) that was summed from `start` through the stages, and store what is memory."""
        made: list[tuple[Any, Any]] = []

        def make(target: Any, value: Any) -> None:
            made.append((target, T.Bind(kept(value))))
            if self.stored(target):
                T.buffer_store(target, made[-1][1], list(coordinates))

        started = self.addend() is not None
        make(self.stages[0].target if started else self.product, total)
        for stage in self.stages[int(started) :]:
            value = replace_loads(stage.value, lambda load: lookup(made, load.source, load))
            make(stage.target, substitute(value, list(zip(stage.variables, coordinates, strict=True))))

    def rewrite(self, body: Callable[[], None], replaced: Sequence[tuple[Any, Any]] = ()) -> tirx.PrimFunc:
        """The function with `body` emitted in place of the main block and its stages.

        `replaced`: pairs of a parameter and the buffer that the function takes in its stead.
        """
        with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
            T.func_attr(dict(self.function.attrs))
            for parameter in self.function.params:
                T.arg(parameter.name, lookup(list(replaced), parameter, parameter))
            for buffer in (self.product, *(stage.target for stage in (*self.stages, *self.rest))):
                if self.stored(buffer) and not any(buffer.same_as(parameter) for parameter in self.function.params):
                    T.add_to_parent(tirx.AllocBuffer(buffer, {}))
            body()
            for stage in self.rest:
                _write_loops(stage)
        return builder.get()


def take_epilogue(function: tirx.PrimFunc, mark: str) -> tuple[Any, Epilogue] | None:
    """The block of a function that carries `mark`, and what is behind it; None if that reduces further.

    What stands before the block, to be read behind it (the Cast of a residual, say), is computed where it is read.
    """
    sch = s_tir.Schedule(function)
    handles = sch.get_child_blocks(sch.get_sblock("root"))
    place = next((i for i, handle in enumerate(handles) if mark in sch.get(handle).annotations), None)
    if place is None:
        return None
    try:
        for handle in handles[:place]:
            sch.compute_inline(handle)
    except s_tir.ScheduleError:
        return None
    function = sch.mod["main"]
    blocks = [sch.get(block) for block in sch.get_child_blocks(sch.get_sblock("root"))]
    if not all(_is_map(other) for other in blocks[1:]):
        return None
    block = blocks[0]
    extents = [int(v.dom.extent) for v in block.iter_vars if v.iter_type == tirx.IterVar.DataPar]
    behind = [_stage(other) for other in blocks[1:]]
    product = block.writes[0].source
    made = [product, *(stage.target for stage in behind)]
    fused = next((i for i, stage in enumerate(behind) if not _is_elementwise(stage, extents, made)), len(behind))
    return block, Epilogue(function, product, tuple(behind[:fused]), tuple(behind[fused:]))


def loads_of(expression: Any) -> list[TensorLoad]:
    """The loads in an expression."""
    found: list[TensorLoad] = []

    def note(load: TensorLoad) -> TensorLoad:
        found.append(load)
        return load

    replace_loads(expression, note)
    return found


def _is_map(block: Any) -> bool:
    """Whether a block computes each element once, without a reduction."""
    spatial = all(v.iter_type == tirx.IterVar.DataPar for v in block.iter_vars)
    return spatial and isinstance(block.body, tirx.BufferStore)


def _stage(block: Any) -> Stage:
    return Stage(
        target=block.body.buffer,
        indices=tuple(block.body.indices),
        value=block.body.value,
        variables=tuple(v.var for v in block.iter_vars),
        extents=tuple(int(v.dom.extent) for v in block.iter_vars),
    )


def _is_elementwise(stage: Stage, extents: list[int], made: list[Any]) -> bool:
    """Whether a stage computes each element of the product from the same element of what is `made` here."""

    def same(indices: Sequence[Any]) -> bool:
        return are_variables(indices, stage.variables, extents)

    return (
        list(stage.extents) == extents
        and same(stage.indices)
        and not _calls_scalars(stage.value)
        and not _makes_truths(stage)
        and all(same(load.indices) for load in stage.reads() if any(load.source.same_as(buffer) for buffer in made))
    )


def are_variables(indices: Sequence[Any], variables: Sequence[Any], extents: Sequence[int]) -> bool:
    """Whether indices are the variables themselves, or constants along axes of extent 1."""
    return len(indices) == len(extents) and all(
        index.same_as(variable) or (extent == 1 and isinstance(index, tirx.IntImm))
        for index, variable, extent in zip(indices, variables, extents, strict=True)
    )


def _makes_truths(stage: Stage) -> bool:
    """Whether a stage makes booleans, or numbers of some that it made itself: TVM cannot bind a vector of them."""
    found = [str(stage.target.ty.dtype.dtype) == "bool"]

    def note(cast: Any) -> None:
        found.append(str(cast.value.ty.dtype) == "bool" and not isinstance(cast.value, TensorLoad))

    tvm_ffi.structural_walk(stage.value, (tirx.Cast, note))
    return any(found)


def _calls_scalars(value: Any) -> bool:
    """Whether a value calls a function of libm that TVM does not know as one of vectors."""
    found: list[bool] = []

    def note(call: Any) -> None:
        found.append(getattr(call.op, "name", "") in SCALAR_FUNCTIONS)

    tvm_ffi.structural_walk(value, (tvm.ir.Call, note))
    return any(found)


def _write_loops(stage: Stage) -> None:
    """Plain loops for a stage; LLVM vectorizes the innermost."""
    outer, last = Axis(stage.extents[:-1]), stage.extents[-1]
    loop = T.parallel if outer.size * last >= PARALLEL_MACS else T.serial
    with loop(index(outer.size)) as task, T.serial(index(last)) as j:
        pairs = list(zip(stage.variables, [*outer.unravel(task), j], strict=True))
        T.buffer_store(stage.target, substitute(stage.value, pairs), [substitute(i, pairs) for i in stage.indices])


def index(value: int) -> Any:
    """A constant of the type that indices have in TE."""
    return tirx.const(value, "int64")


def lookup(pairs: list[tuple[Any, Any]], key: Any, default: Any) -> Any:
    """What is paired with `key`. TVM compares nodes by identity; == on them builds an expression."""
    return next((value for known, value in pairs if known.same_as(key)), default)


def substitute(expression: Any, pairs: list[tuple[Any, Any]]) -> Any:
    """`expression` with each variable replaced by what is paired with it."""
    return tvm_ffi.structural_map(expression, (tirx.Var, lambda variable: lookup(pairs, variable, variable)))


def replace_loads(expression: Any, replacement: Callable[[TensorLoad], Any]) -> Any:
    """`expression` with each load replaced by what `replacement` makes of it."""
    return tvm_ffi.structural_map(expression, (TensorLoad, replacement))
