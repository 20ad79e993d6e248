"""Bind the dynamic dimensions of a model's inputs to sizes, so that code can be made for it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from graphopt.errors import ShapeError
from graphopt.ir.interface import Dim, format_shape, shape_of
from graphopt.ir.shapes import refresh_shapes

_EXAMPLE_SIZE = 224


def bind_shapes(model: ir.Model, bindings: Mapping[str, Sequence[int]]) -> list[str]:
    """Give every input a static shape, in place, and infer all others from them.

    A symbol, such as `batch`, is bound everywhere when one input binds it. An unknown first dimension that nothing
    binds becomes 1.

    Args:
        bindings: the full shape of each input to bind, by the input's name; sizes are positive.

    Returns:
        One notice for each first dimension that was taken as 1.

    Raises:
        ShapeError: a binding names no input, contradicts the model or another binding, or an input stays unknown.
            `model` is unchanged.
    """
    inputs = {value.name or "": value for value in model.graph.inputs}
    for name in bindings:
        if name not in inputs:
            raise _unknown_input(name, list(inputs))
    symbols: dict[str, tuple[int, str]] = {}
    for name, shape in bindings.items():
        _bind_symbols(inputs[name], shape, symbols)
    sizes: dict[str, int] = {symbol: size for symbol, (size, _) in symbols.items()}
    free = [value for name, value in inputs.items() if name not in bindings]
    batches = [value for value in free if _take_batch_as_one(value, sizes)]
    static = {name: list(shape) for name, shape in bindings.items()}
    static |= {value.name or "": _resolved(value, sizes, batch=value in batches) for value in free}
    _apply(model, static, sizes)
    return [f"the unknown first dimension of input {value.name!r} is taken as 1 (batch)" for value in batches]


def _unknown_input(name: str, known: list[str]) -> ShapeError:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the inputs are {', '.join(known)}"
    return ShapeError(f"the model has no input {name!r} to bind a shape to", advice=hint)


def _bind_symbols(value: ir.Value, shape: Sequence[int], symbols: dict[str, tuple[int, str]]) -> None:
    """Check a binding against the declared shape, and enter the sizes of its symbols."""
    name = value.name or ""
    if any(size < 1 for size in shape):
        raise ShapeError(f"input {name!r} cannot have the shape {format_shape(shape)}: sizes are at least 1")
    declared = shape_of(value)
    if declared is None:
        return
    if len(declared) != len(shape):
        raise ShapeError(
            f"input {name!r} has {len(declared)} dimensions, {format_shape(declared)}, but {format_shape(shape)} "
            f"has {len(shape)}"
        )
    for dim, size in zip(declared, shape, strict=True):
        if isinstance(dim, int) and dim != size:
            raise ShapeError(f"input {name!r} is {format_shape(declared)}, which {format_shape(shape)} contradicts")
        if isinstance(dim, str):
            bound, by = symbols.setdefault(dim, (size, name))
            if bound != size:
                raise ShapeError(
                    f"input {name!r} binds the dimension {dim!r} to {size}, but input {by!r} binds it to {bound}"
                    if by != name
                    else f"the shape {format_shape(shape)} of input {name!r} binds the dimension {dim!r} twice: "
                    f"to {bound} and {size}"
                )


def _take_batch_as_one(value: ir.Value, sizes: dict[str, int]) -> bool:
    """Whether only the first dimension of an input is unknown; if it is a symbol, that becomes 1 in `sizes`."""
    declared = shape_of(value)
    if not declared:
        return False
    first, *others = (sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in declared)
    if isinstance(first, int) or not all(isinstance(dim, int) for dim in others):
        return False
    if first is not None:
        sizes[first] = 1
    return True


def _resolved(value: ir.Value, sizes: dict[str, int], *, batch: bool) -> list[int]:
    """The static shape of an input that no binding names."""
    declared = shape_of(value)
    if declared is None:
        raise ShapeError(
            f"the shape of input {value.name!r} is unknown, not even its rank is declared",
            advice=f"bind it, for example: --shape {value.name}=1,3,{_EXAMPLE_SIZE},{_EXAMPLE_SIZE}",
        )
    resolved: list[Dim] = [sizes.get(dim, dim) if isinstance(dim, str) else dim for dim in declared]
    if batch:
        resolved[0] = 1
    known = [dim for dim in resolved if isinstance(dim, int)]
    if len(known) != len(resolved):
        example = ",".join(
            str(dim) if isinstance(dim, int) else ("1" if axis == 0 else str(_EXAMPLE_SIZE))
            for axis, dim in enumerate(resolved)
        )
        unknown = ", ".join(
            f"{axis} ({dim})" if dim else str(axis) for axis, dim in enumerate(resolved) if not isinstance(dim, int)
        )
        raise ShapeError(
            f"input {value.name!r} has the shape {format_shape(declared)}, with unknown dimension {unknown}",
            advice=f"bind it, for example: --shape {value.name}={example}",
        )
    return known


def _apply(model: ir.Model, static: dict[str, list[int]], sizes: dict[str, int]) -> None:
    """Write input shapes, replace bound symbols everywhere, and infer the rest; restore all if that fails."""
    saved = [(value, value.shape) for graph in model.graphs() for value in _declared_values(graph)]
    try:
        for value, shape in saved:
            if shape is not None:
                value.shape = ir.Shape([_substituted(dim, sizes) for dim in shape])
        for value in model.graph.inputs:
            value.shape = ir.Shape(static[value.name or ""])
        for value in model.graph.outputs:
            if value.shape is not None and value.producer() is not None:
                # A symbol that nothing bound says less than what follows from the inputs now.
                value.shape = ir.Shape([dim if isinstance(dim, int) else None for dim in value.shape])
        refresh_shapes(model)
    except ShapeError:
        for value, shape in saved:
            value.shape = shape
        raise


def _declared_values(graph: ir.Graph) -> list[ir.Value]:
    made = [value for node in graph for value in node.outputs]
    return list(dict.fromkeys([*graph.inputs, *made]))


def _substituted(dim: int | ir.SymbolicDim, sizes: dict[str, int]) -> int | str | None:
    if isinstance(dim, int):
        return dim
    return sizes.get(dim.value, dim.value) if dim.value is not None else None
