"""Structured pruning: whole channels leave a graph.

`analysis.channels` says which must go together, `surgery` takes them out, and `prune_channels` is the pass.
"""

from __future__ import annotations

PASSES: tuple[str, ...] = ("graphopt.passes.prune.prune_channels:PruneChannels",)
