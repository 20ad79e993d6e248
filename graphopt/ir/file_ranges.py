"""Parts of files: read them in pieces, and copy them without reading what is not there.

Large weights lie in files of many gigabytes, often sparse ones. A hole reads as zeros; skipping it is what makes
work on such a file take seconds.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import BinaryIO

# A multiple of the size of every element type, so that no element is cut.
PIECE_BYTES = 1 << 24

_NOT_SUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EXDEV}


def stored_ranges(file: BinaryIO, offset: int, length: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of the parts that are not holes, in order; the whole range where holes cannot be told."""
    if not hasattr(os, "SEEK_DATA"):
        yield offset, length
        return
    descriptor, end = file.fileno(), offset + length
    while offset < end:
        try:
            start = os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but holes up to the end of the file
                return
            if error.errno in _NOT_SUPPORTED:
                yield offset, end - offset
                return
            raise
        if start >= end:
            return
        stop = min(end, os.lseek(descriptor, start, os.SEEK_HOLE))
        yield start, stop - start
        offset = stop


def read_range(file: BinaryIO, offset: int, length: int) -> Iterator[bytes]:
    """The bytes of the range, in pieces of PIECE_BYTES and one rest.

    Raises:
        OSError: the file ends before the range does.
    """
    end = offset + length
    while offset < end:
        piece = b""
        wanted = min(PIECE_BYTES, end - offset)
        while len(piece) < wanted:  # a read may stop short
            part = os.pread(file.fileno(), wanted - len(piece), offset + len(piece))
            if not part:
                raise OSError(f"{file.name} became shorter while it was read")
            piece += part
        offset += wanted
        yield piece


def copy_range(source: BinaryIO, offset: int, length: int, target: BinaryIO, position: int) -> None:
    """Copy a range to `position` of `target`, where nothing has been written yet, and leave holes as holes.

    `target` is not made longer by a hole at its end: set its size when all is written.
    """
    target.flush()
    for start, size in stored_ranges(source, offset, length):
        _copy_stored(source, start, size, target, position + start - offset)


def _copy_stored(source: BinaryIO, offset: int, length: int, target: BinaryIO, position: int) -> None:
    copied = _copy_in_kernel(source, offset, length, target, position)
    target.seek(position + copied)
    for piece in read_range(source, offset + copied, length - copied):
        target.write(piece)
    target.flush()


def _copy_in_kernel(source: BinaryIO, offset: int, length: int, target: BinaryIO, position: int) -> int:
    """How many bytes the kernel could copy by itself: all, or none on file systems that it cannot do it between."""
    if not hasattr(os, "copy_file_range"):
        return 0
    copied = 0
    try:
        while copied < length:
            count = os.copy_file_range(
                source.fileno(), target.fileno(), length - copied, offset + copied, position + copied
            )
            if count == 0:
                break
            copied += count
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
    return copied
