"""Loops over the rows of an image: vectors that overlap at the end, and copies into rows with padding around them.

For a stride of s along the row, a copy parts the columns, padding included, by their remainder mod s: what neighbouring
outputs read then lies side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.tvm.kernels.epilogue import index

LANES = 4  # float32 in 128 bits

Place = Callable[[int, Any], Any]  # where a column of a part lies in the buffer


@dataclass(frozen=True)
class Row:
    """A row of an image: its leading indices, its columns, and the columns of padding in front of them."""

    image: Any
    indices: tuple[Any, ...]
    width: int
    left: int

    def load(self, column: Any) -> Any:
        return self.image[(*self.indices, column)]


def copy_row(row: Row, buffer: Any, stride: int, parts: int, place: Place) -> None:
    """Copy a row to `buffer`, its columns parted if the stride is 2 or more. The padding is left as it is.

    `parts` is less than the stride where only the first remainders, counted with the padding, are wanted.
    """
    lanes = lanes_for(dtype_of(buffer), row.width // stride)
    if stride == 1:
        start = place(0, index(row.left))

        def one(j: Any, width: int) -> None:
            vector(width, lambda lane: T.buffer_store(buffer, row.load(j + lane), [start + j + lane]))

        for_vectors(row.width, one, lanes=lanes)
        return
    used = [rest for rest in range(stride) if (row.left + rest) % stride < parts]

    def position(rest: int, number: Any) -> Any:
        return place((row.left + rest) % stride, number + (row.left + rest) // stride)

    def periods(first: Any, lanes: int) -> None:
        together = T.Bind(row.load(tirx.Ramp(first * stride, index(1), stride * lanes)))
        for rest in used:
            part = tirx.Shuffle([together], [tirx.const(stride * lane + rest, "int32") for lane in range(lanes)])
            T.buffer_store(buffer, part, [tirx.Ramp(position(rest, first), index(1), lanes)])

    whole = row.width // stride if row.width // stride >= lanes else 0
    if whole:
        for_vectors(whole, periods, lanes=lanes)
    for x in range(stride * whole, row.width):
        if x % stride in used:
            T.buffer_store(buffer, row.load(index(x)), [position(x % stride, index(x // stride))])


def clear(buffer: Any, start: Any, size: int, value: float = 0.0) -> None:
    """Set `size` elements to `value`."""

    def one(j: Any, width: int) -> None:
        vector(width, lambda lane: T.buffer_store(buffer, tirx.const(value, dtype_of(buffer)), [start + j + lane]))

    for_vectors(size, one, lanes=lanes_for(dtype_of(buffer), size))


def for_each(count: int, body: Callable[[Any], None]) -> None:
    """Emit a loop, or its body alone if it runs once."""
    if count == 1:
        body(index(0))
        return
    with T.serial(index(count)) as i:
        body(i)


def for_tiles(extent: int, tile: int, body: Callable[[Any, int], None]) -> None:
    """Emit `body(first, size)` for all tiles of an axis: a loop over the whole ones, then the rest."""
    whole, rest = divmod(extent, tile)
    if whole:
        for_each(whole, lambda number: body(number * tile, tile))
    if rest:
        body(index(whole * tile), rest)


def for_vectors(extent: int, body: Callable[[Any, int], None], *, whole: bool = False, lanes: int = LANES) -> None:
    """Emit `body(first, size)` for vectors that cover an axis, the last one overlapping with the one before.

    An axis shorter than a vector is covered by single elements, or with `whole` by one call for its size.
    """
    if extent < lanes:
        for first, size in [(0, extent)] if whole else [(i, 1) for i in range(extent)]:
            body(index(first), size)
    elif extent % lanes == 0:
        for_each(extent // lanes, lambda i: body(i * lanes, lanes))
    else:
        for_each(-(-extent // lanes), lambda i: body(T.min(index(extent - lanes), i * lanes), lanes))


def lanes_for(dtype: str, extent: int | None = None) -> int:
    """Elements of a vector of 128 bits; of 64 for float16 if there are not more in `extent` elements."""
    return 2 * LANES if dtype == "float16" and (extent is None or extent >= 2 * LANES) else LANES


def dtype_of(buffer: Any) -> str:
    """The type of a buffer's elements."""
    return str(buffer.ty.dtype.dtype)


def local_buffer(name: str, extent: int, dtype: str = "float32") -> Any:
    """A buffer on the stack, or in registers where all indices are constants once vectors are made."""
    return IRBuilder.name(name, T.alloc_buffer((extent,), dtype, scope="local", layout=None))


def vector(width: int, body: Callable[[Any], None]) -> None:
    """Emit `body(lane)` for a vector of lanes."""
    if width == 1:
        body(0)
        return
    with T.vectorized(index(width)) as lane:
        body(lane)
