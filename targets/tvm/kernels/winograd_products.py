"""The products of a convolution by Winograd's F(4×4, 3×3): M[place, o, tile] = Σ_c U[place, o, c] · V[place, c, tile].

A panel of channels by some vectors of tiles is computed in registers. Tiles that fill no vector are computed with a
vector of channels instead, so that no lane computes what no one reads. The larger factor is traversed once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812

from graphopt.targets.tvm.kernels.epilogue import index
from graphopt.targets.tvm.kernels.matmul import even_panel
from graphopt.targets.tvm.kernels.rows import for_each, for_tiles, local_buffer, vector
from graphopt.targets.tvm.kernels.winograd import LANES, WINDOW, Tiles

_TOGETHER = 32  # channels that less than a vector of tiles is computed for at once: their sums hide their latency


@dataclass(frozen=True)
class Products:
    """Emits the products of a block of tiles."""

    weights: Any  # U, flat: [place, panel, c, o in the panel]
    entering: Any  # V, flat: [place, c, tile]
    products: Any  # M, flat: [place, o, tile]
    channels: int
    panels: int
    panel: int
    vectors: int  # of tiles in registers, at most
    pitch: int  # tiles of a block in V and M
    front: int  # elements in front of V and M

    def write(self, rows: Tiles, columns: Tiles, block: int, loop: Any) -> None:
        """M of `block` rows of tiles."""
        for some_rows in rows.alike:
            for some_columns in columns.alike:
                tiles = (block - rows.spared(some_rows[0])) * (columns.count - columns.spared(some_columns[0]))
                if tiles:
                    self._write(_Places(some_rows, some_columns), tiles, loop)

    def _write(self, places: _Places, tiles: int, loop: Any) -> None:
        rest = tiles % LANES if self.panel % LANES == 0 else 0
        whole = tiles - rest if rest else -(-tiles // LANES) * LANES
        most = max(_TOGETHER // self.panel, 1) if rest else 1
        together = max(n for n in range(1, most + 1) if self.panels % n == 0)
        width = even_panel(whole, self.vectors * LANES, LANES) if whole else 0
        if self.panels * self.panel >= tiles:
            with loop(index(places.count * (self.panels // together))) as task:
                place, first = places[task // (self.panels // together)], task % (self.panels // together) * together

                def all_tiles(number: Any) -> None:
                    for_tiles(whole, width, lambda n, size: self._product(place, first + number, n, size))

                if whole:
                    for_each(together, all_tiles)
                if rest:
                    self._across(place, first, together, whole, rest)
            return
        count = -(-whole // width)
        full, last = divmod(whole, width)
        with loop(index(places.count * count)) as task:
            place, number = places[task // count], task % count

            def all_panels(n: Any, size: int) -> None:
                for_each(self.panels, lambda panel: self._product(place, panel, n, size))

            if not last:
                all_panels(number * width, width)
            else:
                with T.If(number < full):
                    with T.Then():
                        all_panels(number * width, width)
                    with T.Else():
                        all_panels(index(full * width), last)
        if rest:
            with loop(index(places.count)) as task:
                for_each(
                    self.panels // together,
                    lambda number: self._across(places[task], number * together, together, whole, rest),
                )

    def _product(self, place: Any, panel: Any, n: Any, size: int) -> None:
        """A panel of channels by `size` tiles from the n-th on, whole vectors of them."""
        height, vectors = self.panel, size // LANES
        sums = local_buffer("sums", height * size)
        left = local_buffer("left", -(-height // LANES) * LANES)
        _clear(sums, height * vectors)
        u, v, to = self._places(place, panel, n)
        with T.serial(index(self.channels)) as k:
            for i in range(0, height, LANES):

                def load(lane: Any, i: int = i) -> None:
                    T.buffer_store(left, self.weights[u + k * height + i + lane], [i + lane])

                vector(min(LANES, height - i), load)
            for j in range(vectors):

                def accumulate(lane: Any, j: int = j) -> None:
                    right = T.Bind(self.entering[v + k * self.pitch + j * LANES + lane])
                    for i in range(height):
                        at = (i * vectors + j) * LANES + lane
                        T.buffer_store(sums, sums[at] + left[i] * right, [at])

                vector(LANES, accumulate)
        for i in range(height):
            for j in range(vectors):

                def store(lane: Any, i: int = i, j: int = j) -> None:
                    value = sums[(i * vectors + j) * LANES + lane]
                    T.buffer_store(self.products, value, [to + i * self.pitch + j * LANES + lane])

                vector(LANES, store)

    def _across(self, place: Any, panel: Any, together: int, n: int, size: int) -> None:
        """`together` panels of channels by `size` tiles from the n-th on, less than a vector of them."""
        height = self.panel
        parts = height // LANES
        sums = local_buffer("sums", together * parts * size * LANES)
        right = local_buffer("right", LANES)
        _clear(sums, together * parts * size)
        u, v, to = self._places(place, panel, index(n))
        with T.serial(index(self.channels)) as k:

            def load(lane: Any) -> None:
                T.buffer_store(right, self.entering[v + k * self.pitch + lane], [lane])

            vector(LANES, load)
            for number in range(together):
                for part in range(parts):

                    def accumulate(lane: Any, number: int = number, part: int = part) -> None:
                        at = u + (number * self.channels + k) * height + part * LANES + lane
                        left = T.Bind(self.weights[at])
                        for j in range(size):
                            sum_at = ((number * parts + part) * size + j) * LANES + lane
                            T.buffer_store(sums, sums[sum_at] + left * right[j], [sum_at])

                    vector(LANES, accumulate)
        for o in range(together * height):
            for j in range(size):
                value = sums[(o // LANES * size + j) * LANES + o % LANES]
                T.buffer_store(self.products, value, [to + o * self.pitch + j])

    def _places(self, place: Any, panel: Any, n: Any) -> tuple[Any, Any, Any]:
        """Where a panel's U, and a tile's V and M, begin."""
        u = T.Bind((place * self.panels + panel) * (self.channels * self.panel))
        v = T.Bind(place * (self.channels * self.pitch) + n + self.front)
        return u, v, T.Bind((place * self.panels + panel) * (self.panel * self.pitch) + n + self.front)


@dataclass(frozen=True)
class _Places:
    """The places in some rows and some columns of the 6×6."""

    rows: range
    columns: range

    @property
    def count(self) -> int:
        return len(self.rows) * len(self.columns)

    def __getitem__(self, number: Any) -> Any:
        row, column = number // len(self.columns), number % len(self.columns)
        return (self.rows.start + self.rows.step * row) * WINDOW + self.columns.start + self.columns.step * column


def _clear(sums: Any, vectors: int) -> None:
    for i in range(vectors):
        T.buffer_store(sums, tirx.Broadcast(T.float32(0), LANES), [tirx.Ramp(index(i * LANES), index(1), LANES)])
