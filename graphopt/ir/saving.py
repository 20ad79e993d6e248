"""Save a model: whole or not at all, and the same model as the same bytes."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import onnx_ir as ir
import onnx_ir.serde

from graphopt.errors import ModelError, UsageError
from graphopt.ir.external import write_external
from graphopt.ir.source import MAX_PROTO_BYTES
from graphopt.ir.weights import weight_bytes

# Room for the graph beside the weights in one protobuf file.
GRAPH_ROOM = 64 << 20
# Smaller weights stay in the .onnx file, where shape inference can read them.
_INLINE_BYTES = 1024


def save(model: ir.Model, path: str | os.PathLike[str], *, external_data: str | None = None) -> None:
    """Write `model` to `path`, by a temporary file and a rename, so that a failure leaves nothing behind.

    External weights are copied from file to file, never read into memory. Where they lie in the very file that is
    written, `model` then refers to the new file, and other copies of the model refuse to read the old place.

    Args:
        external_data: name of a file in the folder of `path` to put the weights into. By default that is done,
            as `path` with ".data" added, only when the file would exceed protobuf's 2 GB.

    Raises:
        ModelError: the file cannot be written, or the model cannot be serialized.
        UsageError: `external_data` is not a plain file name.
    """
    target = Path(path).absolute()
    if external_data is None and weight_bytes(model) > MAX_PROTO_BYTES - GRAPH_ROOM:
        external_data = target.name + ".data"
    if external_data is not None and (
        not external_data or Path(external_data).name != external_data or external_data == target.name
    ):
        raise UsageError(f"external data must be the name of another file beside the model, got {external_data!r}")
    try:
        folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            _write(model, target, folder, external_data)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise ModelError(f"cannot write {path}: {error.strerror or error}") from error
    except ValueError as error:  # protobuf's size limit, a tensor that cannot be serialized
        raise ModelError(f"cannot write {path}: {str(error).splitlines()[0]}") from error


def _write(model: ir.Model, target: Path, folder: Path, external_data: str | None) -> None:
    copy = model.clone()
    if external_data is not None:
        write_external(copy, folder, external_data, _INLINE_BYTES)
    take_in(copy, kept=folder)
    proto = ir.serde.serialize_model(copy)
    written = folder / target.name
    written.write_bytes(proto.SerializeToString(deterministic=True))
    if external_data is not None and (folder / external_data).exists():
        destination = target.parent / external_data
        _retarget(model, copy, destination)
        (folder / external_data).replace(destination)
    written.replace(target)


def take_in(model: ir.Model, kept: Path | None = None) -> None:
    """Make every external tensor that does not lie in the folder `kept` one in memory, in place."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor) and (
                kept is None or Path(value.const_value.base_dir) != kept
            ):
                value.const_value = _in_memory(value.const_value)
    for node in model.graph.all_nodes():
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                node.attributes[name] = ir.AttrTensor(
                    name, _in_memory(attribute.value), doc_string=attribute.doc_string
                )


def _in_memory(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    return ir.Tensor(
        tensor.numpy(),
        dtype=tensor.dtype,
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def _retarget(model: ir.Model, written: ir.Model, destination: Path) -> None:
    """Let weights of `model` that lie in `destination`, which is about to be replaced, refer to the new file."""
    if not destination.exists():
        return
    for graph, written_graph in zip(model.graphs(), written.graphs(), strict=True):
        for value, new in zip(graph.initializers.values(), written_graph.initializers.values(), strict=True):
            old = value.const_value
            if not isinstance(old, ir.ExternalTensor) or not Path(old.path).samefile(destination):
                continue
            if isinstance(new.const_value, ir.ExternalTensor):
                new.const_value.base_dir = destination.parent
            old.invalidate()
            value.const_value = new.const_value
