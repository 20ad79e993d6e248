"""Folding node by node until nothing is left to fold: the loop that the folding passes share."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from graphopt.passes.cleanup.constants import layer_name
from graphopt.pipeline.base import Declined, PassResult

FOLDED = ""  # what an attempt returns that succeeded


def fold_until_settled(model: ir.Model, attempt: Callable[[ir.Node], str | None]) -> PassResult:
    """Offer each node of the graph and its subgraphs to `attempt` until a sweep folds none: a chain folds link by link.

    `attempt` folds a node and returns FOLDED, or returns why it declines, or None for a node that is not its own.
    What the last sweep declined is in the result.
    """
    total = 0
    while True:
        declined = list[Declined]()
        folded = 0
        for node in list(model.graph.all_nodes()):
            reason = attempt(node)
            if reason == FOLDED:
                folded += 1
            elif reason is not None:
                declined.append(Declined(layer_name(node), reason))
        total += folded
        if not folded:
            return PassResult(changed=total > 0, statistics={"folded": total}, declined=tuple(declined))
