"""MaxPool of int8 with channels last: vectors of channels, one tap of the window after the other.

Padding, where there is any, is a copy of the image with -128 around it, which is greater than nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.tvm.kernels.integer_elementwise import for_channels
from graphopt.targets.tvm.kernels.requantize import Instructions, index, store, vector
from graphopt.targets.tvm.kernels.window import Window, padded_input

PARALLEL_READS = 1 << 17


@dataclass(frozen=True)
class IntegerMaxPool:
    """The greatest of each channel in each place of `window`, whose padding is -128."""

    window: Window


def max_pool_kernel(pool: IntegerMaxPool, _instructions: Instructions) -> tirx.PrimFunc:
    """The kernel. Parameters, flat: x and y int8."""
    window = pool.window
    channels, width = window.image[3], window.output[2]
    rows = window.output[0] * window.output[1]
    taps = [
        window.offset(row * window.dilations[0], column * window.dilations[1])
        for row in range(window.kernel[0])
        for column in range(window.kernel[1])
    ]
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"op_pattern": 8, "tirx.noalias": True})
        x = T.arg("x", T.buffer((window.input_size,), "int8", layout=None))
        y = T.arg("y", T.buffer((rows * width * channels,), "int8", layout=None))
        with T.sblock("root"):  # TVM looks for a copy in what has one input, and into a block for that
            source, pixel = padded_input(window, x, overrun=0)

            def greatest(start: Any, at: Any, lanes: int) -> None:
                found = source[vector(start + taps[0], lanes)]
                for tap in taps[1:]:
                    found = tirx.Max(found, source[vector(start + tap, lanes)])
                store(y, at, found, lanes)

            parallel = rows * width * channels * len(taps) >= PARALLEL_READS
            with (T.parallel if parallel else T.serial)(index(rows)) as row, T.serial(index(width)) as column:
                start = T.Bind(pixel(*((index(0), row * width + column) if window.contiguous else (row, column))))
                at = T.Bind((row * width + column) * channels)
                for_channels(channels, lambda first, lanes: greatest(start + first, at + first, lanes))
    return builder.get()


def pool_window(window: Window, result: tuple[int, int]) -> Window | None:
    """`window` with as much padding behind the image as `result` rows and columns take; None if it has others."""
    (top, left, *_), image = window.pads, window.image[1:3]
    ends = [
        max((size - 1) * stride + (kernel - 1) * dilation + 1 - extent - before, 0)
        for size, stride, kernel, dilation, extent, before in zip(
            result, window.strides, window.kernel, window.dilations, image, (top, left), strict=True
        )
    ]
    made = Window(
        window.image, window.kernel, window.strides, window.dilations, (top, left, ends[0], ends[1]), padding=-128
    )
    return made if math.prod(made.output) == made.output[0] * math.prod(result) else None
