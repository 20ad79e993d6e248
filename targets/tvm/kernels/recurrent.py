"""One kernel for a whole LSTM, GRU or RNN layer: a loop over time around a matrix-vector product and a cell.

The projection of the inputs, X·Wᵀ + b_W for all steps, is a matrix product in front of the kernel. What is left for
each step is R·h + b_R and element-wise work. R is packed into panels of a few gate outputs, panel by panel with the
hidden index outermost, so that the inner loop reads it contiguously and keeps its sums in registers. The last panel is
padded; the sums of the padding are never read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.tvm.kernels.activations import Activation

OPAQUE = 8  # relax::OpPatternKind::kOpaque: not fused with anything
LANES = 4  # float32 in 128 bits; LLVM splits or joins them where vectors are shorter or longer
PANEL = 32  # gate outputs a panel: eight vectors of sums, enough to hide the latency of a multiply-add


@dataclass(frozen=True)
class Layer:
    """The static facts of a recurrent layer; its kernel is a function of them.

    Sizes: steps T, batch B, directions D, hidden H, gates G (4 for LSTM, 3 for GRU, 1 for RNN).
    """

    steps: int
    batch: int
    hidden: int
    groups: tuple[int, ...]  # gates that one product with R computes, in ONNX's order; they sum to G
    backward: tuple[bool, ...]  # of each direction
    batch_first: bool  # ONNX's layout 1
    activations: tuple[tuple[Activation, ...], ...]  # of each direction
    clip: float | None  # bound of the activations' arguments
    cell: Callable[[Step], None]
    has_lengths: bool
    has_initial_h: bool
    has_initial_c: bool
    has_peepholes: bool
    has_bias: bool
    has_c: bool  # whether there is a cell state: LSTM
    writes_y: bool

    @property
    def gates(self) -> int:
        return sum(self.groups)

    def sequence_shape(self) -> tuple[int, ...]:
        """Shape of Y: [T, D, B, H], batch first [B, T, D, H]."""
        rest = (len(self.backward), self.hidden)
        return (self.batch, self.steps, *rest) if self.batch_first else (self.steps, rest[0], self.batch, rest[1])

    def state_shape(self) -> tuple[int, ...]:
        """Shape of Y_h, Y_c and their initial values: [D, B, H], batch first [B, D, H]."""
        outer = (len(self.backward), self.batch)
        return (*(reversed(outer) if self.batch_first else outer), self.hidden)

    def at_sequence(self, time: Any, direction: int, batch: Any, j: Any) -> tuple[Any, ...]:
        """Where Y holds an element."""
        return (batch, time, direction, j) if self.batch_first else (time, direction, batch, j)

    def at_state(self, direction: int, batch: Any, j: Any) -> tuple[Any, ...]:
        """Where Y_h and Y_c hold an element."""
        return (batch, direction, j) if self.batch_first else (direction, batch, j)

    def row(self, time: Any, batch: Any) -> Any:
        """Where the projection, of shape [B·T, D·G·H], holds a step."""
        return batch * self.steps + time if self.batch_first else time * self.batch + batch


@dataclass(frozen=True)
class Step:
    """One step of one sequence, inside the loop over time: what a cell is written with."""

    layer: Layer
    buffers: dict[str, Any]
    direction: int
    batch: Any
    time: Any  # in the sequence, not in the order of computation

    def projected(self, gate: int, j: Any) -> Any:
        """Element j of a gate's part of the projection."""
        hidden, gates = self.layer.hidden, self.layer.gates
        column = (self.direction * gates + gate) * hidden + j
        return self.buffers["projected"][self.layer.row(self.time, self.batch), column]

    def product(self, group: int, gate: int, j: Any) -> Any:
        """Element j of a gate's part of the last `multiply(group, …)`; `gate` counts within the group."""
        return self.buffers[f"product{group}"][gate * self.layer.hidden + j]

    def peephole(self, gate: int, j: Any) -> Any:
        """Element j of a gate's peephole weights; `gate` counts in the order i, o, f."""
        return self.buffers["peepholes"][self.direction, gate * self.layer.hidden + j]

    def state(self, name: str, j: Any) -> Any:
        """Element j of "h" or "c"."""
        return self.buffers[name][self.layer.at_state(self.direction, self.batch, j)]

    def set_state(self, name: str, j: Any, value: Any) -> None:
        """Give element j of "h" or "c" its value after this step; that of "h" is the step's output."""
        value = T.Bind(value)  # it may read the state that the next line overwrites
        T.buffer_store(self.buffers[name], value, self.layer.at_state(self.direction, self.batch, j))
        if name == "h" and self.layer.writes_y:
            T.buffer_store(self.buffers["y"], value, self.layer.at_sequence(self.time, self.direction, self.batch, j))

    def activate(self, which: int, x: Any) -> Any:
        """Activation number `which` (f, g, h in ONNX's formulas) of x, clipped as the layer says."""
        if self.layer.clip is not None:
            x = T.max(T.min(x, T.float32(self.layer.clip)), T.float32(-self.layer.clip))
        return self.layer.activations[self.direction][which](x)

    def activate_unclipped(self, which: int, x: Any) -> Any:
        """The same without the clip, which ONNX Runtime does not apply to the argument of LSTM's h."""
        return self.layer.activations[self.direction][which](x)

    def for_each(self, body: Callable[[Any], None]) -> None:
        """Emit `body(j)` for j in [0, H), in vectors, then one by one."""
        elementwise(self.layer.hidden, body)

    def multiply(self, group: int, vector: Callable[[Any], Any]) -> None:
        """Emit R·v + b for R's and b's group of gates and a vector v of length H, given by its elements."""
        panels, depth, width = (int(extent) for extent in self.buffers[f"r{group}"].ty.shape[1:])
        with T.serial(panels) as p:
            sums = IRBuilder.name("sums", T.alloc_buffer((width,), "float32", scope="local", layout=None))
            with T.vectorized(width) as lane:
                bias = self.buffers[f"bias{group}"][self.direction, p, lane] if self.layer.has_bias else T.float32(0)
                T.buffer_store(sums, bias, [lane])
            with T.serial(depth) as k, T.vectorized(width) as lane:
                weight = self.buffers[f"r{group}"][self.direction, p, k, lane]
                T.buffer_store(sums, sums[lane] + vector(k) * weight, [lane])
            with T.vectorized(width) as lane:
                T.buffer_store(self.buffers[f"product{group}"], sums[lane], [p * width + lane])


