"""A recipe: everything that decides what `graphopt optimize` makes of a model, in a TOML file.

    target = "cortex-a76"
    seed = 0
    max_drop = 0.01
    calib = "digits.npz"
    plugins = ["custom_pass.py"]

    [shapes]
    "image" = [1, 3, 224, 224]

    [preprocess]
    size = 256
    crop = 224
    mean = [123.7, 116.3, 103.5]
    std = [58.4, 57.1, 57.4]

    [tiles]
    "5d41402abc4b2a76b9719d911017c592" = 2

    [[pass]]
    name = "fold-batch-norm"

    [[pass]]
    name = "prune-channels"
    ratio = 0.5

A pass's table holds its name and the options that differ from their defaults; `{}` stands for none. [preprocess] says
how pictures become arrays; its keys are the fields of `graphopt.Preprocess`. [tiles] is what --tune found: places in
the order of the model of the core, by the content of kernels. Paths are as they were given, and are taken from the
working directory, as on the command line. Reading a recipe executes its plug-ins.
The same recipe is written as the same bytes, and reading gives an equal recipe.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from graphopt.analysis.sample_images import Preprocess
from graphopt.errors import UsageError
from graphopt.pipeline.base import Pass
from graphopt.pipeline.options import read_value, write_value
from graphopt.pipeline.registry import PASSES, Registry, load_plugin
from graphopt.pipeline.spec import build_pass, non_default

# The keys that hold one value, with their types, in the order in which they are written.
_SCALARS: dict[str, Any] = {
    "target": str,
    "seed": int,
    "max_drop": float | None,
    "calib": str | None,
    "labels": str | None,
    "plugins": tuple[str, ...],
    "compress": bool,
}
_KEYS = (*_SCALARS, "shapes", "preprocess", "tiles", "pass")
_PREPROCESS: dict[str, Any] = get_type_hints(Preprocess)


@dataclass(frozen=True)
class Recipe:
    """What the command line of `graphopt optimize` resolves to.

    target: its name.
    passes: in the order in which they run.
    seed: of every random generator; not negative.
    max_drop: accuracy, or agreement with the original, that lossy passes may cost: a fraction in [0, 1].
    calib, labels, plugins: paths as given.
    compress: store the weights of the library entropy coded.
    shapes: bindings of inputs to static shapes.
    preprocess: how the pictures of `calib` become arrays.
    tiles: places of tiles by the content of kernels, where they are not the model's choice (`targets.base.Tiling`).

    Raises UsageError for a value outside its range.
    """

    target: str
    passes: tuple[Pass, ...] = ()
    seed: int = 0
    max_drop: float | None = None
    calib: str | None = None
    labels: str | None = None
    plugins: tuple[str, ...] = ()
    compress: bool = False
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    preprocess: Preprocess | None = None
    tiles: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UsageError(f"recipe: seed is {self.seed}, expected 0 or more")
        if self.max_drop is not None and not 0 <= self.max_drop <= 1:
            raise UsageError(f"recipe: max_drop is {self.max_drop}, expected a fraction from 0 to 1")
        for name, shape in self.shapes.items():
            if any(size < 1 for size in shape):
                raise UsageError(f"recipe: shape of '{name}' is {list(shape)}, expected sizes of 1 or more")
        for content, place in self.tiles.items():
            if place < 0:
                raise UsageError(f"recipe: tile of '{content}' is {place}, expected a place of 0 or more")


def write_recipe(recipe: Recipe) -> str:
    """The recipe as TOML. Raises UsageError for a value that is not of its type, or is not valid Unicode."""
    defaults = {item.name: item.default for item in fields(Recipe)}
    lines = []
    for key, annotation in _SCALARS.items():
        value = getattr(recipe, key)
        if value != defaults[key] or key == "seed":
            lines.append(f"{key} = {_write(key, value, annotation)}")
    if recipe.shapes:
        lines += ["", "[shapes]"]
        for name in sorted(recipe.shapes):
            # Always quoted: a bare key may not hold the dots and slashes that names of inputs have.
            lines.append(f"{_write('shapes', name, str)} = {_write(name, tuple(recipe.shapes[name]), tuple[int, ...])}")
    if recipe.preprocess is not None:
        lines += ["", "[preprocess]", *_preprocess_lines(recipe.preprocess)]
    if recipe.tiles:
        lines += ["", "[tiles]"]
        lines += [f"{_write('tiles', key, str)} = {place}" for key, place in sorted(recipe.tiles.items())]
    for item in recipe.passes:
        lines += ["", "[[pass]]", f'name = "{item.name}"']
        lines += [f"{option.name} = {text}" for option, text in non_default(item, toml=True)]
    text = "\n".join(lines) + "\n"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"recipe: {text[error.start : error.end]!r} is not valid Unicode and cannot be written"
        ) from error
    return text


def read_recipe(
    text: str,
    *,
    origin: str = "recipe",
    passes: Registry[type[Pass]] = PASSES,
    plugin: Callable[[str], object] = load_plugin,
) -> Recipe:
    """The recipe that TOML text holds.

    Args:
        text: the TOML text.
        origin: names the text in errors, usually its path.
        passes: where passes are looked up.
        plugin: called with the path of each plug-in before the passes are looked up.

    Raises:
        UsageError: the text is not TOML, or a key, a type or a value is wrong; it names the line.
    """
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{origin} is not TOML: {error}") from error
    unknown = next((key for key in tables if key not in _KEYS), None)
    if unknown is not None:
        line = _line(text, lambda found: unknown in found)
        raise UsageError(f"{origin}, line {line}: unknown key '{unknown}'", advice=_nearest(unknown))
    if "target" not in tables:
        raise UsageError(f"{origin}: there is no key 'target'", advice='write, for example, target = "arm"')
    values = {
        key: _read(text, origin, tables[key], annotation, lambda found: found, key)
        for key, annotation in _SCALARS.items()
        if key in tables
    }
    for path in values.get("plugins", ()):
        plugin(path)
    try:
        return Recipe(
            **values,
            shapes=_read_table(text, origin, tables, "shapes", tuple[int, ...], '"NAME" = [1, 3]'),
            preprocess=_read_preprocess(text, origin, tables),
            tiles=_read_table(text, origin, tables, "tiles", int, '"KERNEL" = 1'),
            passes=_read_passes(text, origin, tables, passes),
        )
    except UsageError as error:
        if error.what.startswith("recipe: "):
            raise UsageError(origin + error.what.removeprefix("recipe"), advice=error.advice) from error
        raise


def load_preprocess(path: str | Path) -> Preprocess | None:
    """The table [preprocess] of a recipe's file, if it has one; no plug-in is executed. Raises UsageError."""
    text = _file_text(path)
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is not TOML: {error}") from error
    return _read_preprocess(text, str(path), tables)


