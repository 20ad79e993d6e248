"""How many cycles a loop over vectors takes on a core: a small analytic model, by which kernels choose their tiles.

A core that issues out of order is bound by whatever is scarcest: vector pipes, loads, decoded instructions, or the
latency of its sums where there are few of them. One that issues in order does nothing else during a load of 128 bits
that its path of 64 takes in two cycles; a load that the path takes at once goes beside an arithmetic instruction.

The model ranks tiles of one kernel, and leaves out what they have in common. Of caches it knows that a panel of
weights, which every tile traverses, comes from the L2 cache where the L1 cache cannot hold it (`from_l2`).
"""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.targets.base import Issue, TargetDescription

VECTOR = 16  # bytes
NEAR = 0.05  # of what all instructions would take: of two loops with one bound the shorter is better
KEPT = 0.75  # of the L1 cache: what a panel may take beside the pixels
L2_BYTES = 8  # that the L2 cache delivers in a cycle: taken, not measured


@dataclass(frozen=True)
class Loop:
    """Instructions of one iteration, and what they need.

    arithmetic: on vectors of 128 bits. wide: loads of 128 bits. narrow: of fewer. others: of the loop itself.
    rounds: how often each sum is added to. long: multiplications with longer results, which every other pipe executes.
    """

    arithmetic: float
    wide: float
    narrow: float
    others: float
    rounds: float
    long: float = 0.0

    def cycles(self, issue: Issue) -> float:
        """Of an iteration."""
        loads = max((self.wide + self.narrow) / issue.loads, self.wide * VECTOR / issue.load_bytes)
        arithmetic = max(self.arithmetic / issue.vectors, self.long / max(1, issue.vectors // 2))
        waiting = self.rounds * issue.latency
        if not issue.in_order:
            width = (self.arithmetic + self.wide + self.narrow + self.others) / issue.width
            return max(arithmetic, loads, width, waiting) + NEAR * width
        alone = self.wide * VECTOR / issue.load_bytes if issue.load_bytes < VECTOR else 0.0
        beside = max(arithmetic, loads - alone, (self.arithmetic + self.narrow + self.others) / issue.width)
        return max(beside + alone, waiting)


def from_l2(panel_bytes: float, target: TargetDescription) -> float:
    """Cycles to bring a panel of weights from the L2 cache, if the L1 cache does not hold it; else 0."""
    return panel_bytes / L2_BYTES if panel_bytes > KEPT * target.l1d_bytes > 0 else 0.0
