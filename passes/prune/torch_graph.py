"""A graph computed in torch, so that what it computes has gradients. Needs the extra `torch`; imported late."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from graphopt.errors import UnsupportedError
from graphopt.ir.reading import constant, is_standard
from graphopt.passes.cleanup.constants import layer_name
from graphopt.passes.prune.torch_operators import OPERATORS, Tensor

Array = np.ndarray[Any, Any]

_ADVICE = "choose another importance"


class TorchGraph:
    """The main graph of a model, in float32 on the processor.

    Args:
        graph: as it is; later changes of it are not seen.
        learnt: constants of floats that gradients are wanted by.

    Raises UnsupportedError that names the first operator without a form in torch.
    """

    def __init__(self, graph: ir.Graph, learnt: Iterable[ir.Value]) -> None:
        for node in graph:
            if not is_standard(node) or (node.op_type not in OPERATORS and node.op_type != "Constant"):
                raise _unsupported(node)
        self._nodes = [node for node in graph if node.op_type != "Constant"]
        self._outputs = list(graph.outputs)
        read = dict.fromkeys(value for node in self._nodes for value in node.inputs if value is not None)
        arrays = {value: array for value in read if (array := constant(value)) is not None}
        self._constants = {value: torch.from_numpy(np.array(array)) for value, array in arrays.items()}
        self.learnt = {value: self._constants[value].requires_grad_() for value in learnt}

    def run(self, feeds: Mapping[str, Array], inputs: Iterable[ir.Value]) -> dict[str, Tensor]:
        """The outputs by name. Raises UnsupportedError where an operator is used in a way that has no form in torch."""
        values: dict[ir.Value, Tensor] = dict(self._constants)
        values |= {value: torch.from_numpy(np.array(feeds[str(value.name)])) for value in inputs}
        for node in self._nodes:
            given = [None if value is None else values[value] for value in node.inputs]
            try:
                found = OPERATORS[node.op_type](node, given)
            except NotImplementedError as error:
                raise _unsupported(node) from error
            results = found if isinstance(found, tuple) else (found,)
            values.update(zip(node.outputs, results, strict=False))
        return {str(value.name): values[value] for value in self._outputs}


def _unsupported(node: ir.Node) -> UnsupportedError:
    return UnsupportedError(
        f"there is no gradient through {node.op_type} '{layer_name(node)}' as it is used here", advice=_ADVICE
    )
