"""Compute in float16 where the core has the arithmetic: twice as many numbers in a vector, half the bytes.

    y = cast₃₂( op( cast₁₆(x), float16(w) ) )

Products, and what lies between them and moves, adds, scales or bounds single numbers, become float16; a Cast stands
where such a region begins and where it ends, and the model's inputs and outputs stay float32. 11 bits of significand
cost up to 2^-11 of each number, sums included: on ARM they are kept in float16. What sums many numbers (means, norms,
softmax) or spans many powers of ten (exp, log, powers, roots, quotients) stays in float32.

A 3×3 convolution that Winograd's algorithm serves (ADR 15) stays in float32 where that takes less time than twice the
numbers in a vector: float16 has too few bits for its transforms.

float16 ends at 65504. A layer whose results come within a quarter of that on the calibration samples stays in float32;
without samples the report says that ranges are unknown.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import networkx as nx
import numpy as np
import onnx_ir as ir

from graphopt.analysis.calibration import histograms
from graphopt.analysis.quantization import quantized_node
from graphopt.ir.reading import constant, is_standard, static_shape
from graphopt.passes.cleanup.constants import layer_name, remove_unused_constant
from graphopt.passes.cleanup.rewiring import add_initializer, fresh_name
from graphopt.passes.factorize.kernel_time import Kernels
from graphopt.passes.quantize.naming import fresh_node_name
from graphopt.passes.quantize.serving import check_served
from graphopt.pipeline.base import Declined, Pass, PassContext, PassResult, option

Array = np.ndarray[Any, Any]

SCHEME = "float16"
LARGEST = float(np.finfo(np.float16).max)
_CAST = 0.5  # cycles of a number that is cast
HEADROOM = 4.0  # that the largest number seen leaves to those not seen

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_SINGLE = frozenset({"Add", "Sub", "Mul", "Relu", "LeakyRelu", "PRelu", "Clip", "HardSwish", "HardSigmoid", "MaxPool"})
_MOVING = frozenset(
    {"Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice", "SpaceToDepth"}
    | {"Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)
_TAKEN = _PRODUCTS | _SINGLE | _MOVING


@dataclass(frozen=True)
class ComputeFloat16(Pass):
    """Compute products, and what lies between them, in float16."""

    name: ClassVar[str] = "compute-float16"
    exact: ClassVar[bool] = False

    exclude: tuple[str, ...] = option((), "names of nodes that stay in float32, with * and ?")

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Rewrite the main graph.

        Raises:
            UsageError: the target has no arithmetic on float16.
            DataError: the samples do not fit the model.
        """
        check_served(context.target, SCHEME)
        if (layer := quantized_node(model)) is not None:
            reason = "the model is quantized already"
            return PassResult(False, declined=(Declined(layer_name(layer), reason),))
        target = context.target
        kernels = Kernels() if target is None else Kernels.of(target.vector_bits, target.channel_multiple)
        nodes = [node for node in model.graph if is_standard(node, *_TAKEN) and _floats(node)]
        reasons = {node: said for node in nodes if (said := self._obstacle(node, kernels)) is not None}
        region = _with_products([node for node in nodes if node not in reasons])
        statistics: dict[str, int | float | str] = {}
        if context.calibration is not None and region:
            beyond = _beyond(model, region, context)
            reasons |= beyond
            region = _with_products([node for node in region if node not in beyond])
        elif region:
            statistics["ranges"] = "unknown: there are no samples"
        declined = [Declined(layer_name(node), reason) for node, reason in reasons.items() if _is_product(node)]
        inner = [n for n in model.graph.all_nodes() if n.graph is not model.graph and is_standard(n, *_PRODUCTS)]
        declined += [Declined(layer_name(node), "it is in a subgraph") for node in inner]
        if region:
            casts = _convert(model.graph, region)
            statistics |= {"products": sum(map(_is_product, region)), "nodes": len(region), "casts": casts}
        return PassResult(bool(region), statistics, tuple(declined))

    def _obstacle(self, node: ir.Node, kernels: Kernels) -> str | None:
        pattern = next((each for each in self.exclude if fnmatch.fnmatchcase(layer_name(node), each)), None)
        if pattern is not None:
            return f"it is excluded by '{pattern}'"
        if any(each is not None and each.dtype == ir.DataType.DOUBLE for each in (*node.inputs, *node.outputs)):
            return "it computes in double"
        for value in node.inputs:
            array = constant(value)
            if array is None or array.dtype != np.float32:
                continue
            if np.isnan(array).any() or (_is_product(node) and not np.isfinite(array).all()):
                return "a constant of it holds NaN or infinity"
            largest = float(np.abs(array, where=np.isfinite(array), out=np.zeros_like(array)).max(initial=0))
            bound = node.op_type == "Clip"  # beyond what float16 holds it bounds nothing
            if largest > LARGEST and not bound:
                return f"a constant of it holds {largest:.4g}, and float16 ends at {LARGEST:.0f}"
        return "Winograd's algorithm in float32 takes less time" if _is_faster_by_winograd(node, kernels) else None


