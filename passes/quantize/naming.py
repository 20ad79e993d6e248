"""Names of new nodes: ONNX Runtime refuses a graph with two nodes of one name."""

from __future__ import annotations

import onnx_ir as ir


def fresh_node_name(graph: ir.Graph, base: str) -> str:
    """`base`, with a number behind it if another node of the graph is called so."""
    names = {node.name for node in graph.all_nodes()}
    name, number = base, 0
    while name in names:
        number += 1
        name = f"{base}:{number}"
    return name
