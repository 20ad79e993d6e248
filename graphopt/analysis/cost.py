"""What each layer of a model costs: parameters, multiply-accumulates, and bytes of weights and activations.

Params are the elements of constants that hold what was learnt: floating-point constants, integers of at most 8 bits,
and integers of any width that are biases or are dequantized. Shapes, axes, bounds, and the scales and zero points of
quantization are not parameters (the last two count as weight bytes). A weight that reaches its consumer through nodes
that compute from constants alone (DequantizeLinear, Transpose, …) is counted at that consumer.

What depends on control flow is estimated, and the layer's notes say how: the larger branch of an If, a Loop's body
times its trip count where that is a constant and once where it is not, a Scan's body times the length of its sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from graphopt.analysis.macs import UnknownSizeError, dims, macs

Shape = tuple[int | str, ...]  # a symbolic dimension is its name; '?' has none


@dataclass(frozen=True)
class Weight:
    """A constant that layers read. Two layers that read the same constant hold equal Weights."""

    name: str  # with the names of the nodes whose subgraph holds it, as in LayerCost
    params: int
    bytes: int


@dataclass(frozen=True)
class LayerCost:
    """The cost of one node. None stands for a number that is not known; `notes` say why."""

    name: str  # of the node, OP_INDEX if it has none; nodes of subgraphs carry their way: 'if_node/then_branch/conv'
    op: str  # the operator, behind its domain unless that is the standard one: 'com.microsoft::FusedConv'
    inputs: tuple[Shape | None, ...]  # an absent optional input is ()
    outputs: tuple[Shape | None, ...]
    macs: int | None
    activation_bytes: int | None  # of the outputs, which is what the layer writes
    weights: tuple[Weight, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def params(self) -> int:
        """Learnt elements that the layer reads, shared ones included."""
        return sum(weight.params for weight in self.weights)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the constants that the layer reads, shared ones included, with scales and zero points."""
        return sum(weight.bytes for weight in self.weights)


@dataclass(frozen=True)
class TotalCost:
    """Sums over layers; a weight that several layers share counts once."""

    layers: int
    params: int
    macs: int
    weight_bytes: int
    activation_bytes: int
    uncounted: int  # layers whose MACs are not known, and so are missing from `macs`


def layer_costs(model: ir.Model) -> tuple[LayerCost, ...]:
    """The cost of every node but Constants, in the graph's order; nodes of subgraphs follow the node that holds them.

    Shapes are read as they are in the model: unknown ones make a cost None, never an error.
    """
    return tuple(_Walk().graph(model.graph, "", 1))


def total(costs: Iterable[LayerCost]) -> TotalCost:
    """The sum of `costs`."""
    costs = tuple(costs)
    weights: dict[str, Weight] = {}
    for weight in (weight for cost in costs for weight in cost.weights):
        if weight.name not in weights or weight.params:  # one layer's scale may be another's parameter
            weights[weight.name] = weight
    return TotalCost(
        layers=len(costs),
        params=sum(weight.params for weight in weights.values()),
        macs=sum(cost.macs or 0 for cost in costs),
        weight_bytes=sum(weight.bytes for weight in weights.values()),
        activation_bytes=sum(cost.activation_bytes or 0 for cost in costs),
        uncounted=sum(cost.macs is None for cost in costs),
    )


class _Walk:
    """Goes through the nodes in order and remembers which values are computed from constants alone."""

    def __init__(self) -> None:
        # The constants behind a value, with their types: the value's own may not have been inferred.
        self._constant: dict[ir.Value, tuple[tuple[Weight, ir.DataType], ...]] = {}

    def graph(self, graph: ir.Graph, scope: str, times: int) -> Iterator[LayerCost]:
        for value in graph.initializers.values():
            self._constant[value] = _constant(value, scope)
        for index, node in enumerate(graph):
            if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
                self._constant[node.outputs[0]] = _constant(node.outputs[0], scope)
            else:
                yield from self._node(node, scope + (node.name or f"{node.op_type}_{index}"), times)

    def _node(self, node: ir.Node, name: str, times: int) -> Iterator[LayerCost]:
        weights = self._weights(node)
        bodies = {a.name: a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH}
        count: int | None = 0
        written: int | None = 0
        notes: list[str] = []
        inner: tuple[LayerCost, ...] = ()
        if bodies:
            inner, stored = self._bodies(node, bodies, name, times, notes)
            weights += stored
        if self._is_constant(node) and not bodies:
            kept = {w.name: w for w in weights}
            behind = [pair for value in node.inputs if value is not None for pair in self._constant[value]]
            behind = [(kept[weight.name], kind) for weight, kind in behind if weight.name in kept]
            self._constant.update((value, tuple(behind)) for value in node.outputs)
            weights = ()
            notes.append("computed from constants alone")
        else:
            count = _known(lambda: macs(node) * times, "MACs", notes)
            written = _known(lambda: sum(_bytes(v) for v in node.outputs if v.name) * times, "activation bytes", notes)
        yield LayerCost(
            name=name,
            op=node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}",
            inputs=tuple(() if value is None else _shape(value) for value in node.inputs),
            outputs=tuple(_shape(value) for value in node.outputs),
            macs=count,
            activation_bytes=written,
            weights=weights,
            notes=tuple(notes),
        )
        yield from inner

    def _bodies(
        self, node: ir.Node, bodies: Mapping[str, ir.Graph], name: str, times: int, notes: list[str]
    ) -> tuple[tuple[LayerCost, ...], tuple[Weight, ...]]:
        """The layers of the subgraphs that count, and the weights of those that do not: stored all the same."""
        repeats = _repeats(node, notes)
        costs = {key: tuple(self.graph(body, f"{name}/{key}/", times * repeats)) for key, body in bodies.items()}
        if node.op_type != "If":
            return tuple(cost for layers in costs.values() for cost in layers), ()
        work = {key: total(layers) for key, layers in costs.items()}
        taken = max(costs, key=lambda key: (work[key].macs, work[key].params, key == "then_branch"))
        counted = costs.pop(taken)
        notes.extend(f"{taken} is counted; {key} needs {work[key].macs:,} MACs" for key in costs)
        weights = (weight for layers in costs.values() for cost in layers for weight in cost.weights)
        return counted, tuple(dict.fromkeys(weights))

    def _is_constant(self, node: ir.Node) -> bool:
        given = [value for value in node.inputs if value is not None]
        return bool(given) and node.op_type not in _RANDOM and all(value in self._constant for value in given)

    def _weights(self, node: ir.Node) -> tuple[Weight, ...]:
        """The weights that `node` reads, each once, judged by the place they are read at."""
        found: dict[str, Weight] = {}
        for index, value in enumerate(node.inputs):
            if value is None or index in _SETTINGS.get(node.op_type, ()):
                continue
            for weight, kind in self._constant.get(value, ()):
                if index in _SCALES.get(node.op_type, ()):
                    found.setdefault(weight.name, Weight(weight.name, 0, weight.bytes))
                elif (
                    (value.dtype or kind) in _ALWAYS_LEARNT
                    or _indexes_palette(node, index, kind)
                    or index in _WIDE_INTEGERS.get(node.op_type, ())
                ):
                    found[weight.name] = weight
        return tuple(found.values())


