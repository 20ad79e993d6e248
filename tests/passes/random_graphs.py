"""Small random models for hypothesis: static shapes, float32, any opset from 8, parameters in its form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import graphopt.ir as graph_ir
from graphopt.pipeline.base import PassContext

Shape = tuple[int, ...]
IR_VERSION = 10
OPSETS = (8, 9, 11, 13, 17, 18, 21)
CONTEXT = PassContext()


class Builder:
    """A graph under construction: what values there are, and their shapes."""

    def __init__(self, opset: int, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self.opset = opset
        self.draw = draw
        self.count = 0
        self.shapes: dict[str, Shape] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def pick(self, fits: Callable[[Shape], bool] = lambda shape: True) -> str | None:
        """The name of a value whose shape fits."""
        names = [name for name, shape in self.shapes.items() if fits(shape)]
        return self.draw(st.sampled_from(names)) if names else None

    def choose(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def constant(self, array: npt.NDArray[np.generic]) -> str:
        name = f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def integers(self, numbers: Any) -> str:
        return self.constant(np.array(numbers, np.int64))

    def add(
        self, operator: str, inputs: list[str], *shapes: Shape, floats: bool = True, **attributes: Any
    ) -> list[str]:
        """A node with one output of each shape; the names of the outputs. Only floats are picked as inputs later."""
        names = [f"v{self.count + index}" for index in range(len(shapes))]
        self.count += len(names)
        self.nodes.append(
            helper.make_node(operator, inputs, names, f"{operator.lower()}_{len(self.nodes)}", **attributes)
        )
        if floats:
            self.shapes.update(zip(names, shapes, strict=True))
        return names


Step = Callable[[Builder], object]


def unary(build: Builder) -> None:
    value = build.pick()
    assert value is not None
    operator = build.choose("Relu", "Neg", "Abs", "Sigmoid", "Identity", "Dropout", "Floor", "Relu")
    build.add(operator, [value], build.shapes[value])


def same_again(build: Builder) -> None:
    """A copy of an earlier node."""
    nodes = [node for node in build.nodes if set(node.output) <= set(build.shapes)]
    if nodes:
        node = build.choose(*nodes)
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        build.add(node.op_type, list(node.input), *(build.shapes[name] for name in node.output), **attributes)


def with_constant(build: Builder) -> None:
    """Add, Sub, Mul or Div of a constant, neutral or not, that may broadcast."""
    value = build.pick()
    assert value is not None
    shape = build.shapes[value]
    rank = build.draw(st.integers(0, len(shape)))
    size = tuple(build.choose(1, dim) for dim in shape[len(shape) - rank :])
    operator = build.choose("Add", "Sub", "Mul", "Div")
    filling = build.choose(0.0, -0.0, 1.0, 2.0) if operator in ("Add", "Sub") else build.choose(1.0, 2.0)
    array = np.full(size, filling, np.float32)
    if filling == 2.0:
        array = np.arange(1, array.size + 1, dtype=np.float32).reshape(size)
    inputs = [value, build.constant(array)]
    if operator in ("Add", "Mul") and build.choose(False, True):
        inputs.reverse()
    build.add(operator, inputs, shape)


def pair(build: Builder) -> None:
    one = build.pick()
    assert one is not None
    other = build.pick(lambda shape: shape == build.shapes[one])
    assert other is not None
    build.add(build.choose("Add", "Mul", "Sub", "Max"), [one, other], build.shapes[one])


def transpose(build: Builder) -> None:
    value = build.pick()
    assert value is not None
    shape = build.shapes[value]
    order = build.draw(st.permutations(range(len(shape))))
    attributes = {"perm": order} if order != list(reversed(range(len(shape)))) or build.choose(False, True) else {}
    build.add("Transpose", [value], tuple(shape[axis] for axis in order), **attributes)


def transpose_layout(build: Builder) -> None:
    """From channels last to channels first or back, as exporters do."""
    value = build.pick(lambda shape: len(shape) == 4)
    if value is not None:
        order = build.choose((0, 3, 1, 2), (0, 2, 3, 1))
        build.add("Transpose", [value], tuple(build.shapes[value][axis] for axis in order), perm=order)


def reshape(build: Builder) -> None:
    value = build.pick()
    assert value is not None
    shape = build.shapes[value]
    rest, target = int(np.prod(shape)), []
    for _ in range(build.draw(st.integers(0, 3))):
        divisor = build.choose(*(number for number in range(1, rest + 1) if rest % number == 0))
        target.append(divisor)
        rest //= divisor
    target.append(rest)
    build.add("Reshape", [value, build.integers(target)], tuple(target))


def squeeze(build: Builder) -> None:
    value = build.pick(lambda shape: 1 in shape and len(shape) > 1)
    if value is None:
        return
    shape = build.shapes[value]
    axis = build.choose(*(axis for axis, dim in enumerate(shape) if dim == 1))
    _axes_node(build, "Squeeze", value, axis, shape[:axis] + shape[axis + 1 :])


def unsqueeze(build: Builder) -> None:
    value = build.pick(lambda shape: len(shape) < 5)
    if value is not None:
        shape = build.shapes[value]
        axis = build.draw(st.integers(0, len(shape)))
        _axes_node(build, "Unsqueeze", value, axis, (*shape[:axis], 1, *shape[axis:]))


def _axes_node(build: Builder, operator: str, value: str, axis: int, shape: Shape) -> None:
    if build.opset >= 13:
        build.add(operator, [value, build.integers([axis])], shape)
    else:
        build.add(operator, [value], shape, axes=[axis])


def flatten(build: Builder) -> None:
    value = build.pick(lambda shape: len(shape) > 0)
    if value is not None:
        shape = build.shapes[value]
        axis = build.draw(st.integers(0, len(shape)))
        build.add("Flatten", [value], (int(np.prod(shape[:axis])), int(np.prod(shape[axis:]))), axis=axis)


def slice_(build: Builder) -> None:
    """A part of one axis, or all of it, forwards or (where the opset has steps) backwards."""
    value = build.pick(lambda shape: len(shape) > 0)
    if value is None:
        return
    shape = build.shapes[value]
    axis = build.draw(st.integers(0, len(shape) - 1))
    start = build.draw(st.integers(-shape[axis], shape[axis] - 1))
    end = build.choose(shape[axis], np.iinfo(np.int64).max, build.draw(st.integers(-shape[axis], shape[axis])))
    step = build.choose(1, 1, 2, -1) if build.opset >= 10 else 1
    if step < 0:
        end = build.choose(np.iinfo(np.int64).min, end)
    taken = len(range(shape[axis])[start:end:step])
    if not taken:
        return
    result = (*shape[:axis], taken, *shape[axis + 1 :])
    if build.opset >= 10:
        numbers = [build.integers([number]) for number in (start, end, axis, step)]
        build.add("Slice", [value, *numbers[: 3 if step == 1 else 4]], result)
    else:
        build.add("Slice", [value], result, starts=[start], ends=[end], axes=[axis])


def halves(build: Builder) -> None:
    """Split in two, and usually joined again."""
    value = build.pick(lambda shape: any(dim > 1 for dim in shape))
    if value is None:
        return
    shape = build.shapes[value]
    axis = build.choose(*(axis for axis, dim in enumerate(shape) if dim > 1))
    sizes = [1, shape[axis] - 1]
    shapes = [(*shape[:axis], size, *shape[axis + 1 :]) for size in sizes]
    if build.opset >= 13:
        parts = build.add("Split", [value, build.integers(sizes)], *shapes, axis=axis)
    else:
        parts = build.add("Split", [value], *shapes, axis=axis, split=sizes)
    if build.choose(True, True, False):
        order = build.choose(parts, parts[::-1])
        build.add("Concat", order, shape, axis=axis)


def concat(build: Builder) -> None:
    one = build.pick(lambda shape: len(shape) > 0)
    if one is None:
        return
    shape = build.shapes[one]
    axis = build.draw(st.integers(0, len(shape) - 1))

    def joins(other: Shape) -> bool:
        return len(other) == len(shape) and all(
            a == b for index, (a, b) in enumerate(zip(other, shape, strict=True)) if index != axis
        )

    values = [one, *(build.pick(joins) or one for _ in range(build.draw(st.integers(0, 2))))]
    total = sum(build.shapes[value][axis] for value in values)
    build.add("Concat", values, (*shape[:axis], total, *shape[axis + 1 :]), axis=axis)


def reduce(build: Builder) -> None:
    value = build.pick(lambda shape: len(shape) > 0)
    if value is None:
        return
    shape = build.shapes[value]
    axis = build.draw(st.integers(0, len(shape) - 1))
    keep = build.choose(0, 1)
    result = (*shape[:axis], *((1,) if keep else ()), *shape[axis + 1 :])
    operator = build.choose("ReduceMean", "ReduceMax", "ReduceSum")
    if build.opset >= (13 if operator == "ReduceSum" else 18):
        build.add(operator, [value, build.integers([axis])], result, keepdims=keep)
    else:
        build.add(operator, [value], result, axes=[axis], keepdims=keep)


def pad(build: Builder) -> None:
    value = build.pick(lambda shape: len(shape) > 0)
    if value is None:
        return
    shape = build.shapes[value]
    pads = [build.choose(0, 0, 0, 1) for _ in range(2 * len(shape))]
    result = tuple(dim + pads[axis] + pads[axis + len(shape)] for axis, dim in enumerate(shape))
    if build.opset >= 11:
        build.add("Pad", [value, build.integers(pads)], result)
    else:
        build.add("Pad", [value], result, pads=pads)


def casts(build: Builder) -> None:
    """To another type and back, by way of a third or not."""
    value = build.pick()
    assert value is not None
    shape = build.shapes[value]
    for target in build.choose(
        (TensorProto.FLOAT,),
        (TensorProto.DOUBLE, TensorProto.FLOAT),
        (TensorProto.INT32, TensorProto.INT64, TensorProto.FLOAT),
        (TensorProto.FLOAT16, TensorProto.FLOAT),
        (TensorProto.BOOL, TensorProto.INT32, TensorProto.FLOAT),
    ):
        (value,) = build.add("Cast", [value], shape, floats=target == TensorProto.FLOAT, to=target)


@st.composite
def models(draw: Callable[[st.SearchStrategy[Any]], Any], *steps: Step, rank4: bool = False) -> ir.Model:
    """A model of up to nine of `steps` on two inputs, with one to three of its values as outputs."""
    build = Builder(draw(st.sampled_from(OPSETS)), draw)
    size = st.integers(1, 3)
    shape = tuple(draw(st.tuples(size, size, size, size) if rank4 else st.lists(size, min_size=1, max_size=4)))
    build.shapes = {"x0": shape, "x1": shape}
    for _ in range(draw(st.integers(1, 9))):
        draw(st.sampled_from(steps))(build)
    made = [name for name in build.shapes if name.startswith("v")]
    if not made:
        made = build.add("Relu", ["x0"], shape)
    last = made[-1]
    outputs = {last, *draw(st.lists(st.sampled_from(made), max_size=2))}
    graph = helper.make_graph(
        build.nodes,
        "random",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x0", "x1")],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, build.shapes[name]) for name in sorted(outputs)],
        build.weights,
    )
    opsets = [helper.make_opsetid("", build.opset)]
    return graph_ir.load(helper.make_model(graph, ir_version=IR_VERSION, opset_imports=opsets))


def with_unknown_shapes(model: ir.Model) -> dict[str, npt.NDArray[np.float32]]:
    """Make all dimensions of inputs and outputs symbols, in place; returns inputs of the sizes that they had."""
    rng = np.random.default_rng(0)
    feeds = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        feeds[f"{value.name}"] = rng.standard_normal(tuple(value.shape.numpy()), np.float32)
        value.shape = ir.Shape([f"N{axis}" for axis in range(len(value.shape))])
    for number, value in enumerate(model.graph.outputs):
        assert value.shape is not None
        value.shape = ir.Shape([f"O{number}_{axis}" for axis in range(len(value.shape))])
    return feeds
