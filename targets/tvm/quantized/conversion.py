"""Nodes of the integer path as calls of kernels."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from tvm import relax

from graphopt.targets.tvm.kernels.integer import KINDS, emit

KERNEL = "kernel"  # the attribute that holds the kernel's description


def convert_kernel(
    builder: relax.BlockBuilder, inputs: list[Any], attributes: dict[str, ir.Attr], node: ir.Node
) -> Any:
    """A call of the kernel that the node describes."""
    return call_kernel(builder, attributes[KERNEL].as_string(), inputs, node)


def call_kernel(builder: relax.BlockBuilder, description: str, inputs: list[Any], node: ir.Node) -> Any:
    """A call of a kernel whose results are the outputs of `node`."""
    types = []
    for output in node.outputs:
        assert output.shape is not None and output.dtype is not None  # the importer refuses others
        types.append(relax.TensorType(tuple(int(n) for n in output.shape.numpy()), str(output.dtype.numpy())))
    kernel = builder.add_func(emit(description), _function_name(node))
    # The kernel's parameters are flat. Nothing looks at that: it is fused with nothing, and called by pointers.
    return relax.call_tir(kernel, inputs, types if len(types) > 1 else types[0])


def _function_name(node: ir.Node) -> str:
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in node.op_type).lstrip("_")


CONVERTERS = dict.fromkeys(KINDS, convert_kernel)
