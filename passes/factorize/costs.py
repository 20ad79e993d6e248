"""What products cost, in what is to be saved."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from graphopt.passes.factorize.kernel_time import Kernels


class Saving(enum.Enum):
    """What the fraction that goes is a fraction of."""

    MACS = "macs"
    BYTES = "bytes"
    TIME = "time"


@dataclass(frozen=True)
class Product:
    """[outputs, features] times `places` columns in one run.

    line: places in one line of a picture, where a window covers several; else 0.
    winograd: whether it is a window that Winograd's algorithm serves.
    lookup: whether columns are one-hot, as of an embedding: nothing is multiplied.
    depthwise: channels, where outputs read one each; else 0.
    """

    outputs: int
    features: int
    places: int
    line: int = 0
    winograd: bool = False
    lookup: bool = False
    depthwise: int = 0


def cost_of(products: Iterable[Product], kernels: Kernels, saving: Saving) -> float:
    """Of all products together: MACs, bytes of weights, or estimated cycles."""
    if saving is Saving.MACS:
        return float(sum(each.outputs * each.features * each.places for each in products if not each.lookup))
    if saving is Saving.BYTES:
        return 4.0 * sum(each.outputs * each.features for each in products)
    return sum(_time(each, kernels) for each in products)


def _time(product: Product, kernels: Kernels) -> float:
    if product.lookup:
        return kernels.lookup(product.places, product.outputs)
    if product.depthwise:
        return kernels.depthwise(product.places, product.features, product.outputs, product.line, product.depthwise)
    return kernels.window(product.places, product.features, product.outputs, product.line, winograd=product.winograd)
