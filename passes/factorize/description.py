"""What `inspect --ranks` shows: how fast the singular values of each layer fall, and what a low rank would save."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.passes.factorize.costs import Saving
from graphopt.passes.factorize.form import now_costs, would_cost
from graphopt.passes.factorize.kernel_time import Kernels
from graphopt.passes.factorize.layers import layers
from graphopt.passes.factorize.low_rank import directions
from graphopt.passes.factorize.matrix_forms import Svd

ENERGIES = (0.9, 0.95, 0.99)  # of the weight
POINTS = 33  # of a profile


@dataclass(frozen=True)
class RankSaving:
    """The least rank that keeps the fraction `energy` of the weight's energy.

    macs, params: fractions of the layer's that its two factors save; negative where they are more. macs is None of an
    embedding, which has none.
    """

    energy: float
    rank: int
    macs: float | None
    params: float


@dataclass(frozen=True)
class LayerRanks:
    """A layer with a constant matrix.

    profile: the energy of the weight outside of the leading directions, 0 to 1, at POINTS ranks from 0 to the full one.
    break_even: the largest rank of which two factors take the target less time than the layer, estimated; 0 if none.
    """

    layer: str
    op: str
    outputs: int
    features: int
    full_rank: int
    break_even: int
    profile: tuple[float, ...]
    savings: tuple[RankSaving, ...]


def describe_ranks(model: ir.Model, kernels: Kernels) -> tuple[LayerRanks, ...]:
    """The layers of the main graph that could be factored, in its order, by their weights alone."""
    found, _ = layers(model.graph, ())
    described = []
    for layer in found:
        form = Svd(layer, directions(layer.matrix, None))
        outputs, features = layer.matrix.shape
        outside = [min(form.lost(rank), 1.0) for rank in range(layer.full_rank + 1)]
        now = now_costs(layer, kernels, Saving.TIME)
        paying = [rank for rank in range(1, layer.full_rank) if would_cost(form, rank, kernels, Saving.TIME) < now]
        points = np.rint(np.linspace(0, layer.full_rank, POINTS)).astype(int)
        described.append(
            LayerRanks(
                layer=layer.name,
                op=layer.node.op_type,
                outputs=outputs,
                features=features,
                full_rank=layer.full_rank,
                break_even=max(paying, default=0),
                profile=tuple(outside[point] for point in points),
                savings=tuple(_saving(energy, outside, form, kernels) for energy in ENERGIES),
            )
        )
    return tuple(described)


def _saving(energy: float, outside: Sequence[float], form: Svd, kernels: Kernels) -> RankSaving:
    rank = next((rank for rank, lost in enumerate(outside) if rank and lost <= 1 - energy), form.full_rank)
    params = 1 - would_cost(form, rank, kernels, Saving.BYTES) / now_costs(form.layer, kernels, Saving.BYTES)
    if form.layer.lookup:
        return RankSaving(energy, rank, None, params)
    macs = 1 - would_cost(form, rank, kernels, Saving.MACS) / form.layer.macs
    return RankSaving(energy, rank, macs, params)
