"""From ONNX to kernels: attribution, placement of values, refusals, and right results under the default schedule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.analysis.execution import Session
from graphopt.analysis.samples import probe_samples
from graphopt.errors import UnsupportedError
from graphopt.targets.tvm.backend import TvmBackend
from graphopt.targets.tvm.importer import import_model
from graphopt.targets.tvm.program import Copy, KernelCall, Place
from tests.targets.compiled import lowered, parse, program, run

_WEIGHTS = ",".join(str(i % 7 - 3) for i in range(144))
RESIDUAL = f"""
<ir_version: 9, opset_import: ["" : 17]>
net (float[1,4,6,6] x) => (float[1,4,6,6] y)
<float[4,4,3,3] w1 = {{{_WEIGHTS}}}, float[4] b1 = {{1,2,3,4}}, float[4,4,3,3] w2 = {{{_WEIGHTS}}}>
{{
    a = Conv<pads=[1,1,1,1]>(x, w1, b1)
    r = Relu(a)
    c = Conv<pads=[1,1,1,1]>(r, w2)
    s = Add(c, x)
    y = Relu(s)
}}
"""


def _agrees(model: ir.Model, *, tolerance: float = 1e-5, scheduled: bool = True) -> None:
    """Compiled outputs equal ONNX Runtime's to `tolerance` of their range."""
    feeds = next(iter(probe_samples(model, 0, 1)))
    expected = Session(model).run(feeds)
    found = run(model, feeds, scheduled=scheduled)
    for name, reference in expected.items():
        scale = float(np.abs(reference).max(initial=0)) or 1.0
        assert found[name].shape == reference.shape
        np.testing.assert_allclose(found[name], reference, rtol=0, atol=tolerance * scale)


def test_each_call_names_the_nodes_that_it_computes() -> None:
    model = parse(RESIDUAL)
    assert [call.nodes for call in lowered(model).calls] == [(0, 1), (2, 3, 4)]


def test_equal_layers_share_one_kernel_and_keep_their_own_nodes() -> None:
    halves, quarters = ",".join(["0.5"] * 64), ",".join(["0.25"] * 64)
    model = parse(f"""
        <ir_version: 9, opset_import: ["" : 17]>
        net (float[1,8] x) => (float[1,8] y)
        <float[8,8] w = {{{halves}}}, float[8,8] v = {{{quarters}}}>
        {{ a = MatMul(x, w)  b = Relu(a)  c = MatMul(b, v)  y = Relu(c) }}
    """)
    low = lowered(model)
    assert [call.nodes for call in low.calls] == [(0, 1), (2, 3)]
    assert len({call.function for call in low.calls}) == 1


def test_calls_behind_a_reshape_without_a_kernel_name_their_own_nodes() -> None:
    model = parse("""
        <ir_version: 9, opset_import: ["" : 17]>
        net (float[1,4,6,6] x, float[36,8] w, float[8,4] v) => (float[1,4] y) <int64[2] s = {1, 36}>
        { p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)  f = Reshape(p, s)
          a = MatMul(f, w)  b = Relu(a)  y = MatMul(b, v) }
    """)
    assert [call.nodes for call in lowered(model).calls] == [(0,), (2, 3), (4,)]


def test_a_residual_block_equals_onnxruntime() -> None:
    _agrees(parse(RESIDUAL))


def test_outputs_are_written_in_place_and_read_by_later_kernels(tmp_path: Path) -> None:
    model = parse("""
        <ir_version: 9, opset_import: ["" : 17]>
        net (float[2,3,8] x) => (float[2,3,8] y, float[2,3,8] z)
        { y = Softmax(x)  z = Softmax<axis=1>(y) }
    """)
    made = program(model, tmp_path / "k.o")
    assert not [step for step in made.calls if isinstance(step, Copy)]
    assert {argument.place for step in made.calls for argument in step.arguments} >= {Place.INPUT, Place.OUTPUT}
    _agrees(model)


def test_inputs_constants_and_doubled_values_as_outputs_are_copied(tmp_path: Path) -> None:
    model = parse("""
        <ir_version: 9, opset_import: ["" : 17]>
        net (float[2,3] x) => (float[3,2] same, float[2,3] y, float[6] flat)
        <int64[2] swapped = {3,2}, int64[1] all = {6}>
        { same = Reshape(x, swapped)  y = Tanh(x)  flat = Reshape(y, all) }
    """)
    made = program(model, tmp_path / "k.o")
    assert sum(isinstance(step, Copy) for step in made.calls) == 2
    _agrees(model)


