"""A fingerprint tells apart what computes differently, and only that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir
import pytest

from graphopt import ir
from tests.unit.ir.models import BRANCHES, CONV, LOOP, SCAN, parse, with_external_data


@pytest.mark.parametrize("text", [CONV, BRANCHES, LOOP, SCAN])
def test_a_copy_and_a_file_of_it_have_the_same(text: str, tmp_path: Path) -> None:
    model = ir.load(parse(text))
    ir.save(model, tmp_path / "model.onnx")
    assert ir.fingerprint(model) == ir.fingerprint(ir.clone(model)) == ir.fingerprint(ir.load(tmp_path / "model.onnx"))


def test_where_the_weights_lie_does_not_matter(tmp_path: Path) -> None:
    assert ir.fingerprint(ir.load(with_external_data(tmp_path))) == ir.fingerprint(ir.load(parse(CONV)))


def rename_inner(model: onnx_ir.Model) -> None:
    model.graph.node("conv").name = "other"
    model.graph.node("other").outputs[0].name = "renamed"
    model.graph.initializers["w"].name = "kernel"


def describe(model: onnx_ir.Model) -> None:
    model.doc_string = "doc"
    model.metadata_props["k"] = "v"
    model.graph.node("act").metadata_props["k"] = "v"


@pytest.mark.parametrize("edit", [rename_inner, describe, ir.refresh_shapes])
def test_what_does_not_compute_does_not_matter(edit: Callable[[onnx_ir.Model], None]) -> None:
    model = ir.load(parse(CONV))
    before = ir.fingerprint(model)
    edit(model)
    assert ir.fingerprint(model) == before


def change_weight(model: onnx_ir.Model) -> None:
    values = np.arange(108, dtype=np.float32).reshape(4, 3, 3, 3)
    values[3, 2, 2, 2] = np.nextafter(values[3, 2, 2, 2], np.float32(0))
    model.graph.initializers["w"].const_value = onnx_ir.tensor(values)


def change_attribute(model: onnx_ir.Model) -> None:
    model.graph.node("conv").attributes["pads"] = onnx_ir.AttrInt64s("pads", [1, 1, 1, 2])


def change_operator(model: onnx_ir.Model) -> None:
    model.graph.node("act").op_type = "Sigmoid"


def change_wiring(model: onnx_ir.Model) -> None:
    model.graph.node("flat").replace_input_with(0, model.graph.node("conv").outputs[0])


def change_input_name(model: onnx_ir.Model) -> None:
    model.graph.inputs[0].name = "z"


def change_input_shape(model: onnx_ir.Model) -> None:
    model.graph.inputs[0].shape = onnx_ir.Shape([1, 3, 8, 8])


def change_opset(model: onnx_ir.Model) -> None:
    model.opset_imports[""] = 18


def add_unused_weight(model: onnx_ir.Model) -> None:
    tensor = onnx_ir.tensor(np.zeros(3, np.float32), name="dead")
    model.graph.register_initializer(onnx_ir.Value(name="dead", const_value=tensor))


@pytest.mark.parametrize(
    "edit",
    [
        change_weight,
        change_attribute,
        change_operator,
        change_wiring,
        change_input_name,
        change_input_shape,
        change_opset,
        add_unused_weight,
    ],
)
def test_what_computes_matters(edit: Callable[[onnx_ir.Model], None]) -> None:
    model = ir.load(parse(CONV))
    before = ir.fingerprint(model)
    edit(model)
    assert ir.fingerprint(model) != before


def test_a_change_inside_a_subgraph_matters() -> None:
    model = ir.load(parse(BRANCHES))
    before = ir.fingerprint(model)
    model.graph.node("choice").attributes["else_branch"].as_graph()[0].op_type = "Abs"
    assert ir.fingerprint(model) != before
