"""How a model is quantized, whichever tool did it: read from the graph, in each of the forms that ONNX has.

QDQ        QuantizeLinear and DequantizeLinear around operators of floats. A node computes on integers if everything
           that it reads is dequantized, and its result is quantized; a sum of products may end in float.
QOperator  operators that take and give integers: QLinearConv, QLinearMatMul, and more in the domain com.microsoft.
dynamic    activations quantized by their range at run time: DynamicQuantizeLinear, ConvInteger, MatMulInteger.
weights    constants alone: DequantizeLinear of a constant that a float operator reads, MatMulNBits, palettes (constant
           indices that Gather looks up in a constant), and constants of 16 bits that are cast before they are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.ir.reading import constant, is_standard

FLOAT = "float32"
PALETTE = "palette"
GRANULARITIES = ("tensor", "channel", "block")

_INTEGERS = {
    kind: kind.name.lower()
    for kind in (
        ir.DataType.INT2, ir.DataType.UINT2, ir.DataType.INT4, ir.DataType.UINT4, ir.DataType.INT8, ir.DataType.UINT8,
        ir.DataType.INT16, ir.DataType.UINT16, ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2,
    )
}  # fmt: skip
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum")
_SUMS = ("Add", "Concat", "Div", "Mul", "Sub")
_CONVERTING = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
_TAIL = ("Add", "Relu", "Clip")  # what a kernel of integers does to its sum before it rounds

# Operators of integers, with the inputs that are activation and weight, each followed by its scale and zero point.
_LINEAR: Mapping[str, tuple[int, int]] = {
    "QLinearConv": (0, 3),
    "QLinearMatMul": (0, 3),
    "QGemm": (0, 3),
}
_INTEGER = ("ConvInteger", "MatMulInteger", "MatMulIntegerToFloat")
_DYNAMIC = ("DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulIntegerToFloat")
_PACKED = ("MatMulNBits", "MatMulBnb4", "GatherBlockQuantized")


@dataclass(frozen=True)
class Precision:
    """What a layer computes in: types of its activations and weights, empty where it has none, and whether the
    activations' scale is chosen at run time.
    """

    activations: str
    weights: str = ""
    dynamic: bool = False

    @property
    def integer(self) -> bool:
        """Whether it computes on integers."""
        return self.activations.startswith(("int", "uint"))

    def __str__(self) -> str:
        run_time = " at run time" if self.dynamic else ""
        if self.integer:
            plain = self.weights in ("", self.activations)
            return f"{self.activations}{run_time}" + ("" if plain else f", weights {self.weights}")
        return f"{self.activations}, weights {self.weights}" if self.weights else self.activations


@dataclass(frozen=True)
class Scheme:
    """types: of the integers; symmetric: every zero point is 0 (of an unsigned type the middle); granularity: the
    finest unit that has a scale of its own, of GRANULARITIES.
    """

    types: tuple[str, ...]
    symmetric: bool
    granularity: str

    def __str__(self) -> str:
        zero = "symmetric" if self.symmetric else "asymmetric"
        return f"{' and '.join(self.types)}, {zero}, per {self.granularity}"


@dataclass(frozen=True)
class Quantization:
    """A quantized model.

    form: "QDQ", "QOperator", "dynamic", "weights", or several of them joined by " + ".
    activations, weights: None where there are no integers of the kind, or where their scales are not known.
    operators: by operator, how many layers compute on integers, on floats with weights stored in fewer bits, and on
        floats alone.
    """

    form: str
    activations: Scheme | None
    weights: Scheme | None
    operators: Mapping[str, tuple[int, int, int]]


def is_quantized_operator(node: ir.Node) -> bool:
    """Whether `node` is of those that only quantized models have."""
    name = node.op_type
    return name.startswith("QLinear") or name in (*_CONVERTING, *_LINEAR, *_INTEGER, *_DYNAMIC, *_PACKED)


def quantized_node(model: ir.Model) -> ir.Node | None:
    """The first node that only a quantized model has, in subgraphs too; None for a model in floats."""
    return next((node for node in model.graph.all_nodes() if is_quantized_operator(node)), None)


def precisions(graph: ir.Graph) -> dict[ir.Node, Precision]:
    """What each layer of `graph` computes in. Left out are nodes that only convert, those that make no numbers of the
    network (shapes, indices), and those that compute from constants alone.
    """
    found: dict[ir.Node, Precision] = {}
    known: set[ir.Value] = set()
    for node in graph:
        given = [value for value in node.inputs if value is not None]
        if given and all(value in known or constant(value) is not None for value in given):
            known.update(node.outputs)
        elif (precision := _precision(node, found)) is not None:
            found[node] = precision
    return found


def quantization(model: ir.Model) -> Quantization | None:
    """How the main graph of `model` is quantized; None if nothing in it is."""
    nodes = [node for node in model.graph if is_quantized_operator(node) or _stored_as(node)]
    if not nodes:
        return None
    found = precisions(model.graph)
    counts: dict[str, list[int]] = {}
    for node, precision in found.items():
        place = 0 if precision.integer else 1 if precision.weights else 2
        counts.setdefault(node.op_type, [0, 0, 0])[place] += 1
    operators = {
        op: (count[0], count[1], count[2])
        for op, count in sorted(counts.items())
        if count[0] or count[1] or op in _PRODUCTS
    }
    schemes = list(_schemes(model.graph))
    return Quantization(
        form=" + ".join(dict.fromkeys(form for form in _FORMS if form in {_form(node) for node in nodes})) or "weights",
        activations=_joined(scheme for weight, scheme in schemes if not weight),
        weights=_joined(scheme for weight, scheme in schemes if weight),
        operators=operators,
    )


_FORMS = ("QDQ", "QOperator", "dynamic", "weights")


def _form(node: ir.Node) -> str:
    """Which form `node` is a sign of; empty for one that each form may hold."""
    if node.op_type == "DequantizeLinear":
        producer = _behind(node.inputs[0])
        pair = producer is not None and producer.op_type == "QuantizeLinear"
        return "QDQ" if pair else "weights" if _is_weight(node) and _reads_float(node) else ""
    if node.op_type in _PACKED or _stored_as(node):
        return "weights"
    if node.op_type in (*_INTEGER, *_DYNAMIC, "DynamicQuantizeLinear"):
        return "dynamic"
    return "" if node.op_type == "QuantizeLinear" else "QOperator"


def _reads_float(node: ir.Node) -> bool:
    """Whether a layer reads this dequantized weight beside activations in float."""
    readers = {use.node for use in node.outputs[0].uses()}
    return any(not _operands(reader)[0] for reader in readers if reader.op_type not in _CONVERTING)


def _precision(node: ir.Node, before: Mapping[ir.Node, Precision]) -> Precision | None:
    if node.op_type in _CONVERTING or is_standard(node, "Constant", "Cast") or not node.outputs:
        return None
    made = node.outputs[0].dtype
    if made is None and any(_is_float(value) for value in node.inputs):
        made = ir.DataType.FLOAT  # behind an operator of another domain, whose types nobody infers
    name = node.op_type
    if name in _LINEAR or name.startswith("QLinear"):
        weight = _type(node, _LINEAR[name][1]) if name in _LINEAR else ""
        known = (_type(node, index) for index in range(len(node.inputs)))  # of the activation, or of its zero point
        return Precision(next(filter(None, known), "int8"), weight)
    if name in (*_INTEGER, *_DYNAMIC):
        producer = _behind(node.inputs[0])
        dynamic = name in _DYNAMIC or (producer is not None and producer.op_type != "QuantizeLinear")
        return Precision(_type(node, 0) or "uint8", _type(node, 1), dynamic)
    if name in _PACKED:
        bits = node.attributes.get_int("bits", 4)
        return Precision(FLOAT if made is None else _float_name(made), f"uint{bits}")
    if made in _INTEGERS:
        return Precision(_INTEGERS[made]) if _type(node, 0) == _INTEGERS[made] else None
    if made not in _FLOATS or made is None:
        return None
    activations, weights, dynamic = _operands(node)
    weight = weights[0] if weights else ""
    if activations and (is_standard(node, *_PRODUCTS) or _is_quantized(node)):
        return Precision(activations[0], weight, dynamic)
    if (inside := _inside(node, before)) is not None:
        return inside
    return Precision(_float_name(made), weight)


def _is_float(value: ir.Value | None) -> bool:
    """Whether the type says so; where it is not known, whether the value is dequantized."""
    if value is None or value.dtype is not None:
        return value is not None and value.dtype in _FLOATS
    producer = value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def _float_name(kind: ir.DataType) -> str:
    return FLOAT if kind == ir.DataType.FLOAT else kind.name.lower()


def _operands(node: ir.Node) -> tuple[list[str], list[str], bool]:
    """Types of the activations if all are dequantized, else none; of the dequantized weights but biases; and whether
    the scale of an activation is chosen at run time.
    """
    activations: list[str] = []
    weights: list[str] = []
    floating, dynamic = False, False
    for index, value in enumerate(node.inputs):
        if value is None or not _is_float(value):
            continue
        if constant(value) is not None:  # a factor or a term in float; elsewhere a bias, a bound, a setting
            floating |= index < 2 if is_standard(node, *_PRODUCTS) else is_standard(node, *_SUMS)
            continue
        producer = value.producer()
        if (maker := _behind(value)) is not None and (stored := _stored_as(maker)):
            weights.append(stored)
            floating = True
            continue
        if maker is not None and maker.op_type == "DequantizeLinear" and _is_weight(maker):
            producer = maker  # moved before it is read
        if producer is None or producer.op_type != "DequantizeLinear":
            floating = True
            continue
        kind = _type(producer, 0) or _type(producer, 2)  # the zero point's where the other is not inferred
        if _is_weight(producer):
            weights += [kind] if kind else []  # int32 is a bias
        elif kind:
            activations.append(kind)
            behind = _behind(producer.inputs[0])
            dynamic |= behind is not None and behind.op_type == "DynamicQuantizeLinear"
    return ([] if floating else activations), weights, dynamic


def _stored_as(node: ir.Node) -> str:
    """How the weight that `node` makes is stored, if that is a palette or a float of 16 bits; empty otherwise."""
    value = node.inputs[0] if node.inputs else None
    if constant(value) is None or value is None or node.outputs[0].dtype not in _FLOATS:
        return ""
    if is_standard(node, "Cast"):
        return _float_name(value.dtype) if value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16) else ""
    if not is_standard(node, "Gather", "GatherElements") or node.inputs[1] is None:
        return ""
    cast = node.inputs[1].producer()
    indices = cast.inputs[0] if cast is not None and is_standard(cast, "Cast") else None
    few = indices is not None and indices.dtype in (ir.DataType.UINT8, ir.DataType.UINT4)
    return PALETTE if few and constant(indices) is not None else ""


def _is_weight(node: ir.Node) -> bool:
    """Whether a DequantizeLinear dequantizes what is known before the run."""
    value = node.inputs[0]
    while value is not None and constant(value) is None:
        producer = value.producer()
        if producer is None or not producer.inputs or any(constant(other) is None for other in producer.inputs[1:]):
            return False
        value = producer.inputs[0]
    return value is not None


def _is_quantized(node: ir.Node) -> bool:
    """Whether everything that reads the results of `node` rounds them, behind a bound at most."""
    readers = [use.node for output in node.outputs for use in output.uses()]
    if any(output.is_graph_output() for output in node.outputs) or not readers:
        return False
    bounded = [reader for reader in readers if is_standard(reader, "Relu", "Clip")]
    if len(readers) == 1 and bounded:
        return _is_quantized(bounded[0])
    return all(reader.op_type == "QuantizeLinear" for reader in readers)


def _inside(node: ir.Node, before: Mapping[ir.Node, Precision]) -> Precision | None:
    """The precision of the layer that `node` is the tail of: bias, Relu and Clip between its sum and its rounding."""
    if not is_standard(node, *_TAIL):
        return None
    given = [value for value in node.inputs if value is not None and constant(value) is None]
    makers = [value.producer() for value in given]
    layers = [maker for maker in makers if maker is not None and maker in before and before[maker].integer]
    biases = [maker for maker in makers if maker is not None and maker.op_type == "DequantizeLinear"]
    if len(layers) != 1 or len(layers) + len(biases) != len(given) or not all(map(_is_weight, biases)):
        return None
    if node.op_type == "Add" and not biases:
        return None
    alone = len(layers[0].outputs[0].uses()) == 1 and not layers[0].outputs[0].is_graph_output()
    return Precision(before[layers[0]].activations) if alone and (biases or _is_quantized(node)) else None


def _behind(value: ir.Value | None) -> ir.Node | None:
    """What made the integers of `value`: the node before those that only move numbers."""
    producer = value.producer() if value is not None else None
    while producer is not None and is_standard(producer, *_MOVING):
        source = producer.inputs[0]
        producer = source.producer() if source is not None else None
    return producer


_MOVING = ("Flatten", "Identity", "MaxPool", "Pad", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")


def _type(node: ir.Node, index: int) -> str:
    value = node.inputs[index] if index < len(node.inputs) else None
    return "" if value is None or value.dtype is None else _INTEGERS.get(value.dtype, "")


def _schemes(graph: ir.Graph) -> Iterator[tuple[bool, Scheme]]:
    """The scheme of what each node quantizes, and whether it is a weight's."""
    for node in graph:
        if node.op_type == "QuantizeLinear":
            yield from _scheme(node, False, node.outputs[0], 1, 2)
        elif node.op_type == "DequantizeLinear" and _is_weight(node):
            yield from _scheme(node, True, node.inputs[0], 1, 2)
        elif node.op_type in _LINEAR:
            for is_weight, index in zip((False, True), _LINEAR[node.op_type], strict=True):
                yield from _scheme(node, is_weight, node.inputs[index], index + 1, index + 2)
        elif node.op_type in _INTEGER:  # its scales are factors behind it
            yield from _scheme(node, True, node.inputs[1], 3, 3)
        elif is_standard(node, "DynamicQuantizeLinear"):
            yield False, Scheme(("uint8",), False, "tensor")
        elif node.op_type in _PACKED:
            bits = node.attributes.get_int("bits", 4)
            yield True, Scheme((f"uint{bits}",), len(node.inputs) < 4 or node.inputs[3] is None, "block")


