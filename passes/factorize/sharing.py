"""Layers whose weight several nodes read: one covariance, and the same factors for all.

What all nodes lose together is Σ n E‖(W − W') x‖² over nodes with n places each, so their covariances add up, weighted
by places. An embedding of m rows, each as likely, reads I / m, whichever way the others read it. With Wᵀ among the
products too, covariances would stand on both sides of W, and its rank is chosen by the weight alone. Each node takes up
the mean of what it loses by its own bias. A refit would make the weights differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.passes.cleanup.constants import remove_unused_constant
from graphopt.passes.factorize.form import Form
from graphopt.passes.factorize.layers import Layer, is_turned
from graphopt.passes.prune.least_squares import shrunk
from graphopt.passes.prune.readers import Reader

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Spread:
    """What the uses of a layer read.

    covariance: G, [features, features], about the mean of those that a bias serves, shrunk; None if it was not taken.
    common: [parts, features], the means that are in G, weighted as it is; None if there are none.
    means: of each use, where a bias takes it up.
    """

    covariance: Array | None
    common: Array | None
    means: tuple[Array | None, ...]


def spread_of(layer: Layer, observed: Mapping[ir.Node, Reader]) -> Spread:
    """Of a layer whose uses were observed, or were not."""
    uses = layer.uses
    products = [use for use in uses if not use.lookup]
    if not products or any(use.node not in observed for use in products):
        return Spread(None, None, (None,) * len(uses))
    means = tuple(observed[use.node].mean[0] if use.biased else None for use in uses)
    if layer.both_ways:
        return Spread(None, None, means)
    places, features = sum(use.places for use in uses), layer.matrix.shape[1]
    covariance, common = np.zeros((features, features)), []
    for use, mean in zip(uses, means, strict=True):
        weight = use.places / places
        if use.lookup:
            covariance += weight * np.eye(features) / use.matrix.shape[1]
            continue
        reader = observed[use.node]
        centre = np.outer(reader.mean[0], reader.mean[0])
        covariance += weight * shrunk(reader.gram[0] - centre, reader.count)
        if mean is None:
            covariance += weight * centre
            common.append(np.sqrt(weight) * reader.mean[0])
    return Spread(covariance, np.stack(common) if common else None, means)


def split_all(graph: ir.Graph, nodes: Sequence[ir.Node], form: Form, rank: int) -> None:
    """Rewrite nodes with one weight of the rank; the factors are stored once."""
    first: list[ir.Node] = []
    turned = is_turned(nodes[0])
    for node in nodes:
        known, is_alike = set(graph), is_turned(node) == turned
        form.split(graph, node, rank)
        made = [each for each in graph if each not in known or each is node]
        if not first:
            first = made
            continue
        factors = [_factor(one)[1] for one in first]
        for other, factor in zip(made, factors if is_alike else reversed(factors), strict=True):
            index, mine = _factor(other)
            other.replace_input_with(index, factor)
            remove_unused_constant(mine)


def _factor(node: ir.Node) -> tuple[int, ir.Value]:
    """The constant that a node multiplies by or looks up in, and which of its inputs that is."""
    for index, value in enumerate(node.inputs[:2]):
        if value is not None and value.is_initializer():
            return index, value
    raise ValueError(f"{node.op_type} '{node.name}' is no factor")
