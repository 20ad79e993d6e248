"""Products and look-ups whose weights are stored small, as integers or float16, and made float32 where they are read.

    w[k, n] = (q[k, n] - z[b, n]) s[b, n],  b = k // block         or         w = float32(h),  h a float16

The product is that of `matmul`, with the expression for w in place of the right factor: it is computed in registers,
once for a tile of rows, and weights never lie in memory as float32. Integers of 4 bits lie two in a byte, neighbours
along k (of a look-up: along the row), the first one in the low half; they are stored as unsigned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from graphopt.targets.tvm.kernels.matmul import (
    COLUMN_AXES,
    FUSABLE,
    PACKED,
    ROW_AXES,
    TILE,
    current_tile,
    even_panel,
    pack_right,
)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Stored:
    """A matrix [k, n]: `data` integers of `bits` bits, or float16; scale and zero point, if any, [blocks of k, n].

    A scale with one block applies to all of a column. `offset` is the zero point where all are one.
    """

    data: Array
    bits: int
    scale: Array | None = None
    zero_point: Array | None = None
    block: int = 0
    offset: int = 0

    def transposed_data(self) -> Array:
        return np.ascontiguousarray(self.data.T)


def emit_product(builder: relax.BlockBuilder, x: Any, stored: Stored) -> Any:
    """x [..., k] times the matrix, as a call that fuses with what follows it."""
    tile = current_tile()
    depth, columns = stored.data.shape
    panel = even_panel(columns, tile.columns, tile.lanes)
    rows = tuple(int(extent) for extent in x.ty.shape)[:-1]
    by_column = stored.scale is not None and len(stored.scale) == 1
    inside = None if by_column or stored.scale is None else pack_right(stored.scale, panel)
    zero_point = None if stored.zero_point is None else pack_right(stored.zero_point, panel)
    parts = [_pack_nibbles(pack_right(stored.data, panel), 1) if stored.bits == 4 else pack_right(stored.data, panel)]
    parts += [part for part in (inside, zero_point) if part is not None]
    block = depth if by_column else stored.block

    def product(x: te.Tensor, data: te.Tensor, *more: te.Tensor) -> te.Tensor:
        k = te.reduce_axis((0, depth), name="k")
        scales, zeros = _named(more, inside is not None, zero_point is not None)

        def weight(n: Any) -> Any:
            column, lane = n // panel, n % panel
            if stored.bits == 4:
                number = _nibble(data[column, k // 2, lane], k)
            else:
                number = data[column, k, lane]
            return _value(
                number,
                stored.offset,
                None if scales is None else scales[column, k // block, lane],
                None if zeros is None else zeros[column, k // block, lane],
            )

        def element(*at: Any) -> Any:
            return te.sum(x(*at[:-1], k) * weight(at[-1]), axis=k)

        marks = {
            ROW_AXES: len(rows),
            COLUMN_AXES: 1,
            TILE: [tile.rows, panel, tile.lanes],
            PACKED: [0, 1],
        }
        return te.compute((*rows, columns), element, name="matmul", attrs=marks)

    made = builder.call_te(
        product,
        x,
        *(relax.const(part) for part in parts),
        primfunc_name_hint="stored_matmul",
        primfunc_attrs={"op_pattern": FUSABLE},
    )
    if by_column:
        assert stored.scale is not None
        made = relax.op.multiply(builder.emit(made), relax.const(stored.scale.reshape(-1)))
    return made


def emit_rows(builder: relax.BlockBuilder, indices: Any, stored: Stored, index_of: Any) -> Any:
    """Rows of the transposed matrix, [n, k], by `indices`; `index_of` makes a row's number of an element of these."""
    width = stored.data.shape[0]
    data = stored.transposed_data()
    parts = [_pack_nibbles(data, 1) if stored.bits == 4 else data]
    parts += [np.ascontiguousarray(part.T) for part in (stored.scale, stored.zero_point) if part is not None]
    block = stored.block or width

    def rows(indices: te.Tensor, data: te.Tensor, *more: te.Tensor) -> te.Tensor:
        scales, zeros = _named(more, stored.scale is not None, stored.zero_point is not None)

        def element(*at: Any) -> Any:
            row, k = index_of(indices(*at[:-1])), at[-1]
            number = _nibble(data[row, k // 2], k) if stored.bits == 4 else data[row, k]
            return _value(
                number,
                stored.offset,
                None if scales is None else scales[row, k // block],
                None if zeros is None else zeros[row, k // block],
            )

        return te.compute((*indices.shape, width), element, name="gather")

    return builder.call_te(rows, indices, *(relax.const(part) for part in parts), primfunc_name_hint="stored_gather")


def _named(tensors: tuple[te.Tensor, ...], scaled: bool, shifted: bool) -> tuple[Any, Any]:
    return (tensors[0] if scaled else None), (tensors[int(scaled)] if shifted else None)


def _value(number: Any, offset: int, scale: Any, zero_point: Any) -> Any:
    if offset:
        number = number.astype("int32") - tirx.const(offset, "int32")
    elif zero_point is not None:
        number = number.astype("int32") - zero_point.astype("int32")
    value = number.astype("float32")
    return value if scale is None else value * scale


def _pack_nibbles(numbers: Array, axis: int) -> Array:
    """uint8 numbers below 16, two neighbours along `axis` in a byte; an odd one is alone."""
    moved = np.moveaxis(numbers.astype(np.uint8), axis, 0)
    if len(moved) % 2:
        moved = np.concatenate([moved, np.zeros_like(moved[:1])])
    return np.ascontiguousarray(np.moveaxis(moved[0::2] | (moved[1::2] << 4), 0, axis))


def _nibble(byte: Any, k: Any) -> Any:
    """The half of a byte that belongs to position k."""
    wide = byte.astype("int32")
    low, high = tirx.bitwise_and(wide, tirx.const(15, "int32")), tirx.shift_right(wide, tirx.const(4, "int32"))
    return tirx.Select(tirx.indexmod(k, 2) == 0, low, high)
