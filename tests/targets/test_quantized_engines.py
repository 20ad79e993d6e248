"""One meaning for the quantizer's output: ONNX Runtime, with its optimizations off and on, onnx's reference evaluator
and the compiled library compute the same integers.

Scales are made powers of two here, so that every engine's float arithmetic is exact and no tie depends on the order of
rounding: the outputs have to be equal to the bit. With other scales two engines may round a sum next to a half to
either side; `test_integer_products` holds a layer to one step then.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

import graphopt.ir as graph_ir
from graphopt.analysis.execution import Session
from graphopt.analysis.samples import Samples
from graphopt.ir.reading import constant
from graphopt.passes.quantize.quantize import Quantize
from graphopt.pipeline.base import PassContext
from tests.passes.harness import parse, run
from tests.targets import compiled

Array = np.ndarray[Any, Any]

HEAD = '<ir_version: 9, opset_import: ["" : 19]> '  # from which the reference evaluator knows DequantizeLinear
RANDOM = np.random.default_rng(0)


def _weight(*shape: int) -> Array:
    return RANDOM.normal(size=shape).astype(np.float32)


CONVOLUTIONS = parse(
    HEAD + "g (float[1,3,8,8] x) => (float[1,5] y) {"
    " a = Conv<pads=[1,1,1,1]>(x, w1, b1) r = Relu(a)"
    " d = Conv<pads=[1,1,1,1], strides=[2,2], group=17>(r, w2, b2) e = Clip(d, low, high)"
    " p = Conv(e, w3, b3) m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) k = Conv(m, w4)"
    " s = Add(p, k) c = Concat<axis=1>(s, p) g = GlobalAveragePool(c) f = Flatten(g) y = Gemm(f, w5, b5) }",
    w1=_weight(17, 3, 3, 3), b1=_weight(17), w2=_weight(17, 1, 3, 3), b2=_weight(17), w3=_weight(7, 17, 1, 1),
    b3=_weight(7), w4=_weight(7, 17, 1, 1), w5=_weight(14, 5), b5=_weight(5),
    low=np.zeros((), np.float32), high=np.full((), 6, np.float32),
)  # fmt: skip
PRODUCTS = parse(
    HEAD + "g (float[1,5,16] x) => (float[1,5,5] y) {"
    " q = MatMul(x, wq) k = MatMul(x, wk) t = Transpose<perm=[0,2,1]>(k) y = MatMul(q, t) }",
    wq=_weight(16, 13),
    wk=_weight(16, 13),
)
UPSAMPLED = parse(
    HEAD + "g (float[1,4,5,5] x) => (float[1,3,10,10] y) {"
    ' u = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(x, roi, scales)'
    " a = Conv<pads=[1,1,1,1]>(u, w1, b1) n = Relu(a) y = Conv(n, w2) }",
    w1=_weight(6, 4, 3, 3), b1=_weight(6), w2=_weight(3, 6, 1, 1),
    roi=np.zeros(0, np.float32), scales=np.array([1, 1, 2, 2], np.float32),
)  # fmt: skip
MODELS = {"convolutions": CONVOLUTIONS, "products": PRODUCTS, "upsampled": UPSAMPLED}


def with_exact_scales(model: ir.Model, samples: Samples) -> ir.Model:
    """`model` in int8 with scales that are powers of two, and weights of 7 bits: on processors without VNNI, kernels
    of ONNX Runtime add two products in 16 bits.
    """
    made = graph_ir.clone(model)
    run(Quantize(), made, PassContext(calibration=samples))
    for node in made.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            _replace(node, 1, np.exp2(np.ceil(np.log2(_array(node, 1)))).astype(np.float32))
    for node in made.graph:
        if node.op_type in ("Conv", "Gemm", "MatMul") and len(node.inputs) > 1:
            sources = [value.producer() for value in node.inputs if value is not None]
            first, weight = sources[0], sources[1]
            assert first is not None and weight is not None
            if constant(weight.inputs[0]) is None:
                continue
            _replace(weight, 0, _array(weight, 0) // 2)
            if len(sources) > 2 and sources[2] is not None:
                scale = np.broadcast_to(_array(first, 1) * _array(weight, 1), _array(sources[2], 1).shape)
                _replace(sources[2], 1, scale.astype(np.float32))
    return made


def _array(node: ir.Node, index: int) -> Array:
    array = constant(node.inputs[index])
    assert array is not None
    return array


def _replace(node: ir.Node, index: int, array: Array) -> None:
    """Give `node` a constant of its own."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    value = ir.Value(name=f"{node.outputs[0].name}_own{index}", const_value=ir.tensor(array))
    value.type, value.shape = ir.TensorType(ir.DataType.from_numpy(array.dtype)), ir.Shape(array.shape)
    graph.initializers.add(value)
    node.replace_input_with(index, value)


@pytest.mark.parametrize("name", MODELS)
def test_every_engine_computes_the_same_numbers(name: str) -> None:
    model = graph_ir.clone(MODELS[name])
    graph_ir.refresh_shapes(model)
    entry = model.graph.inputs[0]
    assert entry.shape is not None
    arrays = np.random.default_rng(1).normal(size=(12, *entry.shape.numpy())).astype(np.float32)
    made = with_exact_scales(model, Samples({"x": arrays}, {"x": 0}))
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in made.graph}
    reference = ReferenceEvaluator(ir.to_proto(made))
    with Session(made, threads=1) as plain, Session(made, optimize=True, threads=1) as fused:
        for array in arrays[:4]:
            feeds = {"x": array}
            expected = plain.run(feeds)["y"]
            assert np.ptp(expected) > 0
            (computed,) = reference.run(None, feeds)
            np.testing.assert_array_equal(computed, expected)
            np.testing.assert_array_equal(fused.run(feeds)["y"], expected)
    np.testing.assert_array_equal(compiled.run(made, feeds)["y"], expected)
