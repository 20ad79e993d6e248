"""Whether a pass changed a model, to check what it says of itself."""

from __future__ import annotations

import difflib

import numpy as np
import onnx_ir as ir

from graphopt.ir import clone, fingerprint, to_text


class Snapshot:
    """A model at one moment: a copy that shares its weights.

    Weights are told apart by identity, as they are immutable, and read only where that leaves a doubt: a model of
    several GB is not hashed after each pass.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = clone(model)

    def dishonesty(self, model: ir.Model, changed: bool) -> str:
        """What is wrong with the statement that the model was `changed` since; empty if it is right.

        A change that `fingerprint` does not see, of inner names or metadata, may be called either.
        """
        tensors: dict[int, int] = {}
        before, after = _light(self.model, tensors), _light(model, tensors)
        if changed:
            same = before == after or ir.to_proto(before).SerializeToString() == ir.to_proto(after).SerializeToString()
            return "it says that it changed the model, and did not" if same else ""
        if fingerprint(before) == fingerprint(after) or fingerprint(self.model) == fingerprint(model):
            return ""
        return "it says that it changed nothing, and changed the model"

    def difference(self, model: ir.Model, lines: int = 5) -> str:
        """The first lines of the text form that differ: `-` before, `+` now."""
        texts = (to_text(self.model).splitlines(), to_text(model).splitlines())
        marked = difflib.unified_diff(*texts, lineterm="", n=0)
        changed = [line for line in marked if line[:1] in "+-" and line[:3] not in ("+++", "---")]
        return "\n".join(changed[:lines])


def _light(model: ir.Model, tensors: dict[int, int]) -> ir.Model:
    """A copy whose initializers hold, in the place of each weight, the number of its tensor object in `tensors`."""
    copy = clone(model)
    for graph in copy.graphs():
        for value in graph.initializers.values():
            number = tensors.setdefault(id(value.const_value), len(tensors))
            value.const_value = ir.tensor(np.int64(number), name=value.name)
    return copy
