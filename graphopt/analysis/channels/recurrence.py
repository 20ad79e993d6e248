"""How LSTM, GRU and RNN carry channels: a hidden unit is a row in each gate of W, R and B, and a column of R.

X [T, B, I], W [D, gates·H, I], R [D, gates·H, H], B [D, 2·gates·H], initial state [D, B, H], P [D, 3·H] →
Y [T, D, B, H], Y_h and Y_c [D, B, H]. Both directions lose the same units. With layout = 1 the batch comes first.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.analysis.channels.labels import Labelling, Role
from graphopt.ir.reading import constant

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def recurrence(node: ir.Node, state: Labelling) -> None:
    """Constant weights alone; without them nothing passes."""
    if any(constant(node.inputs[index]) is None for index in (1, 2)):
        return
    gates = GATES[node.op_type]
    entering = state.claim(node, 0, 2)
    if entering is not None:
        state.tie(node, 1, 2, entering, Role.IN)
    units = state.label(node, 2, 2, Role.IN)
    rows = np.tile(units, gates)
    state.tie(node, 1, 1, rows, Role.OUT)
    state.tie(node, 2, 1, rows, Role.OUT)
    vectors = {3: np.tile(rows, 2), 7: np.tile(units, 3)}
    for index, labels in vectors.items():
        if len(node.inputs) > index and node.inputs[index] is not None:
            state.tie(node, index, 1, labels)
    for index in (5, 6):
        if len(node.inputs) > index and node.inputs[index] is not None:
            state.tie(node, index, 2, units)
    for output, axis in zip(node.outputs, (3, 2, 2), strict=False):
        state.write(output, axis, units)