def _scheme(
    node: ir.Node, weight: bool, integers: ir.Value | None, scale: int, zero_point: int
) -> Iterator[tuple[bool, Scheme]]:
    """The scheme of `integers`, whose scale and zero point are inputs of `node`; nothing for int32, which is a bias."""
    kind = integers.dtype if integers is not None else None
    name = _INTEGERS.get(kind, "") if kind is not None else _type(node, zero_point)
    scales, zeros = (constant(node.inputs[at]) if at < len(node.inputs) else None for at in (scale, zero_point))
    if not name:
        return
    middle = 2 ** (int(name.removeprefix("uint")) - 1) if name.startswith("uint") else 0
    blocks = node.attributes.get_int("block_size", 0) > 0
    fine = scales is not None and scales.size > 1
    symmetric = zeros is None or bool((zeros.astype(np.int64) == middle).all())
    yield weight, Scheme((name,), symmetric, "block" if blocks else "channel" if fine else "tensor")


def _joined(schemes: Iterable[Scheme]) -> Scheme | None:
    found = list(schemes)
    if not found:
        return None
    types = tuple(sorted({name for scheme in found for name in scheme.types}))
    finest = max(GRANULARITIES.index(scheme.granularity) for scheme in found)
    return Scheme(types, all(scheme.symmetric for scheme in found), GRANULARITIES[finest])
