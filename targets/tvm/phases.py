"""A transposed convolution as a convolution that makes all phases of a stride at each position.

Along one axis, with stride s, padding p in front and kernel k, element o of the result is

    y[o] = Σ_t w[r + s t] · x[q − t],    q = (o + p) div s,  r = (o + p) mod s,  t = 0 … T − 1,  T = ⌈k / s⌉

For each q that is a convolution of T neighbours of x with s filters, one for each r, whose taps lie in reverse; taps
beyond the kernel are 0. Results of all r of a q side by side are the result, which begins at r = p mod s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir


@dataclass(frozen=True)
class Phases:
    """The convolution of a ConvTranspose, by axis of the image.

    taps: T. pads: what the convolution pads in front of and behind the image. kept: the size of the result, which
    begins at `begins` of what all phases make.
    """

    strides: tuple[int, ...]
    taps: tuple[int, ...]
    pads: tuple[tuple[int, ...], tuple[int, ...]]
    begins: tuple[int, ...]
    kept: tuple[int, ...]

    @property
    def ends(self) -> tuple[int, ...]:
        return tuple(begin + size for begin, size in zip(self.begins, self.kept, strict=True))


def phases_of(node: ir.Node, sizes: Sequence[int], kept: Sequence[int], kernel: Sequence[int]) -> Phases | str:
    """The convolution of `node`, from images of `sizes` to those of `kept`; or why there is none."""
    rank = len(sizes)
    strides = tuple(node.attributes.get_ints("strides", (1,) * rank))
    if any(step != 1 for step in node.attributes.get_ints("dilations", (1,) * rank)):
        return "it is dilated"
    fronts = _fronts(node, sizes, kept, kernel, strides)
    taps = tuple(-(-k // s) for k, s in zip(kernel, strides, strict=True))
    above = tuple(t - 1 - p // s for t, p, s in zip(taps, fronts, strides, strict=True))
    below = tuple((o - 1 + p) // s - n + 1 for o, p, s, n in zip(kept, fronts, strides, sizes, strict=True))
    if min(*above, *below, *fronts) < 0:
        return "its padding exceeds its kernel"
    begins = tuple(p % s for p, s in zip(fronts, strides, strict=True))
    return Phases(strides, taps, (above, below), begins, tuple(kept))


def filters_of(weights: np.ndarray, group: int, strides: Sequence[int]) -> np.ndarray:
    """Filters of all phases, [group, phase, channel] in order, each [inputs, taps, taps]: taps in reverse.

    Args:
        weights: [output channels of all groups, inputs of a group, rows, columns].
    """
    outputs, inputs, *kernel = weights.shape
    taps = [-(-k // s) for k, s in zip(kernel, strides, strict=True)]
    room = [(0, t * s - k) for t, s, k in zip(taps, strides, kernel, strict=True)]
    padded = np.pad(weights, ((0, 0), (0, 0), *room))
    parted = padded.reshape(group, outputs // group, inputs, taps[0], strides[0], taps[1], strides[1])
    ordered = parted[:, :, :, ::-1, :, ::-1].transpose(0, 4, 6, 1, 2, 3, 5)  # [g, s, s, channel, inputs, t, t]
    return np.ascontiguousarray(ordered).reshape(-1, inputs, *taps)


def of_phases(vector: np.ndarray, group: int, phases: int) -> np.ndarray:
    """What holds for each output channel, for the filters of `filters_of`."""
    each = vector.reshape(group, 1, -1)
    return np.broadcast_to(each, (group, phases, each.shape[2])).reshape(-1)


def _fronts(
    node: ir.Node, sizes: Sequence[int], kept: Sequence[int], kernel: Sequence[int], strides: Sequence[int]
) -> list[int]:
    """The padding in front of each axis; what is asked for otherwise is found from the result's shape."""
    rank = len(sizes)
    auto = node.attributes.get_string("auto_pad", "NOTSET")
    if auto in ("NOTSET", "VALID") and "output_shape" not in node.attributes:
        return list(node.attributes.get_ints("pads", (0,) * (2 * rank)))[:rank] if auto == "NOTSET" else [0] * rank
    more = node.attributes.get_ints("output_padding", (0,) * rank)
    totals = [s * (n - 1) + extra + k - o for s, n, extra, k, o in zip(strides, sizes, more, kernel, kept, strict=True)]
    return [total - total // 2 if auto != "SAME_UPPER" else total // 2 for total in totals]
