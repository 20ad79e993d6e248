"""A program whose constants are stored compressed, and decoded when its first context is made.

A constant moves from the weights to the decoded memory if that saves enough; others stay where they are, which costs no
memory at all. Kernels read the same bytes either way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from graphopt.targets.base import CoderUse, Storage
from graphopt.targets.tvm.program import ALIGNMENT, Buffer, Copy, KernelCall, Place, Program, Stream
from graphopt.targets.tvm.storage.coding import ROW_BYTES, Part, choose, encode

LEAST_SAVING = 1 / 32  # of a constant's bytes: below, memory and time to decode are not worth it


def compress(program: Program, progress: Callable[[int, int, str], None]) -> tuple[Program, Storage]:
    """The same program on compressed weights, and what they take.

    progress: called as progress(done, total, what) with bytes of weights.
    """
    constants = _constants(program)
    blobs = [np.frombuffer(program.weights, np.uint8, end - begin, begin) for begin, end in constants]
    total = sum(map(len, blobs))
    stored, coded = bytearray(), list[tuple[Part, bytes]]()
    places = dict[int, tuple[Place, int]]()  # by where a constant began
    decoded, done = program.decoded_bytes, 0
    for (begin, _), blob in zip(constants, blobs, strict=True):
        progress(done, total, "compress weights")
        done += len(blob)
        parts = [(part, encode(blob, part)) for part in choose(blob)] if len(blob) > ROW_BYTES else []
        size = sum(ROW_BYTES + len(data) for _, data in parts)
        if parts and size <= len(blob) * (1 - LEAST_SAVING):
            places[begin] = Place.DECODED, decoded
            coded += [(_moved(part, decoded), data) for part, data in parts]
            decoded += _aligned(len(blob))
        else:
            stored.extend(bytes(-len(stored) % ALIGNMENT))
            places[begin] = Place.WEIGHTS, len(stored)
            stored.extend(blob.tobytes())
    in_place = sum(end - begin for begin, end in constants if places[begin][0] is Place.WEIGHTS)
    streams = []
    for part, data in coded:  # behind the others, which have to be aligned
        streams.append(Stream(len(stored), len(data), part.begin, part.end - part.begin, part.width, part.entries))
        stored.extend(data)
    rewritten = dataclasses.replace(
        program,
        calls=tuple(_relocated(call, constants, places) for call in program.calls),
        variants=tuple(
            dataclasses.replace(variant, calls=tuple(_relocated(call, constants, places) for call in variant.calls))
            for variant in program.variants
        ),
        weights=bytes(stored),
        decoded_bytes=decoded,
        streams=tuple(streams),
        transforms=tuple(
            dataclasses.replace(each, source=_moved_buffer(each.source, constants, places))
            for each in program.transforms
        ),
    )
    return rewritten, Storage(len(program.weights), len(stored), decoded, _coders(streams, in_place))


def _constants(program: Program) -> list[tuple[int, int]]:
    """[begin, end) of each constant that a call or a transform reads; those that overlap count as one."""
    buffers = [buffer for call in program.all_calls for buffer in _buffers(call)]
    buffers += [each.source for each in program.transforms]
    ranges = sorted({(b.offset, b.offset + b.bytes) for b in buffers if b.place is Place.WEIGHTS and b.bytes})
    merged: list[tuple[int, int]] = []
    for begin, end in ranges:
        if merged and begin < merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((begin, end))
    return merged


def _buffers(call: KernelCall | Copy) -> tuple[Buffer, ...]:
    return call.arguments if isinstance(call, KernelCall) else (call.source, call.destination)


def _relocated(
    call: KernelCall | Copy, constants: list[tuple[int, int]], places: dict[int, tuple[Place, int]]
) -> KernelCall | Copy:
    if isinstance(call, KernelCall):
        moved = tuple(_moved_buffer(buffer, constants, places) for buffer in call.arguments)
        return dataclasses.replace(call, arguments=moved)
    return Copy(_moved_buffer(call.source, constants, places), _moved_buffer(call.destination, constants, places))


def _moved_buffer(buffer: Buffer, constants: list[tuple[int, int]], places: dict[int, tuple[Place, int]]) -> Buffer:
    if buffer.place is not Place.WEIGHTS:
        return buffer
    if not buffer.bytes:
        return dataclasses.replace(buffer, offset=0)
    begin = next(begin for begin, end in constants if begin <= buffer.offset < end)
    place, offset = places[begin]
    return dataclasses.replace(buffer, place=place, offset=offset + buffer.offset - begin)


def _coders(streams: list[Stream], in_place: int) -> tuple[CoderUse, ...]:
    """What each way of storing takes, in a fixed order; those that nothing uses are left out."""
    rows: dict[str, Any] = {"raw": [in_place, in_place]}
    for name in ("palette", "planes"):
        of = [stream for stream in streams if bool(stream.entries) == (name == "palette")]
        rows[name] = [sum(stream.bytes for stream in of), sum(stream.source_bytes for stream in of)]
    return tuple(CoderUse(name, *sizes) for name, sizes in rows.items() if sizes[0])


def _moved(part: Part, by: int) -> Part:
    return dataclasses.replace(part, begin=part.begin + by, end=part.end + by)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
