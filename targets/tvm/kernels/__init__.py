"""Kernels of our own: which Relax operators they take over, and how fused kernels are scheduled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from graphopt.targets.tvm.kernels import matmul, register_tile

LEGALIZE: dict[str, Callable[..., Any]] = {**matmul.LEGALIZE}
# Each (PrimFunc, TargetDescription) -> the PrimFunc scheduled, or None if it is not the kernel's own.
SCHEDULES: list[Callable[..., Any]] = [register_tile.schedule]
