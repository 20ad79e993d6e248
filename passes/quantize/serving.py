"""Whether a target serves a scheme of quantization."""

from __future__ import annotations

from graphopt.errors import UsageError
from graphopt.targets.base import TargetDescription


def check_served(target: TargetDescription | None, scheme: str) -> None:
    """Raises UsageError unless the description of `target` lists `scheme`; without a target there is nothing to ask."""
    if target is not None and scheme not in target.quantization:
        raise UsageError(
            f"target '{target.name}' does not serve the scheme '{scheme}'",
            advice=f"it serves {', '.join(target.quantization) or 'none'}",
        )
