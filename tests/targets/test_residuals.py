"""A residual is combined with a product in the product's kernel: the same bits as by a kernel of its own."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from graphopt.targets.tvm.preparation import prepare
from graphopt.targets.tvm.quantized.residuals import layers_of
from tests.targets import compiled

FEW = settings(  # each compiles two models: no shrinking
    max_examples=8, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
SHAPE = (2, 5, 6, 7)


def network(
    operator: str,
    operands: str,
    channels: int = 5,
    group: int = 1,
    *,
    shown: bool = False,
    more: str = "",
    residual: tuple[int, ...] | None = None,
) -> ir.Model:
    """y of a convolution q of x and of a residual r, all int8. shown: q is an output, too. more: nodes that make z."""
    random = np.random.default_rng(channels)
    batch, _, height, width = SHAPE
    depth = 5 if group == 1 else 1
    weights = random.integers(-127, 128, channels * depth * 9).tolist()
    shape = ",".join(map(str, residual or (batch, channels, height, width)))
    full = f"{batch},{channels},{height},{width}"
    outputs = f"int8[{full}] y" + (f", int8[{full}] q" if shown else "") + (f", int8[{full}] z" if more else "")
    return compiled.parse(
        f"""<ir_version: 9, opset_import: ["" : 17]>
        net (int8[{batch},5,{height},{width}] x, int8[{shape}] r) => ({outputs})
        <float sx = {{0.05}}, int8 zx = {{3}}, float sw = {{0.004}}, int8 zw = {{0}},
         float sq = {{0.06}}, int8 zq = {{-7}}, float sr = {{0.031}}, int8 zr = {{11}},
         float sy = {{0.09}}, int8 zy = {{-20}},
         int8[{channels},{depth},3,3] w = {{{",".join(map(str, weights))}}}> {{
            xf = DequantizeLinear(x, sx, zx) wf = DequantizeLinear(w, sw, zw)
            [conv] cf = Conv <pads = [1,1,1,1], group = {group}> (xf, wf)
            q = QuantizeLinear(cf, sq, zq) qf = DequantizeLinear(q, sq, zq) rf = DequantizeLinear(r, sr, zr)
            [sum] yf = {operator}({operands}) rectified = Relu(yf) y = QuantizeLinear(rectified, sy, zy) {more} }}"""
    )


def kernels(model: ir.Model) -> dict[str, list[str]]:
    """Names of the layers of each kernel, by what kind it is."""
    found: dict[str, list[str]] = {}
    for node in prepare(model).graph:
        found.setdefault(node.op_type, []).extend(layers_of(node))
    return found


def inputs(residual: tuple[int, ...]) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {"x": random.integers(-128, 128, SHAPE, np.int8), "r": random.integers(-128, 128, residual, np.int8)}


@FEW
@given(
    st.sampled_from(["Add", "Sub", "Mul"]),
    st.sampled_from(["qf, rf", "rf, qf"]),
    st.sampled_from([1, 3, 5, 7, 17, 20, 35]),
)
def test_the_bits_are_those_of_two_kernels(operator: str, operands: str, channels: int) -> None:
    hidden, shown = (network(operator, operands, channels, shown=shown) for shown in (False, True))
    assert kernels(hidden)["IntegerProduct"] == ["conv", "sum"] and "IntegerBinary" not in kernels(hidden)
    assert kernels(shown)["IntegerBinary"] == ["sum"]
    feeds = inputs((SHAPE[0], channels, *SHAPE[2:]))
    expected = compiled.run(shown, feeds)["y"]
    assert len(np.unique(expected)) > 5
    np.testing.assert_array_equal(compiled.run(hidden, feeds)["y"], expected)


def test_of_two_products_one_takes_the_other() -> None:
    model = compiled.parse(
        """<ir_version: 9, opset_import: ["" : 17]>
        net (int8[1,1,4,4] x) => (int8[1,1,4,4] y)
        <float sx = {0.05}, int8 zx = {3}, float sw = {0.004}, int8 zw = {0}, float sr = {0.03}, int8 zr = {1},
         int8[1,1,3,3] w = {1,2,3,4,5,6,7,8,9}> {
            xf = DequantizeLinear(x, sx, zx) wf = DequantizeLinear(w, sw, zw)
            [left] a = Conv <pads = [1,1,1,1]> (xf, wf) p = QuantizeLinear(a, sr, zr) pf = DequantizeLinear(p, sr, zr)
            [right] b = Conv <pads = [1,1,1,1]> (xf, wf) q = QuantizeLinear(b, sx, zx) qf = DequantizeLinear(q, sx, zx)
            [sum] yf = Add(pf, qf) y = QuantizeLinear(yf, sr, zr) }"""
    )
    found = kernels(model)
    assert sorted(found["IntegerProduct"]) == ["left", "right", "sum"] and "IntegerBinary" not in found


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"shown": True}, "its result is an output"),
        ({"more": "zf = Relu(qf) z = QuantizeLinear(zf, sy, zy)"}, "another node reads it"),
        ({"residual": (2, 5, 1, 1)}, "the residual is one pixel for all"),
        ({"group": 5}, "a depthwise convolution has another kernel"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_kernel_of_its_own_stays_where_the_product_cannot_go_on(given: dict, reason: str) -> None:  # type: ignore[type-arg]
    model = network(**{"operator": "Add", "operands": "qf, rf", **given})
    assert kernels(model)["IntegerBinary"] == ["sum"], reason
