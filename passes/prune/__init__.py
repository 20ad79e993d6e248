"""Pruning: whole channels leave a graph, or single weights become zero.

`analysis.channels` says which must go together, `surgery` takes them out, and `prune_channels` is the pass.
`prune_weights` needs none of it.
"""

from __future__ import annotations

PASSES: tuple[str, ...] = (
    "graphopt.passes.prune.prune_channels:PruneChannels",
    "graphopt.passes.prune.prune_weights:PruneWeights",
)
