"""An estimate of the time that a product takes in the kernels of this compiler, from its sizes alone.

In float32

    cycles ≈ 0.256 · M' K N' + 0.290 · M N + [M = 1] 0.034 · K N' + 55

for [M, K]·[K, N]; N' and M' are padded to the tile. A convolution has a place of its output for each row, and K
numbers in a patch. The first term is a vector fused multiply-add of 4 lanes each cycle, the second writes a number,
the third is weights that only one row uses, the last is the call. The constants are a fit to cycles that armcount
estimates for 24 layers on cortex-a76, each compiled alone; `docs/adr/0014-factorization.md` lists them, with errors of
8 % at most.

A window of 3×3 without strides and dilations is computed by Winograd's F(4×4, 3×3) where that takes less (ADR 15):

    cycles ≈ 0.256 · 36 T C N' + (260 C + 230 N) V + 0.6 · M C + 55

for T tiles of 4×4 places in V vectors of 4 tiles in a line, and C channels. In int8, where windows are direct,

    cycles ≈ 0.0324 · M K' N' + 0.646 · M N + [M = 1] 0.005 · K' N' + 21

with K' and N' padded to 4: an output costs as much as 20 products, in float32 as one. It is a fit to 49 layers of three
networks, counted in the same way: 7 % off in the mean of squares, 24 % at worst, where outputs sum over 32 numbers.
3×3 depthwise takes 0.1 for a product, of eight channels at a time; of what is left of them, four, two and one take as
long as eight (of 4 to 24 channels at 64×64 21 % off at worst). Where a channel has two to four outputs (a group for
each, whose tiles are mostly empty), a product takes 1.43 for all of them. Other cores differ by a factor that cancels
where estimates are compared. Cache misses are not in it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

_PER_PRODUCT = 0.256 * 4  # of one vector of 4 lanes
_PER_OUTPUT = 0.290
_PER_LONE_WEIGHT = 0.034
_PER_CALL = 55.0
_PER_TILES_READ, _PER_TILES_WRITTEN, _PER_COPY = 260.0, 230.0, 0.6  # of a channel of 4 tiles; of an element
_TILE, _PRODUCTS, _WINDOW = 4, 36, 9
_FLOAT_BITS = 32
_PER_INTEGER_MAC, _PER_INTEGER_OUTPUT, _PER_LONE_INTEGER, _PER_INTEGER_CALL = 0.0324, 0.646, 0.005, 21.0
_PER_DEPTHWISE_MAC, _PER_SHARED_MAC = 0.1, 1.43
_DOT = 4  # products that an integer instruction sums up, and columns that share it
_ROWS = 4  # places that a tile has at least
_SIDE_BY_SIDE = 8  # channels of a depthwise layer


class Arithmetic(enum.Enum):
    """What products are computed in."""

    FLOAT32 = "float32"
    INT8 = "int8"


@dataclass(frozen=True)
class Kernels:
    """Tiles of the target's float32 kernels. lanes: float32 in a vector. multiple: of which outputs fill a tile."""

    lanes: int = 4
    multiple: int = 8

    @classmethod
    def of(cls, vector_bits: int, channel_multiple: int) -> Kernels:
        """From the facts of a target's description."""
        return cls(max(vector_bits // _FLOAT_BITS, 1), channel_multiple)

    def of_products(self, macs: float) -> float:
        """What `macs` multiply-accumulates take in whole tiles."""
        return _PER_PRODUCT * macs / self.lanes

    def winograd(self, rows: int, channels: int, outputs: int, line: int) -> float:
        """Of a 3×3 window, of stride 1, over `channels` of a picture with `rows` places in lines of `line`."""
        wide = -(-outputs // self.multiple) * self.multiple
        high, long = -(-(rows // line) // _TILE), -(-line // _TILE)
        vectors = high * -(-long // self.lanes)
        transforms = vectors * (_PER_TILES_READ * channels + _PER_TILES_WRITTEN * outputs)
        products = self.of_products(_PRODUCTS * high * long * channels * wide)
        return products + transforms + _PER_COPY * rows * channels + _PER_CALL

    def window(self, rows: int, features: int, outputs: int, line: int, *, winograd: bool) -> float:
        """Of a convolution, in the way that takes less of those that serve it."""
        direct = self.cycles(rows, features, outputs, line)
        return min(direct, self.winograd(rows, features // _WINDOW, outputs, line)) if winograd else direct

    def lookup(self, rows: int, outputs: int) -> float:
        """Of copying `rows` rows of a table, each of `outputs` numbers."""
        return _PER_OUTPUT * rows * outputs + _PER_CALL

    def depthwise(self, rows: int, features: int, outputs: int, line: int, channels: int) -> float:
        """Of a convolution whose outputs read one of `channels` each."""
        return self.cycles(rows, features, outputs, line)

    def by_channel(self, rows: int, features: int, channels: int) -> float:
        """Of a convolution of each channel with a window of its own."""
        return self.of_products(rows * features * channels)

    @property
    def of_recurrences(self) -> Kernels:
        """Those that compute recurrent layers."""
        return self

    def cycles(self, rows: int, features: int, outputs: int, line: int = 0) -> float:
        """Of a product of [rows, features] and [features, outputs].

        line: rows in one line of a picture, where a window covers several places: tiles end with the line.
        """
        wide = -(-outputs // self.multiple) * self.multiple
        line = line or rows
        tall = rows if rows == 1 else rows // line * (-(-line // _ROWS) * _ROWS)
        lone = _PER_LONE_WEIGHT * features * wide if rows == 1 else 0.0
        return self.of_products(tall * features * wide) + _PER_OUTPUT * rows * outputs + lone + _PER_CALL


@dataclass(frozen=True)
class IntegerKernels(Kernels):
    """The target's kernels of int8, as in a quantized model."""

    def of_products(self, macs: float) -> float:
        return _PER_INTEGER_MAC * macs

    def window(self, rows: int, features: int, outputs: int, line: int, *, winograd: bool) -> float:
        return self.cycles(rows, features, outputs, line)

    def depthwise(self, rows: int, features: int, outputs: int, line: int, channels: int) -> float:
        if outputs == channels:
            return self.by_channel(rows, features, channels)
        return _PER_SHARED_MAC * features * rows * channels + _PER_INTEGER_CALL

    def by_channel(self, rows: int, features: int, channels: int) -> float:
        whole, rest = divmod(channels, _SIDE_BY_SIDE)
        wide = (whole + rest.bit_count()) * _SIDE_BY_SIDE
        return (_PER_DEPTHWISE_MAC * features + _PER_INTEGER_OUTPUT) * rows * wide + _PER_INTEGER_CALL

    @property
    def of_recurrences(self) -> Kernels:
        return Kernels(self.lanes, self.multiple)

    def cycles(self, rows: int, features: int, outputs: int, line: int = 0) -> float:
        deep, wide = (-(-size // _DOT) * _DOT for size in (features, outputs))
        lone = _PER_LONE_INTEGER * deep * wide if rows == 1 else 0.0
        return self.of_products(rows * deep * wide) + _PER_INTEGER_OUTPUT * rows * outputs + lone + _PER_INTEGER_CALL
