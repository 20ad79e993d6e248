"""Passes and targets by name.

Both are found through the entry points of installed distributions, groups `graphopt.passes` and `graphopt.targets`.
An entry point leads to a Pass class (or a TargetDescription), or to a tuple of them; its own name is only a label.
graphopt's own passes and targets come the same way. In a checkout its entry points are read from the
`pyproject.toml` beside the package, so that a clone works before it is installed and a stale installation does no harm.
A user's file comes through `load_plugin`.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import importlib.util
import inspect
import sys
import tomllib
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar

from graphopt.errors import UsageError
from graphopt.pipeline.base import Pass
from graphopt.pipeline.options import check_pass_class
from graphopt.targets.base import TargetDescription

T = TypeVar("T")


class Registry(Generic[T]):
    """Items by name. The entry points of `group` are loaded at the first look-up.

    Args:
        kind: what an item is called in messages.
        group: the entry points to load; empty for none.
        check: raises UsageError for an object that is not a valid item.
    """

    def __init__(self, kind: str, group: str, check: Callable[[object], T]) -> None:
        self.kind = kind
        self._plural = f"{kind}es" if kind.endswith("s") else f"{kind}s"
        self._check = check
        self._group = group
        self._loaded = not group
        self._items: dict[str, tuple[T, str]] = {}
        self._broken: list[UsageError] = []

    def add(self, item: object, origin: str) -> T:
        """Register an item. `origin` says where it comes from; registering the same object again does nothing.

        Raises UsageError if it is not valid, or another item has its name.
        """
        self._load()
        return self._add(item, origin)

    def find(self, name: str) -> T:
        """The item of this name. Raises UsageError that lists the nearest names."""
        self._load()
        if name in self._items:
            return self._items[name][0]
        nearest = difflib.get_close_matches(name, self._items, n=3, cutoff=0.5)
        known = f"nearest: {', '.join(nearest)}" if nearest else f"known: {', '.join(self.names()) or 'none'}"
        raise UsageError(
            f"unknown {self.kind} '{name}'",
            where="\n".join(str(error) for error in self._broken),
            advice=f"{known}; `graphopt {self._plural}` lists them all",
        )

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        self._load()
        return tuple(sorted(self._items))

    def origin(self, name: str) -> str:
        """Where the item of this name comes from: a distribution's entry point or a plug-in file."""
        self.find(name)
        return self._items[name][1]

    def broken(self) -> tuple[UsageError, ...]:
        """What went wrong with entry points that could not be loaded; the others work all the same."""
        self._load()
        return tuple(self._broken)

    def __iter__(self) -> Iterator[T]:
        return iter([self._items[name][0] for name in self.names()])

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True  # first, so that a plug-in that looks up a name while it loads does not start over
        for point, distribution in _entry_points(self._group):
            origin = f"entry point '{point.name}' of {distribution}"
            try:
                loaded = point.load()
            except Exception as error:  # noqa: BLE001  a plug-in may raise anything; it is reported, and the others still load
                reason = f"{type(error).__name__}: {error}"
                self._broken.append(UsageError(f"{origin} ({point.value}) cannot be loaded: {reason}"))
                continue
            for item in loaded if isinstance(loaded, tuple) else (loaded,):
                self._add(item, origin)

    def _add(self, item: object, origin: str) -> T:
        valid = self._check(item)
        name = str(getattr(item, "name"))  # noqa: B009  T has no bound that a class object and an instance share
        if name in self._items and self._items[name][0] is not valid:
            raise UsageError(
                f"two {self._plural} are named '{name}'",
                where=f"{self._items[name][1]}\n{origin}",
                advice="rename one of them, or uninstall one of the plug-ins",
            )
        self._items.setdefault(name, (valid, origin))
        return valid


def check_pass(item: object) -> type[Pass]:
    if not (isinstance(item, type) and issubclass(item, Pass)):
        raise UsageError(f"found {item!r} among the passes, expected a subclass of graphopt.pipeline.base.Pass")
    if inspect.isabstract(item):
        raise UsageError(f"pass class {item.__module__}.{item.__qualname__} has no method run(model, context)")
    check_pass_class(item)
    return item


