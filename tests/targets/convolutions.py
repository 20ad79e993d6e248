"""Convolutions for the tests of the kernels: a layer of any geometry with what is fused behind it, and its check."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import helper, numpy_helper
from tvm import tirx

from graphopt import ir as gir
from tests.targets.compiled import lowered, run


@dataclass(frozen=True)
class Layer:
    """A Conv with bias, a clamp to [-1, 2] and, if `residual`, a sum with a second input."""

    channels: int
    filters: int
    image: tuple[int, int]
    kernel: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (1, 1, 1, 1)
    dilations: tuple[int, int] = (1, 1)
    groups: int = 1
    batch: int = 1
    residual: bool = False

    @property
    def result(self) -> tuple[int, ...]:
        """Height and width of the output; not positive if the kernel does not fit."""
        return tuple(
            (self.image[i] + self.pads[i] + self.pads[i + 2] - self.dilations[i] * (self.kernel[i] - 1) - 1)
            // self.strides[i]
            + 1
            for i in range(2)
        )

    @property
    def depth(self) -> int:
        """Products in one sum."""
        return self.channels // self.groups * self.kernel[0] * self.kernel[1]

    def model(self) -> onnx.ModelProto:
        """The layer as an ONNX model."""
        rng = np.random.default_rng(0)
        weights = rng.uniform(-1, 1, (self.filters, self.channels // self.groups, *self.kernel)).astype(np.float32)
        bias = rng.uniform(-1, 1, self.filters).astype(np.float32)
        shape = (self.batch, self.filters, *self.result)
        constants = {"w": weights, "b": bias, "low": np.float32(-1), "high": np.float32(2)}
        nodes = [
            helper.make_node(
                "Conv",
                ["x", "w", "b"],
                ["t"],
                strides=self.strides,
                pads=self.pads,
                dilations=self.dilations,
                group=self.groups,
            ),
            helper.make_node("Clip", ["t", "low", "high"], ["c" if self.residual else "y"]),
        ]
        inputs: dict[str, tuple[int, ...]] = {"x": (self.batch, self.channels, *self.image)}
        if self.residual:
            nodes.append(helper.make_node("Add", ["c", "r"], ["y"]))
            inputs["r"] = shape
        graph = helper.make_graph(
            nodes,
            "layer",
            [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, s) for name, s in inputs.items()],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)],
            [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def loaded(self) -> ir.Model:
        """The layer as graphopt's model."""
        model = gir.load(self.model())
        gir.refresh_shapes(model)
        return model

    def feeds(self) -> dict[str, np.ndarray]:
        """Inputs in [-1, 1]."""
        rng = np.random.default_rng(1)
        feeds = {"x": rng.uniform(-1, 1, (self.batch, self.channels, *self.image)).astype(np.float32)}
        if self.residual:
            feeds["r"] = rng.uniform(-1, 1, (self.batch, self.filters, *self.result)).astype(np.float32)
        return feeds

    def function(self) -> tirx.PrimFunc:
        """The only fused function that the layer becomes for the host."""
        ((_, function),) = lowered(self.loaded()).functions.items()
        return function


def assert_computes(layer: Layer, *, per_product: float = 2.0**-23) -> None:
    """The compiled layer differs from ONNX Runtime by no more than rounding: `per_product` for each of a sum."""
    feeds = layer.feeds()
    expected = onnxruntime.InferenceSession(layer.model().SerializeToString()).run(None, feeds)[0]
    found = run(layer.loaded(), feeds)["y"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=(layer.depth + 4) * per_product)
