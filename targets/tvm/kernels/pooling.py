"""Pooling in float32, NCHW: MaxPool of any window, AveragePool where all windows have as many elements.

    y[c, i, j] = max over u, v of x[c, i·t + u·e − top, j·s + v·d − left]      s, t: strides; d, e: dilations

The image is copied once with the padding around it, −∞ for a maximum, and for a stride with its columns parted by their
remainder, as `direct_convolution` does: what a tap reads for four neighbouring results then lies side by side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import Any

from tvm import relax, te, tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.base import TargetDescription
from graphopt.targets.tvm.kernels.direct_convolution import Convolution, copy_padded
from graphopt.targets.tvm.kernels.epilogue import PARALLEL_MACS, Epilogue, index, take_epilogue
from graphopt.targets.tvm.kernels.matmul import FUSABLE, is_static_float32
from graphopt.targets.tvm.kernels.rows import LANES, for_vectors, local_buffer, vector

GEOMETRY = "graphopt.pooling"  # mark on the block: maximum or not, strides, pads before, kernel, dilations
MOST_STRIDE = 4  # columns that a copy parts


@dataclass(frozen=True)
class Pooling(Convolution):
    """A pooling as a convolution of each channel with itself alone."""


def legalize_max(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """relax.nn.max_pool2d as the kernel's block; by TVM's own legalization where the kernel does not apply."""
    found = _recognize(call)
    return _by_tvm(builder, call) if found is None else _emit(builder, call.args[0], found, maximum=True)


def legalize_average(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """relax.nn.avg_pool2d likewise: only where no window counts fewer elements than the kernel has."""
    found = _recognize(call)
    if found is None or not _is_whole(found, call):
        return _by_tvm(builder, call)
    return _emit(builder, call.args[0], found, maximum=False)


LEGALIZE = {"relax.nn.max_pool2d": legalize_max, "relax.nn.avg_pool2d": legalize_average}


def _recognize(call: relax.Call) -> Pooling | None:
    attributes = call.attrs
    if (attributes.layout, attributes.out_layout) != ("NCHW", "NCHW") or not is_static_float32(call):
        return None
    (batch, channels, *image), (_, _, *result) = ([int(e) for e in ty.shape] for ty in (call.args[0].ty, call.ty))
    kernel, strides, dilations, pads = (
        [int(item) for item in items]
        for items in (attributes.pool_size, attributes.strides, attributes.dilation, attributes.padding)
    )
    if min(pads) < 0 or strides[1] > MOST_STRIDE:
        return None
    one, two = (image[0], image[1]), (result[0], result[1])
    return Pooling(
        batch,
        channels,
        channels,
        channels,
        one,
        two,
        (kernel[0], kernel[1]),
        (strides[0], strides[1]),
        (dilations[0], dilations[1]),
        (pads[0], pads[1]),
    )


def _is_whole(of: Pooling, call: relax.Call) -> bool:
    """Whether every window lies in the image, or in the padding that counts."""
    pads = [int(pad) for pad in call.attrs.padding]
    counted = pads if call.attrs.count_include_pad else [0] * 4
    ends = [(of.result[i] - 1) * of.strides[i] + of.reach[i] - of.pads[i] for i in range(2)]
    return all(of.pads[i] <= counted[i] and ends[i] < of.image[i] + counted[i + 2] for i in range(2))


def _emit(builder: relax.BlockBuilder, data: Any, of: Pooling, *, maximum: bool) -> relax.Expr:
    outside = tirx.const(-math.inf if maximum else 0.0, "float32")

    def pooling(image: te.Tensor) -> te.Tensor:
        u, v = (te.reduce_axis((0, extent), name=name) for extent, name in zip(of.kernel, "uv", strict=True))

        def element(b: Any, c: Any, i: Any, j: Any) -> Any:
            y, x = (
                position * of.strides[axis] + tap * of.dilations[axis] - of.pads[axis]
                for axis, (position, tap) in enumerate([(i, u), (j, v)])
            )
            inside = tirx.all(y >= 0, y < of.image[0], x >= 0, x < of.image[1])
            pixel = tirx.if_then_else(inside, image[b, c, y, x], outside)
            if maximum:
                return te.max(pixel, axis=[u, v])
            return te.sum(pixel * tirx.const(1 / math.prod(of.kernel), "float32"), axis=[u, v])

        marks = {GEOMETRY: [int(maximum), *of.strides, *of.pads, *of.kernel, *of.dilations]}
        return te.compute((of.batch, of.channels, *of.result), element, name="pooling", attrs=marks)

    return builder.call_te(pooling, data, primfunc_name_hint="pooling", primfunc_attrs={"op_pattern": FUSABLE})


def schedule(function: tirx.PrimFunc, _target: TargetDescription) -> tirx.PrimFunc | None:
    """`function` with the kernel's loops; None if it is no such pooling, or reduces one further."""
    taken = take_epilogue(function, GEOMETRY)
    if taken is None:
        return None
    block, epilogue = taken
    images = [read.source for read in block.reads if not read.source.same_as(epilogue.product)]
    if len(images) != 1:
        return None
    maximum, down, along, top, left, height, width, dilation, across = (int(x) for x in block.annotations[GEOMETRY])
    (batch, channels, *size), (_, _, *result) = (
        [int(e) for e in buffer.ty.shape] for buffer in (images[0], epilogue.product)
    )
    of = Pooling(
        batch,
        channels,
        channels,
        channels,
        (size[0], size[1]),
        (result[0], result[1]),
        (height, width),
        (down, along),
        (dilation, across),
        (top, left),
    )
    return epilogue.rewrite(lambda: _Loops(of, images[0], epilogue, bool(maximum)).write())


