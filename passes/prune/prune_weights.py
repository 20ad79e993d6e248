"""Prune weights: the smallest become zero, one by one, and the shapes stay.

    w' = w where s(w) is among the largest, else 0

layer    s = |w|, a threshold for each weight tensor; every one gets the same fraction of zeros.
global   s = |w|, one threshold for all.
lamp     s = w² / Σ v² over the v of the same tensor with v² ≥ w², one threshold for all: so a tensor of small numbers
         is not emptied, and its largest number always stays (J. Lee and others, Layer-adaptive sparsity for the
         magnitude-based pruning, 2021).
n:m      of each m weights side by side along the axis that is summed over, the n largest stay (A. Mishra and others,
         Accelerating sparse deep neural networks, 2021).

What becomes smaller is the library with --compress: its coder stores zeros in a fraction of a bit. The kernels are
dense and multiply by zero as by any other number, so that neither time nor memory of a run changes.
"""

from __future__ import annotations

import enum
import fnmatch
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.analysis.quantization import quantized_node
from graphopt.errors import UsageError
from graphopt.ir.palettes import palette_of
from graphopt.ir.reading import constant, is_standard
from graphopt.passes.cleanup.constants import layer_name
from graphopt.pipeline.base import Declined, Pass, PassContext, PassResult, option

Array = np.ndarray[Any, Any]

NO_FASTER = "dense kernels take as long as before: zeros save storage with --compress alone"


class Threshold(enum.Enum):
    """What a weight is compared with."""

    LAYER = "layer"
    GLOBAL = "global"
    LAMP = "lamp"


def _gemm_axis(transposed: str, plain: int) -> Callable[[ir.Node], int]:
    return lambda node: 1 - plain if node.attributes.get_int(transposed, 0) != 0 else plain


# The inputs of a layer that are weights, and the axis of each that is summed over.
_SUMMED: Mapping[str, Mapping[int, Callable[[ir.Node], int]]] = {
    "Conv": {1: lambda _: 1},
    "ConvTranspose": {1: lambda _: 0},
    "Gemm": {0: _gemm_axis("transA", 1), 1: _gemm_axis("transB", 0)},
    "MatMul": {0: lambda _: -1, 1: lambda _: -2},
    **{operator: {1: lambda _: 2, 2: lambda _: 2} for operator in ("LSTM", "GRU", "RNN")},
}


@dataclass(frozen=True)
class _Weight:
    """A weight tensor: the layers that read it, and the axes that they sum over, counted from the front."""

    value: ir.Value
    nodes: list[ir.Node]
    axes: set[int]


