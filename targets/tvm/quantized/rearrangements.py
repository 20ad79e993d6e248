"""Rearrangements of integers that are left when all layers are rewritten, as the fewest and fastest moves.

Chains of Transpose and Reshape between two kernels, a channel shuffle between layers with channels last among them,
often amount to one transposition of a matrix for each of a batch, or to nothing. What a chain does is read off the
indices that it moves (`views`):

    p = [[0 … M-1] as [batch, rows, columns]] with the last two axes swapped
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.ir.reading import is_standard
from graphopt.targets.tvm.kernels.integer import describe
from graphopt.targets.tvm.kernels.integer_transposition import DequantizeChannelsFirst, IntegerTransposition
from graphopt.targets.tvm.quantized.conversion import KERNEL
from graphopt.targets.tvm.quantized.editor import DOMAIN, Editor, put_in_place, shape_of
from graphopt.targets.tvm.quantized.parameters import INT8, dequantized
from graphopt.targets.tvm.quantized.views import indices_moved_by

MOVES = frozenset({"Flatten", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})  # each element once


def rewrite_rearrangements(graph: ir.Graph, editor: Editor) -> None:
    """Replace what dequantizes a transposed image, then chains of moves that are transpositions, by kernels."""
    for node in list(graph):
        if node.op_type == "DequantizeLinear":
            editor.place = node
            _dequantize_channels_first(node, editor)
    for node in list(graph):
        if _ends_chain(node):
            editor.place = node
            _transpose(node, editor)


def _dequantize_channels_first(node: ir.Node, editor: Editor) -> None:
    x, result = dequantized(node.outputs[0]), node.outputs[0]
    if x is None or not x.per_tensor or not editor.has_channels_last(x.integers) or result.dtype != ir.DataType.FLOAT:
        return
    batch, channels, *pixels = shape_of(x.integers)
    kernel = DequantizeChannelsFirst((batch, int(np.prod(pixels)), channels), float(x.scale), x.signed_zero_point)
    source, name = editor.channels_last(x.integers), result.name or "dequantized"
    made = editor.add(
        type(kernel).__name__,
        [source],
        ir.DataType.FLOAT,
        shape_of(result),
        name=f"{name}.channels_first",
        attributes={KERNEL: describe(kernel)},
        layer=node.name,
        domain=DOMAIN,
    )
    put_in_place(result, made)


def _ends_chain(node: ir.Node) -> bool:
    """Whether a node moves int8, and what reads its result does not."""
    if not is_standard(node, *MOVES) or node.outputs[0].dtype != INT8:
        return False
    users = [use.node for use in node.outputs[0].uses()]
    return node.outputs[0].is_graph_output() or not all(is_standard(user, *MOVES) for user in users)


def _transpose(node: ir.Node, editor: Editor) -> None:
    """One kernel for the longest chain of moves up to `node` that is a transposition, if there is one."""
    result = node.outputs[0]
    found = transposition_up_to(result, editor.opset)
    if found is None or 1 in found[1][1:]:  # nothing moves: the importer makes no copy of that
        return
    source, shape = found
    put_in_place(result, emit_transposition(editor, source, shape, shape_of(result), f"{result.name}.transposed"))


def emit_transposition(
    editor: Editor, source: ir.Value, shape: tuple[int, int, int], result: Sequence[int], name: str
) -> ir.Value:
    """int8 of the shape `result`: those of `source`, seen as batch, rows and columns, transposed."""
    attributes = {KERNEL: describe(IntegerTransposition(shape))}
    return editor.add("IntegerTransposition", [source], INT8, result, name=name, attributes=attributes, domain=DOMAIN)


def transposition_up_to(
    value: ir.Value, opset: int, order: Sequence[int] | None = None
) -> tuple[ir.Value, tuple[int, int, int]] | None:
    """What the longest chain of moves up to `value`, its axes then in `order`, transposes: the source, and how.

    None if no chain is a transposition. Rows and columns are 1 where nothing moves.
    """
    indices = np.arange(int(np.prod(shape_of(value)))).reshape(shape_of(value))
    origins = (indices if order is None else indices.transpose(order)).reshape(-1)
    found = None
    while (mover := value.producer()) is not None and is_standard(mover, *MOVES) and mover.inputs[0] is not None:
        moved = indices_moved_by(mover, opset)
        if moved is None:
            break
        origins, value = moved.reshape(-1)[origins], mover.inputs[0]
        shape = batched_transposition(origins)
        if shape is not None:
            found = value, shape
    return found


def batched_transposition(origins: np.ndarray) -> tuple[int, int, int] | None:
    """(batch, rows, columns) of the transposition that takes element origins[n] to place n; None for other moves.

    Of the identity rows and columns are 1.
    """
    size = len(origins)
    if size < 2 or origins[0] != 0:
        return None
    columns = int(origins[1])
    rows = 1
    while rows < size and origins[rows] == rows * columns:
        rows += 1
    if columns == 1:
        return (size, 1, 1) if rows == size else None
    if columns < 2 or size % (rows * columns):
        return None
    shape = (size // (rows * columns), rows, columns)
    expected = np.arange(size).reshape(shape).transpose(0, 2, 1).reshape(-1)
    return shape if np.array_equal(origins, expected) else None
