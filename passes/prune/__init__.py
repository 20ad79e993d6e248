"""Structured pruning: whole channels leave a graph.

`analysis.channels` says which must go together, `surgery` takes them out.
"""

from __future__ import annotations
