"""QLinear operators, which compute on integers with scales of their own, become what the integer path reads.

    y = saturate(rint(Σ (x - z_x)(w - z_w) · m) + z_y),    m = s_x s_w / s_y

is DequantizeLinear → Conv or MatMul → QuantizeLinear where scales and weights are constant: the same kernels serve
both forms, with the same rounding. Other products sum by ConvInteger or MatMulInteger, and are scaled in float32. The
operators that ONNX Runtime's quantizer makes in the domain com.microsoft are an operator on floats between conversions.
Sources: the operators' definitions in ONNX, and in ONNX Runtime's documentation of contributed operators.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir import tape

from graphopt import ir as gir
from graphopt.targets.tvm.quantized.parameters import constant

CONTRIBUTED = "com.microsoft"
FLOAT, INT32, UINT8 = ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.UINT8


def rewrite_linear_operators(model: ir.Model) -> ir.Model:
    """`model` with QLinear operators replaced; `model` itself if it has none in a form that is known here."""
    if not any(_rewriting(node) for node in model.graph):
        return model
    copy = gir.clone(model)
    copy.meta.update(model.meta)
    for i, node in enumerate(list(copy.graph)):
        rewriting = _rewriting(node)
        if rewriting is None:
            continue
        node.name = node.name or f"{node.op_type}_{i}"
        writer = _Writer(node)
        result = rewriting(node, writer)
        for value in writer.tape.initializers:
            copy.graph.register_initializer(value)
        ir.convenience.replace_nodes_and_values(copy.graph, node, [node], writer.tape.nodes, node.outputs, [result])
    gir.refresh_shapes(copy)
    return copy


class _Writer:
    """Makes the nodes in place of one; their names begin with its name."""

    def __init__(self, node: ir.Node) -> None:
        self.node = node
        self.tape = tape.Tape()
        self._made = 0

    def op(self, operator: str, inputs: Sequence[ir.Value | None], name: str = "", **attributes: Any) -> ir.Value:
        """The output of a new node; of the layer's own name if it is given that."""
        self._made += 1
        label = f"{self.node.name}.{self._made}"
        value = self.tape.op(operator, inputs, attributes, name=name or label)
        value.name = label
        return value

    def constant(self, array: np.ndarray) -> ir.Value:
        self._made += 1
        return self.tape.initializer(ir.Tensor(array), name=f"{self.node.name}.{self._made}")

    def shaped(self, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        """`value` in another shape, at once if it is constant."""
        known = constant(value)
        if known is not None:
            return value if known.shape == shape else self.constant(known.reshape(shape))
        return self.op("Reshape", [value, self.constant(np.array(shape, np.int64))])

    def parameter(self, value: ir.Value, vector: tuple[int, ...] = (-1,)) -> ir.Value:
        """A scale or zero point as a scalar if it has one element, else in the shape `vector`."""
        return self.shaped(value, vector if _elements(value) != 1 else ())

    def scale(self, value: ir.Value, vector: tuple[int, ...] = (-1,)) -> ir.Value:
        """A scale as float32."""
        shaped = self.parameter(value, vector)
        known = constant(shaped)
        if value.dtype == FLOAT:
            return shaped
        return self.op("Cast", [shaped], to=int(FLOAT)) if known is None else self.constant(known.astype(np.float32))

    def float_of(self, start: int, axis: int = 0) -> ir.Value:
        """Input number `start` of the node, dequantized by the two inputs behind it."""
        return self.dequantized(*(_input(self.node, start + k) for k in range(3)), axis=axis)

    def dequantized(
        self, integers: ir.Value | None, scale: ir.Value | None, zero_point: ir.Value | None, *, axis: int = 0
    ) -> ir.Value:
        assert scale is not None
        given = [] if zero_point is None else [self.parameter(zero_point)]
        along: dict[str, Any] = {} if _elements(scale) == 1 else {"axis": axis}
        return self.op("DequantizeLinear", [integers, self.scale(scale), *given], **along)

    def quantized(self, value: ir.Value, start: int, like: ir.Value | None) -> ir.Value:
        """`value` quantized by the scale and zero point from input number `start` on; as `like` without the latter."""
        scale, zero_point = _input(self.node, start), _input(self.node, start + 1)
        assert scale is not None
        dtype = UINT8 if like is None or like.dtype is None else like.dtype
        point = self.constant(np.zeros((), dtype.numpy())) if zero_point is None else self.parameter(zero_point)
        return self.op("QuantizeLinear", [value, self.scale(scale), point])


Rewriting = Callable[[ir.Node, _Writer], ir.Value]


@dataclass(frozen=True)
class _Between:
    """`operator` on floats, between dequantization of `operands` and quantization: positions among the inputs."""

    operator: str
    operands: tuple[int, ...]
    result: int
    attributes: tuple[str, ...] = ()

    def __call__(self, node: ir.Node, writer: _Writer) -> ir.Value:
        floats = [writer.float_of(start) for start in self.operands or range(2, len(node.inputs), 3)]
        computed = writer.op(self.operator, floats, node.name or "", **_attributes(node, self.attributes))
        return writer.quantized(computed, self.result, node.inputs[self.operands[0] if self.operands else 2])


def _convolution(node: ir.Node, writer: _Writer) -> ir.Value:
    """QLinearConv: x, s_x, z_x, w, s_w, z_w, s_y, z_y and an int32 bias with scale s_x · s_w."""
    x, s_x, z_x, w, s_w, z_w, s_y, z_y = node.inputs[:8]
    assert x and s_x and z_x and w and w.shape is not None and s_w and z_w and s_y and z_y
    bias, channels = _input(node, 8), (-1, *(1 for _ in range(len(w.shape) - 2)))
    attributes = _attributes(node, ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"))
    if _is_constant(s_x, z_x, w, s_w, z_w, s_y, z_y):
        factors = [writer.float_of(0), writer.float_of(3)]
        if bias is not None:
            scale = np.float32(_array(s_x).reshape(())) * _array(s_w).astype(np.float32).reshape(-1)
            factors.append(writer.dequantized(bias, writer.constant(scale), None))
        return writer.quantized(writer.op("Conv", factors, node.name or "", **attributes), 6, x)
    sums = writer.op("ConvInteger", [x, w, writer.parameter(z_x), writer.parameter(z_w)], node.name or "", **attributes)
    if bias is not None:
        sums = writer.op("Add", [sums, writer.shaped(bias, channels)])
    return _requantized(writer, sums, writer.scale(s_x), writer.scale(s_w, channels), s_y, z_y)


def _matrix_product(node: ir.Node, writer: _Writer) -> ir.Value:
    """QLinearMatMul: a, s_a, z_a by rows or one, b, s_b, z_b by columns or one, s_y, z_y."""
    a, s_a, z_a, b, s_b, z_b, s_y, z_y = node.inputs
    assert a and s_a and z_a and b and s_b and z_b and s_y and z_y
    if _is_constant(s_a, z_a, b, s_b, z_b, s_y, z_y):
        factors = [writer.float_of(0, _rank(a) - 2), writer.float_of(3, _rank(b) - 1)]
        return writer.quantized(writer.op("MatMul", factors, node.name or ""), 6, a)
    sums = writer.op("MatMulInteger", [a, b, writer.parameter(z_a), writer.parameter(z_b)], node.name or "")
    return _requantized(writer, sums, writer.scale(s_a, (-1, 1)), writer.scale(s_b), s_y, z_y)


def _requantized(
    writer: _Writer, sums: ir.Value, s_x: ir.Value, s_w: ir.Value, s_y: ir.Value, z_y: ir.Value
) -> ir.Value:
    """int32 sums times s_x s_w / s_y, rounded: what ONNX says, with float32 factors."""
    multiplier = writer.op("Div", [writer.op("Mul", [s_x, s_w]), writer.scale(s_y)])
    scaled = writer.op("Mul", [writer.op("Cast", [sums], to=int(FLOAT)), multiplier])
    return writer.op("QuantizeLinear", [scaled, writer.constant(np.ones((), np.float32)), writer.parameter(z_y)])


def _gemm(node: ir.Node, writer: _Writer) -> ir.Value:
    """QGemm: a, s_a, z_a, b, s_b, z_b, an int32 bias with scale α s_a s_b, and s_y, z_y or a float result."""
    transposed = bool(_attributes(node, ("transB",)).get("transB", 0))
    factors = [writer.float_of(0), writer.float_of(3, 0 if transposed else 1)]
    alpha = node.attributes["alpha"].as_float() if "alpha" in node.attributes else 1.0
    bias, s_a, s_b = _input(node, 6), _input(node, 1), _input(node, 4)
    if bias is not None:
        scale = np.float32(alpha) * _array(s_a).astype(np.float32).reshape(()) * _array(s_b).astype(np.float32)
        factors.append(writer.dequantized(bias, writer.constant(scale.reshape(-1)), None))
    attributes = _attributes(node, ("alpha", "transA", "transB"))
    computed = writer.op("Gemm", factors, node.name or "", **attributes)
    return computed if _input(node, 7) is None else writer.quantized(computed, 7, node.inputs[0])


def _conversion(node: ir.Node, writer: _Writer) -> ir.Value:
    """QuantizeLinear and DequantizeLinear of the other domain: those of ONNX, for the types that both know."""
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    if node.op_type == "DequantizeLinear":
        return writer.dequantized(*(_input(node, k) for k in range(3)), axis=axis)
    scale, zero_point = _input(node, 1), _input(node, 2)
    assert scale is not None
    given = [] if zero_point is None else [writer.parameter(zero_point)]
    along: dict[str, Any] = {} if _elements(scale) == 1 else {"axis": axis}
    return writer.op("QuantizeLinear", [node.inputs[0], writer.scale(scale), *given], **along)


_POOLED = ("auto_pad", "ceil_mode", "count_include_pad", "kernel_shape", "pads", "strides")
_REWRITINGS: Mapping[tuple[str, str], Rewriting] = {
    ("", "QLinearConv"): _convolution,
    ("", "QLinearMatMul"): _matrix_product,
    (CONTRIBUTED, "DequantizeLinear"): _conversion,
    (CONTRIBUTED, "QGemm"): _gemm,
    (CONTRIBUTED, "QLinearAdd"): _Between("Add", (0, 3), 6),
    (CONTRIBUTED, "QLinearAveragePool"): _Between("AveragePool", (0,), 3, _POOLED),
    (CONTRIBUTED, "QLinearConcat"): _Between("Concat", (), 0, ("axis",)),
    (CONTRIBUTED, "QLinearGlobalAveragePool"): _Between("GlobalAveragePool", (0,), 3),
    (CONTRIBUTED, "QLinearLeakyRelu"): _Between("LeakyRelu", (0,), 3, ("alpha",)),
    (CONTRIBUTED, "QLinearMul"): _Between("Mul", (0, 3), 6),
    (CONTRIBUTED, "QLinearSigmoid"): _Between("Sigmoid", (0,), 3),
    (CONTRIBUTED, "QLinearSoftmax"): _Between("Softmax", (0,), 3, ("axis",)),
    (CONTRIBUTED, "QuantizeLinear"): _conversion,
}


def _rewriting(node: ir.Node) -> Rewriting | None:
    """How a node is replaced; None for other operators, and for forms that are not known here."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    rewriting = _REWRITINGS.get((domain, node.op_type))
    return rewriting if rewriting is not None and _is_known_form(node) else None


def _is_known_form(node: ir.Node) -> bool:
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    if attributes.get("channels_last") or (node.op_type == "QLinearSoftmax" and attributes.get("opset", 13) < 13):
        return False
    if node.op_type == "QGemm" and not _is_constant(_input(node, 1), _input(node, 4)):
        return False
    if node.op_type in ("QLinearConv", "QLinearMatMul"):
        return all(map(_is_vector, (node.inputs[k] for k in (1, 2, 4, 5, 6, 7)))) and _rank(node.inputs[3]) > 0
    return True


def _is_vector(value: ir.Value | None) -> bool:
    return value is not None and value.shape is not None and value.shape.is_static() and len(value.shape) < 2


def _rank(value: ir.Value | None) -> int:
    """The number of axes; 0 if it is not known, as behind an operator of another domain."""
    return 0 if value is None or value.shape is None else len(value.shape)


def _elements(value: ir.Value) -> int:
    return 1 if value.shape is None else int(np.prod(value.shape.numpy()))


def _attributes(node: ir.Node, names: Sequence[str]) -> dict[str, Any]:
    return {name: node.attributes[name].value for name in names if name in node.attributes}


def _is_constant(*values: ir.Value | None) -> bool:
    return all(constant(value) is not None for value in values)


def _array(value: ir.Value | None) -> np.ndarray:
    array = constant(value)
    assert array is not None  # _is_constant was asked
    return array


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None