def _is_faster_by_winograd(node: ir.Node, kernels: Kernels) -> bool:
    weight = constant(node.inputs[1]) if node.op_type == "Conv" else None
    result = static_shape(node.outputs[0])
    ones = (1, 1)
    if weight is None or result is None or weight.shape[2:] != (3, 3) or node.attributes.get_int("group", 1) != 1:
        return False
    if any(tuple(node.attributes.get_ints(name, ones)) != ones for name in ("strides", "dilations")):
        return False
    filters, channels = weight.shape[:2]
    places, line = math.prod((result[0], *result[2:])), result[-1]
    halves = replace(kernels, lanes=2 * kernels.lanes)
    casts = _CAST * places * (channels + filters)
    alone = kernels.winograd(places, channels, filters, line)
    return bool(alone + casts < halves.cycles(places, channels * weight[0, 0].size, filters, line))


def _is_product(node: ir.Node) -> bool:
    return node.op_type in _PRODUCTS


def _floats(node: ir.Node) -> bool:
    """Whether `node` makes float32 from float32 that is not all constant."""
    inputs = _operands(node)
    return (
        all(output.dtype == ir.DataType.FLOAT for output in node.outputs[:1])
        and any(value.dtype == ir.DataType.FLOAT for value in inputs)
        and any(constant(value) is None for value in inputs)
    )


def _operands(node: ir.Node) -> list[ir.Value]:
    """The inputs that are numbers, not shapes or places."""
    return [value for value in node.inputs if value is not None and value.dtype == ir.DataType.FLOAT]


def _with_products(nodes: Iterable[ir.Node]) -> list[ir.Node]:
    """Those of `nodes` that hang together with a product: without one, a region saves no time."""
    order = list(nodes)
    graph = nx.Graph()
    graph.add_nodes_from(order)
    for node in order:
        graph.add_edges_from((p, node) for value in _operands(node) if (p := value.producer()) in graph)
    kept = {node for part in nx.connected_components(graph) if any(map(_is_product, part)) for node in part}
    return [node for node in order if node in kept]


def _beyond(model: ir.Model, region: list[ir.Node], context: PassContext) -> dict[ir.Node, str]:
    """Nodes of which something is not a number of float16, or nearly not, on the samples; with the reason."""
    samples = context.calibration
    if samples is None:
        return {}
    values = {
        str(value.name): None
        for node in region
        for value in (*_operands(node), *node.outputs[:1])
        if constant(value) is None
    }
    found = histograms(model, list(values), samples, context.progress)
    reasons = {}
    for node in region:
        for value in (*_operands(node), *node.outputs[:1]):
            seen = found.get(str(value.name))
            if seen is None or not seen.total:
                continue
            largest = max(abs(seen.low), abs(seen.high))
            if largest * HEADROOM > LARGEST:
                reasons[node] = (
                    f"'{value.name}' reaches {largest:.4g} on the samples, and float16 ends at {LARGEST:.0f}"
                )
    return reasons


def _convert(graph: ir.Graph, region: list[ir.Node]) -> int:
    """Let the nodes compute in float16, with a Cast at each way in and out; how many were added."""
    inside = set(region)
    halves: dict[ir.Value, ir.Value] = {}
    casts = 0
    for node in region:
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype != ir.DataType.FLOAT or value.producer() in inside:
                continue
            if value not in halves:
                array = constant(value)
                casts += array is None
                halves[value] = (
                    _cast(graph, value, ir.DataType.FLOAT16)
                    if array is None
                    else add_initializer(graph, f"{value.name}/float16", _half(array))
                )
            node.replace_input_with(index, halves[value])
    for value in halves:
        remove_unused_constant(value)
    for node in region:
        for output in node.outputs:
            if output.dtype != ir.DataType.FLOAT:
                continue
            outside = [(user, index) for user, index in output.uses() if user not in inside]
            if outside or output.is_graph_output():
                casts += 1
                _leave(graph, output, outside)
            output.type = ir.TensorType(ir.DataType.FLOAT16)
    return casts


def _half(array: Array) -> Array:
    """Rounded; what a Clip bounds beyond float16 becomes infinity."""
    with np.errstate(over="ignore"):
        return array.astype(np.float16)


def _leave(graph: ir.Graph, output: ir.Value, outside: Iterable[tuple[ir.Node, int]]) -> None:
    """A Cast behind `output` for all that reads it outside; as an output of the graph the Cast's takes its name."""
    back = _cast(graph, output, ir.DataType.FLOAT)
    for user, index in outside:
        user.replace_input_with(index, back)
    if output.is_graph_output():
        name, output.name = output.name, fresh_name(graph, f"{output.name}/float16")
        back.name = name
        for position, value in enumerate(graph.outputs):
            if value is output:
                graph.outputs[position] = back


def _cast(graph: ir.Graph, value: ir.Value, to: ir.DataType) -> ir.Value:
    """A Cast right behind what makes `value`."""
    kind = "float16" if to == ir.DataType.FLOAT16 else "float32"
    node = ir.node("Cast", [value], attributes={"to": int(to)}, name=fresh_node_name(graph, f"{value.name}/{kind}"))
    output = node.outputs[0]
    output.name, output.type, output.shape = fresh_name(graph, f"{value.name}/{kind}"), ir.TensorType(to), value.shape
    producer = value.producer()
    if producer is not None and producer.graph is graph:
        graph.insert_after(producer, node)
    else:
        graph.insert_before(graph[0], node)
    return output
