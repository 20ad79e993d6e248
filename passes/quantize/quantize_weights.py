"""Quantize weights alone: small integers in blocks, and activations in float.

    y = x ((q - z) s)        a scale s for `block` neighbours along the axis that is summed over (of Gather: along rows)

Written as DequantizeLinear with block_size (opset 21) in front of MatMul, Gemm and Gather. No calibration data is
needed. Computed as written, the result is that of the rounded weights exactly. ONNX Runtime, with its optimizations on,
fuses the pair into MatMulNBits, which also rounds activations to 8 bits unless its session option
`session.qdq_matmulnbits_accuracy_level` is 1.

With `low_rank`, coarser blocks and a correction of low rank take the place of a weight's blocks, y = x R + (x U) V,
where file and library take fewer bytes and lose less (`low_rank_correction`). Calibration data, if any, say what
counts.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.errors import UsageError
from graphopt.ir.reading import constant, is_standard
from graphopt.passes.cleanup.constants import layer_name, remove_unused_constant
from graphopt.passes.prune.readers import MOST_FEATURES, Reader, observe
from graphopt.passes.quantize.block_insertion import bytes_of_nodes, insert_blocks, insert_correction
from graphopt.passes.quantize.blocks import BITS, Blocks, dequantize_blocks, quantize_blocks
from graphopt.passes.quantize.low_rank_correction import KERNEL_BYTES, Correction, correct
from graphopt.passes.quantize.opset import at_least
from graphopt.passes.quantize.patches import to_matrix
from graphopt.passes.quantize.serving import check_served
from graphopt.pipeline.base import Declined, Pass, PassContext, PassResult, option

Array = np.ndarray[Any, Any]

_SERVED = ("MatMul", "Gemm", "Gather")
_UNSERVED = ("Conv", "ConvTranspose", "LSTM", "GRU", "RNN")
_SAMPLES, _PLACES = 256, 256  # of the calibration data, and of each sample, for moments
_BLOCK_OPSET, _CHANNEL_OPSET = 21, 13


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Store the weights of MatMul, Gemm and Gather as integers of 8 or 4 bits, in blocks with a scale each."""

    name: ClassVar[str] = "quantize-weights"
    exact: ClassVar[bool] = False

    bits: int = option(8, "of an integer: 8 or 4")
    block: int = option(32, "neighbours that share a scale; 0 takes a whole column")
    symmetric: bool = option(True, "integers around 0; otherwise with a zero point for each block")
    smallest: int = option(1024, "weights of fewer elements stay in float")
    low_rank: bool = option(False, "coarser blocks with a low-rank correction where weights are smaller and closer")
    exclude: tuple[str, ...] = option((), "names of nodes that stay in float, with * and ?")

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Rewrite the main graph's constant operands.

        Raises:
            UsageError: an option is out of range, or the target does not serve the scheme.
            ModelError: the model's opset is too old and cannot be converted.
        """
        if self.bits not in BITS or self.block < 0:
            raise UsageError(f"bits is {self.bits} and block {self.block}, expected 8 or 4 and a number from 0")
        check_served(context.target, f"weights-int{self.bits}")
        axes, declined = self._plan(model)
        if not axes:
            return PassResult(False, {"quantized-weights": 0}, declined)
        if at_least(model, _BLOCK_OPSET if self.block or self.bits == 4 else _CHANNEL_OPSET):  # other nodes now
            axes, declined = self._plan(model)
        made: dict[tuple[ir.Value, int], ir.Value] = {}
        totals = _Totals()
        moments = self._moments(model, axes, context)
        reasons: list[Declined] = []
        for number, (node, axis) in enumerate(axes.items()):
            context.progress(number, len(axes), f"quantize {layer_name(node)}")
            index = 0 if node.op_type == "Gather" else 1
            value = node.inputs[index]
            array = constant(value)
            assert value is not None and array is not None  # _obstacle looked
            if (value, axis) not in made:
                blocks = quantize_blocks(array, axis, self.block, bits=self.bits, symmetric=self.symmetric)
                if self.low_rank:
                    corrected = self._corrected(node, value, array, blocks, moments.get(node))
                    if _lacks_moments(node, array, moments):
                        reason = (
                            f"it sums over more than {MOST_FEATURES} numbers: a correction goes by its weight alone"
                        )
                        reasons.append(Declined(layer_name(node), reason))
                    if isinstance(corrected, Correction):
                        totals.add_corrected(array, corrected)
                        insert_correction(model.graph, node, value, corrected)
                        made[value, axis] = node.inputs[1] or value
                        continue
                    reasons.append(Declined(layer_name(node), f"no low-rank correction: {corrected}"))
                made[value, axis] = insert_blocks(model.graph, value, blocks, 0 if self.block == 0 else blocks.block)
                totals.add(array, blocks)
            node.replace_input_with(index, made[value, axis])
        for value, _ in made:
            remove_unused_constant(value)
        return PassResult(True, totals.statistics(), (*declined, *reasons))

    def _moments(self, model: ir.Model, axes: Mapping[ir.Node, int], context: PassContext) -> dict[ir.Node, Reader]:
        """Of what MatMul and Gemm read, where a correction may go by it."""
        if not self.low_rank or context.calibration is None:
            return {}
        found = {}
        for node in axes:
            array = constant(node.inputs[1]) if node.op_type != "Gather" else None
            if array is None or array.ndim != 2:
                continue
            matrix = to_matrix(node, array).astype(np.float64)
            size = matrix.shape[-1]
            if size <= MOST_FEATURES:
                found[node] = Reader(node, matrix, np.zeros((1, size), int), np.zeros((1, size, size)))
        observe(model, found, context.calibration.first(_SAMPLES), _PLACES, context.seed, context.progress)
        return found

    def _corrected(
        self, node: ir.Node, value: ir.Value, array: Array, blocks: Blocks, reader: Reader | None
    ) -> Correction | str:
        if node.op_type == "Gather" or array.ndim != 2:
            return "it is for matrices that multiply"
        if len(value.uses()) > 1:
            return "the weight is shared with another layer"
        alpha = node.attributes.get_float("alpha", 1.0)
        if not self.block or alpha != 1 or node.attributes.get_int("transA", 0) != 0:
            return "it needs blocks, and a product without a scale and a transposed operand"
        covariance = None if reader is None else reader.gram[0]
        more = max(bytes_of_nodes(node, array, blocks), KERNEL_BYTES)
        return correct(node, array, blocks, covariance, more, bits=self.bits, symmetric=self.symmetric)

    def _plan(self, model: ir.Model) -> tuple[dict[ir.Node, int], tuple[Declined, ...]]:
        """The axis along which the weight of each node has its blocks, and what stays in float."""
        axes: dict[ir.Node, int] = {}
        declined: list[Declined] = []
        for node in model.graph.all_nodes():
            if is_standard(node, *_UNSERVED):
                reason: str | None = "weight-only quantization is for MatMul, Gemm and Gather"
            elif is_standard(node, *_SERVED):
                reason = self._obstacle(node) if node.graph is model.graph else "it is in a subgraph"
            else:
                continue
            if reason is None:
                axes[node] = _axis(node)
            elif reason:
                declined.append(Declined(layer_name(node), reason))
        return axes, tuple(declined)

    def _obstacle(self, node: ir.Node) -> str | None:
        """Why the weight of a node stays in float; empty where the node has none to speak of."""
        index = 0 if node.op_type == "Gather" else 1
        value = node.inputs[index]
        array = constant(value)
        if array is None:
            producer = None if value is None else value.producer()
            if producer is not None and is_standard(producer, "DequantizeLinear"):
                return "its weight is quantized already"
            return "" if node.op_type == "Gather" else "its right operand is no constant"
        if array.dtype != np.float32:
            return "" if node.op_type == "Gather" else f"its weight is {array.dtype}; only float32 is quantized"
        pattern = next((each for each in self.exclude if fnmatch.fnmatchcase(layer_name(node), each)), None)
        if pattern is not None:
            return f"it is excluded by '{pattern}'"
        if array.ndim < 2:
            return f"its weight has the shape {list(array.shape)}, expected a matrix"
        if array.ndim > 2 and not self.block:
            return f"its weight has the shape {list(array.shape)}; only blocks can share scales there"
        if array.size < self.smallest:
            return f"its weight has {array.size} elements, fewer than {self.smallest}"
        if not np.isfinite(array).all():
            return "its weight holds NaN or infinity"
        if node.op_type == "Gather" and _integer(node, "axis"):
            return "it does not pick rows"
        return None


def _lacks_moments(node: ir.Node, array: Array, moments: Mapping[ir.Node, Reader]) -> bool:
    """Whether others have moments, and the node is too wide for them."""
    return bool(moments) and node not in moments and node.op_type != "Gather" and array.ndim == 2


def _integer(node: ir.Node, name: str) -> int:
    return node.attributes[name].as_int() if name in node.attributes else 0


def _axis(node: ir.Node) -> int:
    """What is summed over: rows of MatMul and Gemm, columns if transposed; of Gather the last axis."""
    index = 0 if node.op_type == "Gather" else 1
    array = constant(node.inputs[index])
    assert array is not None  # _obstacle looked
    last = node.op_type == "Gather" or (node.op_type == "Gemm" and _integer(node, "transB") == 1)
    return array.ndim - (1 if last else 2)


class _Totals:
    """Bytes before and after, and what the weights lost."""

    def __init__(self) -> None:
        self.count = self.before = self.after = self.corrected = 0
        self.signal = self.noise = 0.0

    def add(self, array: Array, blocks: Blocks) -> None:
        self._add(array, dequantize_blocks(blocks), blocks.nbytes)

    def add_corrected(self, array: Array, made: Correction) -> None:
        product = dequantize_blocks(made.first) @ dequantize_blocks(made.second)
        self.corrected += 1
        self._add(
            array, dequantize_blocks(made.residual) + (product if made.residual.axis == 0 else product.T), made.nbytes
        )

    def _add(self, array: Array, found: Array, after: int) -> None:
        self.count += 1
        self.before += array.nbytes
        self.after += after
        self.signal += float(np.square(array, dtype=np.float64).sum())
        self.noise += float(np.square(array - found, dtype=np.float64).sum())

    def statistics(self) -> dict[str, int | float | str]:
        found: dict[str, int | float | str] = {
            "quantized-weights": self.count,
            "bytes-before": self.before,
            "bytes-after": self.after,
        }
        if self.corrected:
            found["low-rank-corrections"] = self.corrected
        if self.noise and self.signal:
            found["weights-sqnr-db"] = round(10 * float(np.log10(self.signal / self.noise)), 1)
        return found
