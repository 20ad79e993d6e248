"""Element-wise operators of which TVM's importer computes some forms otherwise than ONNX says, or lacks them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax, te, tirx

from graphopt.targets.tvm.operators.attributes import convert_by_tvm
from graphopt.targets.tvm.operators.tensors import (
    Attributes,
    Tensors,
    attribute,
    cast,
    compute,
    constant,
    dtype_of,
    is_float,
    known,
    shape_of,
)


def convert_pow(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """Pow: the exponent may be of another type than base and result. Integers go through float64, as in ONNX Runtime.

    Constant exponents 2, 3 and 0.5, as layer normalizations have them, take no call of `pow`.
    """
    base, exponent = inputs
    dtype, power = dtype_of(base), known(exponent)
    if is_float(base) and power is not None and power.size == 1 and len(power.shape) <= len(shape_of(base)):
        if power.item() in (2, 3):
            square = builder.emit(relax.op.multiply(base, base))
            return square if power.item() == 2 else relax.op.multiply(square, base)
        if power.item() == 0.5:
            return relax.op.sqrt(base)
    exact = "float64" if not is_float(base) or dtype_of(exponent) == "float64" else dtype
    result = relax.op.power(cast(base, exact), cast(exponent, exact))
    return result if exact == dtype else relax.op.astype(builder.emit(result), dtype)


def convert_div(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """Div: a constant divisor of float32 becomes its reciprocal, one rounding more for a tenth of the time.

    Not where the reciprocal leaves the normal numbers: it would have lost bits.
    """
    divisor = known(inputs[1])
    if dtype_of(inputs[0]) == "float32" and divisor is not None and known(inputs[0]) is None:
        with np.errstate(all="ignore"):
            reciprocal = (1 / divisor.astype(np.float64)).astype(np.float32)
        magnitude = np.abs(reciprocal)
        normal = (magnitude >= np.finfo(np.float32).tiny) & (magnitude <= np.finfo(np.float32).max)
        if np.all(normal | (divisor == 0)):  # x / 0 is x · ∞, NaN included; TVM refuses to divide by the constant 0
            return relax.op.multiply(inputs[0], constant(reciprocal))
    return convert_by_tvm(builder, inputs, node)


def convert_by_pairs(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """Max, Mean, Min and Sum of any number of tensors: two at a time, where TVM's importer copies them side by side."""
    result = functools.reduce(lambda x, y: builder.emit(PAIRWISE[node.op_type](x, y)), inputs)
    if node.op_type == "Mean":
        return relax.op.divide(result, constant(np.array(len(inputs), dtype_of(result))))
    return result


def convert_mod(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """Mod: with `fmod` the sign of the dividend (C's fmod and %), without that of the divisor (Python's %)."""
    sign_of_dividend = bool(attribute(attributes, "fmod", 0))
    if not is_float(inputs[0]):
        if not sign_of_dividend:
            return relax.op.floor_mod(*inputs)
        return _broadcast(builder, inputs, tirx.truncmod, "mod")

    # libm has fmod of float32 and float64; TVM has no intrinsic for it
    dtype = "float64" if dtype_of(inputs[0]) == "float64" else "float32"
    function = "fmod" if dtype == "float64" else "fmodf"

    def mod(x: Any, y: Any) -> Any:
        rest = tirx.call_pure_extern(dtype, function, x, y)
        if sign_of_dividend:
            return rest
        zero = tirx.const(0, dtype)
        moved = tirx.Select(tirx.any(tirx.all(rest < zero, y > zero), tirx.all(rest > zero, y < zero)), rest + y, rest)
        return tirx.Select(rest == zero, tirx.copysign(zero, y), moved)

    operands = [builder.emit(cast(value, dtype)) for value in inputs]
    return cast(builder.emit(_broadcast(builder, operands, mod, "mod")), dtype_of(inputs[0]))


def convert_bit_shift(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """BitShift: a shift by at least the type's width, or by a negative count, leaves no bit of the number.

    To the right what is left of a negative number are copies of its sign.
    """
    dtype = np.dtype(dtype_of(inputs[0]))
    bits = dtype.itemsize * 8
    left = attribute(attributes, "direction", "LEFT") == "LEFT"

    zero, width = tirx.const(0, dtype.name), tirx.const(bits, dtype.name)

    def shift(x: Any, count: Any) -> Any:
        inside = tirx.all(count >= zero, count < width) if dtype.kind == "i" else count < width
        bounded = tirx.bitwise_and(count, tirx.const(bits - 1, dtype.name))
        if left:
            return tirx.Select(inside, x << bounded, zero)
        return tirx.Select(inside, x >> bounded, x >> tirx.const(bits - 1, dtype.name) if dtype.kind == "i" else zero)

    return _broadcast(builder, inputs, shift, "bit_shift")


def convert_is_inf(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """IsInf, of one sign or both."""
    x = inputs[0]
    infinity = np.array(np.inf, dtype=dtype_of(x))
    tests = [
        relax.op.equal(x, constant(value))
        for name, value in (("detect_positive", infinity), ("detect_negative", -infinity))
        if attribute(attributes, name, 1)
    ]
    if not tests:
        return relax.op.zeros(shape_of(x), "bool")
    return tests[0] if len(tests) == 1 else relax.op.logical_or(*(builder.emit(test) for test in tests))


def convert_bit_cast(builder: relax.BlockBuilder, inputs: Tensors, attributes: Attributes, node: ir.Node) -> Any:
    """BitCast between types of the same width."""
    to = ir.DataType(attributes["to"].value).numpy().name
    source = dtype_of(inputs[0])
    if source == to:
        return inputs[0]
    if "bool" in (source, to):  # a byte of 0 or 1
        return relax.op.astype(inputs[0], to)

    def bit_cast(x: Any) -> Any:
        return te.compute(x.shape, lambda *at: tirx.reinterpret(to, x(*at)), name="bit_cast")

    return compute(builder, bit_cast, inputs[0], name="bit_cast")


def _broadcast(builder: relax.BlockBuilder, inputs: Tensors, function: Callable[[Any, Any], Any], name: str) -> Any:
    """`function` of two scalars, applied to the elements of two tensors by numpy's broadcasting."""
    shapes = [shape_of(tensor) for tensor in inputs]
    shape = np.broadcast_shapes(*shapes)

    def element_of(tensor: Any, own: tuple[int, ...], at: tuple[Any, ...]) -> Any:
        return tensor(*(0 if extent == 1 else i for extent, i in zip(own, at[len(at) - len(own) :], strict=True)))

    def broadcast(x: Any, y: Any) -> Any:
        return te.compute(
            shape, lambda *at: function(element_of(x, shapes[0], at), element_of(y, shapes[1], at)), name=name
        )

    return compute(builder, broadcast, *inputs, name=name)


PAIRWISE = {"Max": relax.op.maximum, "Mean": relax.op.add, "Min": relax.op.minimum, "Sum": relax.op.add}
CONVERTERS = {
    **dict.fromkeys(PAIRWISE, convert_by_pairs),
    "BitCast": convert_bit_cast,
    "BitShift": convert_bit_shift,
    "Div": convert_div,
    "IsInf": convert_is_inf,
    "Mod": convert_mod,
    "Pow": convert_pow,
}
