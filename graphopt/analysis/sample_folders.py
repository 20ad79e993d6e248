"""Samples in a folder: array files or pictures, in the order of their paths; or a folder for each input."""

from __future__ import annotations

import bisect
import functools
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from graphopt.analysis.sample_arrays import Feeds, Inputs, Source
from graphopt.analysis.sample_files import open_samples
from graphopt.analysis.sample_images import SUFFIXES, Pictures, Preprocess
from graphopt.errors import DataError, ModelWarning

_ARRAYS = frozenset({".npy", ".npz"})


class Joined:
    """Sources one after the other. The last one that was read is kept, the others are opened again."""

    def __init__(self, counts: Sequence[int], opened: Callable[[int], Source]) -> None:
        self._ends = list(itertools.accumulate(counts))
        self._opened = functools.lru_cache(maxsize=1)(opened)

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, indices: Sequence[int]) -> Iterator[Feeds]:
        """The samples of these indices, in rising order."""
        for part, found in itertools.groupby(indices, lambda index: bisect.bisect_right(self._ends, index)):
            before = self._ends[part - 1] if part else 0
            yield from self._opened(part).read([index - before for index in found])


class Paired:
    """Sources side by side, of an input each."""

    def __init__(self, parts: Sequence[Source]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return len(self._parts[0])

    def read(self, indices: Sequence[int]) -> Iterator[Feeds]:
        """The samples of these indices, in rising order."""
        for feeds in zip(*(part.read(indices) for part in self._parts), strict=True):
            yield {name: array for part in feeds for name, array in part.items()}


def open_folder(folder: Path, inputs: Inputs, preprocess: Preprocess | None) -> Source:
    """The samples in a folder.

    Array files (.npz, .npy) have one or more samples each. Pictures are for a model with one input. A model with
    several inputs has .npz files, or a folder for each input, named like it, whose n-th samples belong together.
    Hidden files are left out, and others with a warning.

    Raises DataError if there is nothing to read, if both kinds are there, or if a file does not fit or is damaged;
    UsageError for pictures without `preprocess`.
    """
    named = [name for name in inputs if (folder / name).is_dir()] if len(inputs) > 1 else []
    if not named:
        return _open_files(folder, inputs, preprocess)
    missing = [name for name in inputs if name not in named]
    if missing:
        raise DataError(
            f"{folder} has folders for the inputs {', '.join(map(repr, named))}, and none for "
            f"{', '.join(map(repr, missing))}"
        )
    parts = {name: _open_files(folder / name, {name: inputs[name]}, preprocess) for name in inputs}
    counts = {name: len(part) for name, part in parts.items()}
    if len(set(counts.values())) > 1:
        raise DataError(f"{folder}: the inputs' folders hold different numbers of samples: {counts}")
    return Paired(list(parts.values()))


def _open_files(folder: Path, inputs: Inputs, preprocess: Preprocess | None) -> Source:
    found = _files(folder)
    arrays, pictures = found["arrays"], found["pictures"]
    if arrays and pictures:
        raise DataError(f"{folder} holds array files and pictures: {arrays[0].name}, {pictures[0].name}")
    if not arrays and not pictures:
        raise DataError(
            f"{folder} holds nothing to read", advice=f"expected files {', '.join(sorted(_ARRAYS | SUFFIXES))}"
        )
    if others := found["others"]:
        names = ", ".join(file.name for file in others[:3]) + (", …" if len(others) > 3 else "")
        warnings.warn(f"{folder}: {len(others)} files that hold no samples: {names}", ModelWarning, stacklevel=2)
    if arrays:
        counts = [len(open_samples(file, inputs, check=True)) for file in arrays]
        return Joined(counts, lambda index: open_samples(arrays[index], inputs, check=False))
    return open_pictures(folder, pictures, inputs, preprocess)


def open_pictures(place: Path, files: Sequence[Path], inputs: Inputs, preprocess: Preprocess | None) -> Pictures:
    """The samples in picture files, for a model with one input. Raises DataError, UsageError as `open_folder` says."""
    if len(inputs) != 1:
        raise DataError(
            f"{place} holds pictures, and the model has {len(inputs)} inputs",
            advice=f"make a folder for each input: {', '.join(inputs)}",
        )
    source = Pictures(str(place), files, next(iter(inputs.values())), preprocess)
    if source.left_over:
        warnings.warn(
            f"{place}: the last {source.left_over} of {len(files)} pictures do not fill a batch and are left out",
            ModelWarning,
            stacklevel=2,
        )
    return source


def _files(folder: Path) -> Mapping[str, list[Path]]:
    """The files below a folder by what they hold, each list in the order of the paths."""
    found: dict[str, list[Path]] = {"arrays": [], "pictures": [], "others": []}
    for file in folder.rglob("*"):
        if not file.is_file() or any(part.startswith(".") for part in file.relative_to(folder).parts):
            continue
        suffix = file.suffix.lower()
        found["arrays" if suffix in _ARRAYS else "pictures" if suffix in SUFFIXES else "others"].append(file)
    return {kind: sorted(files, key=lambda file: file.relative_to(folder).as_posix()) for kind, files in found.items()}
