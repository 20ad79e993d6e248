"""Runs lowered programs inside the test's process: kernels from one shared object, buffers in numpy arrays.

Faster than a bundle for each of a thousand small models, and it checks what a driver cannot: the arena is filled with
a pattern before a run and every buffer has a guard zone behind it, so that a kernel that reads what nothing wrote, or
writes where it must not, gives a wrong answer here.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from graphopt.targets.tvm.kernels.winograd import transformed
from graphopt.targets.tvm.program import ALIGNMENT, Buffer, Copy, Place, Program

GUARD = 64  # bytes behind inputs and outputs
PATTERN = 0xA5


class KernelError(Exception):
    """A kernel returned an error, or wrote outside of its buffers."""


def link_objects(objects: list[Path], path: Path) -> ctypes.CDLL:
    """One shared object of the kernels of many programs, for the machine at hand."""
    if not objects:
        return ctypes.CDLL(None)  # programs that only copy
    command = [sys.executable, "-m", "ziglang", "ld.lld", "-shared", "-o", str(path), *map(str, objects)]
    subprocess.run(command, check=True, capture_output=True)
    library = ctypes.CDLL(str(path))
    launch = ctypes.c_void_p.in_dll(library, "__TVMBackendParallelLaunch") if _has(library) else None
    if launch is not None:
        launch.value = ctypes.cast(_launch, ctypes.c_void_p).value
    return library


def run(program: Program, library: ctypes.CDLL, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of `program` for `feeds`, by name."""
    inputs = [_guarded(np.ascontiguousarray(feeds[spec.name], dtype=spec.dtype).tobytes()) for spec in program.inputs]
    sizes = [int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize for spec in program.outputs]
    outputs = [_guarded(bytes([PATTERN]) * size) for size in sizes]
    weights, arena = _guarded(program.weights), _guarded(bytes([PATTERN]) * program.arena_bytes)
    decoded = _guarded(_decoded(program))
    before = [block.tobytes() for block in (*inputs, weights, decoded)]
    blocks = {
        Place.INPUT: inputs,
        Place.OUTPUT: outputs,
        Place.WEIGHTS: [weights],
        Place.DECODED: [decoded],
        Place.ARENA: [arena],
    }

    def address(buffer: Buffer) -> int:
        block = blocks[buffer.place][buffer.index]
        assert buffer.offset + buffer.bytes <= block.size - GUARD
        return int(block.ctypes.data) + buffer.offset

    for call in program.calls:
        if isinstance(call, Copy):
            ctypes.memmove(address(call.destination), address(call.source), call.destination.bytes)
            continue
        status = library[call.symbol](*(ctypes.c_void_p(address(argument)) for argument in call.arguments))
        if status != 0:
            raise KernelError(f"{call.symbol} returned {status}")
    if [block.tobytes() for block in (*inputs, weights, decoded)] != before:
        raise KernelError("a kernel wrote into its inputs or weights")
    for block in (*outputs, arena):
        if (block[-GUARD:] != PATTERN).any():
            raise KernelError("a kernel wrote behind the end of a buffer")
    return {
        spec.name: np.frombuffer(block[:size].tobytes(), dtype=spec.dtype).reshape(spec.shape)
        for spec, block, size in zip(program.outputs, outputs, sizes, strict=True)
    }


def _decoded(program: Program) -> bytes:
    """The memory that a library fills when its first context is made; here with transformed weights alone."""
    assert not program.streams
    memory = bytearray(program.decoded_bytes)
    for each in program.transforms:
        weights = np.frombuffer(program.weights, np.float32, each.source.bytes // 4, each.source.offset)
        made = transformed(weights.reshape(each.filters, each.channels, 3, 3), each.panel).tobytes()
        assert len(made) == each.bytes
        memory[each.offset : each.offset + each.bytes] = made
    return bytes(memory)


def _guarded(content: bytes) -> np.ndarray:
    """Aligned bytes with a guard zone behind them."""
    whole = np.full(len(content) + GUARD + ALIGNMENT, PATTERN, dtype=np.uint8)
    start = -whole.ctypes.data % ALIGNMENT
    block = whole[start : start + len(content) + GUARD]
    block[: len(content)] = np.frombuffer(content, dtype=np.uint8)
    return block


class _Environment(ctypes.Structure):
    _fields_ = (("sync_handle", ctypes.c_void_p), ("num_task", ctypes.c_int32))


_LAMBDA = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.POINTER(_Environment), ctypes.c_void_p)


def _launch_in_turn(task: Callable[..., int], data: int, count: int) -> int:
    """TVM's parallel launch in one thread: three tasks in turn, so that a wrong split shows."""
    environment = _Environment(None, 3)
    return max(abs(task(i, ctypes.byref(environment), data)) for i in range(3))


_launch = ctypes.CFUNCTYPE(ctypes.c_int, _LAMBDA, ctypes.c_void_p, ctypes.c_int)(_launch_in_turn)


def _has(library: ctypes.CDLL) -> bool:
    try:
        ctypes.c_void_p.in_dll(library, "__TVMBackendParallelLaunch")
    except ValueError:
        return False
    return True
