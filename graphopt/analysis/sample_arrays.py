"""From arrays to samples: how an array must look to fit an input, and how it is cut into runs of the model."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir

from graphopt.analysis.execution import array_type, describe_shape, is_foreign, required_inputs
from graphopt.errors import DataError

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]
Inputs = Mapping[str, ir.Value]

_BLOCK_BYTES = 4 << 20  # that are looked at together for NaN


class Source(Protocol):
    """Samples in a fixed order, read when they are asked for."""

    def __len__(self) -> int:
        """The number of samples."""

    def read(self, indices: Sequence[int]) -> Iterator[Feeds]:
        """The samples of these indices, which rise and lie within the source."""


class Rows(Protocol):
    """What an array in memory and one in a file have in common."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Array: ...


@dataclass(frozen=True)
class Stacked:
    """A source of samples that are stacked along the first axis of each array.

    arrays: by input name.
    rows: by input name, how many rows make a sample, which keeps them as its first axis; 0 if the first axis only
        counts the samples.
    types: of inputs whose type the array cannot have in a file; converted when read.
    """

    arrays: Mapping[str, Rows]
    rows: Mapping[str, int]
    types: Mapping[str, np.dtype[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return min(self._counts().values(), default=1)

    def read(self, indices: Sequence[int]) -> Iterator[Feeds]:
        """The samples of these indices; arrays in memory are not copied."""
        return ({name: self._sample(name, index) for name in self.arrays} for index in indices)

    def _counts(self) -> dict[str, int]:
        return {name: len(array) // (self.rows[name] or 1) for name, array in self.arrays.items()}

    def _sample(self, name: str, index: int) -> Array:
        array, rows = self.arrays[name], self.rows[name]
        if rows:
            found = array[index * rows : (index + 1) * rows]
        else:
            found = array[index : index + 1].reshape(array.shape[1:])
        return found.astype(self.types[name], copy=False) if name in self.types else found


@dataclass(frozen=True)
class Listed:
    """A source of samples in memory, by index."""

    feeds: Sequence[Feeds]

    def __len__(self) -> int:
        return len(self.feeds)

    def read(self, indices: Sequence[int]) -> Iterator[Feeds]:
        """The samples of these indices."""
        return (dict(self.feeds[index]) for index in indices)


def inputs_of(model: ir.Model) -> Inputs:
    """The inputs that samples are for, by name."""
    return {str(value.name): value for value in required_inputs(model)}


def stack(place: str, arrays: Mapping[str, Rows], inputs: Inputs) -> Stacked:
    """The samples in one array for each input.

    An array of the input's rank is stacked along the batch axis, one of a rank higher has a new first axis, and one of
    a rank lower is a single sample without the batch axis of 1.
    Raises DataError, which begins with `place`, if an array does not fit its input by name, type or shape, if the
    arrays hold different numbers of samples, or none. NaN is not looked for.
    """
    _check_names(place, arrays, inputs)
    cut: dict[str, Rows] = {}
    rows: dict[str, int] = {}
    types: dict[str, np.dtype[Any]] = {}
    for name, value in inputs.items():
        cut[name], rows[name] = _cut(place, name, arrays[name], value)
        if (wanted := _converted(place, name, arrays[name].dtype, value)) is not None:
            types[name] = wanted
    stacked = Stacked(cut, rows, types)
    counts = stacked._counts()
    if len(set(counts.values())) > 1:
        raise DataError(f"{place}: the arrays hold different numbers of samples: {counts}")
    if 0 in counts.values():
        raise DataError(f"{place}: the arrays hold no sample", advice="expected at least one row in each array")
    return stacked


def refuse_nan(place: str, source: Stacked) -> None:
    """Raises DataError if an array holds NaN. Reads all of it, a block at a time."""
    for name, array in source.arrays.items():
        if array.dtype.kind not in "fc":
            continue
        step = max(1, _BLOCK_BYTES * len(array) // max(math.prod(array.shape) * array.dtype.itemsize, 1))
        for start in range(0, len(array), step):
            found = np.isnan(array[start : start + step])
            if found.any():
                first = start + int(np.argwhere(found)[0][0])
                raise DataError(f"{place}: array '{name}' holds NaN, first at index {first} of its first axis")


def _check_names(place: str, arrays: Mapping[str, Rows], inputs: Inputs) -> None:
    listed = f"the model's inputs are {', '.join(map(repr, inputs)) or 'none'}"
    for name in arrays:
        if name not in inputs:
            nearest = difflib.get_close_matches(str(name), inputs, n=1)
            hint = f"did you mean '{nearest[0]}'? " if nearest else ""
            raise DataError(f"{place}: array '{name}' is not an input of the model", advice=hint + listed)
    for name in inputs:
        if name not in arrays:
            raise DataError(f"{place}: there is no array for input '{name}'", advice=listed)


def _cut(place: str, name: str, array: Rows, value: ir.Value) -> tuple[Rows, int]:
    """The array with samples along its first axis, and its rows a sample as in `Stacked`."""
    if not isinstance(value.type, ir.TensorType):
        raise DataError(f"{place}: input '{name}' is a {type(value.type).__name__}; only tensors can be given")
    if value.shape is None:
        raise DataError(f"{place}: input '{name}' has no shape in the model", advice=f"bind it with --shape {name}=...")
    dims, shape = value.shape.dims, array.shape
    first = dims[0] if dims and isinstance(dims[0], int) else 1  # an unknown batch axis takes one row at a time
    extra = len(shape) - len(dims)
    if extra == 1 and _agree(shape[1:], dims):
        return array, 0
    if extra == 0 and dims and _agree(shape[1:], dims[1:]) and len(array) % (first or 1) == 0:
        return array, first
    if (extra == 0 and not dims) or (extra == -1 and first == 1 and _agree(shape, dims[1:])):
        return np.asarray(array)[None], 1 if dims else 0
    stacked = f"{describe_shape(value.shape)} with the samples stacked along the first axis, or " if dims else ""
    raise DataError(
        f"{place}: array '{name}' has shape {list(shape)}, expected {stacked}{describe_shape(ir.Shape(('N', *dims)))}"
    )


def _agree(found: tuple[int, ...], wanted: tuple[int | ir.SymbolicDim, ...]) -> bool:
    return len(found) == len(wanted) and all(
        not isinstance(w, int) or f == w for f, w in zip(found, wanted, strict=True)
    )


def _converted(place: str, name: str, found: np.dtype[Any], value: ir.Value) -> np.dtype[Any] | None:
    """The type that an array of type `found` is to be turned into; None if it has the input's type."""
    wanted = array_type(value)
    if wanted is None:
        if found.kind not in "UTO":
            raise DataError(f"{place}: array '{name}' has type {found}, expected strings")
        return np.dtype(object)
    # numpy cannot store bfloat16 and its like: they are given as float32.
    storable = np.dtype(np.float32) if is_foreign(value.dtype) else wanted
    if found not in (storable, wanted):
        raise DataError(
            f"{place}: array '{name}' has type {found}, expected {storable}",
            advice=f"convert it with .astype('{storable}')",
        )
    return None if found == wanted else wanted