def load_recipe(path: str | Path) -> Recipe:
    """The recipe in a file. Raises UsageError if it cannot be read or is wrong."""
    return read_recipe(_file_text(path), origin=str(path))


def _file_text(path: str | Path) -> str:
    try:
        text = Path(path).read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe {path} cannot be read: {error}") from error
    # Universal newlines: TOML allows CR LF, and strings with newlines are escaped when written.
    return text.replace("\r\n", "\n")


def _write(key: str, value: Any, annotation: Any) -> str:
    try:
        return write_value(value, annotation, toml=True)
    except ValueError as error:
        raise UsageError(f"recipe: '{key}': {error}") from error


def _read_table(
    text: str, origin: str, tables: Mapping[str, Any], key: str, annotation: Any, example: str
) -> dict[str, Any]:
    """A table of names, with values of one type."""
    table = tables.get(key, {})
    if not isinstance(table, dict):
        line = _line(text, lambda found: key in found)
        raise UsageError(f"{origin}, line {line}: {key} is no table, expected [{key}] and lines as {example}")
    return {
        name: _read(text, origin, value, annotation, lambda found: found.get(key, {}), name)
        for name, value in table.items()
    }


def _preprocess_lines(preprocess: Preprocess) -> list[str]:
    default = Preprocess()
    changed = [key for key in _PREPROCESS if getattr(preprocess, key) != getattr(default, key)]
    return [f"{key} = {_write(key, getattr(preprocess, key), _PREPROCESS[key])}" for key in changed]


