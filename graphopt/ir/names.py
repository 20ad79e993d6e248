"""Keep the names of values apart, where tools that write graphs did not."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir


def rename_shadows(model: ir.Model) -> None:
    """Give a new name to each value of a subgraph whose name a value of an enclosing graph bears, in place.

    onnx_ir's inliner and onnx's version converter make names unique within a graph, not against the graphs around it,
    which ONNX demands.
    """
    _rename_shadows(model.graph, set(), Counter())


def _rename_shadows(graph: ir.Graph, outer: set[str], suffix: Counter[str]) -> None:
    seen: set[str] = set(outer)
    values = [*graph.inputs, *graph.initializers.values(), *(v for node in graph for v in node.outputs)]
    for value in dict.fromkeys(values):
        name = value.name
        if not name:
            continue
        while name in seen:
            suffix[value.name or ""] += 1
            name = f"{value.name}_{suffix[value.name or '']}"
        seen.add(name)
        if name != value.name:
            value.name = name
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                _rename_shadows(attribute.as_graph(), seen, suffix)
            elif attribute.type == ir.AttributeType.GRAPHS:
                for subgraph in attribute.as_graphs():
                    _rename_shadows(subgraph, seen, suffix)
