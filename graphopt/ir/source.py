"""Read what may be an ONNX file: from anything that a user can point at to a parsed ModelProto, or a ModelError."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import onnx

from graphopt.errors import ModelError

# protobuf's own limit for one message; larger models keep their weights in files beside them.
MAX_PROTO_BYTES = 2**31 - 1

# A message of protobuf, whose package has no type hints.
Message = Any

_TEXT_PROBE_BYTES = 1024
_CONTROL_BYTES = frozenset(range(32)) - frozenset(b"\t\n\r\f")


def read_file(path: Path) -> bytes:
    """The bytes of the regular file `path`; ModelError for anything that cannot be an ONNX model."""
    try:
        if path.is_dir():
            raise ModelError(f"{path} is a directory, expected an .onnx file")
        if not path.exists():
            raise ModelError(f"no such file: {path}", advice="check the path of the model")
        if not path.is_file():
            raise ModelError(f"{path} is not a regular file, expected an .onnx file")
        size = path.stat().st_size
        if size > MAX_PROTO_BYTES:
            raise ModelError(
                f"{path} has {size} bytes, but a protobuf file holds at most {MAX_PROTO_BYTES}",
                advice="store the weights as external data: onnx.save_model(model, path, save_as_external_data=True)",
            )
        return path.read_bytes()
    except OSError as error:
        reason = "the path is too long" if error.errno == errno.ENAMETOOLONG else error.strerror
        raise ModelError(f"cannot read {path}: {reason}") from error
    except ValueError as error:  # a null byte in the path
        raise ModelError(f"cannot read {str(path)!r}: {error}") from error


def parse(data: bytes, origin: str) -> onnx.ModelProto:
    """Parse a serialized ModelProto; `origin` names it in errors."""
    if not data:
        raise ModelError(f"{origin} is empty, expected an ONNX model")
    if data.startswith(b"version https://git-lfs"):
        raise ModelError(f"{origin} is a Git LFS pointer, not the model", advice="run `git lfs pull` first")
    if _looks_like_text(data):
        raise ModelError(
            f"{origin} is a text file, expected an ONNX model in binary protobuf form",
            advice="check that the download is the model and not a web page",
        )
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception as error:  # DecodeError, of a package without type hints
        raise ModelError(
            f"{origin} is not an ONNX model, or is damaged: protobuf cannot parse its {len(data)} bytes",
            advice="compare its size and checksum with the source's; it may be truncated",
        ) from error
    if not proto.HasField("graph"):
        raise ModelError(f"{origin} is not an ONNX model, or is truncated: it holds no graph")
    return proto


def _looks_like_text(data: bytes) -> bool:
    # The first field of a serialized ModelProto is ir_version, whose tag is the control byte 0x08.
    return _CONTROL_BYTES.isdisjoint(data[:_TEXT_PROBE_BYTES])


def read_proto(source: str | os.PathLike[str] | bytes | onnx.ModelProto) -> tuple[onnx.ModelProto, Path | None, str]:
    """The parsed model, the folder that its external data lies in (None if it has none), and its name in messages.

    The proto belongs to the caller; a ModelProto that was given is copied.
    """
    if isinstance(source, onnx.ModelProto):
        copy = onnx.ModelProto()
        copy.CopyFrom(source)
        if not copy.HasField("graph"):
            raise ModelError("the ModelProto holds no graph")
        return copy, None, "the ModelProto"
    if isinstance(source, bytes | bytearray | memoryview):
        return parse(bytes(source), "the model's bytes"), None, "the model's bytes"
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        return parse(read_file(path), str(path)), path.absolute().parent, str(path)
    raise ModelError(
        f"cannot load a model from {type(source).__name__}, expected a path, bytes, onnx.ModelProto or onnx_ir.Model"
    )


def check_text(proto: onnx.ModelProto, origin: str) -> None:
    """Raise ModelError if a name or another text field is not UTF-8: protobuf reads such a field as bytes."""
    messages: list[Message] = [proto]
    while messages:
        message = messages.pop()
        for field, value in _fields(message):
            if field.type == field.TYPE_MESSAGE:
                messages.extend(value if field.is_repeated else [value])
            elif field.type == field.TYPE_STRING:
                for text in value if field.is_repeated else [value]:
                    if isinstance(text, bytes):
                        raise ModelError(f"{origin} is damaged: the {field.name} {text[:40]!r} is not UTF-8 text")


def _fields(message: Message) -> list[tuple[Any, Any]]:
    if not isinstance(message, onnx.TensorProto):
        return list(message.ListFields())
    # Asking for all fields would copy the data.
    names = ("name", "doc_string", "external_data", "metadata_props")
    return [(message.DESCRIPTOR.fields_by_name[name], getattr(message, name)) for name in names]
