"""Move the weights of a model into a file beside it."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from graphopt.ir.file_ranges import copy_range

# The ONNX specification's advice, for mapping: offsets are multiples of the page size.
_ALIGNMENT = 4096


def write_external(model: ir.Model, folder: Path, name: str, threshold: int) -> None:
    """Write the initializers of more than `threshold` bytes to `folder`/`name`, and let `model` refer to them there.

    Weights that lie in files already are copied from file to file.
    """
    values = [
        value
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
        and value.const_value.dtype != ir.DataType.STRING
        and value.const_value.nbytes > threshold
    ]
    if not values:
        return
    end = 0
    with (folder / name).open("wb") as file:
        for value in values:
            tensor = value.const_value
            assert tensor is not None
            offset = -(-end // _ALIGNMENT) * _ALIGNMENT
            size = int(tensor.nbytes)
            if isinstance(tensor, ir.ExternalTensor):
                with Path(tensor.path).open("rb") as source:
                    copy_range(source, tensor.offset or 0, size, file, offset)
            else:
                file.seek(offset)
                file.write(tensor.tobytes())
            end = offset + size
            value.const_value = ir.ExternalTensor(
                name,
                offset,
                size,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=value.name or "",
                doc_string=tensor.doc_string,
                metadata_props=dict(tensor.metadata_props),
                base_dir=folder,
            )
        file.truncate(end)
