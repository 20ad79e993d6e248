"""Long sums in float16, in blocks: each starts from zero, and their results are added up.

Every addition rounds to 2^-11 of the sum so far. Over k random terms that comes to about √(k / 2) · 2^-11 of the
result, and in blocks of b terms to √(b / 2 + k / 2b) · 2^-11 (N. Higham, Accuracy and Stability of Numerical
Algorithms, 2002, section 4.2): of 1,280 terms less than half. Between blocks the sums leave the registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.tvm.kernels.epilogue import index
from graphopt.targets.tvm.kernels.rows import for_each, local_buffer

MOST_TERMS = 256  # of a block


def sum_in_blocks(
    sums: Any, dtype: str, steps: int, terms: int, vectors: Sequence[tuple[int, int]], step: Callable[[Any], None]
) -> None:
    """Emit `step(k)` for all of `steps`, which adds `terms` products to each of `sums`, which hold their start.

    vectors: (start, width) of the sums.
    """
    block = max(1, MOST_TERMS // terms)
    if dtype != "float16" or steps < 2 * block:
        with T.serial(index(steps)) as k:
            step(k)
        return
    blocks = -(-steps // block)
    block = -(-steps // blocks)  # of one size, about
    blocks, rest = divmod(steps, block)
    size = sum(width for _, width in vectors)
    total = local_buffer("total", size, dtype)

    def each(to: Any, value: Callable[[Any, Any], Any]) -> None:
        for start, width in vectors:
            zero = tirx.const(0, dtype)
            at = index(start) if width == 1 else tirx.Ramp(index(start), index(1), width)
            T.buffer_store(to, value(at, zero if width == 1 else tirx.Broadcast(zero, width)), [at])

    def one(number: Any, count: int) -> None:
        each(sums, lambda _, zero: zero)
        with T.serial(index(count)) as k:
            step(number * block + k)
        each(total, lambda at, _: total[at] + sums[at])

    each(total, lambda at, _: sums[at])
    for_each(blocks, lambda number: one(number, block))
    if rest:
        one(index(blocks), rest)
    each(sums, lambda at, _: total[at])
