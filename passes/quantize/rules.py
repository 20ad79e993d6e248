"""What each operator asks of the scales around it, as a table, and how a node is read by it.

PRODUCT  sums of products: integer operands, int32 bias, any scale after it.
SUM      Add and Mul: each operand and the result have scales of their own.
JOIN     Concat: all operands and the result share one scale.
MOVE     moves or selects numbers, or interpolates between them: one scale passes through.
POOL     averages: the result has a narrower range, and so a scale of its own.
TABLE    a function of one number, 256 results to look up: a scale of its own, fixed where the function's range is.
BOUND    Relu and Clip: part of what is before it, between its sum and its rounding; alone it is a TABLE.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.ir.palettes import palette_of
from graphopt.ir.reading import constant, is_standard, static_shape

Array = np.ndarray[Any, Any]


class Kind(enum.Enum):
    PRODUCT = "product"
    SUM = "sum"
    JOIN = "join"
    MOVE = "move"
    POOL = "pool"
    TABLE = "table"
    BOUND = "bound"


@dataclass(frozen=True)
class Rule:
    """kind; and, where the operator alone decides it, the range that its result has (low, high)."""

    kind: Kind
    fixed: tuple[float, float] | None = None


_PRODUCT, _SUM, _MOVE, _POOL, _TABLE, _BOUND = map(
    Rule, (Kind.PRODUCT, Kind.SUM, Kind.MOVE, Kind.POOL, Kind.TABLE, Kind.BOUND)
)
_FRACTION = Rule(Kind.TABLE, (0.0, 255 / 256))  # the scale is 1/256: 1 itself becomes 255/256, as in TensorFlow Lite

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "MatMul"), _PRODUCT),
    **dict.fromkeys(("Add", "Mul"), _SUM),
    "Concat": Rule(Kind.JOIN),
    **dict.fromkeys(("DepthToSpace", "Flatten", "Gather", "Identity", "MaxPool", "GlobalMaxPool", "Pad"), _MOVE),
    **dict.fromkeys(("Reshape", "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze", "Transpose"), _MOVE),
    "Unsqueeze": _MOVE,
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "ReduceMean"), _POOL),
    **dict.fromkeys(("HardSwish", "LeakyRelu", "Elu"), _TABLE),
    **dict.fromkeys(("Sigmoid", "Softmax"), _FRACTION),
    "HardSigmoid": Rule(Kind.TABLE, (0.0, 1.0)),
    "Tanh": Rule(Kind.TABLE, (-1.0, 127 / 128)),  # the scale is 1/128 and the zero point 0
    **dict.fromkeys(("Relu", "Clip"), _BOUND),
}

# Their results span more powers of ten than 256 levels can, and so do their operands.
_WIDE = frozenset({"Exp", "Log", "Pow", "Reciprocal", "ReduceL2", "ReduceLogSum", "ReduceSumSquare", "Sqrt"})
_NORM = 8  # fewest numbers in a norm of features
_MASKED = -1000.0  # exp(-1000) is 0 in float32 and in float64


@dataclass(frozen=True)
class Weight:
    """A constant operand of a PRODUCT.

    index: of the input.
    axis: of the output channels, None where the operand has no such axis.
    channels: of the result; a multiple of the axis where groups share it.
    """

    index: int
    axis: int | None
    channels: int


@dataclass(frozen=True)
class Bias:
    """The input `index` of `node` (the PRODUCT, or an Add right behind it) holds `values`, [channels]."""

    node: ir.Node
    index: int
    values: Array


@dataclass(frozen=True)
class Layer:
    """How a node computes on integers.

    operands: indices of the inputs that are quantized with one scale each, constants among them.
    weight, bias: of a PRODUCT.
    tail: the nodes that are computed with it before its result is rounded: bias, Relu, Clip.
    """

    node: ir.Node
    rule: Rule
    operands: tuple[int, ...]
    weight: Weight | None = None
    bias: Bias | None = None
    tail: tuple[ir.Node, ...] = ()

    @property
    def kind(self) -> Kind:
        return Kind.TABLE if self.rule.kind is Kind.BOUND else self.rule.kind

    @property
    def results(self) -> tuple[ir.Value, ...]:
        """What comes out, behind the tail, and is used."""
        return _used((self.tail[-1] if self.tail else self.node).outputs)

    def operand_values(self) -> tuple[ir.Value, ...]:
        """The operands that are computed at run time."""
        inputs = [self.node.inputs[index] for index in self.operands]
        return tuple(value for value in inputs if value is not None and constant(value) is None)


def _used(values: Sequence[ir.Value]) -> tuple[ir.Value, ...]:
    return tuple(value for value in values if value.uses() or value.is_graph_output())


def layer_of(node: ir.Node) -> Layer | str:
    """How `node` computes on integers, or the reason why it cannot. Its tail is empty."""
    rule = RULES.get(node.op_type) if is_standard(node) else None
    if rule is None:
        return f"{node.op_type} has no integer form"
    if node.op_type == "Mul" and node.inputs[0] is node.inputs[1]:
        return "a square spans more powers of ten than 256 levels can"
    layer = _product(node, rule) if rule.kind is Kind.PRODUCT else _other(node, rule)
    if isinstance(layer, str):
        return layer
    touched = [node.inputs[index] for index in layer.operands] + [*_used(node.outputs)]
    other = next((v for v in touched if v is not None and v.dtype not in (None, ir.DataType.FLOAT)), None)
    if other is not None and other.dtype is not None:
        return f"it computes in {other.dtype.name.lower()}; only float32 is quantized"
    return layer


def needing_precision(node: ir.Node) -> tuple[ir.Value, ...]:
    """The inputs whose ratios `node` looks at, so that 8 bits cannot hold them: of squares, roots, logarithms, and
    the denominators of quotients.
    """
    if not is_standard(node) or is_norm(node):
        return ()
    square = node.op_type == "Pow" or (node.op_type == "Mul" and node.inputs[0] is node.inputs[1])
    if not square and node.op_type != "Div" and node.op_type not in _WIDE:
        return ()
    value = node.inputs[1 if node.op_type == "Div" else 0]
    if value is None or constant(value) is not None:
        return ()
    readers = node.outputs[0].consumers()
    return () if square and readers and all(is_norm(reader) for reader in readers) else (value,)


def is_square(node: ir.Node) -> bool:
    """Whether `node` squares numbers, or sums their squares, but not for a norm of features."""
    itself = node.op_type == "Mul" and len(node.inputs) > 1 and node.inputs[0] is node.inputs[1]
    return (itself or node.op_type in ("Pow", "ReduceL2", "ReduceSumSquare")) and bool(needing_precision(node))


def compresses(node: ir.Node) -> bool:
    """Whether what `node` makes of magnitudes is no longer as they are: a logarithm, a quotient, or an activation."""
    return is_standard(node, "Log", "Div", "PRelu") or is_activation(node) or is_norm(node)


def is_norm(node: ir.Node) -> bool:
    """Whether `node` sums over so many numbers that it is the norm of a layer's features, not of a complex number."""
    if not is_standard(node, "ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2"):
        return False
    before, after = static_shape(node.inputs[0]), static_shape(node.outputs[0])
    return before is not None and after is not None and math.prod(before) >= _NORM * max(math.prod(after), 1)


