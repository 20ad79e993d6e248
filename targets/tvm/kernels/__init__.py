"""Kernels of our own: which Relax operators they take over, and how fused kernels are scheduled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from graphopt.targets.tvm.kernels import (
    concatenation,
    depthwise,
    direct_convolution,
    integer,
    layer_norm,
    matmul,
    pooling,
    register_tile,
    softmax,
    strassen,
    winograd,
    winograd_loops,
)

# Each (BlockBuilder, Call) -> the convolution as the kernel's function, or None if it is not the kernel's own.
CONVOLUTIONS: tuple[Callable[..., Any], ...] = (depthwise.legalize, winograd.legalize, direct_convolution.legalize)


def legalize_conv2d(builder: Any, call: Any) -> Any:
    """relax.nn.conv2d by the first kernel that takes it."""
    for own in CONVOLUTIONS:
        made = own(builder, call)
        if made is not None:
            return made
    return matmul.legalize_conv2d(builder, call)


LEGALIZE: dict[str, Callable[..., Any]] = {
    **matmul.LEGALIZE,
    **softmax.LEGALIZE,
    **layer_norm.LEGALIZE,
    **pooling.LEGALIZE,
    **concatenation.LEGALIZE,
    "relax.nn.conv2d": legalize_conv2d,
}
# Kernels with a choice of tiles: (PrimFunc, TargetDescription, place of the tile) -> the PrimFunc scheduled, or None if
# it is not the kernel's own; and (PrimFunc, TargetDescription) -> how many tiles there are, or None.
TILED: tuple[tuple[Callable[..., Any], Callable[..., int | None]], ...] = (
    (integer.schedule, integer.tile_count),
    (strassen.schedule, strassen.tile_count),
    (register_tile.schedule, register_tile.tile_count),
)
# Each (PrimFunc, TargetDescription) -> the PrimFunc scheduled, or None if it is not the kernel's own.
SCHEDULES: list[Callable[..., Any]] = [
    depthwise.schedule,
    winograd_loops.schedule,
    direct_convolution.schedule,
    pooling.schedule,
]
