"""Quantize products dynamically: weights to int8 now, activations at run time, by the range that they have then.

    y = ((q - z) W_q) · s_x s_w + b,        W ≈ W_q s_w, a scale s_w for each output column

per tensor    q = round(x / s_x) + z is a uint8, s_x = (max(x, 0) - min(x, 0)) / 255 (DynamicQuantizeLinear)
per row       q = round(x / s_x) is an int8, z = 0 and s_x = max |x| / 127 over the row, written as standard operators

Sums of products have 32 bits (MatMulInteger). No calibration data is needed, and activations keep the range that they
really have; in return the range is searched in each run.

Weights lie in [-127, 127]. Beside uint8 activations they are stored as uint8 with the zero point 128, which means the
same: ONNX Runtime adds pairs of products of uint8 by int8 in 16 bits on x86 processors without VNNI, where they
saturate; products of uint8 by uint8, and of int8 by int8, are exact everywhere.
"""

from __future__ import annotations

import enum
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.analysis.observers import channel_ends
from graphopt.ir.reading import constant, is_standard, opset_of
from graphopt.passes.cleanup.constants import layer_name, remove_unused_constant
from graphopt.passes.cleanup.rewiring import add_initializer, fresh_name, replace
from graphopt.passes.quantize.arithmetic import WEIGHT_MAX, quantize, weight_parameters
from graphopt.passes.quantize.naming import fresh_node_name
from graphopt.passes.quantize.opset import at_least
from graphopt.passes.quantize.serving import check_served
from graphopt.pipeline.base import Declined, Pass, PassContext, PassResult, option

Array = np.ndarray[Any, Any]

SCHEME = "dynamic-int8"
_OPSET = 13
_LEAST = np.float32(2.0**-100)  # of the largest magnitude of a row, so that a row of zeros has a scale
_RECURRENT = "standard ONNX has no integer form of a recurrence; int8 weights (quantize-weights) shrink it"
_UNSERVED = {
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _RECURRENT),
    **dict.fromkeys(("Conv", "ConvTranspose"), "dynamic quantization is for MatMul and Gemm; int8 with data serves it"),
}


class Per(enum.Enum):
    """What the activations of a layer share a scale over."""

    TENSOR = "tensor"
    ROW = "row"