@dataclass(frozen=True)
class PruneWeights(Pass):
    """Set the smallest float weights to zero, for storage with --compress; dense kernels run no faster for it."""

    name: ClassVar[str] = "prune-weights"
    exact: ClassVar[bool] = False

    sparsity: float = option(0.5, "fraction of the weights that are zero afterwards, where no pattern is given")
    threshold: Threshold = option(Threshold.LAMP, "of magnitudes: of each layer, one for all, or one of LAMP's scores")
    pattern: str = option("", "n:m, as 2:4: of each m weights along the summed axis n stay")
    exclude: tuple[str, ...] = option((), "names of layers whose weights stay, with * and ?")

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Prune the weights of products, convolutions and recurrent layers, in subgraphs too.

        Raises UsageError if the sparsity is out of range, or the pattern is none.
        """
        if not 0 <= self.sparsity < 1:
            raise UsageError(f"sparsity is {self.sparsity}, expected 0 or more and less than 1")
        pattern = _parsed(self.pattern)
        if (quantized := quantized_node(model)) is not None:
            return PassResult(False, declined=(Declined(layer_name(quantized), "its weights are quantized already"),))
        weights = _weights(model)
        reasons = [self._reason(weight, pattern) for weight in weights]
        declined = tuple(
            Declined(layer_name(weight.nodes[0]), f"'{weight.value.name}': {reason}")
            for weight, reason in zip(weights, reasons, strict=True)
            if reason
        )
        chosen = [weight for weight, reason in zip(weights, reasons, strict=True) if not reason]
        arrays = [_array(weight) for weight in chosen]
        if pattern is not None:
            masks = [_of_each(array, min(weight.axes), *pattern) for weight, array in zip(chosen, arrays, strict=True)]
        elif self.threshold is Threshold.LAYER:
            masks = [_smallest([np.abs(array)], self.sparsity)[0] for array in arrays]
        else:
            score = np.abs if self.threshold is Threshold.GLOBAL else _lamp
            masks = _smallest([score(array) for array in arrays], self.sparsity)
        pruned = [np.where(mask, np.zeros((), array.dtype), array) for array, mask in zip(arrays, masks, strict=True)]
        changed = False
        for weight, array, mask, left in zip(chosen, arrays, masks, pruned, strict=True):
            if array[mask].any():
                weight.value.const_value = ir.Tensor(left, name=weight.value.name)
                changed = True
        return PassResult(changed, _statistics(arrays, pruned), declined)

    def _reason(self, weight: _Weight, pattern: tuple[int, int] | None) -> str:
        """Why a weight is left as it is; nothing if it is pruned."""
        excluded = next(
            (n for n in weight.nodes if any(fnmatch.fnmatchcase(n.name or "", p) for p in self.exclude)), None
        )
        if excluded is not None:
            return f"'{excluded.name}' is excluded"
        value = weight.value
        if palette_of(value) is not None:
            return "it is a palette; prune before palettize"
        array = constant(value)
        if array is None:
            return "it is stored as float16; prune before convert-float16"
        if not value.is_initializer():
            return "it is a Constant node, which fold-constants makes an initializer"
        if value.is_graph_output():
            return "it is an output of the graph"
        if not np.isfinite(array).all():
            return "it holds NaN or infinities"
        if pattern is None:
            return ""
        if len(weight.axes) > 1:
            return "the layers that share it sum over different axes"
        axis = min(weight.axes)
        if array.shape[axis] % pattern[1]:
            return f"{array.shape[axis]} numbers along the summed axis are no multiple of {pattern[1]}"
        return ""


def _parsed(pattern: str) -> tuple[int, int] | None:
    if not pattern:
        return None
    parts = pattern.split(":")
    if len(parts) == 2 and all(part.isdecimal() for part in parts):
        stay, of = int(parts[0]), int(parts[1])
        if 0 < stay < of:
            return stay, of
    raise UsageError(f"pattern is '{pattern}', expected n:m with 0 < n < m, as 2:4")


def _weights(model: ir.Model) -> list[_Weight]:
    """The float weights of all layers, in the order of the graph, each once."""
    found: dict[ir.Value, _Weight] = {}
    for node in model.graph.all_nodes():
        for value, axis in _of(node):
            weight = found.setdefault(value, _Weight(value, [], set()))
            weight.nodes.append(node)
            weight.axes.add(axis)
    return list(found.values())


def _of(node: ir.Node) -> Iterator[tuple[ir.Value, int]]:
    if not is_standard(node) or node.op_type not in _SUMMED:
        return
    for index, axis in _SUMMED[node.op_type].items():
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None or value.dtype is None or not value.dtype.is_floating_point():
            continue
        if value.shape is None or len(value.shape) < 2:
            continue
        if constant(value) is not None or palette_of(value) is not None or _is_cast(value):
            yield value, axis(node) % len(value.shape)


def _is_cast(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and is_standard(producer, "Cast") and constant(producer.inputs[0]) is not None


def _array(weight: _Weight) -> Array:
    array = constant(weight.value)
    assert array is not None  # _reason asked
    return array


def _lamp(array: Array) -> Array:
    squares = np.square(array, dtype=np.float64).reshape(-1)
    order = np.argsort(squares, kind="stable")
    rising = squares[order]
    scores = np.empty_like(squares)
    scores[order] = rising / np.maximum(np.cumsum(rising[::-1])[::-1], 1e-300)
    return scores.reshape(array.shape)


def _smallest(scores: Sequence[Array], fraction: float) -> list[Array]:
    """True at the `fraction` of all scores, rounded down, that are smallest; of equal ones the first."""
    everything = np.concatenate([each.reshape(-1) for each in scores]) if scores else np.zeros(0)
    count = math.floor(fraction * everything.size + 1e-9)
    gone = np.zeros(everything.size, bool)
    if count:
        bound = np.partition(everything, count - 1)[count - 1]
        gone = everything < bound
        gone[np.flatnonzero(everything == bound)[: count - int(gone.sum())]] = True
    ends = np.cumsum([each.size for each in scores])[:-1]
    parts = np.split(gone, ends) if scores else []
    return [part.reshape(each.shape) for part, each in zip(parts, scores, strict=True)]


def _of_each(array: Array, axis: int, stay: int, of: int) -> Array:
    """True at the of - stay smallest magnitudes of each `of` numbers along the axis."""
    moved = np.moveaxis(np.abs(array), axis, -1)
    groups = moved.reshape(*moved.shape[:-1], -1, of)
    gone = np.zeros(groups.shape, bool)
    np.put_along_axis(gone, np.argsort(groups, axis=-1, kind="stable")[..., : of - stay], True, axis=-1)
    return np.moveaxis(gone.reshape(moved.shape), -1, axis)


def _statistics(arrays: Sequence[Array], pruned: Sequence[Array]) -> dict[str, int | float | str]:
    elements = sum(array.size for array in arrays)
    statistics: dict[str, int | float | str] = {"weights": len(arrays), "elements": elements}
    if elements:
        zeros = [array.size - np.count_nonzero(array) for array in pruned]
        highest = max(count / array.size for count, array in zip(zeros, pruned, strict=True))
        statistics |= {"sparsity": round(sum(zeros) / elements, 4), "highest-sparsity": round(highest, 4)}
        total, kept = (sum(float(np.square(a, dtype=np.float64).sum()) for a in each) for each in (arrays, pruned))
        if total:
            statistics["energy-kept"] = round(kept / total, 4)
        statistics["speed"] = NO_FASTER
    return statistics