def elementwise(extent: int, body: Callable[[Any], None]) -> None:
    """Emit `body(j)` for j in [0, extent): LANES at a time, then the rest one by one."""
    whole = extent // LANES
    if whole:
        with T.serial(whole) as outer, T.vectorized(LANES) as lane:
            body(outer * LANES + lane)
    if extent % LANES:
        with T.serial(extent % LANES) as j:
            body(whole * LANES + j)


def panel_rows(layer: Layer, group: int) -> np.ndarray:
    """Which row of R each lane of each panel of a group holds: int64 [panels, width]. The padding repeats the last."""
    first = sum(layer.groups[:group]) * layer.hidden
    outputs = layer.groups[group] * layer.hidden
    width = min(PANEL, -(-outputs // LANES) * LANES)
    panels = -(-outputs // width)
    return (first + np.minimum(np.arange(panels * width), outputs - 1)).reshape(panels, width)


def recurrent_kernel(layer: Layer) -> tirx.PrimFunc:
    """The kernel of a layer.

    Parameters, float32 except for the lengths (int32 [B]) and in this order, those in brackets only where the layer
    has them: projection [B·T, D·G·H]; for each group R's rows [D, panels, H, width] in the order of `panel_rows`;
    [for each group the recurrent bias in that order, [D, panels, width]]; [lengths]; [initial h]; [initial c];
    [peepholes [D, 3·H]]; then what it writes: [Y]; Y_h; [Y_c].
    """
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_attr({"op_pattern": OPAQUE, "tirx.noalias": True})
        buffers = {name: T.arg(name, T.buffer(shape, dtype, layout=None)) for name, shape, dtype in _parameters(layer)}
        for group in range(len(layer.groups)):
            buffers[f"product{group}"] = _scratch(f"product{group}", panel_rows(layer, group).size)
        if len(layer.groups) > 1:
            buffers["scratch"] = _scratch("scratch", layer.hidden)
        for direction in range(len(layer.backward)):
            with T.serial(layer.batch) as batch:
                _sequence(layer, buffers, direction, batch)
    return builder.get()


def _scratch(name: str, extent: int) -> Any:
    return IRBuilder.name(name, T.sblock_alloc_buffer((extent,), "float32", layout=None))


def _parameters(layer: Layer) -> list[tuple[str, tuple[int, ...], str]]:
    directions, hidden = len(layer.backward), layer.hidden
    state = layer.state_shape()
    panels = [panel_rows(layer, group).shape for group in range(len(layer.groups))]
    candidates = [
        (True, "projected", (layer.steps * layer.batch, directions * layer.gates * hidden), "float32"),
        *((True, f"r{i}", (directions, n, hidden, width), "float32") for i, (n, width) in enumerate(panels)),
        *((layer.has_bias, f"bias{i}", (directions, *shape), "float32") for i, shape in enumerate(panels)),
        (layer.has_lengths, "lengths", (layer.batch,), "int32"),
        (layer.has_initial_h, "initial_h", state, "float32"),
        (layer.has_initial_c, "initial_c", state, "float32"),
        (layer.has_peepholes, "peepholes", (directions, 3 * hidden), "float32"),
        (layer.writes_y, "y", layer.sequence_shape(), "float32"),
        (True, "h", state, "float32"),
        (layer.has_c, "c", state, "float32"),
    ]
    return [(name, shape, dtype) for present, name, shape, dtype in candidates if present]


def _sequence(layer: Layer, buffers: dict[str, Any], direction: int, batch: Any) -> None:
    """Emit all steps of one sequence in one direction. The state lives in the outputs Y_h and Y_c.

    Steps at and beyond the sequence's length are not computed: Y is zero there, and the last state stays. A sequence
    of length zero ends with a state of zeros, whatever it began with: so ONNX Runtime has it.
    """
    # A length out of range would index out of bounds; ONNX Runtime refuses it, a kernel can only bound it.
    length: Any = layer.steps
    if layer.has_lengths:
        length = T.max(T.min(buffers["lengths"][batch], layer.steps), 0)
    for name in ("h", "c") if layer.has_c else ("h",):
        _initialize(layer, buffers, name, direction, batch, length)
    with T.serial(length) as order:
        time = length - 1 - order if layer.backward[direction] else order
        layer.cell(Step(layer, buffers, direction, batch, time))
    if layer.has_lengths and layer.writes_y:
        with T.serial(layer.steps - length) as beyond:

            def clear(j: Any) -> None:
                T.buffer_store(buffers["y"], T.float32(0), layer.at_sequence(length + beyond, direction, batch, j))

            elementwise(layer.hidden, clear)


def _initialize(layer: Layer, buffers: dict[str, Any], name: str, direction: int, batch: Any, length: Any) -> None:
    def set_initial(j: Any) -> None:
        value = T.float32(0)
        if f"initial_{name}" in buffers:
            value = buffers[f"initial_{name}"][layer.at_state(direction, batch, j)]
            if layer.has_lengths:
                value = T.Select(length > 0, value, T.float32(0))
        T.buffer_store(buffers[name], value, layer.at_state(direction, batch, j))

    elementwise(layer.hidden, set_initial)
