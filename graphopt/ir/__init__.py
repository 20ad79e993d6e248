"""The IR is `onnx_ir.Model`, used directly; this package holds what it lacks.

Load and save, verification, shapes, a text form, a fingerprint, and the bridges to other opsets and tools.
"""

from __future__ import annotations

from graphopt.ir.binding import bind_shapes
from graphopt.ir.cloning import clone
from graphopt.ir.fingerprints import fingerprint
from graphopt.ir.interface import Interface, Port
from graphopt.ir.loading import load
from graphopt.ir.opsets import convert_opset
from graphopt.ir.saving import save
from graphopt.ir.shapes import refresh_shapes
from graphopt.ir.surgeon import from_graphsurgeon, to_graphsurgeon
from graphopt.ir.text import to_text
from graphopt.ir.verification import verify

__all__ = [
    "Interface",
    "Port",
    "bind_shapes",
    "clone",
    "convert_opset",
    "fingerprint",
    "from_graphsurgeon",
    "load",
    "refresh_shapes",
    "save",
    "to_graphsurgeon",
    "to_text",
    "verify",
]