def _indexes_palette(node: ir.Node, index: int, kind: ir.DataType) -> bool:
    """Whether the constant of type `kind` behind an input holds indices of a palette, an element of a weight each."""
    return (
        index == 1 and node.op_type in ("Gather", "GatherElements") and kind in (ir.DataType.UINT8, ir.DataType.UINT4)
    )


def _constant(value: ir.Value, scope: str) -> tuple[tuple[Weight, ir.DataType], ...]:
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:  # strings and sparse tensors
        return ()
    return ((Weight(scope + (value.name or ""), int(tensor.size), int(tensor.nbytes)), tensor.dtype),)


def _bytes(value: ir.Value) -> int:
    if value.dtype is None or value.dtype in (ir.DataType.UNDEFINED, ir.DataType.STRING):
        raise UnknownSizeError(f"the size of an element of '{value.name}' is unknown")
    return (prod(dims(value)) * value.dtype.bitwidth + 7) // 8


def _shape(value: ir.Value) -> Shape | None:
    if value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else (size.value or "?") for size in value.shape)


def _known(count: Callable[[], int], what: str, notes: list[str]) -> int | None:
    """The count, or None and a note that says which size is unknown."""
    try:
        return count()
    except UnknownSizeError as error:
        notes.append(f"{what} not counted: {error}")
    except (IndexError, ValueError, ZeroDivisionError):  # a rank or head count that the operator does not allow
        notes.append(f"{what} not counted: the shapes do not fit the operator")
    return None


def _repeats(node: ir.Node, notes: list[str]) -> int:
    """How often the bodies of `node` are counted; a note says why unless that is plain."""
    if node.op_type == "If":
        return 1
    if node.op_type == "Loop":
        trip = None if node.inputs[0] is None else ir.convenience.get_const_tensor(node.inputs[0])
        if trip is None:
            notes.append("the trip count is not a constant: the body is counted once")
            return 1
        count = max(int(trip.numpy().item()), 0)
        notes.append(f"the body is counted {count} times, its greatest trip count")
        return count
    if node.op_type == "Scan":
        sequences = node.attributes.get_int("num_scan_inputs", 1)
        axis = node.attributes.get_ints("scan_input_axes", [0] * sequences)[0]
        length = _known(lambda: dims(node.inputs[-sequences])[axis], "repetitions", notes)
        if length is None:
            notes.append("the body is counted once")
            return 1
        notes.append(f"the body is counted {length} times, the length of its sequence")
        return length
    notes.append("how often the body runs is not known: it is counted once")
    return 1


_ALWAYS_LEARNT = frozenset(kind for kind in ir.DataType if kind.is_floating_point()) | {
    ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT2, ir.DataType.UINT2,
}  # fmt: skip

# By operator, the inputs that are weights though their integers are wider than 8 bits.
_WIDE_INTEGERS: Mapping[str, frozenset[int]] = {"DequantizeLinear": frozenset({0}), "QLinearConv": frozenset({8})}

# By operator, the inputs that say how numbers are quantized.
_SCALES: Mapping[str, frozenset[int]] = {
    "ConvInteger": frozenset({2, 3}),
    "DequantizeLinear": frozenset({1, 2}),
    "MatMulInteger": frozenset({2, 3}),
    "QLinearConv": frozenset({1, 2, 4, 5, 6, 7}),
    "QLinearMatMul": frozenset({1, 2, 4, 5, 6, 7}),
    "QuantizeLinear": frozenset({1, 2}),
}

# By operator, the floating-point inputs that were not learnt.
_SETTINGS: Mapping[str, frozenset[int]] = {
    "Clip": frozenset({1, 2}),
    "Dropout": frozenset({1, 2}),
    "NonMaxSuppression": frozenset({3, 4}),
    "OneHot": frozenset({2}),
    "Pad": frozenset({2}),
    "Range": frozenset({0, 1, 2}),
    "Resize": frozenset({1, 2}),
    "Upsample": frozenset({1}),
}

_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
