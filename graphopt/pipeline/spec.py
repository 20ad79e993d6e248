"""A pass as text: `name{key=value,...}`, the same on the command line, in logs and in reports.

    fold-batch-norm
    prune-channels{ratio=0.5,keep=[conv1,"layer 2"],criterion=l2}

Options that have their default are not printed. A string is quoted, with JSON's escapes, where it holds anything
but letters, digits and `_./:*+-`. `none`, `true` and `false` are words; lists are written `[a,b]`.
"""

from __future__ import annotations

import difflib
import json
import re
from typing import Any, NoReturn

from graphopt.errors import UsageError
from graphopt.pipeline.base import Pass
from graphopt.pipeline.options import Bare, Option, options_of, read_value, write_value
from graphopt.pipeline.registry import PASSES, Registry

_NAME = re.compile(r"\s*([^\s{}]+)\s*")
_KEY = re.compile(r"\s*([^\s,={}\[\]\"]+)\s*=\s*")
_WORD = re.compile(r"[^\s,={}\[\]\"]+")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_SPACE = re.compile(r"\s*")


def parse_spec(text: str, passes: Registry[type[Pass]] = PASSES) -> Pass:
    """The pass that `name{key=value,...}` names, with its options set.

    Raises UsageError that names the pass, the option, what was found and what is valid.
    """
    name, found = _split(text)
    if "=" in name and not found:
        raise UsageError(
            f"pass '{text}': found '=' in the name, expected name{{key=value,...}}",
            advice="quote it on the command line: most shells expand braces",
        )
    return build_pass(passes.find(name), found)


def build_pass(pass_class: type[Pass], found: dict[str, Any]) -> Pass:
    """A pass with the options `found`, each a value that `read_value` takes.

    Raises UsageError for an unknown option, a value of another type, or one that the pass refuses (ValueError).
    """
    name = pass_class.name
    options = {option.name: option for option in options_of(pass_class)}
    values = {}
    for key, value in found.items():
        if key not in options:
            raise UsageError(f"pass '{name}' has no option '{key}'", advice=_advice(key, options))
        try:
            values[key] = read_value(value, options[key].type)
        except ValueError as error:
            raise UsageError(f"pass '{name}', option '{key}': {error}", advice=options[key].doc) from error
    try:
        return pass_class(**values)
    except ValueError as error:
        raise UsageError(f"pass '{name}': {error}", advice=_advice("", options)) from error


def format_spec(item: Pass) -> str:
    """The text that `parse_spec` turns back into an equal pass."""
    pairs = [f"{option.name}={text}" for option, text in non_default(item)]
    return f"{item.name}{{{','.join(pairs)}}}" if pairs else item.name


def non_default(item: Pass, *, toml: bool = False) -> list[tuple[Option, str]]:
    """The options that differ from their defaults, with their values as text of a spec or, with `toml`, of a recipe.

    Raises UsageError if a value is not of the option's type.
    """
    changed = []
    for option in options_of(type(item)):
        try:
            text = write_value(getattr(item, option.name), option.type, toml=toml)
        except ValueError as error:
            raise UsageError(f"pass '{item.name}', option '{option.name}': {error}", advice=option.doc) from error
        # Texts are compared, not values: NaN equals itself here, and -0.0 differs from 0.0.
        if text != write_value(option.default, option.type, toml=toml):
            changed.append((option, text))
    return changed


def _advice(key: str, options: dict[str, Option]) -> str:
    if not options:
        return "it has no options"
    nearest = difflib.get_close_matches(key, options, n=1)
    valid = f"its options: {', '.join(f'{name} ({option.kind})' for name, option in options.items())}"
    return f"did you mean '{nearest[0]}'? {valid}" if nearest else valid


def _split(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the unread values of a spec."""
    match = _NAME.match(text)
    if match is None:
        _fail(text, 0, "the name of a pass")
    name, at = match.group(1), match.end()
    if at == len(text):
        return name, {}
    if text[at] != "{":
        _fail(text, at, "'{' or the end")
    found: dict[str, Any] = {}
    at = _skip(text, at + 1)
    while not text.startswith("}", at):
        match = _KEY.match(text, at)
        if match is None:
            _fail(text, at, "key=value")
        if match.group(1) in found:
            _fail(text, match.start(1), f"option '{match.group(1)}' once only")
        found[match.group(1)], at = _value(text, match.end())
        at = _separator(text, at, "}")
    at = _skip(text, at + 1)
    if at != len(text):
        _fail(text, at, "the end after '}'")
    return name, found


def _value(text: str, at: int) -> tuple[Any, int]:
    """The value that starts at `at`, and where it ends."""
    if text.startswith("[", at):
        members = []
        at = _skip(text, at + 1)
        while not text.startswith("]", at):
            member, at = _value(text, at)
            members.append(member)
            at = _separator(text, at, "]")
        return members, at + 1
    if quoted := _QUOTED.match(text, at):
        try:
            return str(json.loads(quoted.group(), strict=False)), quoted.end()
        except json.JSONDecodeError:
            _fail(text, at, "a string with JSON's escapes")
    word = _WORD.match(text, at)
    if word is None:
        _fail(text, at, 'a value; the empty string is ""')
    return Bare(word.group()), word.end()


def _separator(text: str, at: int, closing: str) -> int:
    """Where the next member starts, or the closing bracket stands."""
    at = _skip(text, at)
    if text.startswith(closing, at):
        return at
    if not text.startswith(",", at):
        _fail(text, at, f"',' or '{closing}'")
    following = _skip(text, at + 1)
    if text.startswith(closing, following):
        _fail(text, following, "a value after ','")
    return following


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _fail(text: str, at: int, expected: str) -> NoReturn:
    found = f"'{text[at]}'" if at < len(text) else "the end"
    raise UsageError(
        f"pass '{text}': found {found} at column {at + 1}, expected {expected}",
        where=f"{text}\n{' ' * at}^",
        advice="a pass is written name{key=value,...}, a list [a,b], a string with special characters in double quotes",
    )
