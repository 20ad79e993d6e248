"""Samples from a Python function that yields dicts of arrays by the inputs' names; called anew for each pass."""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import importlib
import inspect
import itertools
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from graphopt.analysis.sample_arrays import Array, Feeds, Inputs, Stacked, refuse_nan, stack
from graphopt.errors import DataError

Function = Callable[[], Iterable[Mapping[str, Array]]]

_NAMED = re.compile(r"(?P<module>.+):(?P<function>[^\W\d]\w*)")


def is_function(text: str) -> bool:
    """Whether the text is written module:function or FILE.py:function."""
    return _NAMED.fullmatch(text) is not None


def find_function(text: str) -> Function:
    """The function that module:function or FILE.py:function names; imports the module, or executes the file.

    A module is looked for in the working directory too. Raises DataError if it cannot be found or imported.
    """
    match = _NAMED.fullmatch(text)
    if match is None:
        raise DataError(f"{text} names no function", advice="write module:function or FILE.py:function")
    module = _module(text, match["module"])
    found = getattr(module, match["function"], None)
    if found is None:
        own = [
            item for item in vars(module).values() if inspect.isfunction(item) and item.__module__ == module.__name__
        ]
        functions = [item.__name__ for item in own]
        raise DataError(
            f"{text}: {match['module']} defines no '{match['function']}'",
            advice=f"its functions are {', '.join(functions) or 'none'}",
        )
    if not callable(found):
        raise DataError(
            f"{text} is a {type(found).__name__}, expected a function that yields dicts of arrays",
            advice="data are read several times: name the function that makes a new iterator",
        )
    function: Function = found
    return function


class Called:
    """A source of the samples that a function yields, one or more in each dict.

    Counting calls the function once. Raises DataError if it raises, if what it yields does not fit the inputs as in
    `stack`, or if a later call yields another number.
    """

    def __init__(self, place: str, function: Function, inputs: Inputs) -> None:
        self._place, self._function, self._inputs = place, function, inputs
        self._count = sum(map(len, self._items()))
        if not self._count:
            raise DataError(f"{place} yields no sample", advice="expected one dict of arrays at least")

    def __len__(self) -> int:
        return self._count

    def read(self, indices: Sequence[int]) -> Iterator[Feeds]:
        """The samples of these indices, in rising order; others before the last are made and dropped."""
        if not indices:
            return
        found = at = 0
        for item in self._items():
            end = bisect.bisect_left(indices, found + len(item))
            yield from item.read([index - found for index in indices[at:end]])
            at, found = end, found + len(item)
            if at == len(indices) and indices[-1] < self._count - 1:
                return
        if found != self._count:
            raise DataError(
                f"{self._place} yields {found} samples when it is called again, {self._count} the first time",
                advice="data are read several times: the function must start anew each time it is called",
            )

    def _items(self) -> Iterator[Stacked]:
        try:
            found = iter(self._function())
        except Exception as error:
            raise _failed(self._place, error) from error
        for index in itertools.count():
            place = f"{self._place}, item {index}"
            try:
                item = next(found)
            except StopIteration:
                return
            except Exception as error:
                raise _failed(place, error) from error
            if not isinstance(item, Mapping):
                raise DataError(f"{place} is a {type(item).__name__}, expected a dict of arrays by the inputs' names")
            arrays = {name: _copy(f"{place}: array '{name}'", array) for name, array in item.items()}
            stacked = stack(place, arrays, self._inputs)
            refuse_nan(place, stacked)
            yield stacked


def _copy(place: str, found: Any) -> Array:
    """As an array of its own: a function may fill the same one again while this one is computed on."""
    try:
        return np.array(found)
    except Exception as error:  # numpy's own, and those of objects that pretend to be arrays
        raise DataError(f"{place} is no array: {error}") from error


def _failed(place: str, error: Exception) -> DataError:
    """What a user's code raised, with the line where."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    where = f"{frames[-1].filename}, line {frames[-1].lineno}: {frames[-1].line}" if frames else ""
    return DataError(f"{place} raises {type(error).__name__}: {error}", where=where)


def _module(text: str, name: str) -> ModuleType:
    try:
        if name.endswith(".py"):
            return _execute(Path(name))
        with _first_on_path(Path.cwd()):
            return importlib.import_module(name)
    except DataError:
        raise
    except ModuleNotFoundError as error:
        raise DataError(f"{text}: {error}", advice="give a module that Python finds, or FILE.py:function") from error
    except Exception as error:
        raise _failed(f"{text}, importing it", error) from error


def _execute(file: Path) -> ModuleType:
    if not file.is_file():
        raise DataError(f"{file}: there is no such file", advice="expected the path of a Python file")
    name = f"graphopt_samples_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:16]}"
    module = ModuleType(name)
    module.__file__ = str(file)
    sys.modules[name] = module  # dataclasses and typing look their module up there
    with _first_on_path(file.resolve().parent):
        exec(compile(file.read_bytes(), str(file), "exec"), vars(module))
    return module


@contextlib.contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    """Imports look in the folder first, as in a program that lies there."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


def describe_function(function: Any) -> str:
    """What a function given as an object is called in errors."""
    return f"function {getattr(function, '__qualname__', type(function).__name__)}"
