"""Take from each integer bias what quantization adds to the mean of its channel, in a model that is quantized.

    b' = b − round((E[y'] − E[y]) / (s_x s_w))

y' is the layer's sum in the quantized model, y the value of the same name in the original, and the means are over
samples and places (M. Nagel and others, Data-free quantization through weight equalization and bias correction, 2019,
section 4.2, empirical). From front to back: each layer is measured behind those that are corrected, and so answers for
what their clipping and rounding left, not for their shift.

What is less than a step of the bias stays, and so does what float32 cannot tell from nothing. After a correction half a
step is left, and an earlier layer never moves again: a second run finds nothing to do.

`quantize` corrects by itself, each layer on the float model's inputs (`bias_correction`), before there are integers.
This pass is for what comes after, and for models of other tools.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.analysis.calibration import each_run
from graphopt.analysis.samples import Samples
from graphopt.analysis.stages import Stages, bytes_kept
from graphopt.errors import UsageError
from graphopt.ir import clone, refresh_shapes
from graphopt.ir.reading import constant, is_standard, same_shape
from graphopt.passes.cleanup.constants import layer_name, remove_unused_constant
from graphopt.passes.cleanup.rewiring import add_initializer, fresh_name, remove_if_unused
from graphopt.passes.quantize.channel_means import Spread, channel_axis, measure
from graphopt.passes.quantize.rules import is_activation
from graphopt.pipeline.base import Declined, Pass, PassContext, PassResult, Progress, option

Array = np.ndarray[Any, Any]

_STATE_BYTES = 512 << 20  # of what the model keeps between two layers, for all samples
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_AFFINE = ("BatchNormalization", "Add", "Sub", "Mul", "Div", "Identity", "Dropout")
_NOISE = 1e-5  # of a channel's root mean square: what sums in float32 may be off by, and more
_OTHER_SCALE = 0.1  # by which a channel's spread differs where a pass before gave it another scale; int8 leaves 0.03
_OTHER_MEAN = 0.5  # of a channel's spread, by which its mean differs where a pass before gave it another


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Bring the means of quantized layers' outputs back to the original's, by their int32 biases."""

    name: ClassVar[str] = "correct-bias"
    exact: ClassVar[bool] = False

    samples: int = option(128, "of the calibration data, the first ones")
    exclude: tuple[str, ...] = option((), "names of nodes whose bias is left alone, with * and ?")

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Correct what can be matched with `context.original` by the name of the output.

        Raises:
            UsageError: `samples` is less than 1.
            DataError: the samples do not fit.
        """
        if self.samples < 1:
            raise UsageError(f"correct-bias: samples is {self.samples}, expected 1 or more")
        declined: list[Declined] = []
        biased: list[_Biased] = []
        original = None if context.original is None else clone(context.original)
        if original is not None:
            refresh_shapes(original)
        for node, index in _candidates(model.graph):
            found = self._biased(node, index, original, context)
            if isinstance(found, str):
                declined.append(Declined(layer_name(node), found))
            else:
                biased.append(found)
        if not biased or original is None or context.calibration is None:
            return PassResult(False, {"biases": 0}, tuple(declined))
        room = _STATE_BYTES // max(bytes_kept(model), 1)
        samples = context.calibration.first(min(self.samples, max(room, 1)))
        wanted = _original_spreads(original, biased, samples, context.progress)
        moved, refused = _correct(model, biased, wanted, samples, context.progress)
        statistics = {"biases": len(biased) - len(refused), "moved-channels": moved, "samples": len(samples)}
        return PassResult(moved > 0, statistics, (*declined, *refused))

    def _biased(
        self, node: ir.Node, index: int | None, original: ir.Model | None, context: PassContext
    ) -> _Biased | str:
        """The layer `node` with the int32 bias that is its input `index`, or the reason why it is left alone."""
        if index is None:
            return "it has no int32 bias"
        pattern = next((pattern for pattern in self.exclude if fnmatchcase(layer_name(node), pattern)), None)
        if pattern is not None:
            return f"it is excluded by '{pattern}'"
        if original is None:
            return "the original is not known, and so not the mean that its output should have"
        if context.calibration is None or not len(context.calibration):
            return "there is no calibration data to measure means on"
        value = node.outputs[0]
        same = _same_in(original, value)
        if same is None:
            return f"the original has no value '{value.name}'"
        maker = same.producer()
        if not same_shape(same, value) or same.dtype != ir.DataType.FLOAT:
            return f"'{same.name}' has another type or shape in the original"
        if maker is not None and is_activation(maker):
            return f"'{same.name}' is what {maker.op_type} makes in the original"
        return _Biased(node, index, same)


@dataclass(frozen=True)
class _Biased:
    """node: a product, or the Add behind it; index: of its input that is dequantized from int32; same: what the node
    makes, in the original.
    """

    node: ir.Node
    index: int
    same: ir.Value


def _candidates(graph: ir.Graph) -> Iterator[tuple[ir.Node, int | None]]:
    """Each product, or the Add of its bias, with the index of the input that is dequantized from int32."""
    for node in graph:
        if is_standard(node, *_PRODUCTS, "Add"):
            index = next((index for index in range(len(node.inputs)) if _stored(node, index) is not None), None)
            added = any(_is_bias_of(reader, node.outputs[0]) for reader in node.outputs[0].consumers())
            if index is not None or (node.op_type != "Add" and not added):
                yield node, index


def _is_bias_of(reader: ir.Node, value: ir.Value) -> bool:
    """Whether `reader` adds an int32 bias to `value`."""
    others = [index for index, given in enumerate(reader.inputs) if given is not value]
    return is_standard(reader, "Add") and any(_stored(reader, index) is not None for index in others)


def _stored(node: ir.Node, index: int) -> tuple[ir.Node, Array, Array] | None:
    """The DequantizeLinear behind an input, its int32 numbers, one for each channel, and their scales."""
    value = node.inputs[index]
    producer = value.producer() if value is not None else None
    if producer is None or not is_standard(producer, "DequantizeLinear"):
        return None
    integers, scale = constant(producer.inputs[0]), constant(producer.inputs[1])
    if integers is None or scale is None or integers.dtype != np.int32 or integers.shape[-1:] != (integers.size,):
        return None
    return producer, integers, np.broadcast_to(scale.astype(np.float64), integers.shape)


def _same_in(original: ir.Model, value: ir.Value) -> ir.Value | None:
    """The value of this name; where the output of the graph is quantized, its name is behind the pair. What a fold has
    taken into the layer since, and what is therefore gone from its graph, is passed.
    """
    names = [value.name]
    for rounding in value.consumers():
        if is_standard(rounding, "QuantizeLinear"):
            names += [reader.outputs[0].name for reader in rounding.outputs[0].consumers()]
    made = {output.name: output for node in original.graph for output in node.outputs}
    found = next((made[name] for name in names if name in made), None)
    present = {output.name for node in value.graph or () for output in node.outputs}
    while found is not None and (folded := _affine_reader(found)) is not None and folded.name not in present:
        found = folded
    return found


def _affine_reader(value: ir.Value) -> ir.Value | None:
    """What the only reader of `value` makes, if a linear layer before it can take the reader in."""
    if len(value.uses()) != 1 or value.is_graph_output():
        return None
    reader = next(iter(value.uses())).node
    others = [given for given in reader.inputs if given is not None and given is not value]
    if not is_standard(reader, *_AFFINE) or any(constant(given) is None for given in others):
        return None
    return reader.outputs[0]


def _original_spreads(
    original: ir.Model, biased: list[_Biased], samples: Samples, progress: Progress
) -> dict[str, Spread]:
    """By the name of the value, in one run over the samples; `original` gets nodes that measure."""
    measured = {}
    for name, each in {str(each.same.name): each for each in biased}.items():
        measured[name] = measure(original, each.same, channel_axis(each.node))
    sums: dict[str, Array] = {}

    def receive(tensors: Mapping[str, Array]) -> None:
        for name, array in tensors.items():
            sums[name] = sums.get(name, 0) + array.astype(np.float64)

    each_run(original, [name for pair in measured.values() for name in pair], samples, receive, progress)
    return {
        name: Spread(sums[mean] / len(samples), sums[square] / len(samples))
        for name, (mean, square) in measured.items()
    }


def _correct(
    model: ir.Model, biased: list[_Biased], wanted: Mapping[str, Spread], samples: Samples, progress: Progress
) -> tuple[int, list[Declined]]:
    """Correct one bias after the other; how many channels moved, and the layers that turned out to be others."""
    probe = clone(model)
    twins = dict(zip(model.graph, probe.graph, strict=True))
    measured = {each.node: measure(probe, twins[each.node].outputs[0], channel_axis(each.node)) for each in biased}
    stages = Stages(probe, list(samples))
    moved, declined = 0, list[Declined]()
    for done, each in enumerate(biased):
        progress(done, len(biased), "correct biases")
        stages.advance(twins[each.node])
        runs = [[run[name] for name in measured[each.node]] for run in stages.values(measured[each.node])]
        mean, square = np.mean(np.asarray(runs, np.float64), axis=0)
        steps = _steps(each, Spread(mean, square), wanted[str(each.same.name)])
        if isinstance(steps, str):
            declined.append(Declined(layer_name(each.node), steps))
            continue
        if steps.any():
            _move(each.node, each.index, steps)
            _move(twins[each.node], each.index, steps)
            moved += int(np.count_nonzero(steps))
    progress(len(biased), len(biased), "correct biases")
    return moved, declined


def _foreign(found: Spread, wanted: Spread) -> Array:
    """Which channels hold other numbers than in the original, as after equalization, and not the same ones rounded."""
    varies = wanted.deviation > 1e-3 * np.sqrt(wanted.square)
    scaled = np.abs(found.deviation - wanted.deviation) > _OTHER_SCALE * wanted.deviation
    moved = np.abs(found.mean - wanted.mean) > _OTHER_MEAN * wanted.deviation
    return np.asarray(varies & (scaled | moved))


def _steps(each: _Biased, found: Spread, wanted: Spread) -> Array | str:
    """What to add to the bias, int64 [channels], or the reason why its means are not those of the original."""
    stored = _stored(each.node, each.index)
    if stored is None:
        raise ValueError(f"{each.node.op_type} '{each.node.name}' has lost its bias")
    _, integers, scale = stored
    if found.mean.shape != (integers.size,):
        return f"its bias has {integers.size} numbers for {found.mean.size} channels"
    if not (np.isfinite(found.square).all() and np.isfinite(wanted.square).all()):
        return "its output is NaN or infinite on the calibration data"
    foreign = _foreign(found, wanted)
    if 2 * np.count_nonzero(foreign) > foreign.size:
        return "its channels are scaled or shifted otherwise than in the original"
    apart = found.mean - wanted.mean
    least = np.maximum(scale.reshape(-1), _NOISE * np.sqrt(found.square))
    exact = np.where((np.abs(apart) >= least) & ~foreign, -apart / scale.reshape(-1), 0.0)
    limits = np.iinfo(np.int32)
    before = integers.reshape(-1).astype(np.int64)
    return np.asarray(np.clip(before + np.rint(exact), limits.min, limits.max).astype(np.int64) - before)


def _move(node: ir.Node, index: int, steps: Array) -> None:
    """Add `steps` to a bias, which gets constants of its own where others read them."""
    stored = _stored(node, index)
    graph = node.graph
    if stored is None or not isinstance(graph, ir.Graph):
        raise ValueError(f"{node.op_type} '{node.name}' has lost its bias")
    producer, integers, _ = stored
    old = producer.inputs[0]
    changed = (integers + steps.reshape(integers.shape)).astype(np.int32)
    if old is not None and old.is_initializer() and len(old.uses()) == len(producer.outputs[0].uses()) == 1:
        old.const_value = ir.Tensor(changed, name=old.name)
        return
    base = f"{node.outputs[0].name}/bias"
    own = ir.node(
        "DequantizeLinear",
        [add_initializer(graph, base, changed), *producer.inputs[1:]],
        attributes=dict(producer.attributes),
        name=fresh_name(graph, f"{base}/dequantize"),
    )
    output, like = own.outputs[0], producer.outputs[0]
    output.name, output.type, output.shape = fresh_name(graph, f"{base}/dequantized"), like.type, like.shape
    graph.insert_before(node, own)
    node.replace_input_with(index, output)
    if remove_if_unused(producer) and old is not None:
        remove_unused_constant(old)
