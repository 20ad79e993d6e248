"""The options of a pass: its dataclass fields, checked, and read from and written as values of a spec or a recipe.

A value is read by the option's type, so that the text `none` or `12` can be a string where a string is expected.
Types: bool, int, float, str, an Enum of strings, `T | None`, `tuple[T, ...]` and `tuple[T, U]`, nested at will.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import re
import types
import typing
from typing import Any, ClassVar, Union

from graphopt.errors import UsageError
from graphopt.pipeline.base import Pass

KEBAB_CASE = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_PLAIN_STRING = re.compile(r"[\w./:*+-]+", re.ASCII)  # needs no quotes in a spec


class Bare(str):
    """A word of a spec without quotes: `true`, `none`, `0.5`, `conv1`. The option's type says what it means."""

    __slots__ = ()


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a pass: its name, its type, its default and its one-line documentation."""

    name: str
    type: Any
    default: Any
    doc: str

    @property
    def kind(self) -> str:
        """The type in words, such as `float or none`."""
        return describe(self.type)


@functools.cache
def options_of(pass_class: type[Pass]) -> tuple[Option, ...]:
    """The options of a pass in the order of their declaration.

    Raises UsageError if the class is not a frozen dataclass with fields made by `option`, of supported types.
    """
    where = f"{pass_class.__module__}.{pass_class.__qualname__}"
    parameters = pass_class.__dict__.get("__dataclass_params__")
    if parameters is None or not parameters.frozen:
        raise UsageError(
            f"pass class {where} is not a frozen dataclass", advice="decorate it with @dataclass(frozen=True)"
        )
    try:
        hints = typing.get_type_hints(pass_class, localns={"ClassVar": ClassVar})
    except (NameError, TypeError) as error:
        raise UsageError(f"pass class {where}: an annotation cannot be resolved: {error}") from error
    options = []
    for field in dataclasses.fields(typing.cast(Any, pass_class)):
        if field.default is dataclasses.MISSING or "doc" not in field.metadata:
            raise UsageError(
                f"pass class {where}: field '{field.name}' has no default or no documentation",
                advice=f'write `{field.name}: TYPE = option(DEFAULT, "what it does")`',
            )
        try:
            describe(hints[field.name])
            write_value(field.default, hints[field.name])
        except ValueError as error:
            raise UsageError(f"pass class {where}: option '{field.name}': {error}") from error
        options.append(Option(field.name, hints[field.name], field.default, field.metadata["doc"]))
    return tuple(options)


def check_pass_class(pass_class: type[Pass]) -> None:
    """Raises UsageError unless the class keeps the rules of `Pass`: name, `exact`, options."""
    where = f"{pass_class.__module__}.{pass_class.__qualname__}"
    name = getattr(pass_class, "name", None)
    if not isinstance(name, str) or not KEBAB_CASE.fullmatch(name):
        raise UsageError(
            f"pass class {where}: its name is {name!r}, expected kebab-case such as 'fold-batch-norm'",
            advice="write `name: ClassVar[str] = ...` in the class",
        )
    if not isinstance(getattr(pass_class, "exact", None), bool):
        raise UsageError(
            f"pass class {where}: it does not say whether it is exact",
            advice="write `exact: ClassVar[bool] = ...` in the class",
        )
    options_of(pass_class)


def describe(annotation: Any) -> str:
    """An option's type in words. Raises ValueError for a type that options cannot have."""
    inner = _optional(annotation)
    if inner is not None:
        return f"{describe(inner)} or none"
    if typing.get_origin(annotation) is tuple:
        members = typing.get_args(annotation)
        if len(members) == 2 and members[1] is Ellipsis:
            return f"list of {describe(members[0])}"
        return f"list [{', '.join(describe(member) for member in members)}]"
    if annotation in (bool, int, float, str):
        return {bool: "true or false", int: "integer", float: "number", str: "string"}[annotation]
    if _is_enum(annotation):
        return f"one of {', '.join(member.value for member in annotation)}"
    raise ValueError(
        f"its type {annotation} is none of bool, int, float, str, an Enum of strings, T | None, a tuple of these"
    )


