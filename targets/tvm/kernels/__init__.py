"""Kernels of our own: which Relax operators they take over, and how fused kernels are scheduled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

LEGALIZE: dict[str, Callable[..., Any]] = {}
SCHEDULES: list[Callable[..., Any]] = []  # (PrimFunc, TargetDescription) -> scheduled PrimFunc, or None if not its own