def is_activation(node: ir.Node) -> bool:
    """Whether `node` is a nonlinear function of one value, as between layers of a network."""
    rule = RULES.get(node.op_type) if is_standard(node) else None
    return rule is not None and rule.kind in (Kind.BOUND, Kind.TABLE)


def _product(node: ir.Node, rule: Rule) -> Layer | str:
    first, second = node.inputs[0], node.inputs[1]
    if node.op_type == "Gemm" and any(_float(node, name) != 1 for name in ("alpha", "beta")):
        return "alpha or beta is not 1"
    if any(palette_of(value) is not None for value in (first, second)):
        return "its weight is a palette"
    left, right = constant(first), constant(second)
    if left is not None and right is not None:
        return "both operands are constants"
    if right is None and left is None:
        if node.op_type in ("Conv", "ConvTranspose"):
            return "its weight is computed at run time"
        return _with_bias(Layer(node, rule, (0, 1)), None)
    array, index = (right, 1) if right is not None else (left, 0)
    if array is None or array.dtype != np.float32:
        return f"its weight is {'' if array is None else array.dtype}; only float32 is quantized"
    if not np.isfinite(array).all():
        return "its weight holds NaN or infinity"
    if index == 0 and node.op_type in ("Conv", "ConvTranspose"):
        return "its input is a constant"
    weight = _weight(node, array, index)
    return _with_bias(Layer(node, rule, (1 - index,), weight), weight)