def check_target(item: object) -> TargetDescription:
    if not isinstance(item, TargetDescription):
        raise UsageError(f"found {item!r} among the targets, expected a graphopt.targets.base.TargetDescription")
    return item


PASSES: Registry[type[Pass]] = Registry("pass", "graphopt.passes", check_pass)
TARGETS: Registry[TargetDescription] = Registry("target", "graphopt.targets", check_target)


def load_plugin(
    path: str | Path,
    passes: Registry[type[Pass]] = PASSES,
    targets: Registry[TargetDescription] = TARGETS,
) -> tuple[str, ...]:
    """Execute a Python file and register each Pass subclass and TargetDescription that it defines.

    A file that is loaded already is not executed again. Returns the names of what it defines.
    Raises UsageError, with the line, if the file cannot be read or executed or defines nothing.
    """
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"plug-in {path}: there is no such file", advice="expected the path of a Python file")
    module_name = f"graphopt_plugin_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:16]}"
    module = sys.modules.get(module_name) or _execute(file, module_name)
    names = []
    for item in list(vars(module).values()):
        if inspect.isclass(item) and issubclass(item, Pass) and item.__module__ == module_name:
            if not inspect.isabstract(item):
                names.append(passes.add(item, f"plug-in {path}").name)
        elif isinstance(item, TargetDescription):
            names.append(targets.add(item, f"plug-in {path}").name)
    if not names:
        raise UsageError(
            f"plug-in {path}: it defines no pass",
            advice="expected a subclass of graphopt.pipeline.base.Pass with a method run(model, context)",
        )
    return tuple(dict.fromkeys(names))


def _execute(file: Path, module_name: str) -> ModuleType:
    spec = importlib.util.spec_from_loader(module_name, loader=None, origin=str(file))
    if spec is None:  # only for a loader that is asked; none is given here
        raise UsageError(f"plug-in {file}: it cannot be loaded as a module")
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(file)
    sys.modules[module_name] = module  # dataclasses and typing look their module up there
    try:
        exec(compile(file.read_bytes(), str(file), "exec"), vars(module))
    except BaseException as error:
        del sys.modules[module_name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise UsageError(
            f"plug-in {file}{_line(error, file)}: {type(error).__name__}: {getattr(error, 'msg', error)}",
            where=_source(error, file),
        ) from error
    return module


def _line(error: BaseException, file: Path) -> str:
    number = _line_number(error, file)
    return f", line {number}" if number else ""


def _source(error: BaseException, file: Path) -> str:
    number = _line_number(error, file)
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return f"{number}: {lines[number - 1]}" if 0 < number <= len(lines) else ""


def _line_number(error: BaseException, file: Path) -> int:
    """The last line of the file that was being executed, or that does not parse; 0 if neither is known."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return error.lineno or 0
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno or 0 for frame in reversed(frames) if frame.filename == str(file)), 0)


def _entry_points(group: str) -> list[tuple[importlib.metadata.EntryPoint, str]]:
    """The entry points of a group with the names of their distributions, in a stable order."""
    own = _checkout_entry_points(group)
    found = [(point, "graphopt") for point in own or ()]
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"] or "a distribution without a name"
        if own is not None and name == "graphopt":
            continue
        found += [(point, name) for point in distribution.entry_points if point.group == group]
    # A distribution that stands twice on the path (an editable install beside a wheel) gives each entry point twice.
    unique = {(name, point.name, point.value): (point, name) for point, name in found}
    return [unique[key] for key in sorted(unique)]


def _checkout_entry_points(group: str) -> list[importlib.metadata.EntryPoint] | None:
    """graphopt's own entry points from the pyproject.toml beside the package; None if this is no checkout."""
    pyproject = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if not pyproject.is_file():
        return None
    project = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("project", {})
    if project.get("name") != "graphopt":
        return None
    table = project.get("entry-points", {}).get(group, {})
    return [importlib.metadata.EntryPoint(name, value, group) for name, value in table.items()]
