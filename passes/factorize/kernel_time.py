"""An estimate of the time that a product takes in the float32 kernels of this compiler, from its sizes alone.

    cycles ≈ 0.256 · M' K N' + 0.290 · M N + [M = 1] 0.034 · K N' + 55

for [M, K]·[K, N]; N' and M' are padded to the tile. A convolution has a place of its output for each row, and K
numbers in a patch. The first term is a vector fused multiply-add of 4 lanes each cycle, the second writes a number,
the third is weights that only one row uses, the last is the call. The constants are a fit to cycles that armcount
estimates for 24 layers on cortex-a76, each compiled alone; `docs/adr/0014-factorization.md` lists them, with errors of
8 % at most. Other cores differ by a factor that cancels, since estimates are only compared. Cache misses are not in it.
"""

from __future__ import annotations

from dataclasses import dataclass

_PER_PRODUCT = 0.256 * 4  # of one vector of 4 lanes
_PER_OUTPUT = 0.290
_PER_LONE_WEIGHT = 0.034
_PER_CALL = 55.0
_FLOAT_BITS = 32
_ROWS = 4  # places that a tile has at least


@dataclass(frozen=True)
class Kernels:
    """Tiles of the target's kernels. lanes: float32 in a vector. multiple: of which outputs fill a tile."""

    lanes: int = 4
    multiple: int = 8

    @classmethod
    def of(cls, vector_bits: int, channel_multiple: int) -> Kernels:
        """From the facts of a target's description."""
        return cls(max(vector_bits // _FLOAT_BITS, 1), channel_multiple)

    def of_products(self, macs: float) -> float:
        """What `macs` multiply-accumulates take in whole tiles."""
        return _PER_PRODUCT * macs / self.lanes

    def cycles(self, rows: int, features: int, outputs: int, line: int = 0) -> float:
        """Of a product of [rows, features] and [features, outputs].

        line: rows in one line of a picture, where a window covers several places: tiles end with the line.
        """
        wide = -(-outputs // self.multiple) * self.multiple
        line = line or rows
        tall = rows if rows == 1 else rows // line * (-(-line // _ROWS) * _ROWS)
        lone = _PER_LONE_WEIGHT * features * wide if rows == 1 else 0.0
        return self.of_products(tall * features * wide) + _PER_OUTPUT * rows * outputs + lone + _PER_CALL
