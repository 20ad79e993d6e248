"""Replace weights by palettes: a codebook of at most 256 numbers, and an index of 8 or 4 bits for each element.

    w ≈ c[i],   c and i by k-means: the least Σ (w − c[i])² for the number of entries

after Han, Mao and Dally, "Deep Compression", 2016, section 3. The graph computes the weight from codebook and indices
(`graphopt.ir.palettes` has the form), so any runtime takes it, and the layers compute in floating point as before. What
becomes smaller is the model's file and, with --compress, the library: its coder finds the palette again. Memory and
time of a run stay as they were.
"""

from __future__ import annotations

import fnmatch
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.errors import ModelError, ModelWarning, UsageError
from graphopt.ir.palettes import palette_of
from graphopt.ir.reading import constant, is_standard
from graphopt.passes.cleanup.constants import layer_name
from graphopt.passes.cleanup.rewiring import add_initializer, fresh_name
from graphopt.passes.quantize import kmeans
from graphopt.passes.quantize.opset import at_least
from graphopt.pipeline.base import Declined, Pass, PassContext, PassResult, option

Array = np.ndarray[Any, Any]

# The inputs of a layer that are weights.
WEIGHTS: dict[str, tuple[int, ...]] = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "GRU": (1, 2),
    "Gather": (0,),
    "Gemm": (0, 1),
    "LSTM": (1, 2),
    "MatMul": (0, 1),
    "RNN": (1, 2),
}
MAX_ENTRIES = 256
_SAMPLE = 1 << 21  # elements of a weight that its codebook is made for
_CHUNK = 1 << 20  # elements that are looked up at once: memory stays small beside the weight
_NODE_BYTES = 200  # that the nodes and names of a palette take in a model's file, about
_NIBBLE_OPSET = 21  # the first with uint4
_GROUPS_OPSET = 11  # the first with GatherElements


