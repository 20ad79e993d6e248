"""Damage the bytes of a file in the ways that disks, networks and malice do."""

from __future__ import annotations

import random
from collections.abc import Callable

_INTERESTING = (b"\x00", b"\xff", b"\x7f", b"\x80\x80\x80\x80\x80\x01", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")


def flip_bits(data: bytearray, other: bytes, rng: random.Random) -> bytearray:
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def set_bytes(data: bytearray, other: bytes, rng: random.Random) -> bytearray:
    at = rng.randrange(len(data))
    value = rng.choice(_INTERESTING)
    data[at : at + len(value)] = value
    return data


def insert(data: bytearray, other: bytes, rng: random.Random) -> bytearray:
    at = rng.randrange(len(data) + 1)
    data[at:at] = rng.choice([rng.randbytes(rng.randint(1, 16)), rng.choice(_INTERESTING)])
    return data


def delete(data: bytearray, other: bytes, rng: random.Random) -> bytearray:
    at = rng.randrange(len(data))
    del data[at : at + rng.randint(1, 64)]
    return data


def truncate(data: bytearray, other: bytes, rng: random.Random) -> bytearray:
    del data[rng.randrange(len(data)) :]
    return data


def splice(data: bytearray, other: bytes, rng: random.Random) -> bytearray:
    """Overwrite a stretch by one of another file."""
    start = rng.randrange(len(other))
    piece = other[start : start + rng.randint(1, 256)]
    at = rng.randrange(len(data))
    data[at : at + len(piece)] = piece
    return data


def repeat(data: bytearray, other: bytes, rng: random.Random) -> bytearray:
    """Say a stretch twice."""
    at = rng.randrange(len(data))
    data[at:at] = data[at : at + rng.randint(1, 256)]
    return data


def repeat_field(data: bytearray, other: bytes, rng: random.Random) -> bytearray:
    """Say a protobuf field twice, or drop it, so that lengths around it still are right where it is at the top."""
    fields = top_fields(bytes(data))
    if not fields:
        return repeat(data, other, rng)
    start, end = rng.choice(fields)
    if rng.random() < 0.3:
        del data[start:end]
    else:
        data[end:end] = data[start:end]
    return data


MUTATIONS: tuple[Callable[[bytearray, bytes, random.Random], bytearray], ...] = (
    flip_bits,
    set_bytes,
    insert,
    delete,
    truncate,
    splice,
    repeat,
    repeat_field,
)


def mutate(data: bytes, other: bytes, rng: random.Random, focus: tuple[int, int] | None = None) -> bytes:
    """One to three mutations of `data`; `other` gives stretches to splice in.

    Args:
        focus: (start, end) of the part of `data` to damage: weights are most of a file, and the least of its structure.
    """
    start, end = focus or (0, len(data))
    part = bytearray(data[start:end])
    for _ in range(rng.choice((1, 1, 2, 3))):
        if part:
            part = rng.choice(MUTATIONS)(part, other, rng)
    return data[:start] + bytes(part) + data[end:]


def top_fields(data: bytes) -> list[tuple[int, int]]:
    """(start, end) of the protobuf fields at the top level, as far as they can be parsed."""
    fields, at = [], 0
    while at < len(data):
        start = at
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            _, at = _varint(data, at)
        elif wire == 1:
            at += 8
        elif wire == 2:
            size, at = _varint(data, at)
            at += size
        elif wire == 5:
            at += 4
        else:
            break
        if at > len(data):
            break
        fields.append((start, at))
    return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    return value, at
