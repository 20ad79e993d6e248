"""The exceptions that graphopt raises. Each says where, what was found, what was expected and what to do next.

The class decides the exit status of the command line: 1 the model or data is at fault, 2 usage,
3 a tolerance was missed, 4 a fault of graphopt itself.
"""

from __future__ import annotations

from typing import ClassVar


class GraphoptError(Exception):
    """Base of every exception that graphopt raises on purpose.

    Args:
        what: one sentence that names the place (file, pass, node, value), what was found and what was expected.
        where: lines of IR, or of the file, around the fault; printed indented.
        advice: what the user can do next.
    """

    exit_status: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str = "", advice: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.advice = advice

    def __str__(self) -> str:
        quoted = "".join(f"\n    {line}" for line in self.where.splitlines())
        return self.what + quoted + (f"\n  {self.advice}" if self.advice else "")


class ModelError(GraphoptError):
    """The model cannot be read, or is not valid ONNX."""


class DataError(GraphoptError):
    """Calibration data, labels or inputs do not fit the model."""


class ShapeError(ModelError):
    """A shape or type is unknown where it must be known, or contradicts another."""


class UnsupportedError(ModelError):
    """The model is valid but holds something that the target's backend cannot compute."""


class VerifyError(GraphoptError):
    """The IR breaks an invariant: after loading the model is at fault, after a pass the pass is."""


class UsageError(GraphoptError):
    """The command, recipe, pass option or target is misspelt or contradicts itself."""

    exit_status = 2


class ToleranceError(GraphoptError):
    """Outputs differ from the original's by more than was allowed."""

    exit_status = 3


class InternalError(GraphoptError):
    """A fault of graphopt itself (or of a tool below it), not of the model."""

    exit_status = 4


class PassError(InternalError):
    """A pass raised, or left the graph broken; names the pass, the node and how to reproduce it."""


class ModelWarning(UserWarning):
    """The model can be used, but something in it deserves a look: weights that are not finite, parts not kept."""
