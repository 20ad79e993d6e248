"""Inputs to run a model on: read from a file, as the user's data, or generated to probe it."""

from __future__ import annotations

import difflib
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.execution import array_type, describe_shape, is_foreign, required_inputs
from graphopt.analysis.probes import probe_arrays
from graphopt.errors import DataError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Samples:
    """Inputs of several runs of a model.

    arrays: by input name. The first axis is the batch axis, on which the samples are stacked, or an axis of its own.
    rows: by input name, how many rows of the first axis make one sample, which keeps them as its batch axis
        (1 unless the model has a fixed larger batch); 0 if the first axis only counts the samples.

    `len()` is the number of samples; iteration yields one dict of feeds a sample.
    """

    arrays: Mapping[str, Array]
    rows: Mapping[str, int]

    def __len__(self) -> int:
        return min((len(array) // (self.rows[name] or 1) for name, array in self.arrays.items()), default=1)

    def __iter__(self) -> Iterator[dict[str, Array]]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, Array]:
        """The feeds of one sample. Raises IndexError beyond the last."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        feeds = {}
        for name, array in self.arrays.items():
            rows = self.rows[name]
            # np.asarray: a scalar input's sample is an array of rank 0, not a number.
            feeds[name] = array[index * rows : (index + 1) * rows] if rows else np.asarray(array[index])
        return feeds

    def first(self, count: int) -> Samples:
        """The first `count` samples, or all if there are fewer."""
        arrays = {name: array[: count * (self.rows[name] or 1)] for name, array in self.arrays.items()}
        return Samples(arrays, self.rows)


def load_samples(path: str | Path, model: ir.Model) -> Samples:
    """Samples from an .npz file with one array for each input, by the input's name.

    An array of the input's rank is stacked along the batch axis; one of a rank higher has a new first axis.
    Raises DataError if the file cannot be read, holds Python objects or no sample, or if an array does not fit its
    input by name, type or shape, or holds NaN.
    """
    file = Path(path)
    arrays = _read_npz(file)
    inputs = {str(value.name): value for value in required_inputs(model)}
    _check_names(file, arrays, inputs)
    rows = {name: _rows_per_sample(file, arrays[name], value) for name, value in inputs.items()}
    typed = {name: _typed(file, arrays[name], value) for name, value in inputs.items()}
    counts = {name: len(array) // (rows[name] or 1) for name, array in typed.items()}
    if len(set(counts.values())) > 1:
        raise DataError(f"{file}: the arrays hold different numbers of samples: {counts}")
    if 0 in counts.values():
        raise DataError(f"{file}: the arrays hold no sample", advice="expected at least one row in each array")
    return Samples(typed, rows)


def probe_samples(model: ir.Model, seed: int, count: int) -> Samples:
    """`count` samples made up from the types and shapes of the inputs, and from what the model does with integers.

    Raises DataError for an input that is not a tensor or has no shape.
    """
    arrays = probe_arrays(model, seed, count)
    return Samples(arrays, dict.fromkeys(arrays, 0))


def _read_npz(file: Path) -> dict[str, Array]:
    if file.is_dir():
        raise DataError(f"{file} is a folder, expected an .npz file with one array for each input")
    if not file.is_file():
        raise DataError(f"{file}: there is no such file", advice="expected an .npz file with one array for each input")
    if not zipfile.is_zipfile(file):
        raise DataError(f"{file} is not an .npz file", advice="write it with numpy.savez(FILE, **{INPUT_NAME: ARRAY})")
    arrays: dict[str, Array] = {}
    name = ""
    try:
        with np.load(file, allow_pickle=False) as archive:
            for name in archive.files:
                found = archive[name]
                if not isinstance(found, np.ndarray):
                    raise DataError(f"{file}: member '{name}' is not a numpy array")
                arrays[name] = found
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, pickle.UnpicklingError, SyntaxError) as error:
        place = f"{file}: array '{name}'" if name else str(file)
        raise DataError(
            f"{place} cannot be read: {error}",
            advice="arrays of Python objects are not read, because reading them can run code: give them a plain type",
        ) from error
    return arrays


def _check_names(file: Path, arrays: Mapping[str, Array], inputs: Mapping[str, ir.Value]) -> None:
    listed = f"the model's inputs are {', '.join(map(repr, inputs)) or 'none'}"
    for name in arrays:
        if name not in inputs:
            nearest = difflib.get_close_matches(name, inputs, n=1)
            hint = f"did you mean '{nearest[0]}'? " if nearest else ""
            raise DataError(f"{file}: array '{name}' is not an input of the model", advice=hint + listed)
    for name in inputs:
        if name not in arrays:
            raise DataError(f"{file}: there is no array for input '{name}'", advice=listed)


def _rows_per_sample(file: Path, array: Array, value: ir.Value) -> int:
    if not isinstance(value.type, ir.TensorType):
        raise DataError(f"{file}: input '{value.name}' is a {type(value.type).__name__}; only tensors can be given")
    if value.shape is None:
        raise DataError(
            f"{file}: input '{value.name}' has no shape in the model", advice=f"bind it with --shape {value.name}=..."
        )
    dims = value.shape.dims
    extra = array.ndim - len(dims)
    inner = array.shape[1:]
    wanted = dims if extra == 1 else dims[1:]
    fits = extra in (0, 1) and array.ndim > 0 and _agree(inner, wanted)
    rows = 0 if extra == 1 else _leading(value.shape)
    if not fits or (rows and len(array) % rows):
        stacked = f"{describe_shape(value.shape)} with the samples stacked along the first axis, or " if dims else ""
        raise DataError(
            f"{file}: array '{value.name}' has shape {list(array.shape)}, expected "
            f"{stacked}{describe_shape(ir.Shape(('N', *dims)))}"
        )
    return rows


def _agree(found: tuple[int, ...], wanted: tuple[int | ir.SymbolicDim, ...]) -> bool:
    return len(found) == len(wanted) and all(
        not isinstance(w, int) or f == w for f, w in zip(found, wanted, strict=True)
    )


def _leading(shape: ir.Shape) -> int:
    first = shape.dims[0] if shape.rank() else 0
    return first if isinstance(first, int) else 1


def _typed(file: Path, array: Array, value: ir.Value) -> Array:
    wanted = array_type(value)
    if wanted is None:
        if array.dtype.kind not in "UT":
            raise DataError(f"{file}: array '{value.name}' has type {array.dtype}, expected strings")
        return array.astype(object)
    # numpy cannot store bfloat16 and its like: they are given as float32.
    storable = np.dtype(np.float32) if is_foreign(value.dtype) else wanted
    if array.dtype != storable:
        raise DataError(
            f"{file}: array '{value.name}' has type {array.dtype}, expected {storable}",
            advice=f"convert it with .astype('{storable}')",
        )
    if array.dtype.kind in "fc" and np.isnan(array).any():
        first = int(np.argwhere(np.isnan(array))[0][0])
        raise DataError(f"{file}: array '{value.name}' holds NaN, first at index {first} of its first axis")
    return array.astype(wanted, copy=False)
