"""Merge what only bounds its input: Relu, Clip, and Max or Min with a scalar.

Each is x ↦ min(max(x, low), high). One after the other is again of that form: the composition is monotone and is x
itself between its bounds, so its bounds are where the outer operator sends the inner one's. (Taking the larger low and
the smaller high, as onnxscript's rules do, is wrong where the two ranges do not meet: first [0, 1], then [2, 3] gives
2 everywhere, not 1.)
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import onnx_ir as ir

from graphopt.ir.reading import constant, is_standard, opset_of
from graphopt.passes.cleanup.constants import layer_name, remove_unused_constant, set_constant
from graphopt.pipeline.base import Declined

_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})


@dataclasses.dataclass(frozen=True)
class Bounds:
    """min(max(x, low), high), with low ≤ high; infinite where there is no bound."""

    low: float
    high: float

    def of(self, number: float) -> float:
        """The number, bounded."""
        return min(max(number, self.low), self.high)

    def after(self, first: Bounds) -> Bounds:
        """First the other, then this."""
        return Bounds(self.of(first.low), self.of(first.high))


def bounds_of(node: ir.Node) -> tuple[ir.Value, Bounds] | None:
    """What a Relu, Clip, Max or Min bounds, and by what; None if it is something else or not by constants."""
    if not is_standard(node, "Relu", "Clip", "Max", "Min") or node.outputs[0].dtype not in _FLOATS:
        return None
    source = node.inputs[0]
    if node.op_type == "Relu":
        return None if source is None else (source, Bounds(0.0, math.inf))
    if node.op_type == "Clip":
        low, high = _bound(node, "min", 1, -math.inf), _bound(node, "max", 2, math.inf)
        # with low > high ONNX gives high everywhere
        return None if source is None or low is None or high is None else (source, Bounds(min(low, high), high))
    if len(node.inputs) != 2:
        return None
    for value, other in (tuple(node.inputs), tuple(reversed(node.inputs))):
        scalar = constant(other)
        if value is None or scalar is None or scalar.size != 1 or constant(value) is not None:
            continue
        if scalar.ndim and (value.shape is None or len(value.shape) < scalar.ndim):
            return None  # the scalar may give the result more axes
        number = float(scalar.astype(np.float64).reshape(-1)[0])
        if math.isnan(number):
            return None
        return value, Bounds(number, math.inf) if node.op_type == "Max" else Bounds(-math.inf, number)
    return None


def _bound(node: ir.Node, attribute: str, index: int, default: float) -> float | None:
    """A bound of a Clip in either form: `default` if it has none, None if it is not a known number."""
    if attribute in node.attributes:
        return float(node.attributes.get_float(attribute, default))
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return default
    array = constant(value)
    if array is None or array.size != 1 or np.isnan(array.astype(np.float64)).any():
        return None
    return float(array.astype(np.float64).reshape(-1)[0])


def merge_bounds(model: ir.Model) -> tuple[int, list[Declined]]:
    """Merge in every graph of `model`: the number of operators that are gone or became a Relu, and what stayed."""
    count, declined = 0, list[Declined]()
    opset = opset_of(model)
    for node in list(model.graph.all_nodes()):
        found = bounds_of(node)
        if found is None:
            continue
        source, bounds = found
        first = source.producer()
        inner = None if first is None else bounds_of(first)
        if first is None or inner is None:
            count += _as_relu(node, source, bounds)
            continue
        reason = _why_not(node, first)
        if reason:
            declined.append(Declined(layer_name(node), reason))
            continue
        _bound_by(node, inner[0], bounds.after(inner[1]), opset)
        _remove(first)
        count += 1
    return count, declined


def _why_not(node: ir.Node, first: ir.Node) -> str:
    what = f"{first.op_type} '{first.name}' before it"
    if first.graph is not node.graph:
        return f"{what} is outside of its subgraph"
    if len(first.outputs[0].uses()) > 1 or first.outputs[0].is_graph_output():
        return f"the output of {what} is also used elsewhere"
    return ""


def _as_relu(node: ir.Node, source: ir.Value, bounds: Bounds) -> bool:
    """Write a lone Max(x, 0), or Clip from 0 without an upper bound, as Relu."""
    if node.op_type == "Relu" or bounds != Bounds(0.0, math.inf):
        return False
    _bound_by(node, source, bounds, opset=0)
    return True


def _bound_by(node: ir.Node, source: ir.Value, bounds: Bounds, opset: int) -> None:
    """Make `node` the Relu or Clip that bounds `source` by `bounds`, in the form of `opset`."""
    graph = node.graph
    if not isinstance(graph, ir.Graph):
        raise TypeError(f"{node.op_type} '{node.name}' is not in a graph")
    relu = bounds == Bounds(0.0, math.inf)
    new = ir.Node("", "Relu" if relu else "Clip", [source], name=node.name, metadata_props=dict(node.metadata_props))
    output = node.outputs[0]
    new.outputs[0].name, output.name = output.name, None
    new.outputs[0].type, new.outputs[0].shape = output.type, output.shape
    graph.insert_before(node, new)
    output.replace_all_uses_with(new.outputs[0], replace_graph_outputs=True)
    if not relu:
        _set_bounds(new, bounds, opset)
    _remove(node)


def _set_bounds(node: ir.Node, bounds: Bounds, opset: int) -> None:
    dtype = node.outputs[0].dtype or ir.DataType.FLOAT
    for index, (name, number) in enumerate((("min", bounds.low), ("max", bounds.high)), start=1):
        if math.isinf(number) and (number < 0) == (name == "min"):
            continue  # no bound
        if opset < 11:
            node.attributes[name] = ir.AttrFloat32(name, number)
        else:
            set_constant(node, index, np.array(number, dtype=dtype.numpy()), base=f"{node.outputs[0].name}_{name}")


def _remove(node: ir.Node) -> None:
    if node.graph is None:
        return
    inputs = [value for value in node.inputs if value is not None]
    node.graph.remove(node, safe=True)
    for value in inputs:
        remove_unused_constant(value)
