"""Samples in .npz and .npy files. No Python object is unpickled, and only the rows that are asked for are read."""

from __future__ import annotations

import math
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from graphopt.analysis.sample_arrays import Array, Inputs, Rows, Stacked, refuse_nan, stack
from graphopt.errors import DataError

MAGIC = b"\x93NUMPY"

_UNPACKED_BYTES = 64 << 20  # a compressed array up to this size is held in memory, a larger one in a temporary file
_PLAIN = "arrays of Python objects are not read, because reading them can run code: give them a plain type"


class FileRows:
    """An array in C order within a file; a slice along its first axis is read when it is asked for.

    file: a path, or a file whose `name` is its path; it must stay as it is.
    offset: where the array's bytes begin.
    """

    def __init__(self, file: Path | IO[bytes], offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self._file = file  # keeps a temporary file alive
        self._offset = offset
        self.shape = shape
        self.dtype = dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice, /) -> Array:
        start, stop, step = rows.indices(len(self))
        width = math.prod(self.shape[1:])
        count = max(0, stop - start) * width
        path = self._file if isinstance(self._file, Path) else self._file.name
        found = np.fromfile(path, self.dtype, count, offset=self._offset + start * width * self.dtype.itemsize)
        if found.size < count:
            raise DataError(f"{path} became shorter while it was read")
        return found.reshape(-1 if width else max(0, stop - start), *self.shape[1:])[::step]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self[:] if dtype is None else self[:].astype(dtype)


def is_array_file(file: Path) -> bool:
    """Whether the file begins as an .npz or .npy does, whatever its name."""
    with file.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC or zipfile.is_zipfile(file)


def open_samples(file: Path, inputs: Inputs, *, check: bool) -> Stacked:
    """The samples in an .npz file, by the inputs' names, or in an .npy file, for a model with one input.

    check: whether to read the file once for damage and NaN.
    Raises DataError if the file cannot be read, holds Python objects, or does not fit the inputs as in `stack`.
    """
    stacked = stack(str(file), _open(file, list(inputs), check), inputs)
    if check:
        refuse_nan(str(file), stacked)
    return stacked


def _open(file: Path, names: Sequence[str], check: bool) -> dict[str, Rows]:
    place = str(file)
    try:
        if not zipfile.is_zipfile(file):
            if len(names) != 1:
                raise DataError(
                    f"{file} holds one array, and the model has {len(names)} inputs",
                    advice=f"write an .npz file with an array for each: {', '.join(map(repr, names)) or 'none'}",
                )
            with file.open("rb") as stream:
                return {names[0]: _plain(place, stream, file, 0, file.stat().st_size)}
        arrays = {}
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                place = f"{file}: array '{name}'"
                arrays[name] = _member(place, archive, info, file, check)
        return arrays
    except DataError:
        raise
    except Exception as error:  # zipfile, its decoders, numpy and tokenize raise many kinds on what is damaged
        raise DataError(f"{place} cannot be read: {error}") from error


def _member(place: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo, file: Path, check: bool) -> Rows:
    if info.compress_type == zipfile.ZIP_STORED:
        if check:
            with archive.open(info) as stream:  # whose end compares the checksum
                while stream.read(1 << 20):
                    pass
        with archive.open(info) as stream:
            return _plain(place, stream, file, _start(file, info), info.file_size)
    with archive.open(info) as stream:
        if info.file_size > _UNPACKED_BYTES:
            unpacked = tempfile.NamedTemporaryFile()  # noqa: SIM115  lives as long as the rows that read it
            shutil.copyfileobj(stream, unpacked)
            unpacked.seek(0)
            return _plain(place, unpacked, unpacked, 0, info.file_size)
        _check_header(place, stream)
    with archive.open(info) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _plain(place: str, stream: IO[bytes], file: Path | IO[bytes], start: int, size: int) -> Rows:
    """The array whose .npy format `stream` holds; in `file` it begins at byte `start` and has `size` bytes."""
    shape, fortran, dtype = _check_header(place, stream)
    header = stream.tell()
    if fortran or not shape:  # rows do not lie together
        stream.seek(0)
        return np.lib.format.read_array(stream, allow_pickle=False)
    wanted = math.prod(shape) * dtype.itemsize
    if size - header < wanted:
        raise DataError(f"{place} cannot be read: its header says {wanted} bytes, and {size - header} are there")
    return FileRows(file, start + header, shape, dtype)


def _check_header(place: str, stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type; leaves the stream at the first byte of the numbers."""
    if stream.read(len(MAGIC)) != MAGIC:
        raise DataError(f"{place} is not a numpy array", advice="write it with numpy.save or numpy.savez")
    stream.seek(0)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if any(size < 0 for size in shape):
        raise DataError(f"{place} has shape {list(shape)}, expected sizes of 0 or more")
    if dtype.hasobject:
        raise DataError(f"{place} holds Python objects", advice=_PLAIN)
    return shape, fortran, dtype


def _start(file: Path, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes begin: after its local header, a name and an extra field of their own lengths."""
    with file.open("rb") as stream:
        stream.seek(info.header_offset + 26)
        lengths = stream.read(4)
    return info.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
