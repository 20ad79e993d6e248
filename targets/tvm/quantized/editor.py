"""The graph while it is rewritten: new nodes, and the forms that integers are kept in.

Kernels read and write int8 with channels last. `Editor` makes those forms of a value where they are first needed, and
remembers them, so that no data moves between kernels that agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt import ir as gir
from graphopt.ir.reading import is_standard
from graphopt.targets.tvm.kernels.integer import describe
from graphopt.targets.tvm.kernels.integer_transposition import QuantizeChannelsLast
from graphopt.targets.tvm.quantized.conversion import KERNEL
from graphopt.targets.tvm.quantized.parameters import INT8, UINT8, constant, quantized

DOMAIN = "graphopt.internal"  # of nodes that only this backend knows


def copied(model: ir.Model) -> ir.Model:
    """A copy to rewrite, with what earlier steps noted in `meta`, and a name for each node that reports number."""
    copy = gir.clone(model)
    copy.meta.update(model.meta)
    for i, node in enumerate(copy.graph):
        node.name = node.name or f"{node.op_type}_{i}"
    return copy


def put_in_place(value: ir.Value, made: ir.Value) -> None:
    """Let everything that reads `value` read `made`; of an output of the model that takes the name, too."""
    public = value.name
    ir.convenience.replace_all_uses_with(value, made, replace_graph_outputs=True)
    if made.is_graph_output():
        value.name, made.name = f"{public}.replaced", public


class Editor:
    """Puts nodes in front of one node after another, in the order of the graph."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self.opset = graph.opset_imports[""]
        self.place: ir.Node | None = None  # where nodes go: in front of it
        self._int8: dict[ir.Value, ir.Value] = {}
        self._channels_last: dict[ir.Value, ir.Value] = {}
        self._names = {value.name for node in graph for value in node.outputs} | set(graph.initializers)
        self._names |= {value.name for value in graph.inputs}

    def add(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        dtype: ir.DataType,
        shape: Sequence[int],
        *,
        name: str,
        attributes: Mapping[str, int | str | Sequence[int] | ir.Attr] | None = None,
        layer: str | None = None,
        domain: str = "",
        more: Sequence[tuple[str, ir.DataType, Sequence[int]]] = (),
    ) -> ir.Value:
        """The output, called `name` or the like, of a new node, called `layer` if it computes a layer of the model.

        more: name, type and shape of each further output.
        """
        outputs = [
            ir.Value(name=self._unused(each), shape=ir.Shape(size), type=ir.TensorType(kind))
            for each, kind, size in ((name, dtype, shape), *more)
        ]
        output, node = outputs[0], layer or outputs[0].name
        made = ir.node(op_type, inputs, dict(attributes or {}), domain=domain, outputs=outputs, name=node)
        assert self.place is not None
        self.graph.insert_before(self.place, made)
        return output

    def constant(self, array: np.ndarray, name: str) -> ir.Value:
        """A new initializer."""
        name = self._unused(name)
        tensor = ir.Tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.graph.register_initializer(value)
        return value

    def int8(self, value: ir.Value) -> ir.Value:
        """The integers of `value` as int8; uint8 less 128."""
        if value.dtype == INT8:
            return value
        if value not in self._int8:
            stored = constant(value)
            shifted = None if stored is None else (stored.astype(np.int16) - 128).astype(np.int8)
            name = f"{value.name}.int8"
            self._int8[value] = self._shifted(value, -128, INT8) if shifted is None else self.constant(shifted, name)
        return self._int8[value]

    def channels_last(self, value: ir.Value) -> ir.Value:
        """`int8(value)` with axis 1 moved to the end."""
        if value not in self._channels_last:
            shape = shape_of(value)
            order = [0, *range(2, len(shape)), 1]
            moved, name = [shape[axis] for axis in order], f"{value.name}.channels_last"
            made = self._quantized_channels_last(value, moved, name)
            stored = constant(self.int8(value)) if made is None else None
            if stored is not None:
                made = self.constant(np.ascontiguousarray(stored.transpose(order)), name)
            if made is None:
                made = self.add("Transpose", [self.int8(value)], INT8, moved, name=name, attributes={"perm": order})
            self._channels_last[value] = made
        return self._channels_last[value]

    def _quantized_channels_last(self, value: ir.Value, shape: Sequence[int], name: str) -> ir.Value | None:
        """`channels_last` of what a QuantizeLinear makes of float32 with one scale, at once; None of anything else."""
        node = value.producer()
        if node is None or not is_standard(node, "QuantizeLinear"):
            return None
        y, source = quantized(node), node.inputs[0]
        if y is None or not y.per_tensor or source is None or source.dtype != ir.DataType.FLOAT:
            return None
        batch, *pixels, channels = shape
        kernel = QuantizeChannelsLast((batch, channels, math.prod(pixels)), float(y.scale), y.signed_zero_point)
        attributes = {KERNEL: describe(kernel)}
        kind = type(kernel).__name__
        return self.add(kind, [source], INT8, shape, name=name, attributes=attributes, layer=node.name, domain=DOMAIN)

    def has_channels_last(self, value: ir.Value) -> bool:
        """Whether a kernel has made the value with channels last."""
        return value in self._channels_last

    def replace(self, value: ir.Value, made: ir.Value, *, channels_last: bool) -> ir.Value:
        """Let everything that reads `value` read what `made`, an int8, stands for; its other forms are known then.

        The result is what is read instead: of the type of `value`, with channels first.
        """
        shape, final = shape_of(value), made
        if channels_last:
            order = [0, len(shape) - 1, *range(1, len(shape) - 1)]
            name = f"{value.name}.channels_first"
            final = self.add("Transpose", [made], INT8, shape, name=name, attributes={"perm": order})
        natural = final
        if value.dtype == UINT8:
            final = self._shifted(final, 128, UINT8)
        put_in_place(value, final)
        self._int8[final] = natural
        if channels_last:
            self._channels_last[final] = made
        return final

    def _shifted(self, value: ir.Value, by: int, dtype: ir.DataType) -> ir.Value:
        shape, name = shape_of(value), value.name
        wide = self.add(
            "Cast", [value], ir.DataType.INT32, shape, name=f"{name}.int32", attributes={"to": int(ir.DataType.INT32)}
        )
        offset = self.constant(np.array(by, np.int32), f"{name}.offset")
        moved = self.add("Add", [wide, offset], ir.DataType.INT32, shape, name=f"{name}.shifted")
        to = {"to": int(dtype)}
        return self.add("Cast", [moved], dtype, shape, name=f"{name}.{dtype.name.lower()}", attributes=to)

    def _unused(self, name: str) -> str:
        candidate, number = name, 0
        while candidate in self._names:
            number += 1
            candidate = f"{name}.{number}"
        self._names.add(candidate)
        return candidate


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """The static shape of a value."""
    assert value.shape is not None  # rewrite asks for static shapes
    return tuple(int(extent) for extent in value.shape.numpy())
