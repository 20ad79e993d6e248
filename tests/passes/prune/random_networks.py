"""Random networks for hypothesis: what structured pruning meets, in small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import graphopt.ir as graph_ir

OPSET = 21


class Net:
    """A graph under construction; `value` is the end that the next block continues, of `shape`."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any], shape: list[int]) -> None:
        self.draw = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        self.value, self.shape = "x", shape
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.outputs: list[tuple[str, list[int]]] = []  # beside the last value

    def choose(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def weight(self, *shape: int, positive: bool = False) -> str:
        array = self.rng.standard_normal(shape).astype(np.float32) / max(1, int(np.prod(shape[1:]))) ** 0.5
        return self.constant(np.abs(array) + 0.5 if positive else array)

    def constant(self, array: Any) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(array), f"w{len(self.weights)}"))
        return self.weights[-1].name

    def integers(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, np.int64))

    def node(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        names = [f"n{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(
            helper.make_node(operator, list(inputs), names, f"{operator.lower()}{len(self.nodes)}", **attributes)
        )
        return names if outputs > 1 else names[0]

    def go(self, value: str, *shape: int) -> None:
        self.value, self.shape = value, list(shape)

    def model(self) -> ir.Model:
        graph = helper.make_graph(
            self.nodes,
            "random",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.input_shape)],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                for name, shape in dict([*self.outputs, (self.value, self.shape)]).items()
            ],
            self.weights,
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        model = graph_ir.load(proto)
        graph_ir.refresh_shapes(model)
        return model

    input_shape: list[int]


