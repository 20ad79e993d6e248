"""Compiles a model for the host and runs it in the test's process, with guard zones around its buffers."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from graphopt import ir as gir
from graphopt.targets.base import TargetDescription
from graphopt.targets.host import HOST
from graphopt.targets.tvm import codegen
from graphopt.targets.tvm.backend import assemble
from graphopt.targets.tvm.importer import import_model
from graphopt.targets.tvm.lower import Lowered, lower
from graphopt.targets.tvm.parts import make_in_place
from graphopt.targets.tvm.preparation import prepare
from graphopt.targets.tvm.program import Program
from graphopt.targets.tvm.schedule import schedule
from tests.conformance import program_runner


def parse(text: str) -> ir.Model:
    """A model from ONNX's text form, its shapes inferred."""
    model = gir.load(onnx.parser.parse_model(text))
    gir.refresh_shapes(model)
    return model


def lowered(model: ir.Model, target: TargetDescription = HOST) -> Lowered:
    """The model's kernels and calls."""
    made = codegen.tvm_target(target)
    with made:
        module = import_model(prepare(model))
    return make_in_place(lower(module, made))


def program(model: ir.Model, path: Path, *, scheduled: bool = True) -> Program:
    """The model's program, its kernels in the object at `path`."""
    low = lowered(model)
    symbols = {function: f"t_{i}_{function}" for i, function in enumerate(low.functions)}
    functions = {symbols[k]: schedule(f, HOST) if scheduled else f for k, f in low.functions.items()}
    kernels = codegen.compile_kernels(functions, codegen.tvm_target(HOST), path) if functions else []
    return assemble(prepare(model), low, symbols, {k.symbol: k for k in kernels}, (path,) if functions else ())


def run(model: ir.Model, feeds: Mapping[str, np.ndarray], *, scheduled: bool = True) -> dict[str, np.ndarray]:
    """The outputs of the compiled model."""
    with tempfile.TemporaryDirectory() as folder:
        made = program(model, Path(folder) / "kernels.o", scheduled=scheduled)
        library = program_runner.link_objects(list(made.objects), Path(folder) / "kernels.so")
        return program_runner.run(made, library, feeds)
