"""A clone shares weights and nothing else."""

from __future__ import annotations

import numpy as np
import onnx_ir
import pytest

from graphopt import ir
from tests.unit.ir.models import BRANCHES, CONV, LOOP, SCAN, parse


@pytest.mark.parametrize("text", [CONV, BRANCHES, LOOP, SCAN])
def test_a_clone_says_the_same(text: str) -> None:
    model = ir.load(parse(text))
    assert ir.to_text(ir.clone(model)) == ir.to_text(model)
    assert onnx_ir.to_proto(ir.clone(model)) == onnx_ir.to_proto(model)


def test_weights_are_shared() -> None:
    model = ir.load(parse(CONV))
    first, second = (m.graph.initializers["w"].const_value for m in (model, ir.clone(model)))
    assert first is not None
    assert second is not None
    assert np.shares_memory(first.numpy(), second.numpy())


def test_edits_of_a_clone_leave_the_model_alone() -> None:
    model = ir.load(parse(BRANCHES))
    before = onnx_ir.to_proto(model).SerializeToString()
    copy = ir.clone(model)
    copy.graph.initializers["bias"].const_value = onnx_ir.tensor(np.zeros(4, np.float32))
    copy.graph.initializers["bias"].name = "offset"
    copy.graph.inputs[0].shape = onnx_ir.Shape([9, 4])
    inner = copy.graph.node("choice").attributes["then_branch"].as_graph()
    inner[0].op_type = "Sub"
    inner.outputs[0].name = "renamed"
    copy.metadata_props["k"] = "v"
    assert onnx_ir.to_proto(model).SerializeToString() == before
