"""Factorization: a weight as a product of two smaller ones, where the target computes that sooner.

`low_rank` is the algebra, `layers` finds what can be factored, `kernel_time` estimates what it costs, `ranks` shares
out how far each layer goes, `splitting` rewrites the graph, and `factorize` is the pass.
"""

from __future__ import annotations

PASSES: tuple[str, ...] = ("graphopt.passes.factorize.factorize:Factorize",)
