"""Convolutions of one dimension run as those of images of one row, with what lies between them, and agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import ir as gir
from graphopt.analysis.execution import Session
from graphopt.targets.tvm.one_dimension import as_images
from tests.passes.harness import parse
from tests.targets import compiled
from tests.targets.single_node import assert_as_onnxruntime

rng = np.random.default_rng(0)


def network(length: int = 17) -> Any:
    """Two convolutions with element-wise operators between and beside them, a residual sum, and a pool of lines."""
    return parse(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[2,3,{length}] x, float[2,5,{length}] r) => (float[2,5,{length}] y, float[2,5,1] m) {{
            a = Conv <pads = [1, 1]> (x, w, b) p = PRelu(a, slope) c = Clip(p, low, high)
            d = Conv <kernel_shape = [3], pads = [2, 2], dilations = [2], group = 5> (c, k)
            s = Add(d, r) t = Mul(s, scale) y = Sigmoid(t) m = GlobalAveragePool(y) }}""",
        w=rng.standard_normal((5, 3, 3)).astype(np.float32),
        b=rng.standard_normal(5).astype(np.float32),
        k=rng.standard_normal((5, 1, 3)).astype(np.float32),
        slope=rng.uniform(0, 1, (5, 1)).astype(np.float32),
        scale=rng.uniform(0, 1, (1, 5, 1)).astype(np.float32),
        low=np.array(-1, np.float32),
        high=np.array(2, np.float32),
    )


def test_lines_become_images_and_back_where_something_else_reads_them() -> None:
    model = network()
    gir.refresh_shapes(model)
    made = as_images(model)
    assert [node.op_type for node in made.graph] == [
        *("Reshape", "Conv", "PRelu", "Clip", "Conv", "Reshape", "Add", "Mul", "Sigmoid", "Reshape"),
        "GlobalAveragePool",
    ]
    assert [value.name for value in made.graph.outputs] == ["y", "m"]
    assert as_images(made) is made  # nothing is left to do
    feeds = {
        name: rng.standard_normal(shape).astype(np.float32) for name, shape in (("x", (2, 3, 17)), ("r", (2, 5, 17)))
    }
    expected, found = Session(model).run(feeds), Session(made).run(feeds)
    for name in ("y", "m"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-6)


def test_what_is_element_wise_between_stays_in_the_kernel_of_the_convolution() -> None:
    model = network()
    gir.refresh_shapes(model)
    names = list(compiled.lowered(model).functions)
    assert len(names) == 3 and any("convolution" in name for name in names)


@pytest.mark.parametrize("length", [1, 3, 17, 64])
def test_the_compiled_network_agrees(length: int) -> None:
    model = network(length)
    gir.refresh_shapes(model)
    feeds = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in (("x", (2, 3, length)), ("r", (2, 5, length)))
    }
    expected, found = Session(model).run(feeds), compiled.run(model, feeds)
    for name in ("y", "m"):
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_kernel_stride_and_padding_agrees(data: Any) -> None:
    draw = data.draw
    kernel, stride = (draw(st.integers(1, most)) for most in (5, 3))
    auto_pad = draw(st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    dilation = 1 if auto_pad.startswith("SAME") else draw(st.integers(1, 2))  # ONNX Runtime has no others
    group, inputs, outputs = (draw(st.sampled_from(each)) for each in ([1, 2, 3], [1, 3, 7], [1, 5, 8]))
    length = draw(st.integers((kernel - 1) * dilation + 1, 20))
    pads = [draw(st.integers(0, 3)) for _ in range(2)]
    padding: dict[str, Any] = {"pads": pads} if auto_pad == "NOTSET" else {"auto_pad": auto_pad}
    arrays = {
        "x": rng.uniform(-1, 1, (draw(st.integers(1, 2)), inputs * group, length)).astype(np.float32),
        "w": rng.uniform(-1, 1, (outputs * group, inputs, kernel)).astype(np.float32),
        "b": rng.uniform(-1, 1, outputs * group).astype(np.float32) if draw(st.booleans()) else None,
    }
    assert_as_onnxruntime("Conv", arrays, ["w", "b"], strides=[stride], dilations=[dilation], group=group, **padding)
