"""Which 3×3 convolutions in float32 are computed by Winograd's F(4×4, 3×3), and how their weights are transformed.

A tile of 4×4 results is computed from 6×6 pixels with 36 products instead of 144 (A. Lavin and S. Gray, Fast algorithms
for convolutional neural networks, 2016, section 4.1):

    Y = Aᵀ [ Σ_c (G w_c Gᵀ) ⊙ (Bᵀ x_c B) ] A

For each of the 36 places that is a product of matrices over the channels c: U[o, c] · V[c, tile]. `winograd_loops`
writes it. The transformed weights U = G w Gᵀ are four times as large as w. So the library stores w, and makes U with
its first context (`runtime/winograd.h`), in memory that contexts share: [place, panel of o, c, o in the panel].

Of a tile's rows of results the first alone is made of row 0 of the places, and the last alone of row 5 (Aᵀ); so are its
columns. Tiles that reach beyond the image do without those (`Tiles`): for 4×3 results 30 products suffice, for 3×3 25.

The marked block is the plain convolution of w: should the schedule not take it, the default one does, and is right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import relax, te, tirx

from graphopt.targets.tvm.kernels.matmul import FUSABLE, current_tile, even_panel
from graphopt.targets.tvm.kernels.nchw import Conv2d, read_conv2d

GEOMETRY = "graphopt.winograd"  # mark on the block: rows and columns of padding before the image, panel, vectors
WEIGHTS = "graphopt.winograd_weights"  # mark on the scheduled function: [parameter, filters, channels, panel]

TILE = 4  # rows and columns of the result in a tile
WINDOW = TILE + 2  # of the image
PLACES = WINDOW * WINDOW
LANES = 4  # tiles that are transformed side by side

_TAPS = ((3, "u"), (3, "v"))

# In vector instructions, counted in the code for AArch64; two start in a cycle.
_INPUT_COST, _OUTPUT_COST, _COPY_COST = 260, 230, 0.6  # for a channel of four tiles; for an element of the image
_OVERHEAD = 1.15  # instructions of a product for each of its multiplies
_BYTES = 8  # that memory delivers meanwhile: 4 in a cycle
_LEAST_GAIN = 0.9  # of the time of the direct convolution


@dataclass(frozen=True)
class Tiles:
    """The tiles along an axis of `extent` results: tile t computes those from 4 t - shift on.

    Of two or three results too many one is in front of the first, if `trimmed`, so that the first tile does without
    place 0 and the last one without place 5.
    """

    extent: int
    trimmed: bool = True

    @property
    def count(self) -> int:
        return -(-self.extent // TILE)

    @property
    def shift(self) -> int:
        """Results in front of the first."""
        return int(self.trimmed and self.count * TILE - self.extent >= 2)

    @property
    def beyond(self) -> int:
        """Results behind the last."""
        return self.count * TILE - self.shift - self.extent

    def first(self, place: int) -> int:
        """The first tile that the place is computed for."""
        return self.shift if place == 0 else 0

    def spared(self, place: int) -> int:
        """Tiles that the place is not computed for."""
        return self.first(place) + int(self.trimmed and place == WINDOW - 1 and self.beyond > 0)

    @property
    def alike(self) -> list[range]:
        """The places, those together that are computed for equally many tiles."""
        if self.shift:
            return [range(1, WINDOW - 1), range(0, WINDOW, WINDOW - 1)]
        if self.trimmed and self.beyond:
            return [range(WINDOW - 1), range(WINDOW - 1, WINDOW)]
        return [range(WINDOW)]


@dataclass(frozen=True)
class Winograd(Conv2d):
    """What the kernel makes of a convolution."""

    @property
    def tiles(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        rows, columns = (Tiles(extent).count for extent in self.result)
        return rows, columns

    @property
    def groups_of_tiles(self) -> int:
        """Vectors of tiles in a row of them."""
        return -(-self.tiles[1] // LANES)

    @property
    def panel(self) -> int:
        """Channels of the result in a panel of U."""
        return even_panel(self.filters, current_tile().rows, 1)

    @property
    def panels(self) -> int:
        return -(-self.filters // self.panel)

    @property
    def transformed_size(self) -> int:
        """Elements of U."""
        return PLACES * self.panels * self.panel * self.channels

    @property
    def macs(self) -> int:
        tiles = math.prod(
            sum(axis.count - axis.spared(place) for place in range(WINDOW)) for axis in map(Tiles, self.result)
        )
        return self.batch * tiles * self.panels * self.panel * self.channels


def transformed(weights: np.ndarray, panel: int) -> np.ndarray:
    """U of w [o, c, 3, 3], packed, float32: what `runtime/winograd.h` makes."""
    filters, channels = weights.shape[:2]
    g = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
    made = np.einsum("pu,ocuv,qv->pqoc", g, weights.astype(np.float64), g).reshape(PLACES, filters, channels)
    padded = np.pad(made, ((0, 0), (0, -filters % panel), (0, 0)))
    packed = padded.reshape(PLACES, -1, panel, channels).transpose(0, 1, 3, 2)
    return np.ascontiguousarray(packed, np.float32)


def legalize(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr | None:
    """relax.nn.conv2d as the kernel's block; None where the kernel does not apply or does not pay."""
    data, weights = call.args
    found = _recognize(call)
    if found is None or not pays(found):
        return None

    def convolution(image: te.Tensor, kernel: te.Tensor) -> te.Tensor:
        c, u, v = (te.reduce_axis((0, extent), name=name) for extent, name in ((found.channels, "c"), *_TAPS))

        def element(b: Any, o: Any, i: Any, j: Any) -> Any:
            y, x = i + u - found.pads[0], j + v - found.pads[1]
            inside = tirx.all(y >= 0, y < found.image[0], x >= 0, x < found.image[1])
            pixel = tirx.if_then_else(inside, image[b, c, y, x], tirx.const(0.0, "float32"))
            return te.sum(pixel * kernel[o, c, u, v], axis=[c, u, v])

        marks = {GEOMETRY: [*found.pads, found.panel, current_tile().vectors]}
        return te.compute((found.batch, found.filters, *found.result), element, name="winograd", attrs=marks)

    attributes = {"op_pattern": FUSABLE}
    return builder.call_te(convolution, data, weights, primfunc_name_hint="winograd", primfunc_attrs=attributes)


def _recognize(call: relax.Call) -> Winograd | None:
    read = read_conv2d(call)
    if read is None or read.groups != 1 or read.kernel != (3, 3) or read.dtype != "float32":
        return None
    if read.strides != (1, 1) or read.dilations != (1, 1):
        return None
    return Winograd(**{name: getattr(read, name) for name in Conv2d.__dataclass_fields__})


def pays(of: Winograd) -> bool:
    """Whether the transforms, and reading four times the weights, cost less than the multiplies that they save."""
    direct = math.prod((of.batch, of.filters, of.channels, *of.result)) * 9 / LANES * _OVERHEAD
    vectors = of.batch * of.tiles[0] * of.groups_of_tiles
    transforms = vectors * (_INPUT_COST * of.channels + _OUTPUT_COST * of.filters)
    copies = of.batch * of.channels * math.prod(of.image) * _COPY_COST
    weights = (of.transformed_size - 9 * of.filters * of.channels) * 4 / _BYTES
    return of.macs / LANES * _OVERHEAD + transforms + copies + weights < direct * _LEAST_GAIN