def conv(net: Net, channels: int | None = None, value: str | None = None) -> str:
    """A 1x1 or 3x3 convolution of `value`, with or without bias and groups; the result's name."""
    entering = net.shape[1]
    leaving = channels or net.choose(1, 3, 4, 6, 8)
    kernel = net.choose(1, 3)
    groups = net.choose(*(g for g in (1, 2, 3) if entering % g == leaving % g == 0))
    inputs = [value or net.value, net.weight(leaving, entering // groups, kernel, kernel)]
    if net.choose(True, False):
        inputs.append(net.weight(leaving))
    return str(net.node("Conv", *inputs, group=groups, pads=[kernel // 2] * 4))


def plain(net: Net) -> None:
    channels = net.choose(3, 4, 5, 6, 8)
    value = conv(net, channels)
    if net.choose(True, False):
        value = net.node("BatchNormalization", value, *(net.weight(channels, positive=True) for _ in range(4)))
    value = net.choose(_relu, _clip, _prelu, _gate)(net, value, channels)
    net.go(value, 1, channels, *net.shape[2:])


def _relu(net: Net, value: str, channels: int) -> str:
    return str(net.node("Relu", value))


def _clip(net: Net, value: str, channels: int) -> str:
    return str(net.node("Clip", value, net.constant(np.float32(0)), net.constant(np.float32(6))))


def _prelu(net: Net, value: str, channels: int) -> str:
    return str(net.node("PRelu", value, net.weight(channels, 1, 1)))


def _gate(net: Net, value: str, channels: int) -> str:
    return str(net.node("Mul", value, net.node("Sigmoid", value)))


def residual(net: Net) -> None:
    channels = net.shape[1]
    value = net.node("Relu", conv(net, channels))
    net.go(net.node(net.choose("Add", "Mul", "Sub"), net.value, conv(net, channels, value)), *net.shape)


def depthwise(net: Net) -> None:
    channels = net.shape[1]
    times = net.choose(1, 2)
    weight = net.weight(channels * times, 1, 3, 3)
    value = net.node("Conv", net.value, weight, net.weight(channels * times), group=channels, pads=[1] * 4)
    net.go(value, 1, channels * times, *net.shape[2:])


def transposed(net: Net) -> None:
    channels, groups = net.shape[1], net.choose(1, net.shape[1])
    leaving = net.choose(1, 2, 3) if groups > 1 else net.choose(3, 4)
    value = net.node("ConvTranspose", net.value, net.weight(channels, leaving, 1, 1), group=groups)
    net.go(value, 1, leaving * groups, *net.shape[2:])


def branches(net: Net) -> None:
    """Concat of two convolutions, the input, or a constant, maybe split again."""
    channels = net.shape[1]
    widths = [net.choose(2, 3, 4), net.choose(2, 3, 4)]
    parts = [conv(net, width) for width in widths]
    if net.choose(True, False):
        parts.append(net.value)
        widths.append(channels)
    if net.choose(True, False):
        parts.insert(0, net.weight(1, 2, *net.shape[2:]))
        widths.insert(0, 2)
    net.go(net.node("Concat", *parts, axis=1), 1, sum(widths), *net.shape[2:])
    if net.choose(True, False):
        first = net.choose(*range(1, sum(widths)))
        sizes = net.integers(first, sum(widths) - first)
        one, other = net.node("Split", net.value, sizes, outputs=2, axis=1)
        net.go(net.node("Concat", other, one, axis=1), *net.shape)


def part(net: Net) -> None:
    """A Slice or Gather of the channels."""
    channels = net.shape[1]
    if net.choose(True, False):
        start = net.choose(*range(channels))
        bounds = net.integers(start), net.integers(net.choose(channels, 2**31)), net.integers(1)
        net.go(net.node("Slice", net.value, *bounds), 1, channels - start, *net.shape[2:])
    else:
        order = net.draw(st.permutations(range(channels)))
        net.go(net.node("Gather", net.value, net.integers(*order), axis=1), *net.shape)


def padded(net: Net) -> None:
    before, after = net.choose(0, 1, 3), net.choose(0, 2)
    pads = net.integers(0, before, 0, 0, 0, after, 0, 0)
    net.go(net.node("Pad", net.value, pads), 1, net.shape[1] + before + after, *net.shape[2:])


def shuffle(net: Net) -> None:
    channels, sides = net.shape[1], net.shape[2:]
    groups = net.choose(*(g for g in (1, 2, 3) if channels % g == 0))
    value = net.node("Reshape", net.value, net.integers(1, groups, channels // groups, *sides))
    value = net.node("Transpose", value, perm=[0, 2, 1, 3, 4])
    net.go(net.node("Reshape", value, net.integers(1, channels, *sides)), *net.shape)


def squeeze_excite(net: Net) -> None:
    channels, hidden = net.shape[1], net.choose(2, 3)
    pooled = net.node("GlobalAveragePool", net.value)
    first = net.node("Relu", net.node("Conv", pooled, net.weight(hidden, channels, 1, 1)))
    gate = net.node("HardSigmoid", net.node("Conv", first, net.weight(channels, hidden, 1, 1)))
    net.go(net.node("Mul", net.value, gate), *net.shape)


def norm(net: Net) -> None:
    channels = net.shape[1]
    inputs = [net.weight(channels, positive=True), net.weight(channels)]
    net.go(net.node("InstanceNormalization", net.value, *inputs), *net.shape)


def blocks(net: Net) -> None:
    channels, (height, width) = net.shape[1], net.shape[2:]
    if channels % 4 == 0 and net.choose(True, False):
        value = net.node("DepthToSpace", net.value, blocksize=2, mode=net.choose("DCR", "CRD"))
        net.go(value, 1, channels // 4, 2 * height, 2 * width)
    elif height % 2 == width % 2 == 0:
        net.go(net.node("SpaceToDepth", net.value, blocksize=2), 1, channels * 4, height // 2, width // 2)


def last_layout(net: Net) -> None:
    """Through channels last and back, with a bias there."""
    value = net.node("Transpose", net.value, perm=[0, 2, 3, 1])
    value = net.node("Add", value, net.weight(net.shape[1]))
    net.go(net.node("Transpose", value, perm=[0, 3, 1, 2]), *net.shape)


def resized(net: Net) -> None:
    channels, (height, width) = net.shape[1], net.shape[2:]
    if net.choose(True, False):
        inputs = ["", "", net.integers(1, channels, height, 2 * width)]
    else:
        inputs = ["", net.constant(np.array([1, 1, 1, 2], np.float32))]
    net.go(net.node("Resize", net.value, *inputs, mode="nearest"), 1, channels, height, 2 * width)


def pooled(net: Net) -> None:
    channels, (height, width) = net.shape[1], net.shape[2:]
    operator, step = net.choose("MaxPool", "AveragePool", "LpPool"), net.choose(1, 2)
    value = net.node(operator, net.value, kernel_shape=[2, 1], strides=[step, 1], pads=[0, 0, 1, 0])
    net.go(value, 1, channels, (height - 1) // step + 1, width)


def group_norm(net: Net) -> None:
    channels = net.shape[1]
    groups = net.choose(*(g for g in (1, 2, 3, 4) if channels % g == 0))
    inputs = [net.weight(channels, positive=True), net.weight(channels)]
    net.go(net.node("GroupNormalization", net.value, *inputs, num_groups=groups), *net.shape)


def reduced(net: Net) -> None:
    """A statistic of each channel, or of all, beside the channels; with or without the axes that it was taken over."""
    channels, rank = net.shape[1], 4
    operator, keep = net.choose("ReduceMean", "ReduceMax", "ReduceL2", "ReduceSum"), net.choose(0, 1)
    axes = net.choose([2, 3], [-1, -2], [1], [3])
    value = net.node(operator, net.value, net.integers(*axes), keepdims=keep)
    if not keep:
        value = net.node("Unsqueeze", value, net.integers(*sorted(axis % rank for axis in axes)))
    net.go(net.node(net.choose("Add", "Mul"), net.value, value), 1, channels, *net.shape[2:])


def shared(net: Net) -> None:
    """One weight for two convolutions, side by side or one behind the other."""
    channels = net.shape[1]
    kernel = net.choose(1, 3)
    weight, pads = net.weight(channels, channels, kernel, kernel), [kernel // 2] * 4
    first = net.node("Relu", net.node("Conv", net.value, weight, pads=pads))
    if net.choose(True, False):
        net.go(net.node("Conv", first, weight, pads=pads), *net.shape)
    else:
        other = net.node("Conv", net.node("Neg", net.value), weight, net.weight(channels), pads=pads)
        net.go(net.node("Add", first, other), *net.shape)


def tapped(net: Net) -> None:
    """Another output: a map of its own, the value as it is, or a statistic of each channel or over all."""
    what = net.choose("map", "value", "channels", "one")
    channels, sides = net.shape[1], net.shape[2:]
    if what == "map":
        net.outputs.append((net.node("Conv", net.value, net.weight(2, channels, 1, 1)), [1, 2, *sides]))
    elif what == "value":
        net.outputs.append((net.node("Tanh", net.value), list(net.shape)))
    elif what == "channels":
        net.outputs.append((net.node("GlobalMaxPool", net.value), [1, channels, 1, 1]))
    else:
        net.outputs.append((net.node("ReduceSum", net.value, net.integers(1)), [1, 1, *sides]))


PICTURE = (
    plain, plain, residual, depthwise, transposed, branches, part, padded, shuffle, squeeze_excite, norm, blocks,
    last_layout, resized, pooled, group_norm, reduced, shared, tapped,
)  # fmt: skip


def head(net: Net) -> None:
    """From pictures to scores: pooled or flattened, by Gemm or MatMul."""
    count = net.shape[1]
    if net.choose(True, False):
        value = net.node("Flatten", net.node("GlobalAveragePool", net.value))
    else:
        count *= net.shape[2] * net.shape[3]
        value = net.node("Reshape", net.value, net.integers(1, -1))
    if net.choose(True, False):
        value = net.node("Gemm", value, net.weight(3, count), net.weight(3), transB=1)
    else:
        value = net.node("Add", net.node("MatMul", value, net.weight(count, 3)), net.weight(3))
    net.go(value, 1, 3)


@st.composite
def pictures(draw: Callable[[st.SearchStrategy[Any]], Any]) -> ir.Model:
    """A convolutional network of one to six blocks, on pictures of 4 x 4."""
    net = Net(draw, [1, 3, 4, 4])
    net.input_shape = [1, 3, 4, 4]
    plain(net)
    for block in draw(st.lists(st.sampled_from(PICTURE), min_size=1, max_size=5)):
        block(net)
    head(net)
    return net.model()


def attention(net: Net) -> None:
    """Heads from separate or fused products; keys and values may have fewer heads."""
    _, tokens, width = net.shape
    heads, size = net.choose(2, 4), net.choose(1, 3)
    shared = net.choose(1, 2)
    entering = net.value

    def project(count: int) -> str:
        value = net.node("MatMul", entering, net.weight(width, count * size))
        if net.choose(True, False):
            value = net.node("Add", value, net.weight(count * size))
        return str(net.node("Reshape", value, net.integers(1, tokens, count, size)))

    if shared == 1 and net.choose(True, False):
        fused = net.node("MatMul", entering, net.weight(width, 3 * heads * size))
        parts = net.node("Reshape", fused, net.integers(1, tokens, 3, heads, size))
        q, k, v = (net.node("Gather", parts, net.constant(np.int64(i)), axis=2) for i in range(3))
    else:
        q, k, v = project(heads), project(heads // shared), project(heads // shared)
    if shared > 1:
        k, v = (_repeat(net, value, tokens, heads, size, shared) for value in (k, v))
    q, k, v = (net.node("Transpose", value, perm=perm) for value, perm in zip((q, k, v), _PERMS, strict=True))
    scores = net.node("Softmax", net.node("Mul", net.node("MatMul", q, k), net.constant(np.float32(0.5))), axis=-1)
    value = net.node("Transpose", net.node("MatMul", scores, v), perm=[0, 2, 1, 3])
    value = net.node("Reshape", value, net.integers(1, tokens, heads * size))
    value = net.node("MatMul", value, net.weight(heads * size, width))
    net.go(net.node("Add", value, entering), *net.shape)


_PERMS = ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])


def _repeat(net: Net, value: str, tokens: int, heads: int, size: int, times: int) -> str:
    """Each head of keys or values serves several of queries."""
    value = net.node("Unsqueeze", value, net.integers(3))
    value = net.node("Expand", value, net.integers(1, tokens, heads // times, times, size))
    return str(net.node("Reshape", value, net.integers(1, tokens, heads, size)))


def feed_forward(net: Net) -> None:
    _, _, width = net.shape
    hidden = net.choose(3, 5, 8)
    value = net.node("MatMul", net.value, net.weight(width, hidden))
    if net.choose(True, False):
        value = net.node("Mul", net.node("Sigmoid", value), net.node("MatMul", net.value, net.weight(width, hidden)))
    else:
        value = net.node("Relu", net.node("Add", value, net.weight(hidden)))
    net.go(net.node("Add", net.value, net.node("MatMul", value, net.weight(hidden, width))), *net.shape)


def layer_norm(net: Net) -> None:
    width = net.shape[2]
    net.go(net.node("LayerNormalization", net.value, net.weight(width), net.weight(width)), *net.shape)


def recurrent(net: Net) -> None:
    """One or two directions; the batch is the second axis."""
    _, steps, width = net.shape
    operator, gates = net.choose(("LSTM", 4), ("GRU", 3), ("RNN", 1))
    directions, hidden = net.choose(1, 2), net.choose(2, 3)
    inputs = [net.weight(directions, gates * hidden, width), net.weight(directions, gates * hidden, hidden)]
    if net.choose(True, False):
        inputs.append(net.weight(directions, 2 * gates * hidden))
    value = net.node("Transpose", net.value, perm=[1, 0, 2])
    attributes = {"direction": "bidirectional"} if directions == 2 else {}
    value = net.node(operator, value, *inputs, hidden_size=hidden, **attributes)
    value = net.node("Transpose", value, perm=[2, 0, 1, 3])
    value = net.node("Reshape", value, net.integers(1, steps, directions * hidden))
    net.go(net.node("MatMul", value, net.weight(directions * hidden, width)), *net.shape)


SEQUENCE = (attention, attention, feed_forward, layer_norm, recurrent)


@st.composite
def sequences(draw: Callable[[st.SearchStrategy[Any]], Any]) -> ir.Model:
    """A network of one to four blocks on five tokens of width 4."""
    net = Net(draw, [1, 5, 4])
    net.input_shape = [1, 5, 4]
    for block in draw(st.lists(st.sampled_from(SEQUENCE), min_size=1, max_size=4)):
        block(net)
    net.go(net.node("MatMul", net.value, net.weight(4, 2)), 1, 5, 2)
    return net.model()
