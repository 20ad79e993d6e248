"""Inputs made up to probe a model, where the user gives none.

Floats are drawn from a normal distribution, booleans from a coin. An integer may be an index, a length or a sampling
rate: its consumers are followed through operators that only move values, and what they do with it bounds it.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.execution import array_type, required_inputs
from graphopt.errors import DataError

_UNKNOWN_DIM = 16  # for a dimension other than the first that the model leaves open
_WORDS = ("zero", "one", "two", "three", "four")

# Operators whose output holds the values of their inputs, and the inputs that these values come from (None: all).
_MOVERS: dict[str, tuple[int, ...] | None] = {
    "Cast": (0,),
    "Compress": (0,),
    "Concat": None,
    "DepthToSpace": (0,),
    "Expand": (0,),
    "Flatten": (0,),
    "Gather": (0,),
    "GatherElements": (0,),
    "GatherND": (0,),
    "Identity": (0,),
    "Max": None,
    "Min": None,
    "Pad": (0,),
    "ReduceMax": (0,),
    "ReduceMin": (0,),
    "Reshape": (0,),
    "Slice": (0,),
    "SpaceToDepth": (0,),
    "Split": (0,),
    "Squeeze": (0,),
    "Tile": (0,),
    "Transpose": (0,),
    "Unsqueeze": (0,),
    "Where": (1, 2),
}


@dataclass(frozen=True)
class _Range:
    """Values that an input may take: integers from `low` to `high`, both included."""

    low: int
    high: int


def probe_arrays(model: ir.Model, seed: int, count: int) -> dict[str, np.ndarray[Any, Any]]:
    """For each input, values for `count` runs on a new first axis; the same seed gives the same values.

    A leading dimension that is unknown becomes 1, any other unknown one 16.
    Raises DataError for an input that is not a tensor or has no shape.
    """
    arrays = {}
    for value in required_inputs(model):
        name = str(value.name)
        if not isinstance(value.type, ir.TensorType):
            raise DataError(f"input '{name}' is not a tensor: no sample can be made up")
        if value.shape is None:
            raise DataError(
                f"input '{name}' has no shape: no sample can be made up", advice=f"bind it with --shape {name}=..."
            )
        # Each input has its own stream, so that a sample does not depend on the order of the inputs.
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        arrays[name] = _draw(rng, value, (count, *_concrete(value.shape)))
    return arrays


def _concrete(shape: ir.Shape) -> tuple[int, ...]:
    dims: Sequence[int | ir.SymbolicDim] = shape.dims
    return tuple(d if isinstance(d, int) else (1 if axis == 0 else _UNKNOWN_DIM) for axis, d in enumerate(dims))


def _draw(rng: np.random.Generator, value: ir.Value, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    dtype = array_type(value)
    if dtype is None:
        return rng.choice(np.array(_WORDS, dtype=object), shape)
    if dtype == np.bool_:
        return rng.integers(0, 2, shape).astype(dtype)
    used = [found for found in _uses(value) if found is not None]
    if used:
        low, high = max(found.low for found in used), min(found.high for found in used)
        return rng.integers(low, max(low, high) + 1, shape).astype(dtype)
    if np.issubdtype(dtype, np.integer) or value.dtype in _SMALL_INTEGERS:
        low, high = _default_range(value.dtype)
        return rng.integers(low, high + 1, shape).astype(dtype)
    drawn = rng.standard_normal(shape)
    if np.issubdtype(dtype, np.complexfloating):
        return (drawn + 1j * rng.standard_normal(shape)).astype(dtype)
    return drawn.astype(dtype)


_SMALL_INTEGERS = {
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT8: (0, 255),
}


def _default_range(dtype: ir.DataType | None) -> tuple[int, int]:
    """Small types hold quantized data or pixels and take their whole range; wider ones are mostly masks."""
    return _SMALL_INTEGERS.get(dtype, (0, 1)) if dtype is not None else (0, 1)


def _uses(value: ir.Value) -> Iterator[_Range | None]:
    """What the consumers of a value ask of it, followed through operators that move values."""
    seen: set[ir.Value] = set()
    waiting = [value]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        for node, index in current.uses():
            if node.domain in ("", "ai.onnx"):
                yield _asked(node, index)
                movers = _MOVERS.get(node.op_type, ())
                if movers is None or index in movers:
                    waiting.extend(node.outputs)


def _asked(node: ir.Node, index: int) -> _Range | None:
    """The values that a node can take at its input `index`; None if any will do."""
    operator = node.op_type
    if operator in ("Gather", "GatherElements", "ScatterElements", "Scatter") and index == 1:
        return _below(_dim(node.inputs[0], _axis(node)))
    if operator == "GatherND" and index == 1:
        return _below(_smallest(node.inputs[0], _int(node, "batch_dims", 0)))
    if operator == "ScatterND" and index == 1:
        return _below(_smallest(node.inputs[0], 0))
    if operator == "OneHot" and index == 0:
        depth = _constant(node.inputs[1])
        return _below(int(depth.reshape(-1)[0]) if depth is not None and depth.size else None)
    if operator in ("LSTM", "GRU", "RNN") and index == 4:
        steps = _dim(node.inputs[0], 1 if _int(node, "layout", 0) else 0)
        return _Range(steps, steps) if steps else None
    if operator == "Equal":
        # A switch: a value that it is compared with takes the branch that the model's author had in mind.
        other = _constant(node.inputs[1 - index])
        if other is not None and other.size == 1 and other.dtype.kind in "iu":
            return _Range(int(other.reshape(-1)[0]), int(other.reshape(-1)[0]))
    if (operator, index) in _COUNTS:
        return _Range(1, 1)
    return None


# Inputs that say how much there is to compute: 1 is right for each.
_COUNTS = {("Expand", 1), ("Tile", 1), ("TopK", 1), ("Trilu", 1), ("ConstantOfShape", 0), ("Range", 1), ("Range", 2)}


def _below(size: int | None) -> _Range | None:
    return _Range(0, size - 1) if size else None


def _axis(node: ir.Node) -> int:
    return _int(node, "axis", 0)


def _int(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def _dim(value: ir.Value | None, axis: int) -> int | None:
    if value is None or value.shape is None or not -value.shape.rank() <= axis < value.shape.rank():
        return None
    size = value.shape.dims[axis]
    return size if isinstance(size, int) else None


def _smallest(value: ir.Value | None, start: int) -> int | None:
    if value is None or value.shape is None:
        return None
    return min((d for d in value.shape.dims[start:] if isinstance(d, int)), default=None)


def _constant(value: ir.Value | None) -> np.ndarray[Any, Any] | None:
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return None if tensor is None else tensor.numpy()