@dataclass(frozen=True)
class _Loops:
    """Emits the loops of one pooling."""

    of: Pooling
    image: Any
    epilogue: Epilogue
    maximum: bool

    def write(self) -> None:
        of = self.of
        work = of.batch * of.channels * math.prod(of.result) * math.prod(of.kernel)
        loop = T.parallel if work >= PARALLEL_MACS else T.serial
        padded = None if of.in_place else local_buffer("padded", of.batch * of.channels * of.plane)
        with loop(index(of.batch * of.channels)) as plane:
            if padded is not None:
                copy_padded(of, self.image, padded, plane, -math.inf if self.maximum else 0.0)
            with T.serial(index(of.result[0])) as y:
                for_vectors(of.result[1], lambda x, width: self.results(padded, plane, y, x, width), whole=True)

    def results(self, padded: Any, plane: Any, y: Any, x: Any, width: int) -> None:
        """`width` results of a row, from x on; of a vector that is not full nothing else is stored."""
        of = self.of
        batch, channel = plane // of.channels, plane % of.channels
        found = local_buffer("found", LANES)

        def gather(lane: Any) -> None:
            pixels = []
            for u in range(of.kernel[0]):
                row = y * of.strides[0] + u * of.dilations[0]
                for v in range(of.kernel[1]):
                    shift = v * of.dilations[1]
                    part, column = shift % of.strides[1], x + shift // of.strides[1] + lane
                    if padded is None:
                        pixels.append(self.image[batch, channel, row, column])
                    else:
                        pixels.append(padded[plane * of.plane + (part * of.rows + row) * of.pitch + column])
            total = reduce(T.max if self.maximum else lambda a, b: a + b, pixels)
            scaled = total if self.maximum else total * T.float32(1 / math.prod(of.kernel))
            T.buffer_store(found, scaled, [lane])

        def finish(lane: Any) -> None:
            coordinates = [batch, channel, y, x + lane]
            total = found[lane]
            if self.epilogue.addend() is not None:
                total = total + self.epilogue.start(coordinates)
            self.epilogue.finish(coordinates, total)

        vector(LANES, gather)
        if width == LANES:
            vector(LANES, finish)
        else:
            for lane in range(width):
                finish(lane)


def _by_tvm(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    return call.op.get_attr("FLegalize")(builder, call)
