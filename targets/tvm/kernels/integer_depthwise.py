"""Depthwise convolution in int8: each channel on its own, sixteen side by side.

The input is int8 with channels last. Two products of a pixel and a weight are summed in int16 (`smull`, `smlal`), which
is exact as long as no weight is -128, and then added to sums of int32 (`saddw`). The loops are plain vectors: LLVM
finds those instructions, and others elsewhere. Neighbouring output pixels share the input that they both read. Where
the core has `sdot`, whole parts of eight channels are `depthwise_dots`.

Weights are packed as [block of channels][tap of the window][channel in the block], the blocks as `blocks` says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.tvm.kernels.depthwise_dots import PART, Groups, sums_of_dots, zipped_weights
from graphopt.targets.tvm.kernels.requantize import (
    LANES,
    Instructions,
    Range,
    in_vectors,
    index,
    requantize,
    store,
    vector,
    wide,
)
from graphopt.targets.tvm.kernels.window import Window, padded_input

WIDEST = 16  # channels: the results of a pixel fill a vector
PIXELS = 2  # at a time: their sums take 8 registers, a 3×3 window of weights 9
PARALLEL_MACS = 1 << 18


@dataclass(frozen=True)
class IntegerDepthwise:
    """A convolution of every channel with its own window; as many channels come out as go in.

    `pairs`: whether two products of a weight fit int16 together, which they do unless one is -128.
    `lifted`: the bias has ROUNDER_BITS in it (`requantize`).
    """

    window: Window
    bounds: Range
    pairs: bool = True
    lifted: bool = False

    @property
    def channels(self) -> int:
        return self.window.image[3]

    @property
    def taps(self) -> int:
        return math.prod(self.window.kernel)


def blocks(channels: int) -> list[tuple[int, int]]:
    """(first channel, width) of the blocks that are computed side by side: of 16, then 8, 4 and single ones."""
    found, first = [], 0
    while first < channels:
        width = next(width for width in (WIDEST, 8, 4, 1) if width <= channels - first)
        found.append((first, width))
        first += width
    return found


def pack_depthwise_weights(weights: np.ndarray) -> np.ndarray:
    """int8 [channels, height, width] as a flat array in the order of the kernel's blocks."""
    taps = weights.reshape(weights.shape[0], -1)
    return np.concatenate([taps[first : first + width].T.ravel() for first, width in blocks(len(taps))])


