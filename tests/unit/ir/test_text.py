"""The text form is stable, and says what a reader of an error needs."""

from __future__ import annotations

import hashlib

import numpy as np
import onnx_ir
import pytest

from graphopt import ir
from tests.unit.ir.models import BRANCHES, CONV, LOOP, parse


def test_the_form_of_a_small_model() -> None:
    model = ir.load(parse(CONV))
    ir.refresh_shapes(model)
    assert ir.to_text(model) == (
        'graph "net" {ir=8, ai.onnx=17}\n'
        "  input %x: f32[N,3,8,8]\n"
        "  weight %shape: i64[2] = [0, -1]\n"
        f"  weight %w: f32[4,3,3,3] = sha256:{hashlib.sha256(np.arange(108, dtype=np.float32)).hexdigest()[:16]}\n"
        '  %h = Conv(%x, %w) {pads=[1,1,1,1]}  # f32[N,4,8,8] "conv"\n'
        '  %r = Relu(%h)  # f32[N,4,8,8] "act"\n'
        '  %y = Reshape(%r, %shape)  # f32[N,K] "flat"\n'
        "  output %y: f32[N,K]\n"
    )


def test_subgraphs_are_indented_under_their_node() -> None:
    assert (
        '  %y = If(%c)  # f32[2,4] "choice"\n'
        "    else_branch:\n"
        "      %t = Neg(%h)  # ?[...]\n"
        "      %b = Add(%t, %x)  # f32[2,4]\n"
        "      output %b: f32[2,4]\n"
        "    then_branch:\n"
    ) in ir.to_text(ir.load(parse(BRANCHES)))


def test_around_a_node_only_its_neighbours_are_shown() -> None:
    model = ir.load(parse(CONV))
    act = model.graph.node("act")
    assert ir.to_text(model, around=act, context=0) == '> %r = Relu(%h)  # ?[...] "act"'
    lines = ir.to_text(model, around=act, context=1).splitlines()
    assert [line[:4] for line in lines] == ["  %h", "> %r", "  %y"]


def test_around_a_node_of_a_subgraph_its_own_graph_is_shown() -> None:
    model = ir.load(parse(LOOP))
    inner = model.graph[1].attributes["body"].as_graph()[1]
    assert ir.to_text(model, around=inner).splitlines()[1] == "> %next = Add(%state, %x)  # f32[3]"


@pytest.mark.parametrize(
    ("attribute", "text"),
    [
        (onnx_ir.AttrInt64("a", 3), "a=3"),
        (onnx_ir.AttrFloat32("a", 0.1), "a=0.1"),
        (onnx_ir.AttrString("a", 'q"\n'), r'a="q\"\n"'),
        (onnx_ir.AttrInt64s("a", list(range(40))), "a=[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,... 40 in all]"),
        (onnx_ir.AttrTensor("a", onnx_ir.tensor(np.array([1.5, 2], np.float32))), "a=f32[2] [1.5, 2]"),
        (onnx_ir.AttrTensor("a", onnx_ir.tensor(np.arange(9))), "a=i64[9] sha256:"),
        (onnx_ir.AttrTensor("a", onnx_ir.tensor(["x", "y"])), 'a=s[2] ["x", "y"]'),
    ],
)
def test_attributes(attribute: onnx_ir.Attr, text: str) -> None:
    node = onnx_ir.Node("custom", "Thing", [], [attribute], num_outputs=1, name="n")
    assert f"= custom.Thing() {{{text}" in ir.to_text(onnx_ir.Model(graph_of(node), ir_version=8))


def graph_of(node: onnx_ir.Node) -> onnx_ir.Graph:
    return onnx_ir.Graph([], node.outputs, nodes=[node], opset_imports={"": 17}, name="g")


def test_odd_names_are_quoted_and_left_out_operands_are_marked() -> None:
    value = onnx_ir.Value(name="a b\n")
    node = onnx_ir.node("Clip", [value, None, value])
    line = ir.to_text(onnx_ir.Model(graph_of(node), ir_version=8), around=node)
    assert 'Clip(%"a b\\n", _, %"a b\\n")' in line
    assert "\n" not in line
