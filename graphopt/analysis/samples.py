"""Inputs to run a model on: the user's data, read from files, pictures or a function, or made up to probe it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import onnx_ir as ir

from graphopt.analysis.probes import probe_arrays
from graphopt.analysis.sample_arrays import Array, Feeds, Inputs, Listed, Source, Stacked, inputs_of
from graphopt.analysis.sample_files import is_array_file, open_samples
from graphopt.analysis.sample_folders import open_folder, open_pictures
from graphopt.analysis.sample_functions import Called, Function, describe_function, find_function, is_function
from graphopt.analysis.sample_images import SUFFIXES, Preprocess
from graphopt.errors import DataError, ModelWarning

_KINDS = "an .npz or .npy file, a folder of them or of pictures, or module:function"


class Samples:
    """Inputs of several runs of a model; in memory, or read when they are asked for.

    `len()` is the number of samples; iteration yields one dict of feeds a sample, in an order that never changes.
    Iterate where all samples are wanted: a function's samples before an index have to be made to reach it.

    Args:
        arrays: by input name. The first axis is the batch axis, on which the samples are stacked, or one of its own.
        rows: by input name, how many rows of the first axis make one sample, which keeps them as its batch axis
            (1 unless the model has a fixed larger batch); 0 if the first axis only counts the samples.
    """

    def __init__(self, arrays: Mapping[str, Array], rows: Mapping[str, int]) -> None:
        self._source: Source = Stacked(arrays, rows)
        self._chosen: Sequence[int] = range(len(self._source))  # indices in the source, which rise

    @classmethod
    def of(cls, source: Source) -> Self:
        """The samples of a source, which are read anew in each iteration."""
        samples = cls({}, {})
        samples._source, samples._chosen = source, range(len(source))
        return samples

    def __len__(self) -> int:
        return len(self._chosen)

    def __iter__(self) -> Iterator[Feeds]:
        return self._source.read(self._chosen)

    def __getitem__(self, index: int) -> Feeds:
        """The feeds of one sample. Raises IndexError beyond the last."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        (feeds,) = self._source.read(self._chosen[index : index + 1])
        return feeds

    def first(self, count: int) -> Self:
        """The first `count` samples, or all if there are fewer."""
        return self.part(0, count)

    def part(self, start: int, count: int) -> Self:
        """`count` samples from the `start`-th on, or as many of these as there are."""
        return self._of_chosen(self._chosen[start : start + count])

    def at(self, places: Iterable[int]) -> Self:
        """The samples at these places, which rise."""
        return self._of_chosen([self._chosen[place] for place in places])

    def in_memory(self, limit: int) -> Self:
        """The same, read once and kept, where the first one tells that all take `limit` bytes at most."""
        if not len(self) or len(self) * sum(array.nbytes for array in self[0].values()) > limit:
            return self
        return self.of(Listed(list(self)))

    def _of_chosen(self, chosen: Sequence[int]) -> Self:
        some = self.of(self._source)
        some._chosen = chosen
        return some


def load_samples(
    data: str | os.PathLike[str] | Function, model: ir.Model, *, preprocess: Preprocess | None = None
) -> Samples:
    """The samples that `data` names, checked against the model's inputs.

    Args:
        data: an .npz file with an array for each input by its name, or an .npy file for a model with one input; a
            folder of these, or of pictures; "module:function" or "FILE.py:function", a function without arguments
            that yields dicts of arrays by the inputs' names; or such a function itself.
        model: whose inputs they are for.
        preprocess: how pictures become arrays.

    An array of the input's rank is stacked along the batch axis; one of a rank higher has a new first axis; one of a
    rank lower is one sample without its batch axis of 1. A ModelWarning tells of samples that are all the same.

    Raises:
        DataError: the data cannot be read, hold Python objects or no sample, or do not fit an input by name, type or
            shape, or hold NaN. Pictures are checked when they are read.
        UsageError: pictures without `preprocess`.
    """
    inputs = inputs_of(model)
    samples = Samples.of(_source(data, inputs, preprocess))
    place = describe_function(data) if callable(data) else os.fspath(data)
    _warn_of_constants(place, samples, inputs)
    return samples


def probe_samples(model: ir.Model, seed: int, count: int) -> Samples:
    """`count` samples made up from the types and shapes of the inputs, and from what the model does with integers.

    Raises DataError for an input that is not a tensor or has no shape.
    """
    arrays = probe_arrays(model, seed, count)
    return Samples(arrays, dict.fromkeys(arrays, 0))


def _source(data: str | os.PathLike[str] | Function, inputs: Inputs, preprocess: Preprocess | None) -> Source:
    if callable(data):
        return Called(describe_function(data), data, inputs)
    path = Path(data)
    if path.is_dir():
        return open_folder(path, inputs, preprocess)
    if path.is_file():
        if path.suffix.lower() in SUFFIXES:
            return open_pictures(path, [path], inputs, preprocess)
        if not is_array_file(path):
            raise DataError(
                f"{path} is neither an .npz nor an .npy file",
                advice="write it with numpy.savez(FILE, **{INPUT_NAME: ARRAY})",
            )
        return open_samples(path, inputs, check=True)
    text = os.fspath(data)
    if is_function(text):
        return Called(text, find_function(text), inputs)
    raise DataError(f"{text}: there is no such file", advice=f"expected {_KINDS}")


def _warn_of_constants(place: str, samples: Samples, inputs: Inputs) -> None:
    """Reads as many samples as it takes to see that they differ."""
    if len(samples) < 2:
        return
    same = set(inputs)
    flat = {name for name, value in inputs.items() if value.dtype is not None and value.dtype.is_floating_point()}
    first = samples[0]
    for feeds in samples:
        same = {name for name in same if np.array_equal(feeds[name], first[name])}
        flat = {name for name in flat & same if np.all(feeds[name] == feeds[name].flat[:1])}
        if not same:
            return
    if same == set(inputs):
        warnings.warn(f"{place}: all {len(samples)} samples are the same", ModelWarning, stacklevel=3)
    for name in sorted(flat):
        value = np.ravel(first[name])[:1]
        warnings.warn(
            f"{place}: input '{name}' is {value[0] if value.size else 'empty'} in every sample",
            ModelWarning,
            stacklevel=3,
        )