def depthwise_kernel(depthwise: IntegerDepthwise, instructions: Instructions) -> tirx.PrimFunc:
    """The kernel. Parameters, all flat: x int8, packed weights int8, bias int32, multipliers float32, y int8."""
    window, channels = depthwise.window, depthwise.channels
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"op_pattern": 8, "tirx.noalias": True})
        x = T.arg("x", T.buffer((window.input_size,), "int8", layout=None))
        weights = T.arg("weights", T.buffer((channels * depthwise.taps,), "int8", layout=None))
        bias = T.arg("bias", T.buffer((channels,), "int32", layout=None))
        multipliers = T.arg("multipliers", T.buffer((channels,), "float32", layout=None))
        y = T.arg("y", T.buffer((math.prod(window.output) * channels,), "int8", layout=None))
        source, pixel = padded_input(window, x, overrun=0)
        by_dots = instructions.has_sdot and depthwise.taps > 1 and channels >= PART
        row = _Row(depthwise, instructions, source, weights, bias, multipliers, y)
        dots = _Dots(row, zipped_weights(Groups(window), channels, weights, WIDEST)) if by_dots else None
        height, width = window.output[0] * window.output[1], window.output[2]
        loop = T.parallel if height * width * channels * depthwise.taps >= PARALLEL_MACS else T.serial
        whole = channels // WIDEST
        with loop(index(height)) as y_row:
            start = T.Bind(pixel(y_row, index(0)))
            if dots is not None:
                with T.serial(index(channels // PART)) as part:
                    dots.emit(start, y_row * width, part)
            elif whole:
                with T.serial(index(whole)) as block:
                    row.emit(start, y_row * width, block * WIDEST, WIDEST)
            for first, lanes in blocks(channels):
                if lanes < (WIDEST if dots is None else PART):
                    row.emit(start, y_row * width, index(first), lanes)
    return builder.get()


@dataclass(frozen=True)
class _Row:
    depthwise: IntegerDepthwise
    instructions: Instructions
    x: Any
    weights: Any
    bias: Any
    multipliers: Any
    y: Any

    def emit(self, start: Any, pixel: Any, channel: Any, lanes: int) -> None:
        """One row of results for `lanes` channels: from output pixel `pixel` on, whose window begins at `start`."""
        width = self.depthwise.window.output[2]
        step = self.depthwise.window.pixel_step
        part = min(lanes, 8)  # channels whose products fill a vector of int16
        parts = range(0, lanes, part)
        of_taps = [
            [T.Bind(self.weights[vector(channel * self.depthwise.taps + (tap * lanes + p), part)]) for p in parts]
            for tap in range(self.depthwise.taps)
        ]

        def pixels(first: int, count: int, together: int) -> None:
            if count == 0:
                return
            with T.serial(index(count)) as number:
                column = number * together + first
                self._pixels(start + column * step + channel, pixel + column, channel, lanes, of_taps, together)

        pixels(0, width // PIXELS, PIXELS)
        pixels(width - width % PIXELS, width % PIXELS, 1)

    def _pixels(
        self, start: Any, pixel: Any, channel: Any, lanes: int, of_taps: list[list[Any]], together: int
    ) -> None:
        window = self.depthwise.window
        part = min(lanes, 8)
        start, pixel = T.Bind(start), T.Bind(pixel)
        loaded: dict[tuple[int, int], Any] = {}

        def load(offset: int, p: int) -> Any:
            if (offset, p) not in loaded:
                loaded[offset, p] = T.Bind(self.x[vector(start + (offset + p * part), part)])
            return loaded[offset, p]

        taps = [
            window.offset(row * window.dilations[0], column * window.dilations[1])
            for row in range(window.kernel[0])
            for column in range(window.kernel[1])
        ]
        for i in range(together):
            made = []
            for p in range(lanes // part):
                total = self.bias[vector(channel + p * part, part)]
                pairs = 2 if self.depthwise.pairs else 1
                for first in range(0, len(taps), pairs):
                    products = [
                        _wider(load(taps[tap] + i * window.pixel_step, p), "int16", part)
                        * _wider(of_taps[tap][p], "int16", part)
                        for tap in range(first, min(first + pairs, len(taps)))
                    ]
                    product = products[0] if len(products) == 1 else products[0] + products[1]
                    total = T.Bind(total + _wider(product, "int32", part))
                made += in_vectors(total)
            at = [min(LANES, lanes) * j for j in range(len(made))]
            multipliers = [self.multipliers[vector(channel + j, min(LANES, lanes))] for j in at]
            result = requantize(made, multipliers, self.depthwise.bounds, self.instructions, self.depthwise.lifted)
            store(self.y, (pixel + i) * self.depthwise.channels + channel, result, lanes)


@dataclass(frozen=True)
class _Dots:
    """Rows of results of PART channels by `sdot`."""

    row: _Row
    zipped: Any  # weights

    def emit(self, start: Any, pixel: Any, part: Any) -> None:
        """One row of results for part number `part` of the channels."""
        depthwise = self.row.depthwise
        window, groups = depthwise.window, Groups(depthwise.window)
        channel = T.Bind(part * PART)
        first_weight = T.Bind(part * (len(groups.taps) * PART * LANES))
        weights = [
            [T.Bind(self.zipped[vector(first_weight + (number * 2 + half) * 16, 16)]) for half in range(2)]
            for number in range(len(groups.taps))
        ]
        at = [vector(channel + half * LANES, LANES) for half in range(2)]
        bias = [T.Bind(self.row.bias[lanes]) for lanes in at]
        multipliers = [T.Bind(self.row.multipliers[lanes]) for lanes in at]

        def pixels(first: int, count: int, together: int) -> None:
            if count == 0:
                return
            with T.serial(index(count)) as number:
                column = T.Bind(number * together + first)
                origin = T.Bind(start + column * window.pixel_step + channel)
                sums = sums_of_dots(groups, self.row.x, origin, weights, bias, together)
                for i, totals in enumerate(sums):
                    result = requantize(totals, multipliers, depthwise.bounds, self.row.instructions, depthwise.lifted)
                    store(self.row.y, (pixel + column + i) * depthwise.channels + channel, result, PART)

        width = window.output[2]
        tiles = -(-width // groups.pixels)
        small, more = divmod(width, tiles)  # the first `more` tiles have one pixel more
        pixels(0, more, small + 1)
        pixels(more * (small + 1), tiles - more, small)


def _wider(value: Any, dtype: str, lanes: int) -> Any:
    return tirx.Cast(wide(dtype, lanes), value)


__all__ = ["IntegerDepthwise", "blocks", "depthwise_kernel", "pack_depthwise_weights"]
