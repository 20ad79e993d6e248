"""Convolutions of one dimension in float, as those of images of one row: the kernels are written for two dimensions.

What lies between them element by element is computed on images too, so that it stays behind the convolution's kernel.
Reshapes between lines and images move nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from graphopt.targets.tvm.quantized.editor import Editor, copied, put_in_place, shape_of
from graphopt.targets.tvm.quantized.functions import ELEMENTWISE

LINE = 3  # axes of [batch, channels, length]
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def as_images(model: ir.Model) -> ir.Model:
    """`model` with Conv of lines as Conv of images of one row; `model` itself if it has none."""
    if not any(_is_of_lines(node) for node in model.graph):
        return model
    model = copied(model)
    lines = _Lines(Editor(model.graph))
    for node in list(model.graph):
        lines.editor.place = node
        if _is_of_lines(node):
            lines.convolution(node)
        elif lines.follows(node):
            lines.elementwise(node)
    RemoveUnusedNodesPass()(model)
    return model


def _is_of_lines(node: ir.Node) -> bool:
    if node.op_type != "Conv" or node.domain not in ("", "ai.onnx"):
        return False
    weights = node.inputs[1]
    if weights is None or ir.convenience.get_const_tensor(weights) is None:
        return False
    return len(shape_of(weights)) == LINE and node.outputs[0].dtype in FLOATS


class _Lines:
    """The images that lines are known as, while a graph is rewritten."""

    def __init__(self, editor: Editor) -> None:
        self.editor = editor
        self.images: dict[ir.Value, ir.Value] = {}

    def convolution(self, node: ir.Node) -> None:
        x, weights, *bias = node.inputs
        assert x is not None and weights is not None
        attributes = dict(node.attributes)
        for name, in_front in (("kernel_shape", 1), ("strides", 1), ("dilations", 1)):
            if name in attributes:
                attributes[name] = ir.AttrInt64s(name, [in_front, *attributes[name].as_ints()])
        if "pads" in attributes:
            begin, end = attributes["pads"].as_ints()
            attributes["pads"] = ir.AttrInt64s("pads", [0, begin, 0, end])
        self._replace(node, [self.image(x), self._constant(weights), *bias], attributes)

    def follows(self, node: ir.Node) -> bool:
        """Whether it is element-wise on lines of which one is known as an image, and on constants."""
        if node.op_type not in ELEMENTWISE or node.domain not in ("", "ai.onnx") or len(node.outputs) != 1:
            return False
        given = [value for value in node.inputs if value is not None]
        fit = all(len(shape_of(value)) == LINE or ir.convenience.get_const_tensor(value) is not None for value in given)
        return fit and any(value in self.images for value in given)

    def elementwise(self, node: ir.Node) -> None:
        inputs = [
            value
            if value is None
            else self._constant(value)
            if ir.convenience.get_const_tensor(value) is not None
            else self.image(value)
            for value in node.inputs
        ]
        self._replace(node, inputs, dict(node.attributes))

    def image(self, line: ir.Value) -> ir.Value:
        if line not in self.images:
            self.images[line] = self._reshaped(line, _of_image(shape_of(line)), f"{line.name}.image")
        return self.images[line]

    def _constant(self, value: ir.Value) -> ir.Value:
        """A constant that is read beside images: the axis of rows goes in front of the last axis."""
        shape = shape_of(value)
        if len(shape) < 2:
            return value
        tensor = ir.convenience.get_const_tensor(value)
        assert tensor is not None
        return self.editor.constant(tensor.numpy().reshape(_of_image(shape)), f"{value.name}.image")

    def _replace(self, node: ir.Node, inputs: Sequence[ir.Value | None], attributes: dict[str, ir.Attr]) -> None:
        line = node.outputs[0]
        assert line.dtype is not None
        shape = shape_of(line)
        name = f"{line.name}.image"
        image = self.editor.add(
            node.op_type, inputs, line.dtype, _of_image(shape), name=name, attributes=attributes, layer=node.name
        )
        view = self._reshaped(image, shape, f"{line.name}.line")
        put_in_place(line, view)
        self.images[view] = image

    def _reshaped(self, value: ir.Value, shape: Sequence[int], name: str) -> ir.Value:
        assert value.dtype is not None
        target = self.editor.constant(np.array(shape, np.int64), f"{name}.shape")
        return self.editor.add("Reshape", [value, target], value.dtype, shape, name=name)


def _of_image(shape: Sequence[int]) -> tuple[int, ...]:
    return (*shape[:-1], 1, shape[-1])