@dataclass(frozen=True)
class QuantizeDynamic(Pass):
    """Let MatMul and Gemm with constant weights compute on int8, their inputs quantized as they come."""

    name: ClassVar[str] = "quantize-dynamic"
    exact: ClassVar[bool] = False

    per: Per = option(Per.TENSOR, "what has one scale of the input: the tensor, or each row")
    mse: bool = option(True, "weights by the smallest squared error instead of the largest magnitude")
    exclude: tuple[str, ...] = option((), "names of nodes that stay in float, with * and ?")

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Rewrite the main graph's products of activations and constant matrices.

        Raises:
            UsageError: the target does not serve dynamic quantization.
            ModelError: the model's opset is older than 13 and cannot be converted.
        """
        check_served(context.target, SCHEME)
        reasons = {node: self._obstacle(node) for node in model.graph if is_standard(node, "MatMul", "Gemm")}
        if not any(reason is None for reason in reasons.values()):
            return PassResult(False, {"dynamic-layers": 0}, _declined(model, reasons))
        if at_least(model, _OPSET):  # other nodes now
            reasons = {node: self._obstacle(node) for node in model.graph if is_standard(node, "MatMul", "Gemm")}
        declined = _declined(model, reasons)
        writer = _Writer(model, self.per, self.mse)
        layers = [node for node, reason in reasons.items() if reason is None]
        for number, node in enumerate(layers):
            context.progress(number, len(layers), f"quantize {layer_name(node)}")
            writer.rewrite(node)
        return PassResult(True, {"dynamic-layers": len(layers), "ranges": writer.ranges}, declined)

    def _obstacle(self, node: ir.Node) -> str | None:
        pattern = next((each for each in self.exclude if fnmatch.fnmatchcase(layer_name(node), each)), None)
        return f"it is excluded by '{pattern}'" if pattern is not None else _obstacle(node)


def _obstacle(node: ir.Node) -> str | None:
    """Why a MatMul or Gemm stays in float; None if nothing speaks against it."""
    x, right = node.inputs[0], node.inputs[1]
    weight, rank = constant(right), None if x is None or x.shape is None else len(x.shape)
    if weight is None:
        producer = None if right is None else right.producer()
        stored = producer is not None and is_standard(producer, "DequantizeLinear")
        return "its weight is quantized already" if stored else "its right operand is no constant"
    if weight.dtype != np.float32:
        return f"its weight is {weight.dtype}; only float32 is quantized"
    if weight.ndim != 2 or not weight.size:
        return f"its weight has the shape {list(weight.shape)}, expected a matrix"
    if not np.isfinite(weight).all():
        return "its weight holds NaN or infinity"
    if constant(x) is not None:
        return "both operands are constants"
    if rank is None or rank < 2:
        return "the rank of its input is unknown" if rank is None else "its input is a vector"
    if node.op_type == "Gemm":
        if any(_number(node, name) != 1 for name in ("alpha", "beta")):
            return "alpha or beta is not 1"
        if "transA" in node.attributes and node.attributes["transA"].as_int():
            return "its left operand is transposed"
    return None


def _number(node: ir.Node, name: str) -> float:
    return node.attributes[name].as_float() if name in node.attributes else 1.0


def _declined(model: ir.Model, reasons: dict[ir.Node, str | None]) -> tuple[Declined, ...]:
    found: list[Declined] = []
    for node in model.graph.all_nodes():
        if is_standard(node, *_UNSERVED):
            found.append(Declined(layer_name(node), _UNSERVED[node.op_type]))
        elif is_standard(node, "MatMul", "Gemm"):
            reason = reasons.get(node, "it is in a subgraph")
            if reason is not None:
                found.append(Declined(layer_name(node), reason))
    return tuple(found)


class _Writer:
    """Writes layers into the graph; inputs, and weights, that several layers read are quantized once."""

    def __init__(self, model: ir.Model, per: Per, mse: bool) -> None:
        self.graph, self.opset = model.graph, opset_of(model)
        self.per, self.mse = per, mse
        self.ranges = 0
        self._inputs: dict[ir.Value, list[ir.Value]] = {}
        self._weights: dict[tuple[ir.Value, bool], list[ir.Value]] = {}
        self._place: ir.Node = self.graph[0]

    def rewrite(self, node: ir.Node) -> None:
        x, right, output = node.inputs[0], node.inputs[1], node.outputs[0]
        assert x is not None and right is not None  # _obstacle looked
        self._place = node
        integers, scale, *zero_point = self._input(x)
        transposed = "transB" in node.attributes and bool(node.attributes["transB"].as_int())
        stored, scales, *offset = self._weight(right, transposed)
        name, shape = output.name or "product", output.shape
        operands = [integers, stored, *zero_point, *offset]
        sums = self._node("MatMulInteger", operands, f"{name}/sums", ir.DataType.INT32, shape, name=node.name)
        made = self._node("Cast", [sums], f"{name}/steps", ir.DataType.FLOAT, shape, to=int(ir.DataType.FLOAT))
        if self.per is Per.TENSOR:  # two factors of few elements first, as ONNX Runtime's own pattern has it
            size = None if scales.shape is None else ir.Shape(scales.shape)
            both = self._node("Mul", [scale, scales], f"{name}/scale", ir.DataType.FLOAT, size)
            made = self._node("Mul", [made, both], f"{name}/scaled", ir.DataType.FLOAT, shape)
        else:
            made = self._node("Mul", [made, scale], f"{name}/rows", ir.DataType.FLOAT, shape)
            made = self._node("Mul", [made, scales], f"{name}/scaled", ir.DataType.FLOAT, shape)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None:
            made = self._node("Add", [made, bias], f"{name}/biased", ir.DataType.FLOAT, shape)
        replace(output, made)
        self.graph.remove(node, safe=True)
        remove_unused_constant(right)

    def _input(self, x: ir.Value) -> list[ir.Value]:
        """Integers, scale and, where it is not 0, zero point."""
        if x not in self._inputs:
            self.ranges += 1
            self._inputs[x] = self._by_tensor(x) if self.per is Per.TENSOR else self._by_row(x)
        return self._inputs[x]

    def _by_tensor(self, x: ir.Value) -> list[ir.Value]:
        name, scalar = x.name or "input", ir.Shape([])
        made = ir.node(
            "DynamicQuantizeLinear", [x], num_outputs=3, name=fresh_node_name(self.graph, f"{name}/quantize")
        )
        kinds = ((ir.DataType.UINT8, x.shape), (ir.DataType.FLOAT, scalar), (ir.DataType.UINT8, scalar))
        for value, part, (dtype, shape) in zip(made.outputs, ("uint8", "scale", "zero_point"), kinds, strict=True):
            value.name = fresh_name(self.graph, f"{name}/{part}")
            value.type, value.shape = ir.TensorType(dtype), shape
        self.graph.insert_before(self._place, made)
        return list(made.outputs)

    def _by_row(self, x: ir.Value) -> list[ir.Value]:
        name, float32 = x.name or "input", ir.DataType.FLOAT
        shape = x.shape
        row = None if shape is None else ir.Shape([*shape.dims[:-1], 1])
        size = self._node("Abs", [x], f"{name}/size", float32, shape)
        if self.opset >= 18:
            axes = add_initializer(self.graph, f"{name}/axes", np.array([-1], np.int64))
            largest = self._node("ReduceMax", [size, axes], f"{name}/largest", float32, row, keepdims=1)
        else:
            largest = self._node("ReduceMax", [size], f"{name}/largest", float32, row, axes=[-1], keepdims=1)
        least = add_initializer(self.graph, f"{name}/least", np.array(_LEAST))
        steps = add_initializer(self.graph, f"{name}/steps", np.array(WEIGHT_MAX, np.float32))
        bounded = self._node("Max", [largest, least], f"{name}/bounded", float32, row)
        scale = self._node("Div", [bounded, steps], f"{name}/scale", float32, row)
        scaled = self._node("Div", [x, scale], f"{name}/scaled", float32, shape)
        rounded = self._node("Round", [scaled], f"{name}/rounded", float32, shape)
        int8 = ir.DataType.INT8
        return [self._node("Cast", [rounded], f"{name}/int8", int8, shape, to=int(int8)), scale]

    def _weight(self, value: ir.Value, transposed: bool) -> list[ir.Value]:
        """Integers [k, n], scales [n] and, where it is not 0, zero point."""
        if (value, transposed) not in self._weights:
            array, name = constant(value), value.name or "weight"
            assert array is not None  # _obstacle looked
            matrix = np.ascontiguousarray(array.T) if transposed else array
            parameters = weight_parameters(channel_ends(matrix, 1, mse=self.mse), 1)
            integers = quantize(matrix, parameters, lowest=-WEIGHT_MAX)
            made = [add_initializer(self.graph, f"{name}/scale", parameters.scale)]
            if self.per is Per.TENSOR:
                integers = (integers.astype(np.int16) + 128).astype(np.uint8)
                made.append(add_initializer(self.graph, f"{name}/zero_point", np.array(128, np.uint8)))
            stored = add_initializer(self.graph, f"{name}/{integers.dtype}", integers)
            self._weights[value, transposed] = [stored, *made]
        return self._weights[value, transposed]

    def _node(
        self,
        operator: str,
        inputs: Sequence[ir.Value],
        base: str,
        dtype: ir.DataType,
        shape: ir.Shape | None,
        *,
        name: str | None = None,
        **attributes: int | list[int],
    ) -> ir.Value:
        """The output, named after `base`, of a new node in front of the layer."""
        made = ir.node(operator, inputs, attributes=attributes)
        output = made.outputs[0]
        output.name = fresh_name(self.graph, base)
        output.type, output.shape = ir.TensorType(dtype), shape
        made.name = name or fresh_node_name(self.graph, output.name)
        self.graph.insert_before(self._place, made)
        return output


__all__ = ["Per", "QuantizeDynamic"]
