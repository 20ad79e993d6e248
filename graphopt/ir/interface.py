"""The public interface of a model: what a program that calls it depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

Dim = int | str | None  # a size, a symbol, or unknown


@dataclass(frozen=True)
class Port:
    """An input or output. `type` is such as "f32" or "seq(f32)"; `shape` is None if not even the rank is known."""

    name: str
    type: str
    shape: tuple[Dim, ...] | None

    def __str__(self) -> str:
        return f"{self.name}: {self.type}{format_shape(self.shape)}"

    def refined_by(self, other: Port) -> bool:
        """Whether `other` is the same, or says a size where this says a symbol or nothing."""
        if (self.name, self.type) != (other.name, other.type):
            return False
        if self.shape is None:
            return True
        if other.shape is None or len(self.shape) != len(other.shape):
            return False
        pairs = zip(self.shape, other.shape, strict=True)
        return all(mine == theirs or (not isinstance(mine, int) and isinstance(theirs, int)) for mine, theirs in pairs)


@dataclass(frozen=True)
class Interface:
    """The inputs and outputs of a model, in order."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @classmethod
    def of(cls, model: ir.Model) -> Interface:
        """The interface that `model` has now."""
        return cls(tuple(map(port, model.graph.inputs)), tuple(map(port, model.graph.outputs)))

    def difference(self, other: Interface) -> str:
        """What of `other` does not fit this interface, in one sentence; empty if it fits.

        Inputs must be the same. An output may have become known better: a size in the place of a symbol.
        """
        for kind, mine, theirs in (("input", self.inputs, other.inputs), ("output", self.outputs, other.outputs)):
            if fault := _difference(kind, mine, theirs):
                return fault
        return ""


def _difference(kind: str, mine: Sequence[Port], theirs: Sequence[Port]) -> str:
    if [p.name for p in mine] != [p.name for p in theirs]:
        return f"{kind}s were {[p.name for p in mine]}, now {[p.name for p in theirs]}"
    for before, after in zip(mine, theirs, strict=True):
        if before != after and (kind == "input" or not before.refined_by(after)):
            return f"{kind} was {before}, now {after}"
    return ""


def port(value: ir.Value) -> Port:
    """Name, type and shape of a value."""
    return Port(value.name or "", format_type(value.type), shape_of(value))


def shape_of(value: ir.Value) -> tuple[Dim, ...] | None:
    """The shape as plain Python: sizes, symbols' names, None for what is unknown."""
    if value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)


def format_type(type_: ir.TypeProtocol | None) -> str:
    """ "f32", "seq(i64)", "opt(f32)", "sparse(f32)", or "?" where unknown."""
    if type_ is None:
        return "?"
    if isinstance(type_, ir.SequenceType):
        return f"seq({format_type(type_.elem_type)})"
    if isinstance(type_, ir.OptionalType):
        return f"opt({format_type(type_.elem_type)})"
    name = short_dtype(type_.dtype)
    return f"sparse({name})" if isinstance(type_, ir.SparseTensorType) else name


def short_dtype(dtype: ir.DataType) -> str:
    """ "f32" for FLOAT, and so on."""
    return "?" if dtype == ir.DataType.UNDEFINED else dtype.short_name()


def format_shape(shape: Sequence[Dim] | None) -> str:
    """ "[1,N,?]"; "[...]" if the rank is unknown."""
    if shape is None:
        return "[...]"
    return "[" + ",".join("?" if dim is None else str(dim) for dim in shape) + "]"
