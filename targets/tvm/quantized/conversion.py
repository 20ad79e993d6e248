"""Nodes of the integer path as calls of kernels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import onnx_ir as ir
import tvm
from tvm import relax
from tvm.target.codegen import target_has_features

from graphopt.targets.tvm.kernels.integer import KINDS, describe, emit, read
from graphopt.targets.tvm.kernels.integer_product import IntegerProduct, in_octets
from graphopt.targets.tvm.operators.tensors import constant, known

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


def convert_product(
    builder: relax.BlockBuilder, inputs: list[Any], attributes: dict[str, ir.Attr], node: ir.Node
) -> Any:
    """A product whose weights are packed as the target's instructions take them."""
    description = attributes[KERNEL].as_string()
    product, weights = read(description), known(inputs[1])
    if weights is not None and takes_octets(tvm.target.Target.current(allow_none=True)):
        inputs = [inputs[0], constant(in_octets(weights)), *inputs[2:]]
        description = describe(replace(product, octets=True))
    return call_kernel(builder, description, inputs, node)


def takes_octets(target: tvm.target.Target | None) -> bool:
    """Whether a core has `smmla`, which takes weights by eight k."""
    aarch64 = target is not None and str(target.attrs.get("mtriple", "")).startswith(("aarch64", "arm64"))
    return aarch64 and target_has_features("i8mm", target)


CONVERTERS = {**dict.fromkeys(KINDS, convert_kernel), IntegerProduct.__name__: convert_product}
