"""Stages: a model that is computed on several samples at once, from front to back, while its constants change.

What a stage leaves for the nodes behind it is kept for every sample. So a pass can look at a layer's input, change the
layer, and go on to the next one, which then sees the change; all stages together cost one run of the model.

What depends on constants alone belongs to no stage: it is computed again where it is read. Of a dequantized value the
integers are kept, which take a quarter of the room.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.calibration import side_by_side
from graphopt.analysis.execution import Session, processors

Array = np.ndarray[Any, Any]

_UNKNOWN_DIMENSION = 64  # stands for a dimension that only the run tells


class Stages:
    """A model, and what is kept for each sample.

    Args:
        model: with types of all values; only its constants may change from here on, those of nodes not yet passed.
        samples: the feeds of each, without those of inputs that have a default.
    """

    def __init__(self, model: ir.Model, samples: Sequence[Mapping[str, Array]]) -> None:
        self._model = model
        self._lives = _lives(model.graph)
        self._places = {node: place for place, node in enumerate(model.graph)}
        self._kept: list[dict[str, Array]] = [dict(feeds) for feeds in samples]
        self._at = 0

    def advance(self, node: ir.Node) -> None:
        """Compute what stands before `node`, a node of the main graph that has not been passed."""
        place = self._places[node]
        if place < self._at:
            raise ValueError(f"{node.op_type} '{node.name}' was passed")
        names = [str(value.name) for value in self._alive(place)]
        for number, found in enumerate(self.values(names)):
            self._kept[number] = found
        self._at = place

    def values(self, names: Sequence[str]) -> Iterator[dict[str, Array]]:
        """The values `names` of each sample, wherever they stand behind the last stage; nothing is passed."""
        available = {str(value.name): value for value in self._alive(self._at)}
        missing = [name for name in names if name not in available]
        if not missing:
            yield from ({name: kept[name] for name in names} for kept in self._kept)
            return
        graph = ir.convenience.extract(self._model.graph, list(available.values()), missing)
        functions = tuple(self._model.functions.values())
        part = ir.Model(graph, ir_version=self._model.ir_version or 8, functions=functions)
        needed = [str(value.name) for value in graph.inputs]
        feeds = ({name: kept[name] for name in needed} for kept in self._kept)
        with (
            Session(part, threads=1) as session,
            contextlib.closing(side_by_side(session, feeds, processors())) as runs,
        ):
            for kept, made in zip(self._kept, runs, strict=True):
                yield {name: made[name] if name in made else kept[name] for name in names}

    def _alive(self, place: int) -> list[ir.Value]:
        return [value for value, (made, read) in self._lives.items() if made < place <= read]


def bytes_kept(model: ir.Model) -> int:
    """The most that Stages keeps of one sample between two nodes; a dimension without a number counts as 64."""
    lives = _lives(model.graph)
    changes = np.zeros(len(model.graph) + 2, np.int64)
    for value, (made, read) in lives.items():
        changes[made + 1] += _bytes(value)
        changes[read + 1] -= _bytes(value)
    return int(np.cumsum(changes).max())


def _lives(graph: ir.Graph) -> dict[ir.Value, tuple[int, int]]:
    """For each value that is kept: the place of the node that makes it (-1: an input), and of the last to read it."""
    made = {value: -1 for value in graph.inputs if not value.is_initializer()}
    lives: dict[ir.Value, tuple[int, int]] = {}
    for place, node in enumerate(graph):
        for value in _read_by(node, graph):
            if value in made:
                source = _integers_of(value, made)
                lives[source] = (made[source], place)
        if any(value in made for value in _read_by(node, graph)):
            made |= dict.fromkeys(node.outputs, place)
    return lives


def _read_by(node: ir.Node, graph: ir.Graph) -> list[ir.Value]:
    """The values of `graph` that `node`, or a node of its subgraphs, reads."""
    inner = [each for attribute in node.attributes.values() for each in _graphs(attribute)]
    nodes = [node, *(each for part in inner for each in ir.traversal.RecursiveGraphIterator(part))]
    values = [value for each in nodes for value in each.inputs]
    outputs = [value for part in inner for value in part.outputs]
    return [value for value in (*values, *outputs) if value is not None and value.graph is graph]


def _graphs(attribute: ir.Attr) -> Sequence[ir.Graph]:
    if attribute.is_ref():
        return ()
    if attribute.type == ir.AttributeType.GRAPH:
        return (attribute.as_graph(),)
    return attribute.as_graphs() if attribute.type == ir.AttributeType.GRAPHS else ()


def _integers_of(value: ir.Value, made: Mapping[ir.Value, int]) -> ir.Value:
    """What `value` is dequantized from, with constant parameters; else itself."""
    producer = value.producer()
    if producer is None or producer.op_type != "DequantizeLinear":
        return value
    integers, *parameters = producer.inputs
    constant = not any(parameter in made for parameter in parameters)
    return integers if constant and integers is not None and integers in made else value


def _bytes(value: ir.Value) -> int:
    dims = value.shape.dims if value.shape is not None else (_UNKNOWN_DIMENSION,) * 3
    size = math.prod(dim if isinstance(dim, int) else _UNKNOWN_DIMENSION for dim in dims)
    return size * 4 if value.dtype in (None, ir.DataType.STRING) else math.ceil(size * value.dtype.itemsize)
