"""What the result of each layer in low precision has lost: the rewritten model beside the one in float.

A result is compared as the next layer reads it, rounded if it is rounded there, with the value of the same name in the
float model. So the figure of a layer holds its own loss and that of the layers before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from graphopt.analysis.execution import Session
from graphopt.analysis.noise import Noise
from graphopt.analysis.quantization import FLOAT, Precision, precisions
from graphopt.analysis.samples import Samples
from graphopt.ir.reading import is_standard

_GROUP_BYTES = 256 << 20  # of the values of a sample that are compared in one run
_UNKNOWN_DIMENSION = 64


def named_precisions(model: ir.Model) -> dict[str, Precision]:
    """`precisions` of the main graph by the names that `layer_costs` gives."""
    found = precisions(model.graph)
    return {
        node.name or f"{node.op_type}_{index}": found[node] for index, node in enumerate(model.graph) if node in found
    }


def layer_noise(original: ir.Model, rewritten: ir.Model, samples: Samples) -> dict[str, float]:
    """SQNR in dB over all samples, by name, of each layer of the main graph that is not computed in float32 alone.

    Args:
        original: the model in float whose values' names `rewritten` kept; those that it lacks are left out.
        samples: a few are enough; both models run on all of them.

    Raises ModelError, DataError as running the models does.
    """
    values = {value.name: value for value in original.graph.inputs}
    values |= {value.name: value for node in original.graph for value in node.outputs}
    pairs: dict[str, tuple[str, str]] = {}  # by layer: the name in the original, and in the rewritten model
    found = precisions(rewritten.graph)
    for index, node in enumerate(rewritten.graph):
        precision = found.get(node)
        if precision is None or str(precision) == FLOAT:
            continue
        names = _names(_scaled(node.outputs[0], values))
        if names[0] in values and _is_float(values[names[0]]):
            pairs[node.name or f"{node.op_type}_{index}"] = names
    noises = {layer: Noise() for layer in pairs}
    for group in _groups(pairs, values):
        first, second = (sorted({pairs[layer][side] for layer in group}) for side in (0, 1))
        with Session(original, outputs=first) as one, Session(rewritten, outputs=second) as other:
            for feeds in samples:
                expected, got = one.run(feeds), other.run(feeds)
                for layer in group:
                    noises[layer].add(expected[pairs[layer][0]], got[pairs[layer][1]])
    return {layer: noise.sqnr_db for layer, noise in noises.items()}


def _scaled(value: ir.Value, values: Mapping[str | None, ir.Value]) -> ir.Value:
    """The sum of products in floats, of an operator that gives its integers: behind its factors and its bias."""
    while value.dtype == ir.DataType.INT32 or (value.name not in values and not value.is_graph_output()):
        readers = [use.node for use in value.uses()]
        if len(readers) != 1 or not is_standard(readers[0], "Add", "Cast", "Mul"):
            break
        value = readers[0].outputs[0]
    return value


def _names(value: ir.Value) -> tuple[str, str]:
    """The name that `value` has in a float model, and of what the next layer reads here."""
    readers = [use.node for use in value.uses()]
    if len(readers) == 1 and readers[0].op_type == "QuantizeLinear" and not value.is_graph_output():
        after = [use.node for use in readers[0].outputs[0].uses()]
        if len(after) == 1 and after[0].op_type == "DequantizeLinear":
            read = after[0].outputs[0]
            # The rounded value takes the name where it is an output of the graph.
            return (str(read.name if read.is_graph_output() else value.name), str(read.name))
    return (str(value.name), str(value.name))


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _groups(pairs: Mapping[str, tuple[str, str]], values: Mapping[str | None, ir.Value]) -> Iterator[list[str]]:
    group: list[str] = []
    size = 0
    for layer, (name, _) in pairs.items():
        shape = values[name].shape
        dims = shape.dims if shape is not None else (_UNKNOWN_DIMENSION,) * 3
        more = 8 * math.prod(dim if isinstance(dim, int) else _UNKNOWN_DIMENSION for dim in dims)  # of both models
        if group and size + more > _GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(layer)
        size += more
    if group:
        yield group
