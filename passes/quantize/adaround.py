"""Round weights by what they do to a layer's output, ahead of `quantize` or `quantize-weights`.

Each weight becomes s q, with the scales s that the pass behind will find (`grids`), and integers q that are chosen to
keep the layer's output on calibration data, not each weight at its own:

    min over q of E‖(W x + b) − (s q x̂ + b̂)‖²

x is the layer's input in the float model, x̂ that behind the layers that are rounded already; the bias b̂ takes up what
is left of the mean. Layers are done from front to back. The pass behind then meets weights that lie on its grid, and
keeps the integers; where a bias makes `quantize` raise a scale, though, it rounds again. `rounding` has the methods,
`moments` the sums that they need of the data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.analysis.quantization import quantized_node
from graphopt.analysis.samples import Samples
from graphopt.analysis.stages import Stages, bytes_kept
from graphopt.errors import UsageError
from graphopt.ir import clone
from graphopt.ir.reading import constant, is_standard
from graphopt.passes.cleanup.constants import layer_name, set_constant
from graphopt.passes.quantize.blocks import BITS
from graphopt.passes.quantize.grids import grid_of_quantize, grid_of_quantize_weights
from graphopt.passes.quantize.moments import Moments, moments
from graphopt.passes.quantize.patches import columns, from_matrix, places_of, to_matrix, why_not
from graphopt.passes.quantize.placement import place
from graphopt.passes.quantize.rounding import Grid, Method, Problem, adaround, gptq, problem
from graphopt.passes.quantize.rules import Layer, Weight
from graphopt.pipeline.base import Declined, Pass, PassContext, PassResult, option

Array = np.ndarray[Any, Any]

_STATE_BYTES = 512 << 20  # of what both models keep between two layers, for all samples
_MOST_FEATURES = 4608  # of one output: their second moments are 170 MB, and the methods hold a few such matrices
_ON_GRID = 1e-4  # steps that a weight may be off where it counts as rounded: float32 makes up to a quarter of that


@dataclass(frozen=True)
class AdaRound(Pass):
    """Round weights so that layers' outputs keep their values; `quantize` or `quantize-weights` then finds the grid."""

    name: ClassVar[str] = "adaround"
    exact: ClassVar[bool] = False

    method: Method = option(Method.ADAROUND, "adaround: gradient descent; gptq: column by column, much faster")
    iterations: int = option(500, "of adaround, for each layer")
    learning_rate: float = option(0.05, "of adaround")
    regularization: float = option(30.0, "how hard adaround drives weights to one of the two integers beside them")
    samples: int = option(64, "of the calibration data, chosen at random")
    patches: int = option(256, "places of a layer's output that are looked at in each sample, chosen at random")
    damping: float = option(0.01, "how much each weight is held to its own value where the data say little")
    per_channel: bool = option(True, "a scale for each output channel, as the option of quantize says")
    bits: int = option(8, "8, or 4 for quantize-weights{bits=4}")
    block: int = option(0, "0 for the scales of quantize, else the block of quantize-weights")
    exclude: tuple[str, ...] = option((), "names of nodes whose weights are left alone, with * and ?")

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Round the weights of the layers that `quantize` would make integer.

        Raises:
            UsageError: an option is out of its range.
            DataError: the samples do not fit.
        """
        self._check()
        old = quantized_node(model)
        if old is not None:
            return PassResult(False, declined=(Declined(layer_name(old), "the model is quantized already"),))
        plan = place(model.graph, exclude=self.exclude)
        products = {
            layer_name(node) for node in model.graph if is_standard(node, "Conv", "ConvTranspose", "Gemm", "MatMul")
        }
        declined = [each for each in plan.declined if each.layer in products]
        todo: list[_Task] = []
        for layer in plan.layers:
            if layer.weight is not None:
                task = self._task(layer, layer.weight)
                if isinstance(task, str):
                    declined.append(Declined(layer_name(layer.node), task))
                else:
                    todo.append(task)
        if context.calibration is None or not len(context.calibration):
            reason = "there is no calibration data to keep its output on"
            declined += [Declined(layer_name(task.layer.node), reason) for task in todo]
            todo = []
        if not todo or context.calibration is None:
            return PassResult(False, {"layers": 0}, tuple(declined))
        return self._round_all(model, todo, declined, context, context.calibration)

    def _check(self) -> None:
        for name in ("iterations", "samples", "patches"):
            if getattr(self, name) < 1:
                raise UsageError(f"adaround: {name} is {getattr(self, name)}, expected 1 or more")
        for name in ("learning_rate", "damping"):
            if not 0 < getattr(self, name) <= 1:
                raise UsageError(f"adaround: {name} is {getattr(self, name)}, expected more than 0 and up to 1")
        if self.bits not in BITS or self.block < 0:
            raise UsageError(f"adaround: bits is {self.bits} and block {self.block}, expected 8 or 4 and 0 or more")
        if not self.regularization >= 0:
            raise UsageError(f"adaround: regularization is {self.regularization}, expected 0 or more")

    def _task(self, layer: Layer, weight: Weight) -> _Task | str:
        value = layer.node.inputs[weight.index]
        array = constant(value)
        if value is None or array is None:
            return "its weight is computed at run time"
        if reason := why_not(layer.node, weight.index, array):
            return reason
        if len(value.uses()) > 1:
            return f"its weight '{value.name}' is shared with other nodes"
        if self.bits == 8 and not self.block:
            grid: Grid | str = grid_of_quantize(layer.node, array, weight.axis if self.per_channel else None)
        else:
            grid = grid_of_quantize_weights(layer.node, array, self.bits, self.block)
        if isinstance(grid, str):
            return grid
        task = _Task(layer, array, grid)
        if task.matrix.shape[2] > _MOST_FEATURES:
            return f"an output reads {task.matrix.shape[2]} numbers, and no more than {_MOST_FEATURES} are optimized"
        if np.abs(task.matrix / grid.scales - grid.nearest(task.matrix)).max(initial=0.0) < _ON_GRID:
            return "its weights lie on the grid already"
        return task

    def _round_all(
        self, model: ir.Model, todo: list[_Task], declined: list[Declined], context: PassContext, samples: Samples
    ) -> PassResult:
        rng = context.rng()
        room = max(_STATE_BYTES // (2 * max(bytes_kept(model), 1)), 1)
        chosen = np.sort(rng.permutation(len(samples))[: min(self.samples, room)])
        feeds = [samples[int(number)] for number in chosen]
        exact = clone(model)
        twins = dict(zip(model.graph, exact.graph, strict=True))
        before, behind = Stages(exact, feeds), Stages(model, feeds)
        gains: list[float] = []
        for done, task in enumerate(todo):
            node = task.layer.node
            context.progress(done, len(todo), "round weights")
            before.advance(twins[node])
            behind.advance(node)
            measured = moments(task.matrix, self._columns(task, before, behind, rng))
            if not (np.isfinite(measured.inputs).all() and np.isfinite(measured.both).all()):
                declined.append(Declined(layer_name(node), "its input is NaN or infinite on the calibration data"))
                continue
            gains.append(self._round(task, measured))
        context.progress(len(todo), len(todo), "round weights")
        statistics = {"layers": len(gains), "samples": len(feeds)}
        if gains:
            return PassResult(True, {**statistics, "mean-gain-db": round(float(np.mean(gains)), 2)}, tuple(declined))
        return PassResult(False, statistics, tuple(declined))

    def _columns(
        self, task: _Task, before: Stages, behind: Stages, rng: np.random.Generator
    ) -> Iterator[tuple[Array, Array]]:
        """The columns of the layer's input in float and behind rounded layers, by sample, at the same places."""
        node, weight = task.layer.node, task.weight
        name = str(task.layer.operand_values()[0].name)
        for one, other in zip(before.values([name]), behind.values([name]), strict=True):
            places = rng.permutation(places_of(node, weight, one[name]))[: self.patches]
            if len(places):
                yield columns(node, weight, one[name], places), columns(node, weight, other[name], places)

    def _round(self, task: _Task, measured: Moments) -> float:
        """Write integers and bias; how much smaller the output's error is than with the nearest, in dB."""
        node, bias = task.layer.node, task.layer.bias
        about = measured if bias is None else measured.centred()
        posed = problem(task.matrix.astype(np.float64), task.grid, about.inputs, about.both, self.damping)
        integers = self._solve(posed)
        rounded = from_matrix(node, (integers * task.grid.scales).astype(np.float32), task.weight.shape)
        set_constant(node, 1, rounded)
        if bias is not None:
            kept = np.einsum("gof,gf->go", to_matrix(node, rounded), measured.given, dtype=np.float64)
            values = bias.values + (measured.wanted - kept).reshape(-1)
            set_constant(bias.node, bias.index, values.astype(np.float32))
        plain = task.grid.nearest(task.matrix)
        before, behind = (about.error(each * task.grid.scales) for each in (plain, integers))
        least = np.finfo(np.float64).tiny
        return float(10 * np.log10(max(before, least) / max(behind, least)))

    def _solve(self, posed: Problem) -> Array:
        """The method's integers, or the nearest for an output that they serve better."""
        plain = posed.grid.nearest(posed.weights)
        if self.method is Method.GPTQ:
            found = gptq(posed)
        else:
            found = adaround(
                posed,
                iterations=self.iterations,
                learning_rate=self.learning_rate,
                regularization=self.regularization,
            )
        better = posed.losses(found) < posed.losses(plain)
        return np.where(better[:, :, None], found, plain)


@dataclass(frozen=True)
class _Task:
    """A layer, its float weight, and the grid that it is to lie on."""

    layer: Layer
    weight: Array
    grid: Grid

    @property
    def matrix(self) -> Array:
        return to_matrix(self.layer.node, self.weight)
