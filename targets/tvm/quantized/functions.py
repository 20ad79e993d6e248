"""Functions of one int8 tensor, however many nodes write them, as one table of 256 results.

    y = Q(f(D(x))),   f: element-wise operators on D(x) and scalars, with further Q and D between them

x has 256 values, so that f is evaluated once for each at compile time: GELU, written by ONNX Runtime's quantizer as
nine nodes and four Q/D pairs, is a table of what all of them give. An element-wise operator of two tensors is a
function of one where both are functions of one: x · sigmoid(x).

Each node is evaluated by onnx's reference in float64 and rounded to float32, which is the float32 nearest to its
result: what float32 arithmetic gives for + − × ÷ √, and what a good libm gives for the others, on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx_ir import serde

from graphopt.targets.tvm.kernels.integer import describe
from graphopt.targets.tvm.kernels.integer_elementwise import IntegerTable
from graphopt.targets.tvm.quantized.conversion import KERNEL
from graphopt.targets.tvm.quantized.editor import DOMAIN, Editor, shape_of
from graphopt.targets.tvm.quantized.parameters import INT8, UINT8, Quantized, constant, dequantized, quantized

ELEMENTWISE = frozenset(
    {
        *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Elu"),
        *("Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Log", "Mish", "Neg"),
        *("PRelu", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign"),
        *("Sqrt", "Tan", "Tanh", "ThresholdedRelu"),
        *("Add", "Div", "Max", "Min", "Mul", "Pow", "Sub"),
    }
)
VALUES = np.arange(-128, 128)  # of an int8, in the order of a table
MOST_VALUES = 64  # that are computed for one function


@dataclass(frozen=True)
class Function:
    """int8 integers that are a function of those of `root`: `table`[q + 128]."""

    root: ir.Value
    table: np.ndarray


@dataclass
class Functions:
    """Replaces functions by tables, and remembers them, so that a function of a function is one table."""

    editor: Editor
    _known: dict[ir.Value, Function] = field(default_factory=dict)

    def rewrite(self, quantize: ir.Node) -> str | None:
        """A QuantizeLinear of a function of one tensor: replaced, or why not."""
        y, source = quantized(quantize), quantize.inputs[0]
        if source is None or y is None or y.integers.dtype not in (INT8, UINT8) or not y.per_tensor:
            return "its result is not quantized to 8 bits with one scale"
        leaves = _leaves(source)
        if isinstance(leaves, str):
            return leaves
        functions = [self._known.get(q.integers, Function(q.integers, VALUES)) for q in leaves.values()]
        if len({function.root for function in functions}) != 1:
            return "it is no function of one tensor quantized to 8 bits"
        root = functions[0].root
        shapes = (root.shape, y.integers.shape)
        if any(shape is None or not shape.is_static() for shape in shapes) or shape_of(root) != shape_of(y.integers):
            return "its shapes are not static, or it spreads its input"
        computed = {
            leaf: _real(function.table, q) for (leaf, q), function in zip(leaves.items(), functions, strict=True)
        }
        results = self._evaluate(source, computed)
        if np.isnan(results).any():
            return "it is no number for some of the integers"
        self._replace(quantize, root, y, integers(results, y))
        return None

    def _evaluate(self, value: ir.Value, computed: dict[ir.Value, np.ndarray]) -> np.ndarray:
        """float32 results for all integers, or one for a constant; those of `computed` are known."""
        if value not in computed:
            node = value.producer()
            given, stored = constant(value), dequantized(value)
            if given is not None:
                computed[value] = given.reshape(())
            elif stored is not None:
                integers = constant(stored.integers)
                assert integers is not None  # else it were a leaf
                computed[value] = (integers.astype(np.int64) - stored.zero_point).reshape(()).astype(np.float32)
                computed[value] = computed[value] * stored.scale
            else:
                assert node is not None  # `_leaves` looked
                inputs = [
                    None if each is None or not each.name else self._evaluate(each, computed) for each in node.inputs
                ]
                computed[value] = _reference(node, inputs, self.editor.opset)
        return computed[value]

    def _replace(self, quantize: ir.Node, root: ir.Value, y: Quantized, table: np.ndarray) -> None:
        editor, shape = self.editor, shape_of(root)
        if np.array_equal(table, VALUES) and root.dtype == y.integers.dtype and not y.integers.is_graph_output():
            ir.convenience.replace_all_uses_with(y.integers, root)
            return
        producer = None if quantize.inputs[0] is None else quantize.inputs[0].producer()
        name = producer.name if producer is not None and producer.name else f"function of {y.integers.name}"
        last = len(shape) > 2 and editor.has_channels_last(root)
        made = editor.add(
            "IntegerTable",
            [editor.channels_last(root) if last else editor.int8(root), editor.constant(table, f"{name}.table")],
            INT8,
            [shape[0], *shape[2:], shape[1]] if last else shape,
            name=f"{name}.int8",
            attributes={KERNEL: describe(IntegerTable(math.prod(shape)))},
            layer=name,
            domain=DOMAIN,
        )
        self._known[editor.replace(y.integers, made, channels_last=last)] = Function(root, table)


def integers(results: np.ndarray, y: Quantized) -> np.ndarray:
    """int8 that float32 numbers are quantized to; uint8 less 128."""
    steps = np.rint(results / y.scale).astype(np.float64) + y.signed_zero_point
    made: np.ndarray = np.clip(steps, -128, 127).astype(np.int8)
    return made


def _real(signed: np.ndarray, q: Quantized) -> np.ndarray:
    """float32 numbers that int8 stand for; those of a uint8 less 128."""
    made: np.ndarray = (signed.astype(np.int64) - q.signed_zero_point).astype(np.float32) * q.scale
    return made


def _leaves(value: ir.Value) -> dict[ir.Value, Quantized] | str:
    """What `value` is computed from by element-wise operators, dequantized tensors all, or why it is not."""
    leaves: dict[ir.Value, Quantized] = {}
    seen = {value}
    waiting = [value]
    while waiting:
        value = waiting.pop()
        node, given, stored = value.producer(), constant(value), dequantized(value)
        if stored is not None:
            given = constant(stored.integers)
        if given is not None:
            if given.size != 1:
                return "it has constants that are no scalars"
        elif stored is not None:
            if not stored.per_tensor or stored.integers.dtype not in (INT8, UINT8):
                return "its input is not quantized to 8 bits"
            leaves[value] = stored
        elif node is None:
            return "it reads a float input of the model"
        elif node.op_type not in ELEMENTWISE or node.domain not in ("", "ai.onnx") or len(node.outputs) != 1:
            return f"there is no integer kernel for {node.op_type}"
        elif len(seen) > MOST_VALUES:
            return f"it is a function of more than {MOST_VALUES} values"
        else:
            more = [each for each in node.inputs if each is not None and each.name and each not in seen]
            seen.update(more)
            waiting += more
    return leaves or "it is constant"


def _reference(node: ir.Node, inputs: list[np.ndarray | None], opset: int) -> np.ndarray:
    """What the node gives, in float64, as float32."""
    proto = serde.serialize_node(node)
    feeds = {
        name: array.astype(np.float64) for name, array in zip(proto.input, inputs, strict=True) if array is not None
    }
    types = {
        name: helper.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, None) for name in (*feeds, *proto.output)
    }
    graph = helper.make_graph([proto], "node", [types[name] for name in feeds], [types[name] for name in proto.output])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    with np.errstate(all="ignore"):  # what overflows saturates, and what is no number is declined
        outputs: Any = ReferenceEvaluator(model).run(None, feeds)
        return np.asarray(outputs[0], np.float32)