def _weight(node: ir.Node, array: Array, index: int) -> Weight:
    """Output channels: 0 of a Conv; rows of A or columns of B of a product; 1 of a ConvTranspose, shared by its groups,
    or 0 if each group makes one channel from one.
    """
    if node.op_type == "Conv":
        return Weight(index, 0, array.shape[0])
    if node.op_type == "ConvTranspose":
        groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
        depthwise = array.shape[1] == 1 and array.shape[0] == groups
        return Weight(index, 0 if depthwise else 1, array.shape[1] * groups)
    if array.ndim < 2:
        return Weight(index, None, 1)
    axis = array.ndim - (1 if index else 2)
    if node.op_type == "Gemm" and _integer(node, "transB" if index else "transA"):
        axis = 1 - axis
    return Weight(index, axis, array.shape[axis])


def _with_bias(layer: Layer, weight: Weight | None) -> Layer | str:
    node = layer.node
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return layer
    array = constant(value)
    if weight is None or weight.index == 0:
        return "it has a bias and no constant weight behind its input"
    if array is None or array.dtype != np.float32:
        return "its bias is not a constant of float32"
    vector = channel_vector(array, weight.channels)
    if vector is None:
        return f"its bias has the shape {list(array.shape)}, expected one number for each output channel"
    return Layer(node, layer.rule, layer.operands, weight, Bias(node, 2, vector))


def channel_vector(array: Array, channels: int) -> Array | None:
    """`array` as [channels] if it varies along its last axis alone, with finite numbers."""
    if array.size not in (1, channels) or (array.size > 1 and array.shape[-1] != channels):
        return None
    if not np.isfinite(array).all():
        return None
    vector: Array = np.broadcast_to(array.reshape(-1), (channels,)).copy()
    return vector


def _other(node: ir.Node, rule: Rule) -> Layer | str:
    operands: tuple[int, ...] = (0,)
    if rule.kind in (Kind.SUM, Kind.JOIN):
        operands = tuple(range(len(node.inputs)))
    reason = _OBSTACLES.get(node.op_type, lambda _: "")(node)
    if reason:
        return reason
    if any(palette_of(node.inputs[index]) is not None for index in operands):
        return "an operand is a palette"
    arrays = [constant(node.inputs[index]) for index in operands]
    if all(array is not None for array in arrays):
        return "all its operands are constants"
    if any(array is not None and not np.isfinite(array).all() for array in arrays):
        return "a constant operand holds NaN or infinity"
    return Layer(node, rule, operands)


def _obstacle_of_resize(node: ir.Node) -> str:
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "nearest"
    how = node.attributes.get("coordinate_transformation_mode")
    if mode == "cubic":
        return "cubic interpolation leaves the range of its input"
    return "tf_crop_and_resize puts numbers in from outside" if how and how.as_string() == "tf_crop_and_resize" else ""


def _obstacle_of_pad(node: ir.Node) -> str:
    mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "constant"
    value = node.inputs[2] if len(node.inputs) > 2 else None
    array = constant(value) if value is not None else np.zeros((), np.float32)
    return "it pads with another number than 0" if mode == "constant" and (array is None or array.any()) else ""


def _obstacle_of_max_pool(node: ir.Node) -> str:
    second = node.outputs[1] if len(node.outputs) > 1 else None
    used = second is not None and bool(second.uses() or second.is_graph_output())
    return "its indices are used" if used else ""


def _obstacle_of_mean(node: ir.Node) -> str:
    shape = static_shape(node.inputs[0])
    return "" if shape is not None and len(shape) > 2 else "it is no average over places of a picture"


def _obstacle_of_add(node: ir.Node) -> str:
    arrays = [constant(value) for value in node.inputs if value is not None]
    masks = any(array is not None and array.size and _is_mask(array) for array in arrays)
    return "it masks, with numbers that leave no levels for the others" if masks else ""


def _is_mask(array: Array) -> bool:
    """Whether all numbers are 0 or so low that Softmax makes 0 of them."""
    low = array <= _MASKED
    return bool(low.any() and np.isfinite(array).all() and np.all(low | (array == 0)))


_OBSTACLES = {
    "Add": _obstacle_of_add,
    "Resize": _obstacle_of_resize,
    "Pad": _obstacle_of_pad,
    "MaxPool": _obstacle_of_max_pool,
    "ReduceMean": _obstacle_of_mean,
}


def _float(node: ir.Node, name: str) -> float:
    return node.attributes[name].as_float() if name in node.attributes else 1.0


def _integer(node: ir.Node, name: str) -> int:
    return node.attributes[name].as_int() if name in node.attributes else 0
