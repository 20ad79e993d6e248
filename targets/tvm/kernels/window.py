"""The window of a convolution over an int8 image with channels last, and the padded copy that a kernel reads."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.tvm.kernels.requantize import index

PARALLEL_BYTES = 1 << 17  # of a padded copy; below, waking a thread costs more than it saves


@dataclass(frozen=True)
class Window:
    """A window of `kernel` pixels, `dilations` apart, moved by `strides` over [batch, height, width, channels].

    `pads`: top, left, bottom, right. Outside of the image lies `padding`, the zero point of the input. A group of
    output channels reads one of `groups` equal parts of the channels.
    """

    image: tuple[int, int, int, int]  # batch, height, width, channels
    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    padding: int = 0
    groups: int = 1

    @property
    def input_size(self) -> int:
        return math.prod(self.image)

    @property
    def padded(self) -> tuple[int, int, int, int]:
        """The shape of the image with the padding around it."""
        batch, height, width, channels = self.image
        top, left, bottom, right = self.pads
        return (batch, height + top + bottom, width + left + right, channels)

    @property
    def output(self) -> tuple[int, int, int]:
        """Batch, height and width of the result."""
        batch, *padded, _ = self.padded
        extents = zip(padded, self.kernel, self.strides, self.dilations, strict=True)
        height, width = (
            (size - (kernel - 1) * dilation - 1) // stride + 1 for size, kernel, stride, dilation in extents
        )
        return (batch, height, width)

    @property
    def whole_rows(self) -> bool:
        """Whether a row of the window is contiguous in memory."""
        return (self.groups == 1 and self.dilations[1] == 1) or self.kernel[1] == 1

    @property
    def contiguous(self) -> bool:
        """Whether `pixel_step` also leads from the last pixel of a row to the next row."""
        return self.kernel == (1, 1) and self.strides == (1, 1) and not any(self.pads)

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """The first pixel, (row, column) in the padded image, of each contiguous part of the window."""
        rows, columns = (
            [i * step for i in range(size)] for size, step in zip(self.kernel, self.dilations, strict=True)
        )
        return tuple((row, column) for row in rows for column in ([0] if self.whole_rows else columns))

    @property
    def run(self) -> int:
        """How many elements each part has."""
        return self.image[3] // self.groups * (self.kernel[1] if self.whole_rows else 1)

    @property
    def run_offsets(self) -> tuple[int, ...]:
        """Where each part begins, in elements from the window's first."""
        return tuple(self.offset(row, column) for row, column in self.runs)

    def offset(self, row: int, column: int) -> int:
        """Elements from a pixel to the one `row` rows below and `column` columns to the right."""
        _, _, width, channels = self.padded
        return (row * width + column) * channels

    @property
    def pixel_step(self) -> int:
        """Elements from the window of one output pixel to that of the next in its row."""
        return self.strides[1] * self.image[3]


def padded_input(window: Window, x: Any, overrun: int) -> tuple[Any, Callable[[Any, Any], Any]]:
    """The buffer to read, and where in it a window begins, by (row of all images, column) of the output.

    Emits a copy with padding if there is any, or if reads may run over the end.

    Args:
        overrun: elements behind the last run that the kernel may read; they do not matter, but must exist.
    """
    batch, height, _ = window.output
    _, padded_height, padded_width, channels = window.padded
    row_step = window.strides[0] * padded_width * channels
    image_step = padded_height * padded_width * channels

    def pixel(row: Any, column: Any) -> Any:
        if window.contiguous:
            return column * channels
        start = (row // height) * image_step + (row % height) * row_step if batch > 1 else row * row_step
        return start + column * window.pixel_step

    if any(window.pads) or overrun:
        x = _copy(window, x, overrun)
    return x, pixel


def _copy(window: Window, x: Any, overrun: int) -> Any:
    """A copy of the image with padding around it."""
    batch, height, width, channels = window.image
    top, left, _, right = window.pads
    _, padded_height, padded_width, _ = window.padded
    size = math.prod(window.padded)
    copy = IRBuilder.name("padded", T.sblock_alloc_buffer((size + overrun,), "int8", layout=None))

    def fill(start: Any, count: Any) -> None:
        with T.serial(count if not isinstance(count, int) else index(count)) as i:
            T.buffer_store(copy, tirx.const(window.padding, "int8"), [start + i])

    row_bytes = padded_width * channels
    with T.serial(index(batch)) as image:
        start = image * (padded_height * row_bytes)
        if top:
            fill(start, top * row_bytes)
        with (T.parallel if size >= PARALLEL_BYTES else T.serial)(index(height)) as row:
            to = start + (row + top) * row_bytes
            if left:
                fill(to, left * channels)
            with T.serial(index(width * channels)) as i:
                T.buffer_store(copy, x[(image * height + row) * (width * channels) + i], [to + left * channels + i])
            if right:
                fill(to + (left + width) * channels, right * channels)
        below = padded_height - top - height
        if below:
            fill(start + (top + height) * row_bytes, below * row_bytes)
    if overrun:
        fill(index(size), overrun)
    return copy
