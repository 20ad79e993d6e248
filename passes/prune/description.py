"""What `inspect --groups` shows: the coupled groups of channels of a model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.analysis.channels import Role, Slot, channels
from graphopt.passes.prune.budget import Budget
from graphopt.passes.prune.importance import Importance, rank


@dataclass(frozen=True)
class GroupDescription:
    """A coupled group.

    name: the first layer that makes its channels.
    width: how many units can go one by one.
    makers, readers: the layers that make the channels, and those that sum over them.
    macs: of the layers that grow with the width.
    least, most: by the L2 norm of the weights that make it, the share of the least and of the most important unit,
        relative to the mean.
    protection: why no unit may go; empty if any may.
    """

    name: str
    width: int
    makers: tuple[str, ...]
    readers: tuple[str, ...]
    macs: int
    least: float
    most: float
    protection: tuple[str, ...]


def describe_groups(model: ir.Model, *, hidden_width: bool = False) -> tuple[GroupDescription, ...]:
    """The groups of the main graph, in its order. Shapes are read as they are in the model."""
    found = channels(model.graph, hidden_width=hidden_width)
    budget = Budget(model, found)
    everything = np.ones(found.count, bool)
    rng = np.random.default_rng(0)  # for no importance that is used here
    described = []
    for group in found.groups:
        scores = rank(group, found, {}, Importance.L2, rng).scores
        shares = np.diff(scores, prepend=0.0) * group.width
        described.append(
            GroupDescription(
                name=group.name,
                width=group.width,
                makers=_names(group.weights(Role.OUT)),
                readers=_names(group.weights(Role.IN)),
                macs=round(budget.saved(everything, group.units)),
                least=float(shares.min(initial=1.0)),
                most=float(shares.max(initial=1.0)),
                protection=group.protection,
            )
        )
    return tuple(described)


def _names(slots: tuple[Slot, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(slot.node.name or slot.node.op_type for slot in slots))
