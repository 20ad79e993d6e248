"""What the gradients of a classifier's loss say about units, by torch.

The loss L is the cross entropy of the labels or, without labels, of the classes that the model itself finds. Where a
unit goes, the columns w of its readers become 0, so that to first order L changes by −Σ w ∂L/∂w.

taylor  Σ |w ∂L/∂w| over all that is coupled in the unit, of the gradient's mean over the samples (P. Molchanov and
        others, Importance estimation for neural network pruning, 2019, the absolute value for each weight).
fisher  Σ (Σ w ∂L/∂w)² over samples, the inner sum over all readers at once: the square of the gradient by a mask on the
        unit (L. Liu and others, Group Fisher pruning, 2021, equation 9).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.accuracy import LEAST_PROBABILITY, are_probabilities, scores_output
from graphopt.analysis.channels import Channels, Group, Role, Slot
from graphopt.analysis.execution import required_inputs
from graphopt.analysis.samples import Samples
from graphopt.errors import DataError, UsageError
from graphopt.ir.reading import constant
from graphopt.pipeline.base import Progress

Array = np.ndarray[Any, Any]


def require_torch() -> None:
    """Raises UsageError that names the extra if torch is not there."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "gradients need torch, which is not installed", advice="pip install 'graphopt[torch]'"
        ) from error


def taylor(
    model: ir.Model,
    groups: Sequence[Group],
    found: Channels,
    samples: Samples,
    labels: Array | None,
    progress: Progress,
) -> Array:
    """The score of each unit of `groups`, [found.count]."""
    slots = [slot for group in groups for slot in group.slots]
    values = _learnt(slots)
    total: dict[ir.Value, Array] = {value: np.zeros_like(array, np.float64) for value, array in values.items()}
    for gradients in _each_gradient(model, values, samples, labels, progress):
        for value, gradient in gradients.items():
            total[value] += gradient / len(samples)
    changes = {value: np.abs(values[value] * gradient) for value, gradient in total.items()}
    return _by_unit(slots, found, changes)


def fisher(
    model: ir.Model,
    groups: Sequence[Group],
    found: Channels,
    samples: Samples,
    labels: Array | None,
    progress: Progress,
) -> Array:
    """The score of each unit of `groups`, [found.count]."""
    slots = [slot for group in groups for slot in group.weights(Role.IN) or group.slots]
    values = _learnt(slots)
    scores = np.zeros(found.count)
    for gradients in _each_gradient(model, values, samples, labels, progress):
        changes = {value: values[value] * gradient for value, gradient in gradients.items()}
        scores += np.square(_by_unit(slots, found, changes))
    return scores


def _learnt(slots: Sequence[Slot]) -> dict[ir.Value, Array]:
    arrays = {slot.value: constant(slot.value) for slot in slots}
    return {
        value: array.astype(np.float64)
        for value, array in arrays.items()
        if array is not None and array.dtype == np.float32
    }


def _by_unit(slots: Sequence[Slot], found: Channels, changes: Mapping[ir.Value, Array]) -> Array:
    """The sum of `changes` over all positions of a unit, [found.count]; of a constant with two slots in each."""
    scores = np.zeros(found.count)
    for value, axis in dict.fromkeys((slot.value, slot.axis) for slot in slots):
        units = found.units_of(value, axis)
        if value in changes and units is not None:
            rows = np.moveaxis(changes[value], axis, 0).reshape(len(units), -1).sum(axis=1)
            scores += np.bincount(units, rows, found.count)
    return scores


def _each_gradient(
    model: ir.Model, values: Mapping[ir.Value, Array], samples: Samples, labels: Array | None, progress: Progress
) -> Iterator[dict[ir.Value, Array]]:
    """For each sample, the gradient of its loss by each of `values` that it depends on."""
    require_torch()
    import torch

    from graphopt.passes.prune.torch_graph import TorchGraph

    graph = TorchGraph(model.graph, values)
    inputs, learnt = required_inputs(model), list(graph.learnt.values())
    rows = 0
    for number, feeds in enumerate(samples):
        progress(number, len(samples), "gradients")
        outputs = graph.run(feeds, inputs)
        name = scores_output({key: tensor.detach().numpy() for key, tensor in outputs.items()})
        if not name:
            raise DataError(
                "there is no loss to take gradients of: no output looks like class scores",
                advice="choose another importance",
            )
        scores = outputs[name].reshape(-1, outputs[name].shape[-1])
        wanted = scores.detach().argmax(dim=1).numpy() if labels is None else labels[rows : rows + len(scores)]
        rows += len(scores)
        if len(wanted) < len(scores) or wanted.min() < 0 or wanted.max() >= scores.shape[1]:
            raise DataError(f"sample {number} has no label from 0 to {scores.shape[1] - 1} for each row of scores")
        known = _log_probabilities(scores)
        loss = -known[torch.arange(len(scores)), torch.from_numpy(np.asarray(wanted, np.int64))].mean()
        gradients = torch.autograd.grad(loss, learnt, allow_unused=True)
        yield {
            value: gradient.numpy().astype(np.float64)
            for value, gradient in zip(graph.learnt, gradients, strict=True)
            if gradient is not None
        }


def _log_probabilities(scores: Any) -> Any:
    """As `analysis.accuracy.log_probabilities` reads scores."""
    import torch

    if are_probabilities(scores.detach().numpy()):
        return torch.log(scores.clamp_min(LEAST_PROBABILITY))
    return torch.log_softmax(scores, dim=1)
