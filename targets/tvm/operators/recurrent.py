"""ONNX LSTM, GRU and RNN to Relax: a matrix product for all steps, then one kernel with the loop over time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import tvm
from tvm import relax
from tvm.ir import GenericConst

from graphopt.errors import UnsupportedError
from graphopt.targets.tvm.kernels import cells
from graphopt.targets.tvm.kernels.activations import ACTIVATIONS, Activation
from graphopt.targets.tvm.kernels.recurrent import Layer, Step, panel_rows, recurrent_kernel

DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}  # which run backward
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
OUTPUTS = ("Y", "Y_h", "Y_c")


@dataclass(frozen=True)
class Kind:
    """What differs between the operators: gates, cell, and the activations of a direction where none are given."""

    groups: tuple[int, ...]
    cell: Callable[[Step], None]
    activations: tuple[str, ...]


LSTM = Kind((4,), cells.lstm, ("Sigmoid", "Tanh", "Tanh"))
LSTM_COUPLED = Kind((4,), cells.lstm_coupled, LSTM.activations)
GRU = Kind((2, 1), cells.gru, ("Sigmoid", "Tanh"))
GRU_LINEAR_BEFORE_RESET = Kind((3,), cells.gru_linear_before_reset, GRU.activations)
RNN = Kind((1,), cells.rnn, ("Tanh",))


def convert_lstm(
    builder: relax.BlockBuilder, inputs: list[Any], attributes: dict[str, ir.Attr], node: ir.Node
) -> relax.Tuple:
    """LSTM (X, W, R, B, sequence_lens, initial_h, initial_c, P) to (Y, Y_h, Y_c)."""
    return _convert(builder, inputs, attributes, node, LSTM_COUPLED if _get(attributes, "input_forget", 0) else LSTM)


def convert_gru(
    builder: relax.BlockBuilder, inputs: list[Any], attributes: dict[str, ir.Attr], node: ir.Node
) -> relax.Tuple:
    """GRU (X, W, R, B, sequence_lens, initial_h) to (Y, Y_h)."""
    linear_first = _get(attributes, "linear_before_reset", 0)
    return _convert(builder, inputs, attributes, node, GRU_LINEAR_BEFORE_RESET if linear_first else GRU)


def convert_rnn(
    builder: relax.BlockBuilder, inputs: list[Any], attributes: dict[str, ir.Attr], node: ir.Node
) -> relax.Tuple:
    """RNN (X, W, R, B, sequence_lens, initial_h) to (Y, Y_h)."""
    return _convert(builder, inputs, attributes, node, RNN)


CONVERTERS = {"LSTM": convert_lstm, "GRU": convert_gru, "RNN": convert_rnn}


def _convert(
    builder: relax.BlockBuilder, inputs: list[Any], attributes: Mapping[str, ir.Attr], node: ir.Node, kind: Kind
) -> relax.Tuple:
    """The outputs of a node. In the place of one that is not made, since nothing reads it, stands Y_h."""
    given = {name: value for name, value in zip(INPUTS, inputs, strict=False) if value is not None}
    _check_types(node, given)
    layer = _layer(node, kind, attributes, given)
    depth, columns = _shape(given["X"])[-1], len(layer.backward) * layer.gates * layer.hidden
    x = builder.emit(relax.op.reshape(given["X"], (layer.steps * layer.batch, depth)))
    weights = _reshaped(builder, _permuted(builder, given["W"], (2, 0, 1)), (depth, columns))
    projected = builder.emit(relax.op.matmul(x, weights))
    of_gates = np.arange(layer.gates * layer.hidden)
    panels = [panel_rows(layer, group) for group in range(len(layer.groups))]
    packed = [_permuted(builder, _taken(builder, given["R"], rows), (0, 1, 3, 2)) for rows in panels]
    if "B" in given:
        bias = _reshaped(builder, _taken(builder, given["B"], of_gates), (columns,))
        projected = builder.emit(relax.op.add(projected, bias))
        packed += [_taken(builder, given["B"], len(of_gates) + rows) for rows in panels]
    arguments = [projected, *packed, *(given[name] for name in INPUTS[4:] if name in given)]
    state = relax.TensorType(layer.state_shape(), "float32")
    made = {"Y": relax.TensorType(layer.sequence_shape(), "float32")} if layer.writes_y else {}
    made |= {"Y_h": state, "Y_c": state} if layer.has_c else {"Y_h": state}
    kernel = builder.add_func(recurrent_kernel(layer), node.op_type.lower())
    types = list(made.values())
    result = builder.emit(relax.call_tir(kernel, arguments, types if len(types) > 1 else types[0]))
    fields = [relax.TupleGetItem(result, i) for i in range(len(types))] if len(types) > 1 else [result]
    by_name = dict(zip(made, fields, strict=True))
    return relax.Tuple([by_name.get(name, by_name["Y_h"]) for name in OUTPUTS[: len(node.outputs)]])


def _layer(node: ir.Node, kind: Kind, attributes: Mapping[str, ir.Attr], given: Mapping[str, Any]) -> Layer:
    direction = _get(attributes, "direction", "forward")
    if direction not in DIRECTIONS:
        raise _unsupported(node, f"direction is {direction!r}", f"expected one of {', '.join(DIRECTIONS)}")
    backward = DIRECTIONS[direction]
    batch_first = bool(_get(attributes, "layout", 0))
    outer = _shape(given["X"])[:2]
    steps, batch = reversed(outer) if batch_first else outer
    hidden = _shape(given["R"])[-1]
    if _get(attributes, "hidden_size", hidden) != hidden:
        raise _unsupported(
            node, f"hidden_size is {_get(attributes, 'hidden_size', hidden)}, R has {hidden}", "make them agree"
        )
    layer = Layer(
        steps=steps,
        batch=batch,
        hidden=hidden,
        groups=kind.groups,
        backward=backward,
        batch_first=batch_first,
        activations=_activations(node, kind, attributes, len(backward)),
        clip=_get(attributes, "clip", None),
        cell=kind.cell,
        has_lengths="sequence_lens" in given,
        has_initial_h="initial_h" in given,
        has_initial_c="initial_c" in given,
        has_peepholes="P" in given,
        has_bias="B" in given,
        has_c=kind in (LSTM, LSTM_COUPLED),
        writes_y=_is_read(node, 0),
    )
    _check_shapes(node, layer, given)
    return layer


def _activations(
    node: ir.Node, kind: Kind, attributes: Mapping[str, ir.Attr], directions: int
) -> tuple[tuple[Activation, ...], ...]:
    """The activations of each direction. Each takes from the lists of alphas and betas only what its formula has."""
    per_direction = len(kind.activations)
    names = _get(attributes, "activations", None) or kind.activations * directions
    if len(names) != per_direction * directions:
        raise _unsupported(
            node,
            f"activations has {len(names)} names, not {per_direction * directions}",
            "give one a gate and direction",
        )
    given = {name: list(_get(attributes, f"activation_{name}", None) or ()) for name in ("alpha", "beta")}
    found = []
    for name in names:
        if name.lower() not in ACTIVATIONS:
            raise _unsupported(node, f"activation {name!r} is unknown", f"known are {', '.join(ACTIVATIONS)}")
        known = ACTIVATIONS[name.lower()]
        values: list[float] = []
        for parameter, default in zip(("alpha", "beta"), known.defaults, strict=False):
            value = given[parameter].pop(0) if given[parameter] else default
            if value is None:
                raise _unsupported(
                    node,
                    f"activation {name!r} has no activation_{parameter}, and the standard no agreed default",
                    f"add the attribute activation_{parameter}",
                )
            values.append(float(value))
        found.append(Activation(known.function, *values))
    return tuple(tuple(found[i : i + per_direction]) for i in range(0, len(found), per_direction))


def _check_types(node: ir.Node, given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        expected = "int32" if name == "sequence_lens" else "float32"
        if _dtype(value) != expected:
            raise _unsupported(node, f"input {name} is {_dtype(value)}, not {expected}", f"cast it to {expected}")


def _check_shapes(node: ir.Node, layer: Layer, given: Mapping[str, Any]) -> None:
    """The kernel indexes by the layer's sizes: inputs of other shapes would be read out of bounds."""
    directions, rows = len(layer.backward), layer.gates * layer.hidden
    expected = {
        "W": (directions, rows, _shape(given["X"])[-1]),
        "R": (directions, rows, layer.hidden),
        "B": (directions, 2 * rows),
        "sequence_lens": (layer.batch,),
        "initial_h": layer.state_shape(),
        "initial_c": layer.state_shape(),
        "P": (directions, 3 * layer.hidden),
    }
    for name, shape in expected.items():
        if name in given and _shape(given[name]) != shape:
            raise _unsupported(node, f"input {name} has shape {_shape(given[name])}, not {shape}", "correct its shape")


