"""An initial state of zeros leaves LSTM, GRU and RNN, which begin with zeros where they are given none.

PyTorch's exporter writes one constant for all states of all layers, which would couple the hidden units of the layers:
pruned, they could only lose the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.ir.reading import constant, is_standard
from graphopt.passes.cleanup.constants import remove_unused_constant
from graphopt.pipeline.base import Pass, PassContext, PassResult

_STATES = (5, 6)  # inputs initial_h, and initial_c of LSTM


@dataclass(frozen=True)
class EliminateZeroStates(Pass):
    """Remove constants of zeros that recurrences begin with."""

    name: ClassVar[str] = "eliminate-zero-states"
    exact: ClassVar[bool] = True

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        removed = 0
        for graph in model.graphs():
            for node in graph:
                if is_standard(node, "LSTM", "GRU", "RNN"):
                    removed += sum(_leaves(node, index) for index in _STATES)
        return PassResult(removed > 0, {"zero-states": removed} if removed else {})


def _leaves(node: ir.Node, index: int) -> bool:
    """Whether the input was zeros; it is gone then."""
    value = node.inputs[index] if index < len(node.inputs) else None
    array = constant(value)
    if value is None or array is None or array.any():
        return False
    node.replace_input_with(index, None)
    remove_unused_constant(value)
    while node.inputs and node.inputs[-1] is None:
        node.resize_inputs(len(node.inputs) - 1)
    return True
