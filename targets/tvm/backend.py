"""The whole path from an optimized model to a library: import, lower, schedule, compile, plan memory, link."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphopt.errors import InternalError
from graphopt.targets.base import MODELLED, Library, TargetDescription, TensorSpec, Tiling
from graphopt.targets.tvm import codegen
from graphopt.targets.tvm.driver import weight_bytes
from graphopt.targets.tvm.importer import dtype_name, import_model, static_shape
from graphopt.targets.tvm.importer import unsupported as unsupported_nodes
from graphopt.targets.tvm.kernel_content import kernel_contents
from graphopt.targets.tvm.kernels.winograd import PLACES
from graphopt.targets.tvm.link import link
from graphopt.targets.tvm.lower import Lowered, Value, lower
from graphopt.targets.tvm.memory_plan import Lifetime, plan
from graphopt.targets.tvm.native_warnings import without_native_warnings
from graphopt.targets.tvm.parts import lifetimes, make_in_place, whole
from graphopt.targets.tvm.preparation import prepare
from graphopt.targets.tvm.program import (
    ALIGNMENT,
    Buffer,
    Copy,
    KernelCall,
    Place,
    Program,
    VariantCalls,
    WinogradWeights,
)
from graphopt.targets.tvm.quantized.residuals import layers_of
from graphopt.targets.tvm.quantized.rewrite import LEFT_IN_FLOAT
from graphopt.targets.tvm.schedule import tile_count
from graphopt.targets.tvm.storage.compression import compress as compressed
from graphopt.targets.tvm.variants import Scheduled, schedule_all
from graphopt.targets.tvm.workers import compile_in_parallel


class TvmBackend:
    """graphopt's backend on TVM: the one implementation of `graphopt.targets.base.Backend`."""

    def unsupported(self, model: ir.Model) -> list[tuple[str, str, str]]:
        """(operator, node name, reason) of each node that `build` would refuse."""
        return unsupported_nodes(prepare(model))

    def build(
        self,
        model: ir.Model,
        target: TargetDescription,
        *,
        name: str,
        header: Path,
        folder: Path,
        jobs: int,
        progress: Callable[[int, int, str], None],
        compress: bool = False,
        tiling: Tiling = MODELLED,
    ) -> Library:
        """Write lib{name}.so and lib{name}.a into `folder`; see `graphopt.targets.base.Backend.build`."""
        timings: dict[str, float] = {}
        with tempfile.TemporaryDirectory() as scratch, without_native_warnings():
            workdir = Path(scratch)
            clock = _Clock(timings, progress)
            clock.start("import to Relax")
            model = prepare(model)
            tvm_target = codegen.tvm_target(target)
            with tvm_target:  # some weights are packed at once, as the core's kernels read them
                module = import_model(model)
            clock.start("fuse operators")
            lowered = make_in_place(lower(module, tvm_target))
            clock.start("schedule kernels")
            contents = kernel_contents(lowered.functions, target)
            places = {name: tiling.of(content) for name, content in contents.items()}
            scheduled = schedule_all(lowered.functions, target, f"{name}_kernel", places)
            clock.start(f"compile {sum(len(lot.functions) for lot in scheduled)} kernels")
            objects, kernels = compile_in_parallel([(lot.target, lot.functions) for lot in scheduled], workdir, jobs)
            clock.start("plan memory and link")
            program = assemble_variants(model, lowered, scheduled, kernels, objects)
            storage = None
            if compress:
                program, storage = compressed(program, progress)
            shared, static = link(program, name, header, folder, target, workdir)
            clock.stop()
        return Library(
            shared=shared,
            static=static,
            inputs=program.inputs,
            outputs=program.outputs,
            arena_bytes=program.arena_bytes,
            weight_bytes=weight_bytes(program),
            layers=_layers(lowered, model, target, contents),
            timings=timings,
            storage=storage,
        )


class _Clock:
    """Reports each stage as progress, and how long it took."""

    STAGES = 5

    def __init__(self, timings: dict[str, float], progress: Callable[[int, int, str], None]) -> None:
        self.timings = timings
        self.progress = progress
        self.stage = ""
        self.since = 0.0

    def start(self, stage: str) -> None:
        self.stop()
        self.progress(len(self.timings), self.STAGES, stage)
        self.stage, self.since = stage, time.perf_counter()

    def stop(self) -> None:
        if self.stage:
            self.timings[self.stage] = time.perf_counter() - self.since
            self.stage = ""


def assemble_variants(
    model: ir.Model,
    lowered: Lowered,
    scheduled: Sequence[Scheduled],
    kernels: Sequence[codegen.Kernel],
    objects: tuple[Path, ...],
) -> Program:
    """The program with its variants. Each has a memory plan of its own, as its kernels need scratch buffers."""
    by_symbol = {kernel.symbol: kernel for kernel in kernels}
    plain, *others = (assemble(model, lowered, lot.symbols, by_symbol, objects) for lot in scheduled)
    variants = tuple(
        VariantCalls(lot.variant.name, lot.variant.features, program.calls)
        for lot, program in zip(scheduled[1:], others, strict=True)
        if lot.variant is not None
    )
    if any(program.transforms != plain.transforms for program in others):
        raise InternalError("variants of the kernels want weights that are transformed in different ways")
    arena_bytes = max(program.arena_bytes for program in (plain, *others))
    return replace(plain, variants=variants, arena_bytes=arena_bytes)


