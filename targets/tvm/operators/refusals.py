"""Operators, and forms of them, that have no lowering on purpose: the reason, and what to do instead."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

_QDQ = "scales of more than one dimension have no lowering; export it as QDQ (QuantizeLinear and DequantizeLinear)"
_RANDOM = "it is random, and a compiled model gives one result for one input; make the numbers an input"
_SIZE = "the size of its result depends on the data; cut the graph in front of it and compute it yourself"
_STRING = "strings have no kernels; compute it in front of the model"
_SEQUENCE = "sequences and optional values have no lowering; use tensors"

REFUSED: dict[str, str] = {
    **dict.fromkeys(("QLinearConv", "QLinearMatMul"), _QDQ),
    **dict.fromkeys(
        (*("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"),),
        _RANDOM,
    ),
    **dict.fromkeys(("NonMaxSuppression", "NonZero", "Unique"), _SIZE),
    **dict.fromkeys(("RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer"), _STRING),
    **dict.fromkeys(
        (
            *("ConcatFromSequence", "SequenceAt", "SequenceConstruct", "SequenceEmpty", "SequenceErase"),
            *("SequenceInsert", "SequenceLength", "SequenceMap", "SplitToSequence"),
            *("Optional", "OptionalGetElement", "OptionalHasElement"),
        ),
        _SEQUENCE,
    ),
    "ImageDecoder": "images are decoded in front of the model",
    "Loop": "loops have no lowering; unroll it before export",
    "Scan": "scans have no lowering; unroll it before export",
}


def refusal(node: ir.Node) -> str | None:
    """Why a node must not be lowered, and what to do instead; None if nothing speaks against it."""
    form = FORMS.get(node.op_type)
    return REFUSED.get(node.op_type) or (form(node) if form else None)


def _training(node: ir.Node) -> str | None:
    if _integer(node, "training_mode", 0):
        return "it is in training mode; export the model for inference"
    return None


def _roi_align(node: ir.Node) -> str | None:
    mode = node.attributes["mode"].value if "mode" in node.attributes else "avg"
    return f"its mode {mode!r} has no lowering; use 'avg'" if mode != "avg" else None


def _if(node: ir.Node) -> str:
    names = ", ".join(repr(name) for name in sorted(_graph_inputs(node.inputs[0])))
    by = f"by the graph's input {names}" if names else "by a value computed at run time"
    return f"it chooses {by}, and a branch has no lowering; make its condition constant before export"


def _graph_inputs(value: ir.Value | None) -> set[str]:
    """The names of the graph inputs that a value depends on."""
    found: set[str] = set()
    seen: set[ir.Value] = set()
    waiting = [value]
    while waiting:
        current = waiting.pop()
        if current is None or current in seen:
            continue
        seen.add(current)
        producer = current.producer()
        if producer is not None:
            waiting.extend(producer.inputs)
        elif current.is_graph_input():
            found.add(current.name or "")
    return found


def _integer(node: ir.Node, name: str, default: int) -> int:
    return int(node.attributes[name].value) if name in node.attributes else default


FORMS: dict[str, Callable[[ir.Node], str | None]] = {
    "BatchNormalization": _training,
    "If": _if,
    "RoiAlign": _roi_align,
}
