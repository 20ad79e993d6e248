"""Damage the bytes of a file in the ways that disks, networks and malice do."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import onnx

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


def mutate_fields(model: onnx.ModelProto, rng: random.Random) -> None:
    """One to three edits of fields at random depth: what still parses, but may mean nonsense."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        _edit(_random_message(model, rng), rng)


def _random_message(message: Any, rng: random.Random) -> Any:
    """Walk down from `message`, at each level stopping by chance."""
    while True:
        below = []
        for field, value in message.ListFields():
            if field.type == field.TYPE_MESSAGE:
                below.append(list(value) if field.is_repeated else [value])
        if not below or rng.random() < 0.15:
            return message
        message = rng.choice(rng.choice(below))


def _edit(message: Any, rng: random.Random) -> None:
    present = message.ListFields()
    if not present or rng.random() < 0.1:
        field = rng.choice(list(message.DESCRIPTOR.fields))  # a field that may not have been there
        _set(message, field, rng)
        return
    field, value = rng.choice(present)
    action = rng.random()
    if action < 0.2:
        message.ClearField(field.name)
    elif field.is_repeated and action < 0.7:
        _edit_list(value, field, rng)
    else:
        _set(message, field, rng)


def _edit_list(values: Any, field: Any, rng: random.Random) -> None:
    at = rng.randrange(len(values))
    action = rng.random()
    if action < 0.35:
        del values[at]
    elif action < 0.6:
        values.extend([values[at]])
    elif action < 0.8 and len(values) > 1:  # exchange two
        other = rng.randrange(len(values))
        entries = list(values)
        entries = (
            [type(entry).FromString(entry.SerializeToString()) for entry in entries] if _is_message(field) else entries
        )
        entries[at], entries[other] = entries[other], entries[at]
        del values[:]
        values.extend(entries)
    elif not _is_message(field):
        values[at] = _scalar(field, values[at], rng)


def _set(message: Any, field: Any, rng: random.Random) -> None:
    if _is_message(field):
        if field.is_repeated:
            getattr(message, field.name).add()
        else:
            getattr(message, field.name).SetInParent()
    elif field.is_repeated:
        getattr(message, field.name).append(_scalar(field, None, rng))
    else:
        setattr(message, field.name, _scalar(field, getattr(message, field.name), rng))


def _is_message(field: Any) -> bool:
    return bool(field.type == field.TYPE_MESSAGE)


def _scalar(field: Any, old: Any, rng: random.Random) -> Any:
    kind = field.cpp_type
    if kind == field.CPPTYPE_ENUM:
        return rng.choice([value.number for value in field.enum_type.values])
    if kind == field.CPPTYPE_STRING:
        text = rng.choice(["", "x", "Conv", "Loop", "Constant", "ai.onnx", "a/b\x00c", "n" * 2000, old or "y"])
        if field.type == field.TYPE_BYTES:
            return text if isinstance(text, bytes) else text.encode()
        return text
    if kind in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return rng.choice([0.0, -1.0, 1e30, float("nan"), float("inf")])
    limit = 2**31 - 1 if kind in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32) else 2**63 - 1
    low = 0 if kind in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64) else -1
    return rng.choice(
        [low, 0, 1, 2, 3, 7, 255, 65536, limit, limit // 2, max(low, (old or 0) - 1), min(limit, (old or 0) + 1)]
    )
