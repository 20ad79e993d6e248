"""What only a maximum over all places reads keeps its extremes; what anything else reads is cut by squared error."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import graphopt.ir as graph_ir
from graphopt.analysis.samples import Samples
from graphopt.ir.reading import constant
from graphopt.passes.quantize.maxima import feeding_maxima
from graphopt.passes.quantize.quantize import Quantize
from graphopt.pipeline.base import PassContext
from tests.passes.harness import parse, run

HEAD = '<ir_version: 8, opset_import: ["" : 17]> g (float[1,4,128,128] x) => '


def model_of(body: str, output: str = "float[A,B,C,D] y") -> ir.Model:
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(4, 4, 1, 1)).astype(np.float32), "k": np.full(1, 0.5, np.float32)}
    used = {name: array for name, array in weights.items() if f"{name})" in body or f"{name} " in body}
    model = parse(f"{HEAD}({output}) {{ {body} }}", **used)
    graph_ir.refresh_shapes(model)
    return model


@pytest.mark.parametrize(
    ("body", "leading"),
    [
        ("c = Conv(x, w) r = Relu(c) y = GlobalMaxPool(r)", {"x", "c", "r"}),
        ("c = Conv(x, w) d = Div(c, k) e = Erf(d) m = Mul(c, e) y = GlobalMaxPool(m)", {"x", "c", "d", "e", "m"}),
        ("c = Conv(x, w) r = Relu(c) y = GlobalAveragePool(r)", set()),
        ("c = Conv(x, w) a = GlobalMaxPool(c) b = GlobalAveragePool(c) y = Add(a, b)", set()),
        ("c = Conv(x, w) s = Softmax(c) y = GlobalMaxPool(s)", {"s"}),
        ("a = MatMul(x, x) y = GlobalMaxPool(a)", {"a"}),
    ],
)
def test_a_value_leads_to_a_maximum_only_if_every_way_does(body: str, leading: set[str]) -> None:
    assert {value.name for value in feeding_maxima(model_of(body).graph)} == leading


def test_the_output_of_the_graph_is_read_outside_as_well() -> None:
    body = "c = Conv(x, w) y = GlobalMaxPool(c)"
    assert not feeding_maxima(model_of(body, "float[A,B,C,D] y, float[A,B,C,D] c").graph)


@pytest.mark.parametrize(("pool", "cut"), [("GlobalMaxPool", False), ("GlobalAveragePool", True)])
def test_rare_large_inputs_keep_their_range_where_a_maximum_follows(pool: str, cut: bool) -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(10, 4, 128, 128)).astype(np.float32)
    x[0, 0, 0, 0] = 8
    model = model_of(f"c = Conv(x, w) r = Relu(c) y = {pool}(r)")
    run(Quantize(), model, PassContext(calibration=Samples({"x": x}, {"x": 1})))
    first = next(node for node in model.graph if node.op_type == "QuantizeLinear")
    scale, zero = constant(first.inputs[1]), constant(first.inputs[2])
    assert scale is not None and zero is not None
    highest = (127 - float(zero.item())) * float(scale.item())
    assert (highest < 7) == cut
