"""Reconstruction: refit what is left to give what the whole model gave, without training.

From front to back, each layer with a constant weight is fitted to the output that it had in the original model, from
the input that it has now, behind layers that are fitted already:

    min over W, b of E‖y − W x − b‖² + λ‖W − W₀‖²

(Y. He and others, Channel pruning for accelerating very deep neural networks, 2017, section 3.1, with the original's
activations as the goal; `least_squares` chooses λ). Where the layer's output is added to another value, as at the end
of a residual block, y also takes up what that value has lost. The sums are streamed. A layer that predicts samples
which it was not fitted to no better stays as it is. Batch normalizations get new statistics (`batch_norms`).

A layer whose matrix must be of some kind, as of low rank, is fitted freely and then brought to that kind, given G, or
stays as it is, which is of that kind. So is W of an LSTM, GRU or RNN, to y = W x of the original: what the loop over
time is given is no value of the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.channels import Channels
from graphopt.analysis.sample_parts import spread
from graphopt.analysis.samples import Samples
from graphopt.analysis.stages import Stages, bytes_kept
from graphopt.ir.reading import constant, is_standard
from graphopt.passes.cleanup.constants import set_constant
from graphopt.passes.prune.batch_norms import estimate_statistics, has_statistics
from graphopt.passes.prune.least_squares import FOLDS, Constraint, LeastSquares
from graphopt.passes.prune.readers import MOST_FEATURES
from graphopt.passes.quantize.patches import RECURRENT, columns, from_matrix, places_of, to_matrix, why_not
from graphopt.pipeline.base import Declined, Progress

Array = np.ndarray[Any, Any]

STATE_BYTES = 512 << 20  # of what both models keep between two layers, for all samples


@dataclass(frozen=True)
class Settings:
    """patches: places of a layer's output for each sample. damping: the least λ, of the mean of G's diagonal."""

    patches: int
    damping: float
    seed: int


def affordable(original: ir.Model, pruned: ir.Model, samples: Samples) -> Samples:
    """As many of the samples as both models can keep the state of."""
    largest = max(bytes_kept(original) + bytes_kept(pruned), 1)
    return samples.at(spread(len(samples), max(1, STATE_BYTES // largest)))


def reconstruct(
    original: ir.Model,
    pruned: ir.Model,
    found: Channels | None,
    kept: Array | None,
    samples: Samples,
    settings: Settings,
    progress: Progress,
    constraints: Mapping[ir.Node, Constraint] | None = None,
    fixed: Mapping[ir.Node, str] = MappingProxyType({}),
) -> tuple[int, tuple[Declined, ...]]:
    """Refit the layers of `pruned`, in place; how many, and which were left as they are.

    Args:
        original: the graph that `found` was made of.
        pruned: the same without the units that go: its nodes stand in the same order, with the same names of values.
        kept: bool [found.count], the units that are left; None, as `found`, where all are.
        constraints: what matrices nodes of `pruned` may have that are refitted from W of `original`.
        fixed: nodes of `pruned` that keep their weight, and why.
    """
    constraints = constraints or {}
    few = affordable(original, pruned, samples)
    before, after = (Stages(model, tuple(few)) for model in (original, pruned))
    rng = np.random.default_rng(settings.seed)
    changed: set[ir.Value] = set()
    done, declined = 0, []
    nodes = list(zip(original.graph, pruned.graph, strict=True))
    for number, (old, new) in enumerate(nodes):
        progress(number, len(nodes), f"refit {new.name}")
        touched = any(value in changed for value in new.inputs) or _cut(old, new) or new in constraints
        if not touched:
            continue
        changed.update(new.outputs)
        if has_statistics(new) and new.inputs[0] in changed:
            _estimate(old, new, before, after, found, kept)
        weight = constant(new.inputs[1]) if len(new.inputs) > 1 else None
        fits = is_standard(new, "Conv", "Gemm", "MatMul") or (new in constraints and is_standard(new, *RECURRENT))
        if not fits or weight is None:
            continue
        if new.inputs[0] not in changed and new not in constraints:
            continue
        reason = "" if new.op_type in RECURRENT else why_not(new, 1, weight)
        if not reason and to_matrix(new, weight).shape[-1] > MOST_FEATURES:
            reason = f"it sums over more than {MOST_FEATURES} numbers"
        reason = fixed.get(new, reason)
        if reason:
            declined.append(Declined(new.name or new.op_type, f"it is not refitted: {reason}"))
            continue
        before.advance(old)
        after.advance(new)
        if _refit(old, new, (before, after), len(few), found, kept, settings, rng, constraints.get(new)):
            done += 1
        else:
            reason = "its error does not fall on samples apart"
            declined.append(Declined(new.name or new.op_type, f"it is not refitted: {reason}"))
    return done, tuple(declined)


def _estimate(
    old: ir.Node, new: ir.Node, before: Stages, after: Stages, found: Channels | None, kept: Array | None
) -> None:
    """Statistics of a batch normalization."""
    first, second = old.inputs[0], new.inputs[0]
    if first is None or second is None:
        return
    before.advance(old)
    after.advance(new)
    names = str(first.name), str(second.name)
    runs = zip(before.values(names[:1]), after.values(names[1:]), strict=True)
    estimate_statistics(new, ((_remaining(one[names[0]], first, found, kept), two[names[1]]) for one, two in runs))


def _cut(old: ir.Node, new: ir.Node) -> bool:
    """Whether a constant of the node has lost positions."""
    shapes = [
        [value.shape for value in node.inputs if value is not None and value.is_initializer()] for node in (old, new)
    ]
    return shapes[0] != shapes[1]


def _refit(
    old: ir.Node,
    new: ir.Node,
    stages: tuple[Stages, Stages],
    count: int,
    found: Channels | None,
    kept: Array | None,
    settings: Settings,
    rng: np.random.Generator,
    constraint: Constraint | None,
) -> bool:
    """Whether it gains."""
    weight, start = (constant(node.inputs[1]) for node in (new, new if constraint is None else old))
    given, result = new.inputs[0], old.outputs[0]
    if weight is None or start is None or given is None:
        return False
    matrix, standing = (to_matrix(new, each).astype(np.float64) for each in (start, weight))
    recurrent = new.op_type in RECURRENT
    source = old.inputs[0] if recurrent and old.inputs[0] is not None else result
    other = None if recurrent else _addend(old, new)
    wanted_names = [str(source.name), *([str(other[0].name)] if other else [])]
    found_names = [str(given.name), *([str(other[1].name)] if other else [])]
    squares = LeastSquares(matrix, _bias_of(new, matrix), settings.damping, standing)
    runs = zip(stages[0].values(wanted_names), stages[1].values(found_names), strict=True)
    for number, (wanted, have) in enumerate(runs):
        entering = have[str(given.name)]
        goal = _remaining(wanted[str(source.name)], source, found, kept)
        if recurrent:
            goal = goal @ matrix[0].T
        if other:
            shortcut = _remaining(wanted[str(other[0].name)], other[0], found, kept)
            goal = goal + shortcut - have[str(other[1].name)]
        total = places_of(new, weight, entering)
        places = np.arange(total) if total <= settings.patches else rng.choice(total, settings.patches, replace=False)
        rows = _rows(new, goal)[places].reshape(len(places), matrix.shape[0], -1).swapaxes(0, 1)
        squares.add(number * FOLDS // count, columns(new, weight, entering, places), rows)
    solution = squares.solve(constraint)
    if solution.gain <= 0:
        return False
    set_constant(new, 1, from_matrix(new, solution.weight, weight.shape).astype(np.float32))
    if solution.bias is not None:
        old_bias = constant(new.inputs[2]) if len(new.inputs) > 2 else None
        bias = solution.bias.reshape(-1 if old_bias is None else old_bias.shape).astype(np.float32)
        set_constant(new, 2, bias, base=f"{new.outputs[0].name}/bias")
    return True


def _bias_of(node: ir.Node, matrix: Array) -> Array | None:
    """[groups, outputs], 0 where a Conv has none; None where it cannot be set."""
    groups, outputs, _ = matrix.shape
    present = len(node.inputs) > 2 and node.inputs[2] is not None
    if node.op_type == "Conv" and not present:
        return np.zeros((groups, outputs))
    if node.op_type not in ("Conv", "Gemm") or not present:
        return None
    bias = constant(node.inputs[2])
    return (
        bias.reshape(groups, outputs).astype(np.float64) if bias is not None and bias.size == groups * outputs else None
    )


def _addend(old: ir.Node, new: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """The other operand of the Add that alone reads the node's output, before and after; None if there is no such."""
    users = old.outputs[0].consumers()
    if len(users) != 1 or not is_standard(users[0], "Add") or old.outputs[0].is_graph_output():
        return None
    index = 1 - next(i for i, value in enumerate(users[0].inputs) if value is old.outputs[0])
    one, two = users[0].inputs[index], new.outputs[0].consumers()[0].inputs[index]
    same = one is not None and one.shape is not None and one.shape == old.outputs[0].shape
    if one is None or two is None or not same or constant(one) is not None:
        return None
    return one, two


def _remaining(array: Array, value: ir.Value, found: Channels | None, kept: Array | None) -> Array:
    """The positions that are left of every axis."""
    if found is None or kept is None:
        return array
    for axis, units in found.axes.get(value, {}).items():
        array = np.compress(kept[units], array, axis=axis)
    return array


def _rows(node: ir.Node, output: Array) -> Array:
    """[places, outputs], in the order of `columns`."""
    if node.op_type == "Conv":
        return np.moveaxis(output, 1, -1).reshape(-1, output.shape[1])
    return output.reshape(-1, output.shape[-1])
