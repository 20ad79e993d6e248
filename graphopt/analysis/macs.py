"""How many multiply-accumulates each operator needs, by the direct algorithm.

A MAC is one multiplication whose product is added to a sum. Counted are the operators whose work grows faster than
their data: convolutions, matrix products, recurrences and attention. Elementwise operators, normalizations, reductions,
pooling and interpolation count 0, as is usual (the 300.8 million of MobileNetV2 are counted so). Positions that padding
fills are counted like the others, and masked positions of an attention too. Shapes and attributes are those of the ONNX
operator specification, https://onnx.ai/onnx/operators/.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from math import prod

import onnx_ir as ir


class UnknownSizeError(Exception):
    """A dimension that the count needs is not static. Internal: `layer_costs` turns it into a note."""


def dims(value: ir.Value | None) -> tuple[int, ...]:
    """The static shape of `value`, or UnknownSizeError that names the dimension."""
    if value is None:
        raise UnknownSizeError("an input is missing")
    if value.shape is None:
        raise UnknownSizeError(f"the shape of '{value.name}' is unknown")
    for axis, size in enumerate(value.shape):
        if not isinstance(size, int):
            raise UnknownSizeError(f"dimension {axis} of '{value.name}' ({size}) is not static")
    return tuple(int(size) for size in value.shape)  # type: ignore[arg-type]  # checked above


def macs(node: ir.Node) -> int:
    """Multiply-accumulates of one execution of `node`, without its subgraphs. Raises UnknownSizeError."""
    if node.domain not in ("", "ai.onnx"):
        raise UnknownSizeError(f"the operator {node.domain}::{node.op_type} is not of the standard domain")
    count = _FORMULAS.get(node.op_type)
    return 0 if count is None else count(node)


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _convolution(weight: int) -> Callable[[ir.Node], int]:
    """Each output element sums channels / group x kernel products: W is [M, C / group, k1, k2, …]."""

    def count(node: ir.Node) -> int:
        return prod(dims(node.outputs[0])) * prod(dims(_input(node, weight))[1:])

    return count


def _transposed_convolution(node: ir.Node) -> int:
    """Each input element goes to M / group x kernel outputs: W is [C, M / group, k1, k2, …]."""
    return prod(dims(node.inputs[0])) * prod(dims(_input(node, 1))[1:])


def _gemm(node: ir.Node) -> int:
    transposed = node.attributes.get_int("transA", 0)
    return prod(dims(node.outputs[0])) * dims(node.inputs[0])[0 if transposed else 1]


def _matmul(node: ir.Node) -> int:
    """Also of the quantized forms: the first input is A in each of them."""
    return prod(dims(node.outputs[0])) * dims(node.inputs[0])[-1]


def _einsum(node: ir.Node) -> int:
    """Operands are contracted from left to right, as runtimes do; an index is summed as soon as nobody needs it."""
    left, _, result = node.attributes.get_string("equation", "").replace(" ", "").partition("->")
    sizes: dict[str, int] = {}
    terms = []
    for value, labels in zip(node.inputs, left.split(","), strict=True):
        shape = dims(value)
        head, dots, tail = labels.partition("...")
        hidden = len(shape) - len(head) - len(tail)
        # Dimensions under an ellipsis are aligned at their right end: '0' is the last of them.
        names = [*head, *(str(hidden - 1 - i) for i in range(hidden if dots else 0)), *tail]
        for name, size in zip(names, shape, strict=True):
            sizes[name] = max(size, sizes.get(name, 1))  # 1 broadcasts
        terms.append(frozenset(names))
    if "->" in node.attributes.get_string("equation", ""):
        wanted = set(result.replace("...", "")) | ({n for n in sizes if n.isdigit()} if "..." in result else set())
    else:  # implicit form: the indices that appear once
        once = Counter(name for name in left if name.isalpha())
        wanted = {name for name in sizes if name.isdigit() or once[name] == 1}
    total, current = 0, terms[0]
    for position, term in enumerate(terms[1:], start=1):
        both = current | term
        total += prod(sizes[name] for name in both)
        current = both & (wanted.union(*terms[position + 1 :]))
    return total


def _recurrence(node: ir.Node) -> int:
    """A step multiplies W [directions, gates·hidden, in] and R [directions, gates·hidden, hidden]; X is [T, B, in]."""
    steps, batch, _ = dims(node.inputs[0])
    return steps * batch * (prod(dims(_input(node, 1))) + prod(dims(_input(node, 2))))


def _attention(node: ir.Node) -> int:
    """Q·Kᵀ and the product with V. Inputs are [B, heads, S, d], or [B, S, heads·d] with the heads as attributes."""
    q, k, v = (dims(_input(node, i)) for i in range(3))
    past = _input(node, 4)
    keys = (k[2] if len(k) == 4 else k[1]) + (dims(past)[2] if past is not None else 0)
    if len(q) == 4:
        batch, heads, queries, depth = q
        value_depth = v[3]
    else:
        batch, queries, width = q
        heads = node.attributes.get_int("q_num_heads", 1)
        depth = width // heads
        value_depth = v[2] // node.attributes.get_int("kv_num_heads", 1)
    return batch * heads * queries * keys * (depth + value_depth)


def _linear_attention(node: ir.Node) -> int:
    """A state of d_k x d_v a head: one update a key head (two with the delta rule) and one product a query head."""
    (batch, steps, width), (_, _, values) = dims(node.inputs[0]), dims(_input(node, 2))
    queries, keys = node.attributes.get_int("q_num_heads", 1), node.attributes.get_int("kv_num_heads", 1)
    updates = 2 if "delta" in node.attributes.get_string("update_rule", "gated_delta") else 1
    return batch * steps * (width // queries) * (values // keys) * (queries + keys * updates)


_FORMULAS: Mapping[str, Callable[[ir.Node], int]] = {
    "Attention": _attention,
    "CausalConvWithState": _convolution(1),
    "Conv": _convolution(1),
    "ConvInteger": _convolution(1),
    "ConvTranspose": _transposed_convolution,
    "DeformConv": _convolution(1),
    "Einsum": _einsum,
    "GRU": _recurrence,
    "Gemm": _gemm,
    "LSTM": _recurrence,
    "LinearAttention": _linear_attention,
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "QLinearConv": _convolution(3),
    "QLinearMatMul": _matmul,
    "RNN": _recurrence,
}
