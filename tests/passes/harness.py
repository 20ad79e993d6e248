"""What the tests of passes share: models from text, a checked run of a pass, equality under ONNX Runtime.

model = parse('''<ir_version: 8, opset_import: ["" : 17]>
    g (float[1,3] x) => (float[1,3] y) { y = Mul(x, w) }''', w=np.ones(3, np.float32))
outcome = check(FoldAffine(), model)
golden("scalar", outcome)           # the fixture of conftest.py
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnx_ir as ir

import graphopt.ir as graph_ir
from graphopt.analysis.execution import Session
from graphopt.analysis.samples import probe_samples
from graphopt.pipeline.base import Pass, PassContext, PassResult

Arrays = Mapping[str, npt.NDArray[np.generic]]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A model before and after a pass, and what the pass said."""

    name: str  # of the pass
    before: ir.Model
    after: ir.Model
    result: PassResult

    def operators(self) -> list[str]:
        """The operators of the main graph after the pass, in order, Constant nodes left out."""
        return [node.op_type for node in self.after.graph if node.op_type != "Constant"]

    def reasons(self) -> dict[str, str]:
        """Why each declined layer was left alone, by the layer's name."""
        return {declined.layer: declined.reason for declined in self.result.declined}


def parse(text: str, **weights: npt.NDArray[np.generic]) -> ir.Model:
    """The model that `text` (the syntax of onnx.parser) describes, with `weights` as initializers by name.

    Nodes without a name get `OP_INDEX` in lower case, so that declined layers can be told apart.
    """
    proto = onnx.parser.parse_model(text)
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    _name_nodes(proto.graph)
    return graph_ir.load(proto)


def _name_nodes(graph: onnx.GraphProto) -> None:
    for index, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type.lower()}_{index}"
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _name_nodes(attribute.g)


def run(pass_: Pass, model: ir.Model, context: PassContext | None = None) -> PassResult:
    """Run a pass as the manager does: in place, then the shapes refreshed and the model and its interface verified."""
    interface = graph_ir.Interface.of(model)
    result = pass_.run(model, context or PassContext())
    graph_ir.refresh_shapes(model)
    graph_ir.verify(model, interface=interface)
    return result


def check(
    pass_: Pass,
    model: ir.Model,
    *,
    feeds: Arrays | None = None,
    relative: float = 1e-5,
    changes: bool | None = True,
    context: PassContext | None = None,
) -> Outcome:
    """Run an exact pass on a copy of `model` and check everything that each of them owes.

    The result verifies, the interface is unchanged, `changed` is honest, a second run changes nothing, and the
    outputs under ONNX Runtime (its own optimizations off) equal the original's within `relative` of their range.

    Args:
        feeds: inputs to compare on; generated from the types and shapes of the inputs without them.
        changes: whether the pass must change this model (None: either is right).
    """
    graph_ir.refresh_shapes(model)
    after = graph_ir.clone(model)
    result = run(pass_, after, context)
    differs = graph_ir.to_text(after) != graph_ir.to_text(model)
    assert result.changed == differs, f"changed={result.changed}, but the text form is the same: {not differs}"
    if changes is not None:
        assert result.changed == changes, f"changed={result.changed}, declined: {result.declined}"

    again = graph_ir.clone(after)
    second = run(pass_, again, context)
    assert not second.changed, "a second run says that it changed the model"
    assert graph_ir.to_text(again) == graph_ir.to_text(after), "a second run changed the model"

    assert_same_outputs(model, after, feeds=feeds, relative=relative)
    return Outcome(pass_.name, model, after, result)


def outputs(model: ir.Model, feeds: Arrays) -> dict[str, npt.NDArray[np.generic]]:
    """What ONNX Runtime computes for one set of inputs, with its own graph optimizations off."""
    return Session(model, optimize=False, threads=1).run(dict(feeds))


def assert_same_outputs(
    before: ir.Model, after: ir.Model, *, feeds: Arrays | None = None, relative: float = 1e-5, seed: int = 0
) -> None:
    """Both models give the same outputs within `relative` of the largest finite magnitude of each output.

    NaN and infinities must be at the same places; integers, booleans and strings must be equal.
    """
    samples = [feeds] if feeds is not None else list(probe_samples(before, seed, 2))
    for sample in samples:
        expected, found = outputs(before, sample), outputs(after, sample)
        assert list(expected) == list(found)
        for name, array in expected.items():
            other = found[name]
            assert array.dtype == other.dtype and array.shape == other.shape, name
            if array.dtype.kind != "f":
                np.testing.assert_array_equal(other, array, err_msg=name)
                continue
            wide = array.astype(np.float64)
            finite = np.abs(wide[np.isfinite(wide)])
            largest = float(finite.max()) if finite.size else 0.0
            np.testing.assert_allclose(
                other.astype(np.float64), wide, rtol=0, atol=relative * largest, equal_nan=True, err_msg=name
            )
