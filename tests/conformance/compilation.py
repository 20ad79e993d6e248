"""A model compiled for the machine at hand as `graphopt optimize` would, but into an object for `program_runner`."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from graphopt import ir as gir
from graphopt.passes.cleanup.fold_constants import FoldConstants
from graphopt.pipeline.base import PassContext
from graphopt.targets.host import HOST
from graphopt.targets.tvm import codegen
from graphopt.targets.tvm.backend import assemble
from graphopt.targets.tvm.importer import import_model
from graphopt.targets.tvm.lower import lower
from graphopt.targets.tvm.parts import make_in_place
from graphopt.targets.tvm.preparation import prepare
from graphopt.targets.tvm.program import Program
from graphopt.targets.tvm.schedule import schedule


def compile_program(model: ir.Model, path: Path, symbol: str) -> Program:
    """`model`, which it changes, as a program whose kernels are in the object at `path` and begin with `symbol`.

    Constants are folded first, as a program's structure often hangs on them. Raises GraphoptError for what the backend
    refuses.
    """
    gir.bind_shapes(model, {})
    gir.refresh_shapes(model)
    FoldConstants().run(model, PassContext(target=HOST))
    gir.refresh_shapes(model)
    model = prepare(model)
    target = codegen.tvm_target(HOST)
    lowered = make_in_place(lower(import_model(model), target))
    symbols = {function: f"{symbol}_{i}" for i, function in enumerate(lowered.functions)}
    functions = {symbols[key]: schedule(function, HOST) for key, function in lowered.functions.items()}
    kernels = codegen.compile_kernels(functions, target, path) if functions else []
    objects = (path,) if functions else ()
    return assemble(model, lowered, symbols, {kernel.symbol: kernel for kernel in kernels}, objects)
