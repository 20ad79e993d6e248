"""The C header of a bundle: the one interface that a program sees, whatever the backend."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import jinja2
import onnx_ir as ir

import graphopt
from graphopt.errors import UnsupportedError, UsageError
from graphopt.targets.base import TensorSpec

ABI = 1  # grows when a program built with the old header would no longer work

# numpy's name of a type and the number of the C enumerator; the number is ONNX's.
DTYPES: dict[str, int] = {
    dtype.numpy().name: int(dtype)
    for dtype in (
        ir.DataType.FLOAT,
        ir.DataType.UINT8,
        ir.DataType.INT8,
        ir.DataType.UINT16,
        ir.DataType.INT16,
        ir.DataType.INT32,
        ir.DataType.INT64,
        ir.DataType.BOOL,
        ir.DataType.FLOAT16,
        ir.DataType.DOUBLE,
        ir.DataType.UINT32,
        ir.DataType.UINT64,
        ir.DataType.BFLOAT16,
    )
}

_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]*")

# Prefixes under which the C library or POSIX has a NAME_create, NAME_destroy, NAME_run … of its own.
_TAKEN = frozenset(
    {"pthread", "pthread_attr", "thrd", "timer", "sem", "mtx", "cnd", "tss", "mq", "shm", "posix", "std"}
)


def environment(package: str = "graphopt.deploy") -> jinja2.Environment:
    """Templates beside `package`, strict about what they name, with the filters that C text needs."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # the text is C and CMake
    )
    made.filters.update(comment=in_comment, shape=shape_text, bytes=tensor_bytes)
    return made


def identifier(stem: str) -> str:
    """The NAME of a bundle made from a file called `stem`: a prefix for C symbols, file names and a CMake package."""
    name = re.sub(r"[^A-Za-z0-9_]+", "_", stem).strip("_") or "model"
    name = name if name[0].isalpha() else f"model_{name}"
    return f"{name}_model" if name.lower() in _TAKEN else name


def check_name(name: str) -> None:
    """Raise UsageError unless `name` can prefix C symbols."""
    if not _IDENTIFIER.fullmatch(name) or name.lower() in _TAKEN:
        raise UsageError(
            f"'{name}' cannot name a library: its C functions would be {name}_create, {name}_run …",
            advice=f"use letters, digits and '_', beginning with a letter, such as '{identifier(name)}'",
        )


def tensor_bytes(tensor: TensorSpec) -> int:
    """Size of a dense tensor in bytes."""
    return math.prod(tensor.shape) * ir.DataType(DTYPES[tensor.dtype]).bitwidth // 8


def shape_text(shape: Sequence[int]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"


def in_comment(text: str) -> str:
    """`text` as it can stand in a C comment."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text)
    return shown.replace("*/", "* /").replace("/*", "/ *").replace("\\", "/")


def render_header(name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str:
    """The text of include/NAME.h.

    Raises UsageError for a name that is no C identifier, UnsupportedError for a type that C programs cannot hold.
    """
    check_name(name)
    return environment().get_template("model.h.jinja").render(interface_fields(name, inputs, outputs))


def interface_fields(name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> dict[str, Any]:
    """What every template about a bundle's interface may name."""
    for kind, tensors in (("input", inputs), ("output", outputs)):
        for tensor in tensors:
            if tensor.dtype not in DTYPES:
                raise UnsupportedError(
                    f"{kind} '{tensor.name}' has type {tensor.dtype}; the C interface has {', '.join(DTYPES)}",
                    advice="insert a Cast, so that the model's interface has one of these types",
                )
    return {
        "name": name,
        "macro": name.upper(),
        "version": graphopt.__version__,
        "abi": ABI,
        "dtypes": DTYPES,
        "inputs": tuple(inputs),
        "outputs": tuple(outputs),
    }
