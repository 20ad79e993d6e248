"""Work cut into tasks so that threads get equal shares.

A parallel loop gives each thread a run of consecutive tasks, all runs but the last of one length. Few tasks, or tasks
of different cost, leave some threads with more than others.
"""

from __future__ import annotations

from collections.abc import Sequence

THREADS = 4  # as many as the shares are made for; fewer do well then, too
MOST_PARTS = 32
GAIN = 0.01  # of the work: what a further cut must take from the busiest thread


def equal_parts(width: int, tile: int, costs: Sequence[int]) -> int:
    """Into how many equal parts to cut `width` pixels, each of which is computed by a task for each of `costs`.

    At most one tile in fifty is added by the cuts. The tasks of the first part come first.

    Args:
        tile: most pixels that are computed together.
        costs: of the tasks of a part, in any unit.
    """
    best, share = 1, busiest(costs)
    tiles = -(-width // tile)
    for parts in range(2, MOST_PARTS + 1):
        if width % parts == 0 and -(-(width // parts) // tile) * parts * 50 <= tiles * 51:
            found = busiest([*costs] * parts)
            if found < share - GAIN:
                best, share = parts, found
    return best


def busiest(costs: Sequence[int]) -> float:
    """The share of the busiest thread in tasks of these costs."""
    run = -(-len(costs) // THREADS)
    return max(sum(costs[first : first + run]) for first in range(0, len(costs), run)) / sum(costs)
