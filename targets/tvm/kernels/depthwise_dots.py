"""Depthwise convolution in int8 by `sdot`: four taps of each of eight channels side by side.

`sdot` sums four neighbouring bytes, and neighbours are channels here. So four pixels, the taps of a group, are zipped:

    bytes of taps a, b, c, d  →  a0 b0 c0 d0 a1 b1 c1 d1 …

which takes four instructions for eight channels, and two `sdot` then stand for four of `smull` and `smlal` and four
`saddw`. A group is a part of a column of the window, so that pixels side by side, whose windows overlap, use what is
zipped in common. Groups of fewer than four taps are filled with weights of 0. Sums are exact for any weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.tvm.kernels.requantize import LANES, index, splat, vector
from graphopt.targets.tvm.kernels.window import Window

PART = 8  # channels side by side: two vectors of sums
TAPS = 4  # that sdot sums
REGISTERS = 32
OTHERS = 12  # registers for zipped pixels, bias, multipliers and constants


@dataclass(frozen=True)
class Groups:
    """The taps of a window, (row, column) each, in groups of up to four: parts of columns, or of the only row."""

    window: Window

    @property
    def taps(self) -> list[list[tuple[int, int]]]:
        height, width = self.window.kernel
        lines = [[(row, column) for row in range(height)] for column in range(width)]
        if height == 1:
            lines = [[(0, column) for column in range(width)]]
        return [line[first : first + TAPS] for line in lines for first in range(0, len(line), TAPS)]

    @property
    def offsets(self) -> list[tuple[int, ...]]:
        """Elements from the window's first to each tap of each group; four of each, the last one repeated."""
        rows, columns = self.window.dilations
        of_taps = [[self.window.offset(row * rows, column * columns) for row, column in taps] for taps in self.taps]
        return [(*offsets, *[offsets[-1]] * (TAPS - len(offsets))) for offsets in of_taps]

    @property
    def pixels(self) -> int:
        """Pixels at a time: weights and sums fit the registers, if the window is small; else there are four."""
        left = REGISTERS - OTHERS - 2 * len(self.taps)
        return min(left // 2, 7) if left >= TAPS else TAPS


def zipped_weights(groups: Groups, channels: int, weights: Any, block: int) -> Any:
    """A buffer of the weights as [part of 8 channels][group][8 channels][4 taps]; emits what fills it.

    Args:
        weights: packed in blocks of `block` channels as `integer_depthwise.blocks` says: [block][tap][channel].
    """
    taps, width = math.prod(groups.window.kernel), groups.window.kernel[1]
    size = len(groups.taps) * PART * TAPS
    zipped = IRBuilder.name("zipped", T.sblock_alloc_buffer((channels // PART * size,), "int8", layout=None))

    def fill(part: Any, start: Any, lanes: int) -> None:
        """The weights of one part, whose taps are `lanes` bytes apart from `start` on."""
        nothing = splat(tirx.const(0, "int8"), PART)
        for number, group in enumerate(groups.taps):
            read = [weights[vector(start + (row * width + column) * lanes, PART)] for row, column in group]
            made = zip_four([*map(T.Bind, read), *[nothing] * (TAPS - len(read))])
            for half, value in enumerate(made):
                T.buffer_store(zipped, value, [vector(part * size + (number * 2 + half) * 16, 16)])

    whole = channels // block
    if whole:
        with T.serial(index(whole)) as number, T.serial(index(block // PART)) as half:
            fill(number * (block // PART) + half, number * (block * taps) + half * PART, block)
    if channels % block >= PART:
        fill(index(whole * (block // PART)), index(whole * block * taps), PART)
    return zipped


def zip_four(values: list[Any]) -> list[Any]:
    """Four int8x8 as two int8x16: of channels 0 to 3, and 4 to 7, the bytes of all four next to each other."""
    bytes_of_two = [tirx.const(lane + half * PART, "int32") for lane in range(PART) for half in range(2)]
    pairs = [
        T.Bind(tirx.reinterpret("int16x8", tirx.Shuffle(values[first : first + 2], bytes_of_two))) for first in (0, 2)
    ]
    made = []
    for first in (0, LANES):
        lanes = [tirx.const(lane + half * PART, "int32") for lane in range(first, first + LANES) for half in range(2)]
        made.append(T.Bind(tirx.reinterpret("int8x16", tirx.Shuffle(pairs, lanes))))
    return made


def sums_of_dots(
    groups: Groups, x: Any, start: Any, weights: list[list[Any]], bias: list[Any], together: int
) -> list[list[Any]]:
    """The sums of `together` pixels in a row, whose first window begins at `start`: two int32x4 each."""
    step = groups.window.pixel_step
    uses: dict[tuple[int, ...], list[tuple[int, int]]] = {}  # of the zipped pixels: (pixel, group)
    for number, offsets in enumerate(groups.offsets):
        for i in range(together):
            uses.setdefault(tuple(offset + i * step for offset in offsets), []).append((i, number))
    loaded: dict[int, Any] = {}
    sums = [list(bias) for _ in range(together)]
    for offsets in sorted(uses):  # from left to right: what is zipped is used at once
        for offset in offsets:
            if offset not in loaded:
                loaded[offset] = T.Bind(x[vector(start + offset, PART)])
        pixels = zip_four([loaded[offset] for offset in offsets])
        for i, number in uses[offsets]:
            for half in range(2):
                name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
                made = T.call_llvm_pure_intrin("int32x4", name, sums[i][half], pixels[half], weights[number][half])
                sums[i][half] = T.Bind(made)
    return sums


__all__ = ["PART", "Groups", "sums_of_dots", "zipped_weights"]
