"""The C driver of a bundle: it calls the kernels in order, on the caller's buffers, the weights and one arena.

The generated file holds tables and one straight line of calls; what is the same for all models lies beside it, in
`runtime/`: frame.h (kernels find their thread pool), pool.h (the pool), interface.h (the functions of the header).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jinja2

from graphopt.deploy.header import tensor_bytes
from graphopt.errors import InternalError, UnsupportedError
from graphopt.targets.tvm.program import ALIGNMENT, Buffer, Copy, KernelCall, Place, Program, VariantCalls

RUNTIME = Path(__file__).parent / "runtime"

FEATURES = frozenset({"dotprod", "i8mm"})  # what processor.h looks for

_ESCAPES = {'"': '\\"', "\\": "\\\\", "?": "\\?"}  # "?": no trigraphs


@dataclass(frozen=True)
class _Tensor:
    """A row of the driver's table of inputs or outputs."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    staging: int  # offset in the staging memory


@dataclass(frozen=True)
class _Call:
    """A line of the driver: a C expression that is 0 on success."""

    layer: str
    expression: str


@dataclass(frozen=True)
class _Variant:
    """A function of the driver that runs all calls, and the features that it needs, as C names them."""

    name: str
    features: tuple[str, ...]
    function: str
    calls: list[_Call]


def render_driver(program: Program, name: str, *, alignment: int = 16) -> str:
    """C source of the driver: it implements the header of the bundle `name`, on the weights of `render_weights`.

    `alignment`, in bytes, is what kernels take for granted of each pointer: the width of a vector. A caller's buffer
    that lacks it is copied. Raises InternalError if a buffer is misplaced, or a kernel's symbol could
    clash with those of another bundle.
    """
    staging = 0
    tables: dict[str, list[_Tensor]] = {"input": [], "output": []}
    for kind, specs, sizes in (
        ("input", program.inputs, _sizes(program, Place.INPUT)),
        ("output", program.outputs, _sizes(program, Place.OUTPUT)),
    ):
        for spec, size in zip(specs, sizes, strict=True):
            tables[kind].append(_Tensor(spec.name, spec.dtype, spec.shape, size, staging))
            staging += _aligned(size)

    def lines(calls: tuple[KernelCall | Copy, ...]) -> list[_Call]:
        return [_call(call, index, program, tables) for index, call in enumerate(calls)]

    layers = [call.layer for call in lines(program.calls)]
    variants = [_Variant("plain", (), "run_layers", lines(program.calls))]
    for variant in program.variants:
        _check_variant(variant, program)
        needed = tuple(feature.upper() for feature in variant.features)
        variants.append(_Variant(variant.name, needed, f"run_layers_{variant.name}", lines(variant.calls)))
    return _render(
        "driver.c.jinja",
        name=name,
        macro=name.upper(),
        alignment=alignment,
        arena_bytes=_aligned(program.arena_bytes),
        staging_bytes=staging,
        weight_bytes=weight_bytes(program),
        decoded_bytes=program.decoded_bytes,
        streams=program.streams,
        transforms=program.transforms,
        inputs=tables["input"],
        outputs=tables["output"],
        layers=layers,
        variants=variants,
        kernels=_kernels(program, name),
    )


def render_weights(name: str) -> str:
    """Assembly (for the C preprocessor; ELF and Mach-O) that puts the file weights.bin into read-only memory."""
    return _render("weights.S.jinja", name=name, log2_alignment=ALIGNMENT.bit_length() - 1)


def memory_bytes(program: Program) -> int:
    """What one context takes: the arena, and room for copies of buffers that cannot be used in place."""
    interface = (*_sizes(program, Place.INPUT), *_sizes(program, Place.OUTPUT))
    return _aligned(program.arena_bytes) + sum(_aligned(size) for size in interface)


def weight_bytes(program: Program) -> int:
    """Bytes of the weights as kernels read them: those in place, and those that are decoded."""
    return len(program.weights) - sum(stream.source_bytes for stream in program.streams) + program.decoded_bytes


def check_memory(program: Program, name: str, pointer_bits: int) -> None:
    """Raise UnsupportedError if the program cannot fit into the address space of the target."""
    limit = 1 << (pointer_bits - 1)
    needed = memory_bytes(program) + len(program.weights) + program.decoded_bytes
    if needed >= limit:
        raise UnsupportedError(
            f"'{name}' needs {needed} bytes of memory; a {pointer_bits}-bit program has at most {limit}",
            advice="compress the model, bind smaller shapes, or choose a 64-bit target",
        )


def c_string(text: str) -> str:
    """`text` as a C string literal, in UTF-8. Bytes outside of ASCII are written in octal, which never runs on."""
    escaped = "".join(
        _ESCAPES.get(chr(byte)) or (chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}") for byte in text.encode()
    )
    return f'"{escaped}"'


def _render(template: str, **fields: object) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(RUNTIME), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["c_string"] = c_string
    return environment.get_template(template).render(fields)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _sizes(program: Program, place: Place) -> list[int]:
    """Bytes of each input or output."""
    return [tensor_bytes(spec) for spec in (program.inputs if place is Place.INPUT else program.outputs)]


def _kernels(program: Program, name: str) -> dict[str, int]:
    """The number of arguments of each kernel, by symbol."""
    counts: dict[str, int] = {}
    for call in program.all_calls:
        if isinstance(call, KernelCall):
            if not call.symbol.startswith(f"{name}_"):
                raise InternalError(f"kernel '{call.symbol}' lacks the prefix '{name}_'")
            known = counts.setdefault(call.symbol, len(call.arguments))
            if known != len(call.arguments):
                raise InternalError(
                    f"kernel '{call.symbol}' is called with {known} arguments and, for '{call.layer}', with "
                    f"{len(call.arguments)}"
                )
    return counts


def _check_variant(variant: VariantCalls, program: Program) -> None:
    unknown = sorted(set(variant.features) - FEATURES)
    if unknown:
        raise InternalError(f"variant '{variant.name}' needs {unknown}, which processor.h does not look for")
    if len(variant.calls) != len(program.calls):
        raise InternalError(
            f"variant '{variant.name}' has {len(variant.calls)} calls, the program has {len(program.calls)}"
        )


def _call(call: KernelCall | Copy, index: int, program: Program, tables: dict[str, list[_Tensor]]) -> _Call:
    limits = {
        Place.INPUT: [tensor.bytes for tensor in tables["input"]],
        Place.OUTPUT: [tensor.bytes for tensor in tables["output"]],
        Place.WEIGHTS: [len(program.weights)],
        Place.DECODED: [program.decoded_bytes],
        Place.ARENA: [program.arena_bytes],
    }

    def pointer(buffer: Buffer) -> str:
        sizes = limits[buffer.place]
        size = sizes[buffer.index] if buffer.index < len(sizes) else 0
        inside = buffer.offset >= 0 and buffer.offset + buffer.bytes <= size
        packed = buffer.place not in (Place.INPUT, Place.OUTPUT)
        if not inside or (packed and buffer.offset % ALIGNMENT) or (not packed and buffer.offset):
            raise InternalError(f"call {index} of the program has a misplaced buffer: {buffer}")
        return f"{buffer.place.name}({buffer.offset if packed else buffer.index})"

    if isinstance(call, KernelCall):
        return _Call(call.layer, f"{call.symbol}({', '.join(map(pointer, call.arguments))})")
    if call.source.bytes != call.destination.bytes:
        raise InternalError(f"call {index} of the program copies {call.source} to {call.destination}: the sizes differ")
    return _Call("(copy)", f"COPY({pointer(call.destination)}, {pointer(call.source)}, {call.source.bytes})")