def read_value(found: Any, annotation: Any) -> Any:
    """The option's value that `found` means.

    Args:
        found: from a spec, `Bare`, str (quoted) or a list of these; from TOML, what tomllib gives, where an empty
            table stands for None.
        annotation: the option's type.

    Raises:
        ValueError: it means nothing for this type; the message says what was found and what was expected.
    """
    inner = _optional(annotation)
    if inner is not None:
        return None if found == {} or (isinstance(found, Bare) and found == "none") else read_value(found, inner)
    if typing.get_origin(annotation) is tuple:
        return _read_tuple(found, annotation)
    if _is_enum(annotation):
        if isinstance(found, str) and found in {member.value for member in annotation}:
            return annotation(str(found))
    elif isinstance(found, Bare):
        word = str(found)
        if annotation is str:
            return word
        if annotation is bool and word in ("true", "false"):
            return word == "true"
        if annotation in (int, float):
            try:
                return annotation(word)
            except ValueError:
                pass
    elif type(found) is annotation:
        return found
    elif annotation is float and type(found) is int:
        return float(found)
    raise ValueError(f"found {_quote_found(found)}, expected {describe(annotation)}")


def write_value(value: Any, annotation: Any, *, toml: bool = False) -> str:
    """The text of a value in a spec or, with `toml`, in a recipe; `read_value` turns it back into an equal value.

    Raises ValueError if the value is not of the type.
    """
    inner = _optional(annotation)
    if inner is not None:
        return ("{}" if toml else "none") if value is None else write_value(value, inner, toml=toml)
    if typing.get_origin(annotation) is tuple and isinstance(value, tuple):
        members = _member_types(annotation, len(value))
        return f"[{','.join(write_value(v, m, toml=toml) for v, m in zip(value, members, strict=True))}]"
    if _is_enum(annotation) and isinstance(value, annotation):
        return _quote(value.value, toml)
    if annotation is bool and type(value) is bool:
        return "true" if value else "false"
    if annotation is int and type(value) is int:
        return str(value)
    if annotation is float and type(value) in (int, float):
        return repr(float(value))
    if annotation is str and type(value) is str:
        return _quote(value, toml)
    raise ValueError(f"found {value!r}, expected {describe(annotation)}")


def _is_enum(annotation: Any) -> bool:
    if not (isinstance(annotation, type) and issubclass(annotation, enum.Enum)):
        return False
    return all(isinstance(member.value, str) for member in annotation)


def _optional(annotation: Any) -> Any:
    """T if the type is `T | None`, else None."""
    if typing.get_origin(annotation) not in (Union, types.UnionType):
        return None
    members = [member for member in typing.get_args(annotation) if member is not types.NoneType]
    if len(members) != 1:
        raise ValueError(f"its type {annotation} is a union; only T | None is supported")
    return members[0]


def _member_types(annotation: Any, count: int) -> tuple[Any, ...]:
    members = typing.get_args(annotation)
    if len(members) == 2 and members[1] is Ellipsis:
        return (members[0],) * count
    if len(members) != count:
        raise ValueError(f"found {count} values, expected {describe(annotation)}")
    return members


def _read_tuple(found: Any, annotation: Any) -> tuple[Any, ...]:
    if not isinstance(found, list):
        raise ValueError(f"found {_quote_found(found)}, expected {describe(annotation)}, written [a,b]")
    members = _member_types(annotation, len(found))
    return tuple(read_value(value, member) for value, member in zip(found, members, strict=True))


def _quote(text: str, toml: bool) -> str:
    if not toml and text != "none" and _PLAIN_STRING.fullmatch(text):
        return text
    # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _quote_found(found: Any) -> str:
    if isinstance(found, Bare):
        return f"'{found}'"
    return json.dumps(found, ensure_ascii=False, default=str)
