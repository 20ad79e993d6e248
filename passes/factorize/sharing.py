"""Layers whose weight several nodes read: one covariance, and the same factors for all.

What all nodes lose together is Σ n E‖(W − W') x‖² over nodes with n places each, so their covariances add up, weighted
by places. Each node takes up the mean of what it loses by its own bias. A refit would make the weights differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.passes.cleanup.constants import remove_unused_constant
from graphopt.passes.factorize.form import Form
from graphopt.passes.factorize.layers import Layer
from graphopt.passes.prune.readers import Reader

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Spread:
    """What the uses of a layer read.

    covariance: G, [features, features], about the mean of those that a bias serves; None if it was not taken.
    common: [parts, features], the means that are in G, weighted as it is; None if there are none.
    means: of each use, where a bias takes it up.
    """

    covariance: Array | None
    common: Array | None
    means: tuple[Array | None, ...]


def spread_of(layer: Layer, observed: Mapping[ir.Node, Reader]) -> Spread:
    """Of a layer whose uses were observed, or were not."""
    uses = layer.uses
    readers = [observed[use.node] for use in uses if use.node in observed]
    if len(readers) < len(uses):
        return Spread(None, None, (None,) * len(uses))
    places = sum(use.places for use in uses)
    covariance, common = np.zeros_like(readers[0].gram[0]), []
    means: list[Array | None] = []
    for use, reader in zip(uses, readers, strict=True):
        weight, gram, mean = use.places / places, reader.gram[0], reader.mean[0]
        covariance += weight * (gram - np.outer(mean, mean) if use.biased else gram)
        means.append(mean if use.biased else None)
        if not use.biased:
            common.append(np.sqrt(weight) * mean)
    return Spread(covariance, np.stack(common) if common else None, tuple(means))


def split_all(graph: ir.Graph, nodes: Sequence[ir.Node], form: Form, rank: int) -> None:
    """Rewrite nodes with one weight of the rank; the factors are stored once."""
    first: list[ir.Node] = []
    for node in nodes:
        known = set(graph)
        form.split(graph, node, rank)
        made = [each for each in graph if each not in known or each is node]
        if not first:
            first = made
            continue
        for one, other in zip(first, made, strict=True):
            _share(one, other)


def _share(one: ir.Node, other: ir.Node) -> None:
    """Let `other` read the factor that `one` reads."""
    for index, value in enumerate(one.inputs[:2]):
        mine = other.inputs[index]
        if value is None or mine is None or not (value.is_initializer() and mine.is_initializer()):
            continue
        other.replace_input_with(index, value)
        remove_unused_constant(mine)
