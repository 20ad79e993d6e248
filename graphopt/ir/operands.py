"""What operators ask of their operands and ONNX's own inference does not check: the numbers of channels.

A pass that removes channels and forgets a consumer is caught here.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

Fault = str  # empty if there is none


def operand_fault(node: ir.Node) -> Fault:
    """What is wrong with the channels of the inputs of `node`, as far as they are known."""
    check = _CHECKS.get(node.op_type) if node.domain == "" else None
    return check(node) if check is not None else ""


def _size(node: ir.Node, index: int, axis: int) -> int | None:
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or value.shape is None or len(value.shape) <= axis:
        return None
    dim = value.shape[axis]
    return dim if isinstance(dim, int) else None


def _group(node: ir.Node) -> int:
    """1 where the attribute is absent, or is no number: a fault that others name."""
    attribute = node.attributes.get("group")
    return attribute.value if attribute is not None and isinstance(attribute.value, int) else 1


def _conv(node: ir.Node) -> Fault:
    """X[N,C,...], W[M,C/group,...], B[M]."""
    channels, per_group, filters, bias = _size(node, 0, 1), _size(node, 1, 1), _size(node, 1, 0), _size(node, 2, 0)
    if channels is not None and per_group is not None and channels != per_group * _group(node):
        return f"expects {per_group * _group(node)} input channels, its input has {channels}"
    if filters is not None and filters % max(1, _group(node)):
        return f"has {filters} filters, which its {_group(node)} groups do not divide"
    if bias is not None and filters is not None and bias != filters:
        return f"has {filters} filters, its bias has {bias} entries"
    return ""


def _conv_transpose(node: ir.Node) -> Fault:
    """X[N,C,...], W[C,M/group,...], B[M]."""
    channels, expected, per_group, bias = _size(node, 0, 1), _size(node, 1, 0), _size(node, 1, 1), _size(node, 2, 0)
    if channels is not None and expected is not None and channels != expected:
        return f"expects {expected} input channels, its input has {channels}"
    if bias is not None and per_group is not None and bias != per_group * _group(node):
        return f"has {per_group * _group(node)} filters, its bias has {bias} entries"
    return ""


def _normalization(node: ir.Node) -> Fault:
    """X[N,C,...], then vectors of C entries."""
    channels = _size(node, 0, 1)
    for index in range(1, len(node.inputs)):
        entries = _size(node, index, 0)
        if channels is not None and entries is not None and entries != channels:
            return f"expects {entries} input channels, by its input {index}, its input has {channels}"
    return ""


_CHECKS: dict[str, Callable[[ir.Node], Fault]] = {
    "Conv": _conv,
    "ConvInteger": lambda node: _conv(node) if len(node.inputs) < 3 else "",  # its third input is a zero point
    "ConvTranspose": _conv_transpose,
    "BatchNormalization": _normalization,
    "InstanceNormalization": _normalization,
}