def _read_preprocess(text: str, origin: str, tables: Mapping[str, Any]) -> Preprocess | None:
    """A number stands for a list of one."""
    if "preprocess" not in tables:
        return None
    table = tables["preprocess"]
    if not isinstance(table, dict):
        line = _line(text, lambda found: "preprocess" in found)
        raise UsageError(
            f"{origin}, line {line}: preprocess is no table, expected [preprocess] and lines as size = 256"
        )
    values: dict[str, Any] = {}
    for key, found in table.items():
        if key not in _PREPROCESS:
            line = _line(text, lambda found, key=key: key in found.get("preprocess", {}))  # type: ignore[misc]
            raise UsageError(f"{origin}, line {line}: unknown key '{key}'", advice=_nearest(key, tuple(_PREPROCESS)))
        annotation = _PREPROCESS[key]
        value = [found] if type(found) in (int, float) and get_origin(annotation) is tuple else found
        values[key] = _read(text, origin, value, annotation, lambda found: found.get("preprocess", {}), key)
    try:
        return Preprocess(**values)
    except UsageError as error:
        raise UsageError(f"{origin}: {error.what}", advice=error.advice) from error


def _read_passes(text: str, origin: str, tables: Mapping[str, Any], passes: Registry[type[Pass]]) -> tuple[Pass, ...]:
    entries = tables.get("pass", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        line = _line(text, lambda found: "pass" in found)
        raise UsageError(f'{origin}, line {line}: pass is no list of tables, expected [[pass]] and name = "..."')
    return tuple(_read_pass(text, origin, index, entry, passes) for index, entry in enumerate(entries))


def _read_pass(text: str, origin: str, index: int, entry: Mapping[str, Any], passes: Registry[type[Pass]]) -> Pass:
    name = entry.get("name")
    options = {key: value for key, value in entry.items() if key != "name"}
    if not isinstance(name, str):
        line = _line(text, lambda found: len(found.get("pass", ())) > index)
        raise UsageError(f'{origin}, line {line}: the pass has no name, expected name = "..." after [[pass]]')
    culprit = "name"
    try:
        pass_class = passes.find(name)
        for culprit, value in options.items():  # one at a time, to know which is wrong
            build_pass(pass_class, {culprit: value})
        culprit = "name"
        return build_pass(pass_class, options)
    except UsageError as error:
        line = _line(text, lambda found: len(found.get("pass", ())) > index and culprit in found["pass"][index])
        raise UsageError(f"{origin}, line {line}: {error.what}", where=error.where, advice=error.advice) from error


def _read(
    text: str,
    origin: str,
    value: Any,
    annotation: Any,
    table: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    key: str,
) -> Any:
    """The value of `key` in the table that `table` finds."""
    try:
        return read_value(value, annotation)
    except ValueError as error:
        line = _line(text, lambda found: key in table(found))
        raise UsageError(f"{origin}, line {line}: '{key}': {error}") from error


def _line(text: str, holds: Callable[[Mapping[str, Any]], bool]) -> int:
    """The number of the line that completes what `holds` looks for.

    tomllib gives no positions, so ever longer beginnings of the text are parsed until one of them holds it.
    """
    lines = text.splitlines(keepends=True)
    for count in range(1, len(lines) + 1):
        try:
            if holds(tomllib.loads("".join(lines[:count]))):
                return count
        except tomllib.TOMLDecodeError:
            continue  # within a value of several lines
    return len(lines)


def _nearest(key: str, keys: tuple[str, ...] = _KEYS) -> str:
    nearest = difflib.get_close_matches(key, keys, n=1)
    valid = f"the keys are {', '.join(keys)}"
    return f"did you mean '{nearest[0]}'? {valid}" if nearest else valid
