"""Tiles of int32 sums in registers: int8 products are added to them, in the form of each instruction set.

A tile has sums for some pixels and for some vectors of four columns. `accumulate` takes the next k of its pixels, an
int32 or a vector of int32 for each, with four k in a lane, and of its columns: 16 bytes, four k for each of four.

- `sdot`: four k of each of four columns, against four k of a pixel, by lane.
- `smmla`: eight k of two columns, against eight k of two pixels, twice as many products as `sdot`. Its operands are
  zipped: halves of two pixels, and two groups of k of two columns. Sums are blocks of 2×2, taken apart at the end.
- Without either two pairs of `smull` and `smlal` sum eight k into int16, which `sadalp` adds to int32 in pairs; that is
  exact as long as no weight is -128: 2 · 127 · 128 < 2¹⁵. So do `vmull`, `vmlal` and `vpadal` of 32-bit NEON, which has
  half as many registers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.tvm.kernels.requantize import LANES, splat, vector

GROUP = 4  # k that a lane of 32 bits holds
PANEL = 16  # columns that lie side by side in the packed weights: as many int8 results as a vector holds
CHUNK = 16  # bytes of a vector of weights: four k for each of four columns
HALVES = ((0, 1, 4, 5), (2, 3, 6, 7))  # lanes of two vectors: their first halves, their second halves
ZIPPED = ((0, 4, 1, 5), (2, 6, 3, 7))  # in turn


@dataclass(frozen=True)
class PanelWeights:
    """Weights of a panel, from byte `start` of `buffer` on: some groups of k of the columns from vector `first` on.

    `octets`: eight k of a column lie side by side, instead of four.
    """

    buffer: Any
    start: Any
    first: int
    groups: int
    octets: bool

    def four(self, j: int, g: int) -> Any:
        """Group g of the four columns of vector j: int8x16."""
        if self.octets:
            every_other = range(g % 2, 8, 2)
            return tirx.reinterpret("int8x16", _lanes(self._pair(j, g - g % 2), every_other))
        return self._load(g * PANEL * GROUP + (self.first + j) * CHUNK)

    def eights(self, j: int, g: int) -> list[Any]:
        """Groups g and g + 1 of columns 0 and 1 of vector j, and of 2 and 3. Behind the last group are zeros."""
        if self.octets:
            return [T.Bind(tirx.reinterpret("int8x16", pair)) for pair in self._pair(j, g)]
        zero = splat(tirx.const(0, "int32"), LANES)
        fours = [T.Bind(tirx.reinterpret("int32x4", self.four(j, h))) for h in range(g, min(g + 2, self.groups))]
        fours = [*fours, zero][:2]
        return [T.Bind(tirx.reinterpret("int8x16", _lanes(fours, lanes))) for lanes in ZIPPED]

    def _pair(self, j: int, g: int) -> list[Any]:
        at = g * PANEL * GROUP + (self.first + j) * 2 * CHUNK
        return [T.Bind(tirx.reinterpret("int32x4", self._load(at + half * CHUNK))) for half in range(2)]

    def _load(self, at: int) -> Any:
        return self.buffer[vector(self.start + at, CHUNK)]


class Sums:
    """A tile of sums: a vector for four columns of a pixel."""

    def __init__(self, rows: int, vectors: int, pairs: bool) -> None:
        self.rows, self.vectors = rows, vectors
        self.sums = _registers(rows * vectors)

    def start(self, begun: list[Any]) -> None:
        for i, sums in enumerate(begun):
            T.buffer_store(self.sums, sums, [vector(i * LANES, LANES)])

    def total(self, i: int, j: int) -> Any:
        return self.sums[vector((i * self.vectors + j) * LANES, LANES)]


class Dotprod(Sums):
    """`sdot` by lane."""

    def accumulate(self, pixels: list[Any], weights: PanelWeights) -> None:
        for g in range(weights.groups):
            for j in range(self.vectors):
                factor = T.Bind(weights.four(j, g))
                for i in range(self.rows):
                    at = vector((i * self.vectors + j) * LANES, LANES)
                    pixel = tirx.reinterpret("int8x16", _in_each_lane(pixels[i], g, weights.groups))
                    name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
                    made = T.call_llvm_pure_intrin("int32x4", name, self.sums[at], factor, pixel)
                    T.buffer_store(self.sums, made, [at])


class Mmla:
    """`smmla`: a vector has the sums (i, n), (i, n + 1), (i + 1, n), (i + 1, n + 1) of pixels i and columns n."""

    def __init__(self, rows: int, vectors: int, pairs: bool) -> None:
        self.rows, self.vectors = rows, vectors
        self.sums = _registers(-(-rows // 2) * vectors * 2)

    def _at(self, i: int, j: int, half: int) -> Any:
        """Where the block of pixels i and i + 1 is, of the first or second two columns of vector j."""
        return vector((i * self.vectors + j * 2 + half) * LANES, LANES)

    def start(self, begun: list[Any]) -> None:
        for i in range(0, self.rows, 2):
            for j in range(self.vectors):
                rows = [begun[min(row, self.rows - 1) * self.vectors + j] for row in (i, i + 1)]
                for half in range(2):
                    T.buffer_store(self.sums, _lanes(rows, HALVES[half]), [self._at(i, j, half)])

    def accumulate(self, pixels: list[Any], weights: PanelWeights) -> None:
        both = [
            (i, [pixels[i], pixels[min(i + 1, self.rows - 1)]])  # an odd last pixel twice
            for i in range(0, self.rows, 2)
        ]
        for g in range(0, weights.groups, 2):
            operands = [(i, T.Bind(tirx.reinterpret("int8x16", _octets(pair, g, weights.groups)))) for i, pair in both]
            for j in range(self.vectors):
                for half, factor in enumerate(weights.eights(j, g)):
                    for i, operand in operands:
                        at = self._at(i, j, half)
                        name = "llvm.aarch64.neon.smmla.v4i32.v16i8"
                        made = T.call_llvm_pure_intrin("int32x4", name, self.sums[at], operand, factor)
                        T.buffer_store(self.sums, made, [at])

    def total(self, i: int, j: int) -> Any:
        blocks = [self.sums[self._at(i - i % 2, j, half)] for half in range(2)]
        return _lanes(blocks, HALVES[i % 2])


def _octets(pair: list[Any], g: int, groups: int) -> Any:
    """Eight k, from group g on, of each of two pixels: int32x4. Where only four are left, those twice."""
    if groups == 1:
        return _lanes([splat(pixel, 2) for pixel in pair], range(LANES))
    return _lanes(pair, [first + g + k for first in (0, groups) for k in range(2)])


class Neon:
    """`smull`, `smlal`, `sadalp`: two vectors of sums for four columns, two partial sums each."""

    def __init__(self, rows: int, vectors: int, pairs: bool) -> None:
        self.rows, self.vectors, self.pairs = rows, vectors, pairs
        self.sums = _registers(rows * vectors * 2)

    def start(self, begun: list[Any]) -> None:
        zero = splat(tirx.const(0, "int32"), LANES)
        for i, sums in enumerate(begun):
            for half in range(2):  # the partial sums of columns 0 and 1, then of 2 and 3: the bias in the first of each
                parted = _lanes([sums, zero], [2 * half, 4, 2 * half + 1, 4])
                T.buffer_store(self.sums, parted, [vector((2 * i + half) * LANES, LANES)])

    def accumulate(self, pixels: list[Any], weights: PanelWeights) -> None:
        together = 2 if self.pairs else 1
        for g in range(0, weights.groups, together):
            span = range(g, min(g + together, weights.groups))
            factors = {(j, h): T.Bind(weights.four(j, h)) for h in span for j in range(self.vectors)}
            for i in range(self.rows):
                fours = {
                    h: T.Bind(tirx.reinterpret("int8x16", _in_each_lane(pixels[i], h, weights.groups))) for h in span
                }
                for j in range(self.vectors):
                    for half in range(2):
                        products = [self.product(_half(factors[j, h], half), _half(fours[h], half)) for h in span]
                        self._add_pairs((i * self.vectors + j) * 2 + half, products)

    def _add_pairs(self, number: int, products: list[Any]) -> None:
        at = vector(number * LANES, LANES)
        product = products[0] if len(products) == 1 else products[0] + products[1]
        T.buffer_store(self.sums, self.longer(self.sums[at], product), [at])

    @staticmethod
    def product(a: Any, b: Any) -> Any:
        """int16x8 of int8x8."""
        return T.call_llvm_pure_intrin("int16x8", "llvm.aarch64.neon.smull.v8i16", a, b)

    @staticmethod
    def longer(sums: Any, products: Any) -> Any:
        """int32x4, with pairs of int16x8 added."""
        return sums + T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.saddlp.v4i32.v8i16", products)

    def total(self, i: int, j: int) -> Any:
        first = (i * self.vectors + j) * 2
        low, high = (self.sums[vector((first + half) * LANES, LANES)] for half in range(2))
        return T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.addp.v4i32", low, high)


class Armv7(Neon):
    """`vmull`, `vmlal`, `vpadal`."""

    @staticmethod
    def product(a: Any, b: Any) -> Any:
        return tirx.Cast("int16x8", a) * tirx.Cast("int16x8", b)

    @staticmethod
    def longer(sums: Any, products: Any) -> Any:
        return T.call_llvm_pure_intrin("int32x4", "llvm.arm.neon.vpadals.v4i32.v8i16", sums, products)

    def total(self, i: int, j: int) -> Any:
        first = (i * self.vectors + j) * 2
        both = [self.sums[vector((first + half) * LANES, LANES)] for half in range(2)]
        return _lanes(both, range(0, 8, 2)) + _lanes(both, range(1, 8, 2))


class Portable(Sums):
    """Products of int32, the bytes of a lane taken out by shifts: what any vector unit can do."""

    def accumulate(self, pixels: list[Any], weights: PanelWeights) -> None:
        for g in range(weights.groups):
            fours = [T.Bind(_in_each_lane(pixel, g, weights.groups)) for pixel in pixels]
            factors = [T.Bind(tirx.reinterpret("int32x4", weights.four(j, g))) for j in range(self.vectors)]
            for byte in range(GROUP):
                shifted = [T.Bind(_byte(four, byte)) for four in fours]
                for j in range(self.vectors):
                    factor = T.Bind(_byte(factors[j], byte))
                    for i in range(self.rows):
                        at = vector((i * self.vectors + j) * LANES, LANES)
                        T.buffer_store(self.sums, self.sums[at] + shifted[i] * factor, [at])


def _registers(vectors: int) -> Any:
    return IRBuilder.name("sums", T.alloc_buffer((vectors * LANES,), "int32", scope="local", layout=None))


def _lanes(vectors: list[Any], lanes: Iterable[int]) -> Any:
    return tirx.Shuffle(vectors, [tirx.const(lane, "int32") for lane in lanes])


def _in_each_lane(pixel: Any, g: int, groups: int) -> Any:
    """Group g of `groups` of a pixel's k, in each lane: int32x4."""
    if groups == 1:
        return splat(pixel, LANES)
    twice = [pixel] * (LANES // groups)  # a shuffle has no more lanes than it is given
    return _lanes(twice, [g] * LANES)


def _half(value: Any, half: int) -> Any:
    return _lanes([value], range(half * 8, half * 8 + 8))


def _byte(lanes: Any, byte: int) -> Any:
    """Byte number `byte` of each lane of an int32x4, with its sign."""
    up = splat(tirx.const(24 - 8 * byte, "int32"), LANES)
    return (lanes << up) >> splat(tirx.const(24, "int32"), LANES)