def assemble(
    model: ir.Model,
    lowered: Lowered,
    symbols: dict[str, str],
    kernels: dict[str, codegen.Kernel],
    objects: tuple[Path, ...],
) -> Program:
    """Place every value of `lowered` in the caller's buffers, the weights, the decoded memory or the arena."""
    weights, constants = _pack_weights(lowered.constants)
    places: dict[Value, Buffer] = {}
    copies: list[tuple[Value, Buffer]] = []
    for i, output in enumerate(lowered.outputs):
        buffer = Buffer(Place.OUTPUT, i, 0, output.bytes)
        if output.kind == "made" and output not in places:
            places[output] = buffer
        else:
            copies.append((output, buffer))
    held: dict[Value | tuple[int, int], Lifetime] = dict(lifetimes(lowered, lowered.parts).items())
    for i, call in enumerate(lowered.calls):
        for k, size in enumerate(kernels[symbols[call.function]].scratch):
            held[i, k] = Lifetime(size, i, i)
    planned, arena_bytes = plan(list(held.values()), ALIGNMENT)
    offsets = dict(zip(held, planned, strict=True))

    def place(value: Value) -> Buffer:
        if value.kind == "input":
            return Buffer(Place.INPUT, value.index, 0, value.bytes)
        if value.kind == "constant":
            return Buffer(Place.WEIGHTS, 0, constants[value.index], value.bytes)
        of, within = whole(value, lowered.parts)
        return places.get(value) or Buffer(Place.ARENA, 0, offsets[of] + within, value.bytes)

    made = _WinogradMemory()
    names = _node_names(model)
    steps: list[KernelCall | Copy] = []
    for i, call in enumerate(lowered.calls):
        kernel = kernels[symbols[call.function]]
        scratch = [Buffer(Place.ARENA, 0, offsets[i, k], size) for k, size in enumerate(kernel.scratch)]
        arguments = [*map(place, call.inputs), *map(place, call.outputs), *scratch]
        if kernel.winograd is not None:
            position, *form = kernel.winograd
            arguments[position] = made.of(arguments[position], *form)
        steps.append(
            KernelCall(kernel.symbol, tuple(arguments), " + ".join(name for node in call.nodes for name in names[node]))
        )
    steps += [Copy(place(value), buffer) for value, buffer in copies]
    return Program(
        inputs=tuple(TensorSpec(v.name or "", dtype_name(v), static_shape(v)) for v in model.graph.inputs),
        outputs=tuple(TensorSpec(v.name or "", dtype_name(v), static_shape(v)) for v in model.graph.outputs),
        calls=tuple(steps),
        weights=weights,
        arena_bytes=arena_bytes,
        objects=objects,
        decoded_bytes=made.bytes,
        transforms=tuple(made.transforms.values()),
    )


class _WinogradMemory:
    """Places transformed weights in the decoded memory, those of the same source and form once."""

    def __init__(self) -> None:
        self.bytes = 0
        self.transforms: dict[tuple[Buffer, int], WinogradWeights] = {}

    def of(self, source: Buffer, filters: int, channels: int, panel: int) -> Buffer:
        """The buffer with the transform of `source`."""
        if (source, panel) not in self.transforms:
            size = PLACES * -(-filters // panel) * panel * channels * 4
            made = WinogradWeights(source, self.bytes, size, filters, channels, panel)
            self.transforms[source, panel] = made
            self.bytes += -(-size // ALIGNMENT) * ALIGNMENT
        found = self.transforms[source, panel]
        return Buffer(Place.DECODED, 0, found.offset, found.bytes)


def _pack_weights(constants: list[np.ndarray]) -> tuple[bytes, list[int]]:
    blob = bytearray()
    offsets = []
    for array in constants:
        blob.extend(bytes(-len(blob) % ALIGNMENT))
        offsets.append(len(blob))
        blob.extend(array.tobytes())
    return bytes(blob), offsets


def _node_names(model: ir.Model) -> list[list[str]]:
    """Names to show for each of the nodes, in their order: of the layers that it computes."""
    return [[name or f"{node.op_type}_{i}" for name in layers_of(node)] for i, node in enumerate(model.graph)]


def _layers(
    lowered: Lowered, model: ir.Model, target: TargetDescription, contents: dict[str, str]
) -> tuple[dict[str, object], ...]:
    """For each call what `Library.layers` says of it."""
    counts = {name: tile_count(function, target) for name, function in lowered.functions.items()}
    names = _node_names(model)
    reasons = {layer.name: layer.reason for layer in model.meta.get(LEFT_IN_FLOAT, ())}
    layers: list[dict[str, object]] = []
    for call in lowered.calls:
        nodes = [name for node in call.nodes for name in names[node]]
        in_float = {name: reasons[name] for name in nodes if name in reasons}
        choice = {"content": contents[call.function], "tiles": counts[call.function]}
        layers.append({"kernel": call.function, "nodes": nodes, "in_float": in_float, **choice})
    return tuple(layers)
