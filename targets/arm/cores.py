"""The descriptions in cores.toml, as the registry gets them."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from importlib.resources import files
from typing import Any

from graphopt.errors import InternalError
from graphopt.targets.base import Issue, TargetDescription, Variant


def read_cores(text: str) -> tuple[TargetDescription, ...]:
    """The descriptions in a text laid out as cores.toml: one table a core over the keys of [default].

    Raises InternalError that names the core and the keys if one is missing or unknown.
    """
    tables: dict[str, dict[str, Any]] = tomllib.loads(text)
    shared = tables.pop("default", {})
    return tuple(_describe(name, shared | table) for name, table in tables.items())


def _describe(name: str, table: dict[str, Any]) -> TargetDescription:
    expected = {field.name for field in fields(TargetDescription)} - {"name"}
    missing, unknown = sorted(expected - set(table)), sorted(set(table) - expected)
    if missing or unknown:
        raise InternalError(
            f"cores.toml: core '{name}' lacks {missing} and has the unknown keys {unknown}",
            advice=f"expected exactly {sorted(expected)}, here or in [default]",
        )
    frozen = _frozen(table)
    if "fp16" in table["features"]:
        frozen["quantization"] += ("float16",)
    frozen["sources"] = tuple((fact, place) for fact, place in table["sources"])
    frozen["issue"] = Issue(**table["issue"])
    frozen["variants"] = tuple(Variant(**_frozen(variant)) for variant in table["variants"])
    return TargetDescription(name=name, **frozen)


def _frozen(table: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}


CORES = read_cores(files("graphopt.targets").joinpath("cores.toml").read_text(encoding="utf-8"))
