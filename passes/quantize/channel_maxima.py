"""The largest magnitude of each channel of activations, over calibration data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.analysis.calibration import Progress, each_run
from graphopt.analysis.samples import Samples
from graphopt.passes.quantize.lanes import Array


def channel_maxima(
    model: ir.Model, lanes: Mapping[ir.Value, Array], count: int, samples: Samples, progress: Progress
) -> Array:
    """max |x| by lane, [count], over all samples; 0 for lanes of no value.

    Args:
        lanes: of each value to look at; they broadcast to its shape.

    Raises DataError if there is no sample, and what running the model raises.
    """
    found = np.zeros(count)
    by_name = {str(value.name): array for value, array in lanes.items()}

    def receive(tensors: Mapping[str, Array]) -> None:
        for name, array in tensors.items():
            own = by_name[name]
            alike = tuple(axis for axis, size in enumerate(own.shape) if size == 1)
            largest = np.abs(array).max(axis=alike, keepdims=True, initial=0.0)
            np.maximum.at(found, own.reshape(-1), largest.reshape(-1))

    if by_name:
        each_run(model, _names(model, by_name), samples, receive, progress)
    return found


def _names(model: ir.Model, wanted: Mapping[str, Array]) -> Sequence[str]:
    """In the order of the graph."""
    made = [str(output.name) for node in model.graph for output in node.outputs]
    return [str(value.name) for value in model.graph.inputs if value.name in wanted] + [n for n in made if n in wanted]
