"""Weights as bytes: every tensor of a model, its data in pieces, and a warning for those that are not finite."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphopt.errors import ModelWarning
from graphopt.ir.file_ranges import read_range, stored_ranges

_MAX_LISTED = 5


def each_weight(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """Every initializer and every tensor in an attribute, subgraphs included, with a name for messages."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.name or "", value.const_value
    for node in model.graph.all_nodes():
        owner = (node.outputs[0].name if node.outputs else node.name) or ""
        for attribute in node.attributes.values():
            if attribute.is_ref():
                continue
            if attribute.type == ir.AttributeType.TENSOR:
                yield owner, attribute.as_tensor()
            elif attribute.type == ir.AttributeType.TENSORS:
                for tensor in attribute.as_tensors():
                    yield owner, tensor


def weight_bytes(model: ir.Model) -> int:
    """The size of all weights, as they are stored in a file."""
    return sum(_stored_bytes(tensor) for _, tensor in each_weight(model))


def _stored_bytes(tensor: ir.TensorProtocol) -> int:
    if isinstance(tensor, ir.StringTensor):
        return sum(len(text) for text in tensor.string_data())
    return int(tensor.nbytes)


def pieces(tensor: ir.TensorProtocol) -> Iterator[bytes | memoryview]:
    """The data of a tensor, little-endian as in a file, in pieces of at most 16 MB where it lies in a file.

    External data is read, not mapped, so that a model larger than the memory can pass through.
    Strings come each with its length before it.
    """
    if isinstance(tensor, ir.StringTensor):
        for text in tensor.string_data():
            yield len(text).to_bytes(8, "little")
            yield text
    elif isinstance(tensor, ir.ExternalTensor):
        with Path(tensor.path).open("rb") as file:
            yield from read_range(file, tensor.offset or 0, int(tensor.nbytes))
    else:
        yield tensor.tobytes()


def warn_of_non_finite(model: ir.Model, origin: str) -> None:
    """Warn, once, with the names of the weights that hold NaN or infinity."""
    found = [name for name, tensor in each_weight(model) if not _is_finite(tensor)]
    if found:
        more = f" and {len(found) - _MAX_LISTED} more" if len(found) > _MAX_LISTED else ""
        names = ", ".join(repr(name) for name in found[:_MAX_LISTED])
        warnings.warn(f"{origin}: NaN or infinite values in {names}{more}", ModelWarning, stacklevel=3)


def _is_finite(tensor: ir.TensorProtocol) -> bool:
    if not tensor.dtype.is_floating_point() and tensor.dtype not in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        return True
    if isinstance(tensor, ir.ExternalTensor) and tensor.dtype.bitwidth >= 8:
        return _is_file_finite(tensor)
    return bool(np.isfinite(tensor.numpy()).all())


def _is_file_finite(tensor: ir.ExternalTensor) -> bool:
    """Holes are zeros. A piece starts at a multiple of the element's size from the tensor's start, or is widened so."""
    dtype = tensor.dtype.numpy().newbyteorder("<")
    begin, end = tensor.offset or 0, (tensor.offset or 0) + int(tensor.nbytes)
    with Path(tensor.path).open("rb") as file:
        for offset, length in stored_ranges(file, begin, end - begin):
            start = begin + (offset - begin) // dtype.itemsize * dtype.itemsize
            stop = min(end, begin + -(-(offset + length - begin) // dtype.itemsize) * dtype.itemsize)
            for piece in read_range(file, start, stop - start):
                if not np.isfinite(np.frombuffer(piece, dtype)).all():
                    return False
    return True