# Weights are rearranged here where they are constant, and by operators in front of the kernel where they are not.


def _taken(builder: relax.BlockBuilder, value: Any, rows: np.ndarray) -> Any:
    if isinstance(value, GenericConst):
        return _constant(np.take(value.value.numpy(), rows, axis=1))
    return builder.emit(relax.op.take(value, _constant(rows), axis=1, mode="clip"))


def _permuted(builder: relax.BlockBuilder, value: Any, axes: tuple[int, ...]) -> Any:
    if isinstance(value, GenericConst):
        return _constant(value.value.numpy().transpose(axes))
    return builder.emit(relax.op.permute_dims(value, axes))


def _reshaped(builder: relax.BlockBuilder, value: Any, shape: tuple[int, ...]) -> Any:
    if isinstance(value, GenericConst):
        return _constant(value.value.numpy().reshape(shape))
    return builder.emit(relax.op.reshape(value, shape))


def _constant(array: np.ndarray) -> Any:
    return relax.const(tvm.runtime.tensor(np.ascontiguousarray(array)))


def _is_read(node: ir.Node, index: int) -> bool:
    if index >= len(node.outputs):
        return False
    output = node.outputs[index]
    return bool(output.name) and (bool(output.uses()) or output.is_graph_output())


def _get(attributes: Mapping[str, ir.Attr], name: str, default: Any) -> Any:
    return attributes[name].value if name in attributes else default


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(int(extent) for extent in value.ty.shape)


def _dtype(value: Any) -> str:
    return str(value.ty.dtype.dtype)


def _unsupported(node: ir.Node, found: str, advice: str) -> UnsupportedError:
    return UnsupportedError(f"{node.op_type} {node.name!r}: {found}", advice=advice)
