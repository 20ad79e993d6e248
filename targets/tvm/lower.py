"""Relax to kernels in order: fuse operators, then read `main` as a list of calls on values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx

from graphopt.errors import UnsupportedError
from graphopt.targets.tvm.attribution import content_key, node_indices
from graphopt.targets.tvm.constant_evaluation import evaluate_constants
from graphopt.targets.tvm.kernels import LEGALIZE


@dataclass(frozen=True)
class Value:
    """A tensor that a run reads or writes: an input, a constant, or what a call makes."""

    kind: str  # "input", "constant" or "made"
    index: int  # of the input or constant; number of the made value
    bytes: int


@dataclass(frozen=True)
class Call:
    """One call of a fused kernel."""

    function: str  # name of the PrimFunc in Lowered.functions
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[int, ...]  # indices of the ONNX nodes that it computes


@dataclass
class Lowered:
    """A model as kernels and calls, before schedules and memory."""

    functions: dict[str, tirx.PrimFunc] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    constants: list[np.ndarray] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    # Values that are made as a part of another: which, and where in it, in bytes (parts.py).
    parts: dict[Value, tuple[Value, int]] = field(default_factory=dict)


def lower(module: tvm.IRModule, target: tvm.target.Target) -> Lowered:
    """Fuse the operators of an imported module and list its calls.

    Raises UnsupportedError for what is no static call of a kernel.
    """
    transform = relax.transform
    with target:
        unfused = tvm.transform.Sequential(
            [
                transform.CanonicalizeBindings(),
                tvm.transform.module_pass(lambda mod, _: evaluate_constants(mod), opt_level=0),
                transform.CanonicalizeBindings(),
                transform.DecomposeOpsForInference(),
                transform.LegalizeOps(LEGALIZE, enable_warning=False),
                transform.FoldConstant(),
                transform.DeadCodeElimination(),
                transform.AnnotateTIROpPattern(),
            ]
        )(module)
        fused = transform.FuseOps()(unfused)
        attributed = node_indices(unfused, fused)
        module = tvm.transform.Sequential(
            [transform.FuseTIR(), transform.DeadCodeElimination(), transform.RewriteDataflowReshape()]
        )(fused)
    return _Reader(module, attributed).read()


class _Reader:
    """Walks `main` once; knows for each Relax variable the value, or tuple of values, that it stands for."""

    def __init__(self, module: tvm.IRModule, attributed: list[tuple[int, ...]]) -> None:
        self.module = module
        self.attributed = iter(attributed)
        self.lowered = Lowered()
        self.known: dict[Any, Any] = {}
        self.made = 0
        self.constants: dict[Any, Value] = {}

    def read(self) -> Lowered:
        main = self.module["main"]
        for i, parameter in enumerate(main.params):
            self.known[parameter] = Value("input", i, _type_bytes(parameter.ty))
        for block in main.body.blocks:
            for binding in block.bindings:
                self.known[binding.var] = self.bound(binding.value)
        result = self.value(main.body.body)
        self.lowered.outputs = list(result) if isinstance(result, tuple) else [result]
        return self.lowered

    def bound(self, expression: Any) -> Any:
        if isinstance(expression, relax.Call):
            name = getattr(expression.op, "name", "")
            if name == "relax.call_tir":
                return self.call(expression)
            if name == "relax.reshape":
                next(self.attributed)  # it was a call when nodes were attributed, and needs no kernel now
                return self.value(expression.args[0])
            raise UnsupportedError(f"operation {name or expression.op} has no static kernel")
        return self.value(expression)

    def value(self, expression: Any) -> Any:
        if isinstance(expression, relax.Var):
            return self.known[expression]
        if isinstance(expression, relax.Tuple):
            return tuple(self.value(item) for item in expression.fields)
        if isinstance(expression, relax.TupleGetItem):
            return self.value(expression.tuple_value)[expression.index]
        if isinstance(expression, tvm.ir.GenericConst):
            return self.constant(expression)
        raise UnsupportedError(f"expression of kind {type(expression).__name__} has no static kernel")

    def constant(self, expression: Any) -> Value:
        array = expression.value.numpy()
        key = content_key(array)
        if key not in self.constants:
            self.constants[key] = Value("constant", len(self.lowered.constants), array.nbytes)
            self.lowered.constants.append(array)
        return self.constants[key]

    def call(self, expression: Any) -> Any:
        function = expression.args[0].name_hint
        self.lowered.functions[function] = self.module[expression.args[0]]
        inputs = tuple(self.value(item) for item in expression.args[1].fields)
        ty = expression.ty_args[0]
        several = isinstance(ty, relax.TupleType)
        outputs = tuple(self.new_value(field) for field in (ty.fields if several else [ty]))
        self.lowered.calls.append(Call(function, inputs, outputs, next(self.attributed)))
        return outputs if several else outputs[0]

    def new_value(self, ty: Any) -> Value:
        self.made += 1
        return Value("made", self.made - 1, _type_bytes(ty))


def _type_bytes(ty: Any) -> int:
    count = 1
    for extent in ty.shape:
        if not isinstance(extent, tirx.IntImm):
            raise UnsupportedError(f"a value has shape {ty.shape}, which is not static")
        count *= int(extent)
    return count * (int(tvm.runtime.DataType(str(ty.dtype.dtype)).bits + 7) // 8)
