"""Copy a model without copying its weights."""

from __future__ import annotations

import onnx_ir as ir


def clone(model: ir.Model) -> ir.Model:
    """A copy of the graph, with all metadata, that shares the weights' buffers with `model`.

    Tensors are immutable: to change a weight, set `value.const_value` to a new tensor, which the other copy does
    not see.
    """
    return model.clone()
