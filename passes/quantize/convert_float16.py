"""Store weights as float16: half the bytes, and arithmetic in float32 as before.

    w' = float32(float16(w))

Each large float32 constant becomes a float16 one with a Cast behind it. 11 bits of significand cost 2^-11 of a weight
at most, as long as its magnitude lies between 2^-14 and 65504: smaller ones lose bits, larger ones are left alone.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.ir.reading import constant
from graphopt.passes.cleanup.constants import remove_unused_constant
from graphopt.passes.cleanup.rewiring import add_initializer, fresh_name
from graphopt.passes.quantize.naming import fresh_node_name
from graphopt.passes.quantize.serving import check_served
from graphopt.pipeline.base import Declined, Pass, PassContext, PassResult, option

Array = np.ndarray[Any, Any]

SCHEME = "weights-float16"
LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class ConvertFloat16(Pass):
    """Store float32 weights as float16, cast back where they are used."""

    name: ClassVar[str] = "convert-float16"
    exact: ClassVar[bool] = False

    smallest: int = option(1024, "weights of fewer elements stay float32")
    exclude: tuple[str, ...] = option((), "names of weights that stay float32, with * and ?")

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Convert the main graph's initializers.

        Raises UsageError if the target does not serve the scheme.
        """
        check_served(context.target, SCHEME)
        declined: list[Declined] = []
        count = saved = 0
        signal = noise = 0.0
        for value in list(model.graph.initializers.values()):
            array = constant(value)
            if array is None or array.dtype != np.float32 or array.size < self.smallest:
                continue
            if (reason := self._obstacle(value, array)) is not None:
                declined.append(Declined(value.name or "", reason))
                continue
            half = array.astype(np.float16)
            count, saved = count + 1, saved + array.nbytes - half.nbytes
            signal += float(np.square(array, dtype=np.float64).sum())
            noise += float(np.square(array - half.astype(np.float32), dtype=np.float64).sum())
            _store(model.graph, value, half)
        statistics: dict[str, int | float | str] = {"converted-weights": count, "bytes-saved": saved}
        if signal and noise:
            statistics["weights-sqnr-db"] = round(10 * float(np.log10(signal / noise)), 1)
        return PassResult(count > 0, statistics, tuple(declined))

    def _obstacle(self, value: ir.Value, array: Array) -> str | None:
        pattern = next((each for each in self.exclude if fnmatch.fnmatchcase(value.name or "", each)), None)
        if pattern is not None:
            return f"it is excluded by '{pattern}'"
        if value.is_graph_output():
            return "it is an output of the model"
        if not np.isfinite(array).all():
            return "it holds NaN or infinity"
        largest = float(np.abs(array).max(initial=0))
        if largest > LARGEST:
            return f"it holds {largest:.4g}, and float16 ends at {LARGEST:.0f}"
        return None


def _store(graph: ir.Graph, value: ir.Value, half: Array) -> None:
    name = value.name or "weight"
    stored = add_initializer(graph, f"{name}/float16", half)
    float32 = ir.DataType.FLOAT
    cast = ir.node("Cast", [stored], attributes={"to": int(float32)}, name=fresh_node_name(graph, f"{name}/cast"))
    output = cast.outputs[0]
    output.name = fresh_name(graph, f"{name}/float32")
    output.type, output.shape = ir.TensorType(float32), ir.Shape(half.shape)
    graph.insert_before(graph[0], cast)
    value.replace_all_uses_with(output)
    remove_unused_constant(value)
