"""Classes that the samples do not show.

A classifier's last layer that is refitted to samples of a few of its classes learns that there are no others: what it
gives those is the same low score in all samples. Samples apart, of the same classes, cannot tell.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from graphopt.analysis.accuracy import log_probabilities, scores_output
from graphopt.analysis.channels import Channels, Role
from graphopt.analysis.samples import Samples
from graphopt.passes.prune.sensitivity import outputs_of

_SHOWN = 0.5  # of the classes


def unseen_by(model: ir.Model, found: Channels, samples: Samples) -> Mapping[int, str]:
    """The layers that make the class scores, as places in the graph, and what is wrong with refitting them; none where
    the model gives half of its classes to samples, or has no class scores.
    """
    name = scores_output(outputs_of(model, samples.first(1))[0])
    value = next((each for each in model.graph.outputs if each.name == name), None)
    if value is None or value.shape is None:
        return {}
    known = log_probabilities(model, samples)
    classes, shown = known.shape[1], len(np.unique(known.argmax(axis=1)))
    units = found.units_of(value, len(value.shape) - 1)
    if units is None or shown >= _SHOWN * classes:
        return {}
    slots = (slot for group in found.groups if np.isin(group.units, units).any() for slot in group.weights(Role.OUT))
    nodes = {slot.node for slot in slots}
    reason = f"samples are of {shown} of the {classes} classes that it tells apart"
    return {place: reason for place, node in enumerate(model.graph) if node in nodes}
