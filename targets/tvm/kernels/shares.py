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


def tiles(extent: int, most: int, together: int = 1) -> list[tuple[int, int, int]]:
    """Runs of tiles of one size that cover `extent` pixels: (first pixel, tiles, pixels of each).

    Sizes are multiples of `together`, but for the last tile, and differ by no more.

    Args:
        most: pixels of a tile; a multiple of `together`.
    """
    units = -(-extent // together)
    count = -(-units // (most // together))
    small, more = divmod(units, count)
    runs = [(0, more, (small + 1) * together), (more * (small + 1) * together, count - more, small * together)]
    first, number, size = next(run for run in reversed(runs) if run[1])
    lacking = units * together - extent  # in the last tile
    if lacking:
        runs = [*(run for run in runs if run[0] < first), (first, number - 1, size)]
        begin = first + (number - 1) * size
        runs.append((begin, 1, extent - begin))
    return [run for run in runs if run[1] and run[2]]


def busiest(costs: Sequence[int]) -> float:
    """The share of the busiest thread in tasks of these costs."""
    run = -(-len(costs) // THREADS)
    return max(sum(costs[first : first + run]) for first in range(0, len(costs), run)) / sum(costs)
