"""Which kernels a library carries more than once: those that differ by what a processor has beyond its target.

A kernel is scheduled for the target and again for each variant. Where the result is the same TIR, one object serves
both: only what is written with the instructions of a variant takes room, and a variant that changes nothing is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import tvm_ffi
from tvm import tirx

from graphopt.targets.base import TargetDescription, Variant
from graphopt.targets.tvm.schedule import schedule


@dataclass(frozen=True)
class Scheduled:
    """The kernels of the target, or of a variant: symbols of all functions, and those that are compiled for it."""

    variant: Variant | None  # None: the target's own
    target: TargetDescription
    symbols: dict[str, str]  # by name of the function
    functions: dict[str, tirx.PrimFunc]  # by symbol


def schedule_all(
    functions: dict[str, tirx.PrimFunc],
    target: TargetDescription,
    prefix: str,
    places: Mapping[str, int] = MappingProxyType({}),
) -> list[Scheduled]:
    """Kernels for the target, and after them those of its variants that have some of their own.

    Args:
        functions: before they are scheduled, by name.
        prefix: of the symbols.
        places: of the tiles, by function's name, 0 for others; see `schedule`.
    """
    plain = {name: f"{prefix}{i}_{name}" for i, name in enumerate(functions)}
    symbols = plain
    latest = {
        name: schedule(function, target, places.get(name, 0)) for name, function in functions.items()
    }  # variant before
    made = [Scheduled(None, target, plain, {plain[name]: function for name, function in latest.items()})]
    for variant in target.variants:
        described = target.variant(variant)
        own: dict[str, tirx.PrimFunc] = {}
        for name, function in functions.items():
            scheduled = schedule(function, described, places.get(name, 0))
            if not tvm_ffi.structural_equal(scheduled, latest[name]):
                own[name] = latest[name] = scheduled
        if own:
            symbols = symbols | {name: f"{plain[name]}_{variant.name}" for name in own}
            compiled = {symbols[name]: function for name, function in own.items()}
            made.append(Scheduled(variant, described, symbols, compiled))
    return made
