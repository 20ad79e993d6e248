"""Whether a pass changed a model, to check what it says of itself."""

from __future__ import annotations

import difflib

import onnx_ir as ir

from graphopt.ir import clone, fingerprint, to_text
from graphopt.ir.light import light_proto


class Snapshot:
    """A model at one moment: its fingerprint, and a copy that shares its weights."""

    def __init__(self, model: ir.Model) -> None:
        self._model = clone(model)
        self._fingerprint = fingerprint(model)

    def dishonesty(self, model: ir.Model, changed: bool) -> str:
        """What is wrong with the statement that the model was `changed` since; empty if it is right.

        A change that the fingerprint does not see, of inner names or metadata, may be called either.
        """
        same = fingerprint(model) == self._fingerprint
        if same and changed and light_proto(self._model) == light_proto(model):
            return "it says that it changed the model, and did not"
        return "" if same or changed else "it says that it changed nothing, and changed the model"

    def difference(self, model: ir.Model, lines: int = 5) -> str:
        """The first lines of the text form that differ: `-` before, `+` now."""
        texts = (to_text(self._model).splitlines(), to_text(model).splitlines())
        marked = difflib.unified_diff(*texts, lineterm="", n=0)
        changed = [line for line in marked if line[:1] in "+-" and line[:3] not in ("+++", "---")]
        return "\n".join(changed[:lines])
