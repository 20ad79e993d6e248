"""What layers cost, as functions of how many positions of their axes stay, without building the graph.

MACs and numbers of weights are products of sizes: each axis that loses positions scales them. Time is the estimate of
`factorize.kernel_time`, of convolutions, products and recurrences as their matrices; a depthwise convolution counts its
products in whole vectors alone. Layers that only move or map numbers take no time here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.channels import Channels, Labels
from graphopt.analysis.cost import layer_costs
from graphopt.analysis.macs import UnknownSizeError, dims, macs
from graphopt.ir.reading import constant, is_standard
from graphopt.passes.factorize.kernel_time import Kernels

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Extent:
    """An axis: its size, and the unit of each position; None if it stays whole."""

    size: int
    units: Labels | None

    def left(self, kept: Array) -> int:
        """Positions when the units of `kept`, bool [count], stay."""
        return self.size if self.units is None else int(kept[self.units].sum())


@dataclass(frozen=True)
class Term:
    """A cost that grows with the sizes of axes."""

    axes: tuple[Extent, ...]
    of: Callable[..., float]  # of a size for each axis

    def left(self, kept: Array) -> float:
        """The cost when the units of `kept`, bool [count], stay."""
        return self.of(*(axis.left(kept) for axis in self.axes))

    def touches(self, gone: Array) -> bool:
        """Whether an axis loses positions to `gone`, bool [count]."""
        return any(axis.units is not None and bool(gone[axis.units].any()) for axis in self.axes)


def of_macs(model: ir.Model, found: Channels) -> Iterator[Term]:
    """Multiply-accumulates of the nodes of the main graph."""
    for node in model.graph:
        count = _macs(node)
        if not count:
            continue
        if node.op_type in _RECURRENT:
            weights = node.inputs[1:3]
            sizes = [array.size if (array := constant(weight)) is not None else 0 for weight in weights]
            for weight, size in zip(weights, sizes, strict=True):
                yield _product(count * size / max(sum(sizes), 1), _labelled(weight, (1, 2), found))
        elif node.op_type in ("Conv", "ConvTranspose"):
            yield _product(count, _labelled(node.inputs[1], (0, 1), found))
        else:
            inner = _inner(node, found)
            yield _product(count, (*_extents(node.outputs[0], found), *([inner] if inner.units is not None else [])))


def of_params(model: ir.Model, found: Channels) -> Iterator[Term]:
    """Learnt numbers, as the report counts them."""
    yield from _of_weights(model, found, "params")


def of_bytes(model: ir.Model, found: Channels) -> Iterator[Term]:
    """Bytes of the weights."""
    yield from _of_weights(model, found, "bytes")


def of_channels(model: ir.Model, found: Channels) -> Iterator[Term]:
    """Channels that products, convolutions and recurrences have, added up over these layers."""
    for node in model.graph:
        if not is_standard(node, *_WIDE):
            continue
        units = found.units_of(*_WIDE[node.op_type](node))
        if units is not None:
            yield _product(len(units), (Extent(len(units), units),))


def _columns(node: ir.Node) -> tuple[ir.Value | None, int]:
    """Of a constant matrix on the right; a product of two computed values has none."""
    weight = node.inputs[1]
    array = constant(weight)
    if array is None:
        return None, 0
    return weight, 0 if node.attributes.get_int("transB", 0) != 0 else array.ndim - 1


_RECURRENT = ("LSTM", "GRU", "RNN")

# The axis of a value that holds a layer's channels.
_WIDE: Mapping[str, Callable[[ir.Node], tuple[ir.Value | None, int]]] = {
    **dict.fromkeys(("Conv", "ConvTranspose"), lambda node: (node.outputs[0], 1)),
    **dict.fromkeys(("Gemm", "MatMul"), _columns),
    **dict.fromkeys(_RECURRENT, lambda node: (node.inputs[2], 2)),
}


def of_time(model: ir.Model, found: Channels, kernels: Kernels) -> Iterator[Term]:
    """Estimated cycles of the nodes of the main graph."""
    for node in model.graph:
        if not _macs(node):
            continue
        if node.op_type in _RECURRENT:
            yield from _recurrence(node, found, kernels)
        elif node.op_type in ("Conv", "ConvTranspose"):
            yield _convolution(node, found, kernels)
        else:
            yield _matrices(node, found, kernels)


def _macs(node: ir.Node) -> int:
    """0 if they are not known."""
    if not is_standard(node):
        return 0
    try:
        return macs(node)
    except UnknownSizeError:
        return 0


def _product(amount: float, axes: tuple[Extent, ...]) -> Term:
    whole = max(prod(axis.size for axis in axes), 1)
    return Term(axes, lambda *sizes: amount * prod(sizes) / whole)


def _extents(value: ir.Value | None, found: Channels) -> tuple[Extent, ...]:
    """All axes of a value."""
    sizes = dims(value)
    return tuple(Extent(size, found.units_of(value, axis)) for axis, size in enumerate(sizes))


def _labelled(value: ir.Value | None, axes: tuple[int, ...], found: Channels) -> tuple[Extent, ...]:
    """Those of the axes that may lose positions."""
    return tuple(Extent(len(units), units) for axis in axes if (units := found.units_of(value, axis)) is not None)


def _inner(node: ir.Node, found: Channels) -> Extent:
    """The axis that a product sums over."""
    first, second = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
    sizes = dims(first)
    summed = 0 if node.op_type == "Gemm" and node.attributes.get_int("transA", 0) != 0 else len(sizes) - 1
    units = found.units_of(first, summed)
    if units is None and second is not None and second.shape is not None:
        transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0
        units = found.units_of(second, 1 if transposed else max(len(second.shape) - 2, 0))
    return Extent(sizes[summed], units)


def _of_weights(model: ir.Model, found: Channels, what: str) -> Iterator[Term]:
    weights = {weight.name: weight for cost in layer_costs(model) for weight in cost.weights}
    values = {str(value.name): value for value in found.axes}
    for name, weight in weights.items():
        value = values.get(name)
        axes = _labelled(value, tuple(found.axes[value]), found) if value is not None else ()
        yield _product(getattr(weight, what), axes)


def _convolution(node: ir.Node, found: Channels, kernels: Kernels) -> Term:
    groups = node.attributes.get_int("group", 1)
    weight = node.inputs[1]
    shape = dims(weight)
    axes = _extents(weight, found)[:2]
    window = prod(shape[2:])
    if node.op_type == "ConvTranspose":
        rows = prod(dims(node.inputs[0])) // shape[0]

        def spread(ins: int, outs: int) -> float:
            parts = ins if groups == shape[0] else groups  # surgery takes the group with its one channel
            return parts * kernels.cycles(rows, ins // parts, outs * window)

        return Term(axes, spread)
    result = dims(node.outputs[0])
    rows, line = prod(result) // shape[0], result[-1] if window > 1 else 0
    ones = (1, 1)
    plain = all(tuple(node.attributes.get_ints(name, ones)) == ones for name in ("strides", "dilations"))
    winograd = shape[2:] == (3, 3) and plain
    depthwise = groups > 1 and shape[1] == 1

    def cycles(outs: int, ins: int) -> float:
        parts = outs * groups // shape[0] if depthwise else groups
        if parts > 1 and ins == 1:  # as wide groups may become
            return kernels.by_channel(rows, window, outs)
        served = winograd and parts == 1
        return parts * kernels.window(rows, ins * window, outs // parts, line, winograd=served)

    return Term(axes, cycles)


def _matrices(node: ir.Node, found: Channels, kernels: Kernels) -> Term:
    second = node.inputs[1] if len(node.inputs) > 1 else None
    batched = node.op_type == "MatMul" and second is not None and len(dims(second)) > 2

    def cycles(features: int, *sizes: int) -> float:
        *leading, outputs = sizes or (1,)
        rows = leading.pop() if leading and batched else 1
        times = prod(leading)
        return times * kernels.cycles(rows, features, outputs) if batched else kernels.cycles(times, features, outputs)

    return Term((_inner(node, found), *_extents(node.outputs[0], found)), cycles)


def _recurrence(node: ir.Node, found: Channels, kernels: Kernels) -> Iterator[Term]:
    steps, batch, _ = dims(node.inputs[0])
    for weight in node.inputs[1:3]:
        directions = dims(weight)[0]

        def cycles(outputs: int, features: int, times: int = directions * steps) -> float:
            return times * kernels.of_recurrences.cycles(batch, features, outputs)

        yield Term(_extents(weight, found)[1:], cycles)