@dataclass(frozen=True)
class Palettize(Pass):
    """Store float weights as palettes of 2 to 256 numbers found by k-means: smaller files, the same arithmetic."""

    name: ClassVar[str] = "palettize"
    exact: ClassVar[bool] = False

    entries: int = option(MAX_ENTRIES, "numbers of a codebook, 2 to 256")
    channels: int = option(0, "slices along a weight's first axis that share a codebook, at least; 0: all of them")
    exclude: tuple[str, ...] = option((), "names of nodes whose weights stay, with * and ?")

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Palettize the weights of Conv, Gemm, MatMul, recurrent layers and embeddings, in subgraphs too.

        A codebook of at most 16 entries has indices of 4 bits, and the model is brought to opset 21 for them; if it
        cannot be, a warning says so, and they take 8. Codebooks for groups of channels need opset 11.

        Raises:
            UsageError: the number of entries or channels is out of range.
            ModelError: codebooks for groups are asked for, and the model cannot be converted to opset 11.
        """
        if not 2 <= self.entries <= MAX_ENTRIES:
            raise UsageError(f"entries is {self.entries}, expected 2 to {MAX_ENTRIES}")
        if self.channels < 0:
            raise UsageError(f"channels is {self.channels}, expected 0 or more")
        nibbles = self.entries <= 16
        layers = _layers(model)
        reasons = self._excluded(layers)
        converted = False
        if any(value not in reasons and not self._reason(value, nibbles=nibbles) for _, value in layers):
            before = model.graph
            nibbles = nibbles and _serves_nibbles(model)
            if self.channels:
                at_least(model, _GROUPS_OPSET)
            converted = model.graph is not before
            layers = _layers(model)
            reasons = self._excluded(layers)
        made: list[_Made] = []
        rng = context.rng()
        for done, (node, value) in enumerate(layers):
            context.progress(done, len(layers), f"palette of {layer_name(node)}")
            if value in reasons:  # excluded, or shared and seen already
                continue
            reasons[value] = self._reason(value, nibbles=nibbles)
            if not reasons[value]:
                made.append(self._replace(value, rng, nibbles=nibbles))
        declined = [
            Declined(layer_name(node), f"'{value.name}': {reasons[value]}") for node, value in layers if reasons[value]
        ]
        return PassResult(converted or bool(made), _statistics(made), tuple(declined))

    def _reason(self, value: ir.Value, *, nibbles: bool) -> str:
        return _reason_to_keep(value, self.entries, self.channels, nibbles=nibbles)

    def _excluded(self, layers: Sequence[tuple[ir.Node, ir.Value]]) -> dict[ir.Value, str]:
        """The weights that an excluded layer reads."""
        return {
            value: f"'{node.name}' is excluded"
            for node, value in layers
            if any(fnmatch.fnmatchcase(node.name or "", pattern) for pattern in self.exclude)
        }

    def _replace(self, value: ir.Value, rng: np.random.Generator, *, nibbles: bool) -> _Made:
        """Let a palette compute `value`, a constant."""
        array = constant(value)
        assert array is not None  # _reason_to_keep asked
        blocks = array.reshape(_groups(array.shape, self.channels), -1)
        books = [kmeans.codebook(_sample(block, rng), self.entries).astype(array.dtype) for block in blocks]
        longest = max(map(len, books))
        table = np.stack([np.pad(book, (0, longest - len(book)), mode="edge") for book in books])
        indices = np.empty(blocks.shape, np.uint8)
        power = noise = 0.0
        for block, book, index in zip(blocks, books, indices, strict=True):
            for begin in range(0, len(block), _CHUNK):
                part = slice(begin, begin + _CHUNK)
                index[part] = kmeans.nearest(block[part], book)
                exact = block[part].astype(np.float64)
                power += float((exact**2).sum())
                noise += float(((exact - book[index[part]]) ** 2).sum())
        _insert(value, table, indices, array.shape, nibbles=nibbles)
        size = table.nbytes + _index_bytes(array.size, nibbles=nibbles)
        return _Made(array.size, array.nbytes, size, 10 * math.log10(power / noise) if noise else math.inf)


def _sample(numbers: Array, rng: np.random.Generator) -> Array:
    """So many numbers that a codebook of them is one of all; all where they are fewer."""
    return numbers if len(numbers) <= _SAMPLE else numbers[rng.integers(0, len(numbers), _SAMPLE)]


def _reason_to_keep(value: ir.Value, entries: int, channels: int, *, nibbles: bool) -> str:
    """Why a weight is not replaced by a palette; nothing if it is."""
    if palette_of(value) is not None:
        return "it is a palette already"
    array = constant(value)
    if array is None:
        return "it is quantized already, and --compress stores integers in fewer bits without loss"
    if not value.is_initializer():
        return "it is a Constant node, which fold-constants makes an initializer"
    if value.is_graph_output():
        return "it is an output of the graph"
    if not np.isfinite(array).all():
        return "it holds NaN or infinities"
    palette = _groups(array.shape, channels) * entries * array.itemsize + _index_bytes(array.size, nibbles=nibbles)
    if palette + _NODE_BYTES >= array.nbytes:
        return f"its {array.nbytes} bytes are not more than those of a palette, {palette}, and of its nodes"
    return ""


def _index_bytes(count: int, *, nibbles: bool) -> int:
    return (count + 1) // 2 if nibbles else count


@dataclass(frozen=True)
class _Made:
    elements: int
    bytes_before: int
    bytes_after: int
    sqnr_db: float


def _serves_nibbles(model: ir.Model) -> bool:
    """Bring the model to the opset that has uint4, in place; whether that could be done."""
    try:
        at_least(model, _NIBBLE_OPSET)
    except ModelError as error:
        warnings.warn(f"indices of palettes take 8 bits instead of 4: {error.what}", ModelWarning, stacklevel=3)
        return False
    return True


def _layers(model: ir.Model) -> list[tuple[ir.Node, ir.Value]]:
    """Each node with each of its weights."""
    return [(node, value) for node in model.graph.all_nodes() for value in _weights(node)]


def _weights(node: ir.Node) -> Iterator[ir.Value]:
    """The constant weights of a node, and computed ones at the places of weights; floats of two axes or more."""
    if not is_standard(node) or node.op_type not in WEIGHTS:
        return
    for index in WEIGHTS[node.op_type]:
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None or value.dtype is None or not value.dtype.is_floating_point():
            continue
        is_weight = constant(value) is not None or palette_of(value) is not None or _is_dequantized(value)
        if is_weight and value.shape is not None and len(value.shape) > 1:
            yield value


def _is_dequantized(value: ir.Value) -> bool:
    producer = value.producer()
    return (
        producer is not None and is_standard(producer, "DequantizeLinear") and constant(producer.inputs[0]) is not None
    )


def _groups(shape: tuple[int, ...], channels: int) -> int:
    """How many codebooks: groups are equal, and along the first axis that is longer than 1."""
    length = next((size for size in shape if size > 1), 1)
    if channels == 0:
        return 1
    return length // next(size for size in range(min(channels, length), length + 1) if length % size == 0)


def _insert(weight: ir.Value, table: Array, indices: Array, shape: tuple[int, ...], *, nibbles: bool) -> None:
    """Compute `weight` from codebooks[groups, entries] and indices[groups, …]; the result takes its name and uses."""
    graph = weight.graph
    if graph is None or weight.name is None:
        raise ValueError(f"'{weight.name}' is not in a graph")
    name, grouped = weight.name, len(table) > 1
    stored = indices if grouped else indices.reshape(shape)
    index = add_initializer(graph, name, stored)
    if nibbles:
        index.const_value = ir.Tensor(stored.astype(ir.DataType.UINT4.numpy()), name=index.name)
        index.type = ir.TensorType(ir.DataType.UINT4)
    book = add_initializer(graph, name, table if grouped else table[0])
    cast = ir.node("Cast", [index], {"to": int(ir.DataType.INT32)}, name=f"{name}/cast")
    if grouped:
        look = ir.node("GatherElements", [book, cast.outputs[0]], {"axis": 1}, name=f"{name}/look-up")
        target = add_initializer(graph, name, np.array(shape, np.int64))
        nodes = [cast, look, ir.node("Reshape", [look.outputs[0], target], name=f"{name}/reshape")]
    else:
        nodes = [cast, ir.node("Gather", [book, cast.outputs[0]], {"axis": 0}, name=f"{name}/look-up")]
    graph.insert_before(graph[0], nodes)
    for node in nodes[:-1]:
        node.outputs[0].name = fresh_name(graph, name)
    graph.initializers.pop(name)
    made = nodes[-1].outputs[0]
    made.name, made.type, made.shape = name, weight.type, weight.shape
    weight.replace_all_uses_with(made)


def _statistics(made: Sequence[_Made]) -> dict[str, int | float | str]:
    statistics: dict[str, int | float | str] = {"weights": len(made)}
    if made:
        worst = min(each.sqnr_db for each in made)
        statistics |= {
            "elements": sum(each.elements for each in made),
            "bytes-before": sum(each.bytes_before for each in made),
            "bytes-after": sum(each.bytes_after for each in made),
            "lowest-sqnr-db": round(worst, 1) if math.isfinite(worst) else "exact",
        }
    return statistics
