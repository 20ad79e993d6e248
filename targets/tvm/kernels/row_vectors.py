"""Loops over a row of float32 in vectors, several at a time, and what those hold in common at the end."""

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.tvm.kernels.epilogue import index
from graphopt.targets.tvm.kernels.rows import LANES, for_each

VECTORS = 4  # at a time: independent maxima and sums


def for_all(length: int, body: Any) -> None:
    """Emit `body(first, lanes, v)` for all elements: several vectors at a time, then vectors, then single ones."""
    block = VECTORS * LANES
    whole, vectors = length // block, length % block // LANES
    if whole:

        def several(number: Any) -> None:
            for v in range(VECTORS):
                body(number * block + v * LANES, LANES, v)

        for_each(whole, several)
    for v in range(vectors):
        body(index(whole * block + v * LANES), LANES, v)
    for i in range(length - length % LANES, length):
        body(index(i), 1, 0)


def reduced(buffer: Any, function: Any) -> Any:
    """The elements of all vectors in one."""
    found = buffer[lanes_at(0)]
    for v in range(1, VECTORS):
        found = function(found, buffer[lanes_at(v * LANES)])
    T.buffer_store(buffer, found, [lanes_at(0)])
    one, two = (function(buffer[index(i)], buffer[index(i + 2)]) for i in range(2))
    return T.Bind(function(one, two))


def spread(value: Any, lanes: int = LANES) -> Any:
    """`value` in every lane."""
    return value if lanes == 1 else tirx.Broadcast(value, lanes)


def lanes_at(start: int) -> Any:
    """The index of a vector of a local buffer."""
    return tirx.Ramp(index(start), index(1), LANES)


def elements(start: Any, lanes: int) -> Any:
    """The index of `lanes` elements."""
    return start if lanes == 1 else tirx.Ramp(start, index(1), lanes)
