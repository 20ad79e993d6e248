"""Integers change their layout by kernels: transposed, quantized to channels last, dequantized to channels first."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt import ir as gir
from graphopt.analysis.execution import Session
from graphopt.targets.tvm.kernels.dynamic_quantize import has_reciprocal
from graphopt.targets.tvm.preparation import prepare
from graphopt.targets.tvm.quantized.rearrangements import batched_transposition
from tests.passes.harness import parse
from tests.targets import compiled
from tests.targets.test_integer_elementwise import FEW


def operators(model: Any) -> list[str]:
    return [node.op_type for node in prepare(model).graph]


def images(batch: int, channels: int, size: tuple[int, int], body: str, dtype: str = "int8", **arrays: Any) -> Any:
    """A float image, quantized, through layers with channels last."""
    shape = f"{batch},{channels},{size[0]},{size[1]}"
    made = parse(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[{shape}] x) => ({dtype}[n,c,h,w] a, float[n,c,h,w] y) {{
            q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) {body} }}""",
        s=np.float32(0.037),
        z=np.array(5 if dtype == "int8" else 133, dtype),
        **arrays,
    )
    for output in made.graph.outputs:
        output.shape = None
    gir.refresh_shapes(made)
    return made


@FEW
@given(data=st.data())
def test_images_are_quantized_and_dequantized_exactly(data: Any) -> None:
    """The integers and the floats are those of ONNX Runtime, ties included, and nothing is moved byte by byte."""
    draw = data.draw
    channels, dtype = draw(st.sampled_from([2, 3, 4, 5, 8, 17, 40])), draw(st.sampled_from(["int8", "uint8"]))
    size = draw(st.sampled_from([(1, 1), (3, 5), (4, 4), (9, 13)]))
    body = "w = DequantizeLinear(i, one) f = Conv(d, w) a = QuantizeLinear(f, s, z) y = DequantizeLinear(a, s, z)"
    itself = np.eye(channels, dtype=np.int8).reshape(channels, channels, 1, 1)
    model = images(1, channels, size, body, dtype, i=itself, one=np.float32(1))
    assert {"QuantizeChannelsLast", "IntegerProduct", "DequantizeChannelsFirst"} <= set(operators(model))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    x = (random.standard_normal((1, channels, *size)) * 3).astype(np.float32)
    x.flat[::3] = (np.round(x.flat[::3] / 0.037) + 0.5) * np.float32(0.037)  # ties
    found, expected = compiled.run(model, {"x": x}), Session(model).run({"x": x})
    np.testing.assert_array_equal(found["a"], expected["a"])
    np.testing.assert_array_equal(found["y"], expected["y"])


def quantized(*steps: str) -> str:
    """Each step, a node that reads a value of the one before, with its result quantized."""
    return " ".join(
        f"f{i} = {step.format(f'v{i}')} q{i} = QuantizeLinear(f{i}, s, z) v{i + 1} = DequantizeLinear(q{i}, s, z)"
        for i, step in enumerate(steps)
    )


def test_a_channel_shuffle_between_convolutions_is_one_transposition_of_each_pixel() -> None:
    channels, groups, random = 12, 3, np.random.default_rng(0)
    shuffle = ("Reshape({}, split)", "Transpose<perm = [0, 2, 1, 3, 4]>({})", "Reshape({}, whole)")
    body = quantized("Conv({}, w)", *shuffle, "Conv({}, w)").replace("v0", "d")
    model = images(
        *(1, channels, (6, 5), f"w = DequantizeLinear<axis = 0>(i, k) {body} a = Identity(q4) y = Identity(v5)"),
        i=random.integers(-127, 128, (channels, channels, 1, 1)).astype(np.int8),
        k=np.full(channels, 0.003, np.float32),
        split=np.array([1, groups, channels // groups, 6, 5]),
        whole=np.array([1, channels, 6, 5]),
    )
    made = operators(model)
    assert made.count("IntegerTransposition") == 2  # the other one gives `a` with channels first
    assert "Transpose" not in made
    x = random.standard_normal((1, channels, 6, 5)).astype(np.float32)
    found, expected = compiled.run(model, {"x": x}), Session(model).run({"x": x})
    assert np.abs(found["a"].astype(int) - expected["a"]).max() <= 1


@pytest.mark.parametrize(
    "shape", [(1, 3, 50), (2, 17, 33), (5, 8, 3), (3, 2, 16), (1, 16, 16), (7, 4, 64), (1, 100, 5)]
)
def test_transpositions_of_bytes_are_exact(shape: tuple[int, int, int]) -> None:
    batch, rows, columns = shape
    made = parse(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (int8[{batch},{rows},{columns}] x) => (int8[{batch},{columns},{rows}] y) {{
            d = DequantizeLinear(x, s, z) t = Transpose<perm = [0, 2, 1]>(d) y = QuantizeLinear(t, s, z) }}""",
        s=np.float32(0.1), z=np.array(0, np.int8))  # fmt: skip
    gir.refresh_shapes(made)
    assert operators(made) == ["IntegerTransposition"]
    x = np.random.default_rng(0).integers(-128, 128, shape, np.int8)
    np.testing.assert_array_equal(compiled.run(made, {"x": x})["y"], x.transpose(0, 2, 1))


@given(st.integers(1, 3), st.integers(2, 5), st.integers(2, 5))
def test_a_transposition_is_known_by_its_indices(batch: int, rows: int, columns: int) -> None:
    indices = np.arange(batch * rows * columns).reshape(batch, rows, columns)
    assert batched_transposition(indices.transpose(0, 2, 1).reshape(-1)) == (batch, rows, columns)


@pytest.mark.parametrize("axes", [(2, 1, 0), (1, 0, 2)])
def test_other_moves_are_no_transposition(axes: tuple[int, ...]) -> None:
    assert batched_transposition(np.arange(60).reshape(3, 4, 5).transpose(axes).reshape(-1)) is None


def test_no_reciprocal_is_taken_of_extreme_steps() -> None:
    steps = [2.0**-101, 2.0**101, 0.1, np.array(0x3FFFFFFF, np.int32).view(np.float32)]
    assert [has_reciprocal(np.float32(step)) for step in steps] == [False, False, True, False]
