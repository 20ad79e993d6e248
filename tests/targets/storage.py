"""What the tests of compressed weights share: the decoder as a library, and programs that only copy their constants."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

from graphopt.deploy.header import render_header
from graphopt.deploy.toolchain import run_tool, zig
from graphopt.targets.base import TargetDescription, TensorSpec
from graphopt.targets.tvm.driver import RUNTIME
from graphopt.targets.tvm.link import link
from graphopt.targets.tvm.program import ALIGNMENT, Buffer, Copy, Place, Program
from graphopt.targets.tvm.storage.coding import Part

DECODE = """
#include "decode.h"
int decode(size_t source_bytes, size_t target_bytes, int width, int entries, const unsigned char *source,
           unsigned char *target)
{
    struct stream stream = {0, source_bytes, 0, target_bytes, (uint16_t)width, (uint16_t)entries};
    return decode_stream(&stream, source, target);
}
"""


class Decoder:
    """decode.h, compiled as strict C99."""

    def __init__(self, folder: Path) -> None:
        source, library = folder / "decode.c", folder / "decode.so"
        source.write_text(DECODE)
        options = (
            "-std=c99",
            "-pedantic",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-O2",
            "-fno-sanitize=all",
            "-shared",
            "-fPIC",
        )
        run_tool((*zig("cc"), *options, "-I", str(RUNTIME), str(source), "-o", str(library)), "compiling decode.h")
        self._decode = ctypes.CDLL(str(library)).decode
        self._decode.argtypes = (*(ctypes.c_size_t,) * 2, *(ctypes.c_int,) * 2, ctypes.c_char_p, ctypes.c_void_p)

    def __call__(self, part: Part, stored: bytes) -> np.ndarray | None:
        """The bytes of the part; None if the decoder refuses it."""
        target = np.full(part.end - part.begin + 16, 0xEE, np.uint8)
        size = len(target) - 16
        status = self._decode(len(stored), size, part.width, part.entries, stored, target.ctypes.data)
        assert (target[size:] == 0xEE).all()
        return target[:size] if status == 0 else None


def copying_program(constants: list[np.ndarray]) -> Program:
    """A program without inputs and kernels: output i is constant i."""
    weights = bytearray()
    calls, outputs = [], []
    for i, array in enumerate(constants):
        weights.extend(bytes(-len(weights) % ALIGNMENT))
        source = Buffer(Place.WEIGHTS, 0, len(weights), array.nbytes)
        calls.append(Copy(source, Buffer(Place.OUTPUT, i, 0, array.nbytes)))
        outputs.append(TensorSpec(f"y{i}", array.dtype.name, array.shape))
        weights.extend(array.tobytes())
    return Program((), tuple(outputs), tuple(calls), bytes(weights), 0, ())


def link_program(program: Program, name: str, folder: Path, target: TargetDescription) -> tuple[Path, Path]:
    """The shared and the static library of a program without kernels; the header is in `folder`/include."""
    header = folder / "include" / f"{name}.h"
    header.parent.mkdir(parents=True)
    header.write_text(render_header(name, program.inputs, program.outputs))
    return link(program, name, header, folder / "lib", target, folder / "work")


class Copied:
    """A library of `copying_program`, in the test's process."""

    def __init__(self, shared: Path, name: str) -> None:
        library = ctypes.CDLL(str(shared))
        self.create, self.destroy, self.run_ = (getattr(library, f"{name}_{f}") for f in ("create", "destroy", "run"))
        self.create.restype = ctypes.c_void_p
        self.destroy.argtypes = (ctypes.c_void_p,)
        self.run_.argtypes = (ctypes.c_void_p,) * 3
        self.sizes = {f: getattr(library, f"{name}_{f}") for f in ("weight_bytes", "decoded_bytes")}
        for function in self.sizes.values():
            function.restype = ctypes.c_size_t

    def outputs(self, like: list[np.ndarray]) -> list[np.ndarray]:
        """What a new context gives."""
        context = self.create()
        assert context
        outputs = [np.full_like(array, 1) for array in like]
        pointers = (ctypes.c_void_p * len(outputs))(*(array.ctypes.data for array in outputs))
        assert self.run_(context, None, pointers) == 0
        self.destroy(context)
        return outputs
