"""When an operator that computes gives its input back: the rules by operator.

A rule takes a node and returns the input that stands for the node's first
output, a reason if it looks neutral and is not, or None. x·1, x/1, x¹ and x−0 give every bit of x back. x+0 turns
−0 into +0; both compare equal, so it is removed too, unless an operator after it can tell them apart (a division
by it, a power, its text).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.ir.reading import STANDARD_DOMAINS, constant, is_standard, same_shape
from graphopt.passes.cleanup.neutral_layout import Array, Rule

IDEMPOTENT = frozenset({"Relu", "Abs", "Ceil", "Floor", "Round", "Sign", "Trilu"})
INVOLUTIONS = frozenset({"Neg", "Not", "BitwiseNot"})
# operators whose outputs are never below zero (NaN aside, which Relu and Abs keep)
NEVER_NEGATIVE = frozenset(
    {"Relu", "Abs", "Sigmoid", "HardSigmoid", "Softmax", "Exp", "Sqrt", "Softplus", "ReduceL1", "ReduceL2"}
    | {"ReduceSumSquare"}
)


def dropout(node: ir.Node) -> ir.Value | str | None:
    """Dropout, unless it trains, which its third input says; before version 12 it never does."""
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        mode = constant(node.inputs[2])
        if mode is None:
            return "drops out or not depending on 'training_mode', which is known only at run time"
        if mode.any():
            return "is in training mode"
    return node.inputs[0]


def same_type(node: ir.Node) -> ir.Value | None:
    """Cast to the type that the input has."""
    data, out = node.inputs[0], node.outputs[0]
    if data is None or data.dtype is None:
        return None
    if node.op_type == "CastLike":
        like = node.inputs[1]
        return data if like is not None and like.dtype == data.dtype else None
    target = node.attributes.get_int("to", 0)
    return data if int(data.dtype) == target and out.dtype in (None, data.dtype) else None


def neutral_element(number: float, *, either_side: bool) -> Rule:
    """The rule of a binary operator that gives x back when the other operand is `number` in every element."""

    def rule(node: ir.Node) -> ir.Value | str | None:
        sides = ((0, 1), (1, 0)) if either_side else ((0, 1),)
        for kept, other in sides:
            array = constant(node.inputs[other])
            if array is None or array.dtype.kind not in "fiubV" or not np.all(array.astype(np.float64) == number):
                continue
            if not _keeps_shape(node, kept, array):
                continue
            return _unless_zero_sign_matters(node, array) or node.inputs[kept]
        return None

    return rule


def _keeps_shape(node: ir.Node, kept: int, other: Array) -> bool:
    """Whether broadcasting with `other` leaves the kept operand's shape as it is."""
    data = node.inputs[kept]
    if data is None or data.shape is None:
        return other.ndim == 0
    if other.size == 1 and other.ndim <= len(data.shape):
        return True
    dims = data.shape.dims[len(data.shape) - other.ndim :] if other.ndim else ()
    fits = other.ndim <= len(data.shape) and all(size in (1, dim) for size, dim in zip(other.shape, dims, strict=True))
    return fits or same_shape(data, node.outputs[0])


def _unless_zero_sign_matters(node: ir.Node, zeros: Array) -> str | None:
    """Why a sum with `zeros` must stay: it turns -0 into +0, and a later operator tells them apart."""
    exact = node.op_type != "Add" or zeros.dtype.kind in "iub" or bool(np.all(np.signbit(zeros.astype(np.float64))))
    if node.op_type == "Sub" and zeros.dtype.kind not in "iub":
        exact = not np.any(np.signbit(zeros.astype(np.float64)))
    if exact:
        return None
    seen: set[ir.Value] = set()
    waiting = [node.outputs[0]]
    while waiting:
        value = waiting.pop()
        if value in seen:
            continue
        seen.add(value)
        for user, index in value.uses():
            if _tells_zeros_apart(user, index):
                return f"adding 0 turns -0 into 0, and {user.op_type} {user.name!r} tells them apart"
            waiting.extend(user.outputs)
    return None


def _tells_zeros_apart(node: ir.Node, index: int) -> bool:
    if node.domain not in STANDARD_DOMAINS or any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in node.attributes.values()
    ):
        return True
    if node.op_type == "Div":
        return index == 1
    if node.op_type == "Cast":
        return node.attributes.get_int("to", 0) == int(ir.DataType.STRING)
    return node.op_type in ("Reciprocal", "Pow", "BitCast", "CastLike")


def boolean_neutral(value: bool) -> Rule:
    """The rule of And (True), Or and Xor (False)."""

    def rule(node: ir.Node) -> ir.Value | None:
        for kept, other in ((0, 1), (1, 0)):
            array = constant(node.inputs[other])
            if array is not None and np.all(array == value) and _keeps_shape(node, kept, array):
                return node.inputs[kept]
        return None

    return rule


def chosen_branch(node: ir.Node) -> ir.Value | None:
    """Where with a condition that is the same constant everywhere, and a branch of the output's shape."""
    condition = constant(node.inputs[0])
    if condition is None or not condition.size or condition.all() != condition.any():
        return None
    branch = node.inputs[1 if condition.all() else 2]
    return branch if same_shape(branch, node.outputs[0]) else None


def applied_twice(node: ir.Node) -> ir.Value | None:
    """Relu of Relu and its like, and Relu or Abs of what is never negative."""
    data = node.inputs[0]
    producer = data.producer() if data is not None else None
    if producer is None or not is_standard(producer) or producer.outputs[0] is not data:
        return None
    if producer.op_type == node.op_type and _same_attributes(producer, node):
        return data
    return data if node.op_type in ("Relu", "Abs") and producer.op_type in NEVER_NEGATIVE else None


def _same_attributes(one: ir.Node, other: ir.Node) -> bool:
    if one.op_type == "Trilu" and tuple(one.inputs[1:]) != tuple(other.inputs[1:]):
        return False
    return {k: v.value for k, v in one.attributes.items()} == {k: v.value for k, v in other.attributes.items()}


def undone(node: ir.Node) -> ir.Value | None:
    """Neg of Neg, Not of Not."""
    data = node.inputs[0]
    producer = data.producer() if data is not None else None
    return producer.inputs[0] if producer is not None and is_standard(producer, node.op_type) else None


VALUE_RULES: dict[str, Rule] = {
    "Dropout": dropout,
    "Cast": same_type,
    "CastLike": same_type,
    "Add": neutral_element(0, either_side=True),
    "Sub": neutral_element(0, either_side=False),
    "Mul": neutral_element(1, either_side=True),
    "Div": neutral_element(1, either_side=False),
    "Pow": neutral_element(1, either_side=False),
    "And": boolean_neutral(True),
    "Or": boolean_neutral(False),
    "Xor": boolean_neutral(False),
    "Where": chosen_branch,
    **dict.fromkeys(IDEMPOTENT, applied_twice),
    **dict.fromkeys(INVOLUTIONS, undone),
}