def test_a_model_without_kernels_is_only_copies(tmp_path: Path) -> None:
    model = parse("""
        <ir_version: 9, opset_import: ["" : 17]>
        net (float[2,3] x) => (float[6] y) <int64[1] all = {6}> { y = Reshape(x, all) }
    """)
    made = program(model, tmp_path / "k.o")
    assert all(isinstance(step, Copy) for step in made.calls)
    assert made.objects == ()


def test_reshape_costs_nothing_between_kernels(tmp_path: Path) -> None:
    model = parse("""
        <ir_version: 9, opset_import: ["" : 17]>
        net (float[4,6] x) => (float[8,3] y)
        <int64[2] shape = {8,3}>
        { a = Softmax(x)  b = Reshape(a, shape)  y = Softmax(b) }
    """)
    made = program(model, tmp_path / "k.o")
    assert [type(step) for step in made.calls] == [KernelCall, KernelCall]
    _agrees(model)


@settings(max_examples=12, deadline=None)
@given(
    channels=st.sampled_from([1, 3, 4, 5, 7, 17]),
    outputs=st.sampled_from([1, 2, 4, 5, 8, 17]),
    size=st.sampled_from([5, 7, 8, 14, 16]),
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.sampled_from([1, 2]),
    dilation=st.sampled_from([1, 2]),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    batch=st.sampled_from([1, 2]),
    depthwise=st.booleans(),
)
def test_convolutions_of_any_shape_equal_onnxruntime(
    channels: int, outputs: int, size: int, kernel: int, stride: int, dilation: int,
    pads: tuple[int, ...], batch: int, depthwise: bool,
) -> None:  # fmt: skip
    extent = dilation * (kernel - 1) + 1
    if size + min(pads[0] + pads[2], pads[1] + pads[3]) < extent:
        return
    height = (size + pads[0] + pads[2] - extent) // stride + 1
    width = (size + pads[1] + pads[3] - extent) // stride + 1
    group = channels if depthwise else 1
    made = channels * max(1, outputs // channels) if depthwise else outputs
    count = made * (channels // group) * kernel * kernel
    weights = ",".join(f"{v:.3f}" for v in np.random.default_rng(count).normal(size=count))
    model = parse(f"""
        <ir_version: 9, opset_import: ["" : 17]>
        net (float[{batch},{channels},{size},{size}] x) => (float[{batch},{made},{height},{width}] y)
        <float[{made},{channels // group},{kernel},{kernel}] w = {{{weights}}}>
        {{ a = Conv<group={group}, strides=[{stride},{stride}], dilations=[{dilation},{dilation}],
                    pads=[{",".join(map(str, pads))}]>(x, w)  y = Relu(a) }}
    """)
    _agrees(model)


@settings(max_examples=8, deadline=None)
@given(shape=st.lists(st.sampled_from([1, 2, 3, 5, 7, 16, 17]), min_size=2, max_size=4), data=st.data())
def test_the_schedule_changes_no_result_of_reductions(shape: list[int], data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, len(shape) - 1))
    operator = data.draw(st.sampled_from(["ReduceMax", "ReduceMean", "ReduceL2", "ReduceLogSumExp"]))
    dims = ",".join(map(str, shape))
    model = parse(
        f"""
        <ir_version: 9, opset_import: ["" : 17]>
        net (float[{dims}] x) => (float[{dims}] y)
        {{ a = {operator}<axes=[{axis}]>(x)  b = Sub(x, a)  y = Sigmoid(b) }}
    """
    )
    _agrees(model)
    _agrees(model, scheduled=False)


def test_a_refusal_lists_every_node_with_its_operator() -> None:
    model = parse("""
        <ir_version: 9, opset_import: ["" : 17]>
        net (float[2,3] x) => (float[2,3] y)
        { [first] a = RandomNormalLike(x)  [second] b = RandomNormalLike(a)  y = Add(a, b) }
    """)
    with pytest.raises(UnsupportedError) as refused:
        import_model(model)
    assert "RandomNormalLike 'first'" in str(refused.value)
    assert "RandomNormalLike 'second'" in str(refused.value)
    assert [name for _, name, _ in TvmBackend().unsupported(model)] == ["first", "second"]


def test_an_unbound_dimension_is_refused_with_its_value() -> None:
    model = parse("""
        <ir_version: 9, opset_import: ["" : 17]>
        net (float[n,3] x) => (float[n,3] y) { y = Relu(x) }
    """)
    with pytest.raises(UnsupportedError, match="value 'x' has shape"):
        import_model(model)


def test_a_custom_operator_is_refused_where_it_must_be_computed() -> None:
    model = parse("""
        <ir_version: 9, opset_import: ["" : 17, "acme" : 1]>
        net (float[2,3] x) => (float[2,3] y) { [mine] y = acme.Blend(x) }
    """)
    with pytest.raises(UnsupportedError, match=r"acme::Blend"):
        import_model(model)
