"""The proof of the analysis of channels: what contributes nothing can leave, and nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import graphopt.ir as graph_ir
from graphopt.analysis.channels import Channels, Role, channels
from graphopt.analysis.execution import Session
from graphopt.passes.prune.budget import Budget, Saving
from graphopt.passes.prune.surgery import remove_units
from tests.passes.harness import parse
from tests.passes.prune.random_networks import pictures, sequences


def silence(found: Channels, gone: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> None:
    """Make the units contribute exactly zero: the weights that sum over them are 0 there."""
    for group in found.groups:
        for slot in group.weights(Role.IN):
            tensor = slot.value.const_value
            units = found.units_of(slot.value, slot.axis)
            assert tensor is not None and units is not None
            array = np.moveaxis(tensor.numpy().copy(), slot.axis, 0)
            array[gone[units]] = 0
            slot.value.const_value = ir.Tensor(np.moveaxis(array, 0, slot.axis), name=slot.value.name)


def choose(found: Channels, rng: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Some units that may go, but never all of an axis."""
    gone = np.zeros(found.count, bool)
    for group in found.groups:
        if not group.protection:
            gone[group.units[rng.random(group.width) < 0.5]] = True
    for axes in found.axes.values():
        for units in axes.values():
            if gone[units].all():
                gone[units[0]] = False
    return gone


def run(model: ir.Model, x: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> dict[str, np.ndarray[Any, Any]]:
    with Session(model) as session:
        return session.run({"x": x})


def protected(text: str) -> dict[str, tuple[str, ...]]:
    """What protects the channels of each layer: w0 makes 6 of 3, w1 makes 2 of those."""
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in _WEIGHTS.items()}
    model = parse('<ir_version: 8, opset_import: ["" : 17]> ' + text, zero=np.array(0, np.int64), **weights)
    graph_ir.refresh_shapes(model)
    return {group.name: group.protection for group in channels(model.graph).groups}


_WEIGHTS = {"w0": (6, 3, 1, 1), "w1": (2, 6, 1, 1)}


@pytest.mark.parametrize(
    ("stretch", "free"), [("", True), ("start = 1", False), ("start = -3, end = -2", False), ("start = 2", True)]
)
def test_a_shape_that_counts_channels_protects_them_wherever_it_starts(stretch: str, free: bool) -> None:
    reasons = protected(
        f"""g (float[1,3,4,4] x) => (float[1,2,4,4] y) {{
            a = Conv(x, w0) s = Shape <{stretch}> (a) c = Gather <axis = 0> (s, zero) f = Cast <to = 1> (c)
            b = Conv(a, w1) y = Mul(b, f) }}""".replace("<>", "")
    )
    assert reasons["conv_0"] == (() if free else ("Shape 'shape_1' computes across axis 1",))


def test_a_mask_that_is_an_output_protects_what_it_masks() -> None:
    reasons = protected(
        """g (float[1,3,4,4] x) => (float[1,2,4,4] y, bool[1,6,4,4] k) {
            a = Conv(x, w0) d, k = Dropout(a) y = Conv(d, w1) }"""
    )
    assert reasons["conv_0"] == ("Dropout 'dropout_1' computes across axis 1",)


def check(model: ir.Model, seed: int) -> None:
    rng = np.random.default_rng(seed)
    found = channels(model.graph)
    gone = choose(found, rng)
    silence(found, gone)
    shape = [int(size) for size in model.graph.inputs[0].shape or ()]
    x = rng.standard_normal(shape).astype(np.float32)
    expected = run(model, x)
    promised = {saving: Budget(model, found, saving).left(~gone) for saving in Saving}
    remove_units(model.graph, found, gone)
    graph_ir.refresh_shapes(model)
    graph_ir.verify(model)
    again = channels(model.graph)
    assert promised == pytest.approx({saving: Budget(model, again, saving).total for saving in Saving})
    for name, array in run(model, x).items():
        largest = max(1.0, float(np.abs(expected[name]).max()))
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-5 * largest, err_msg=name)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(model=pictures(), seed=st.integers(0, 2**32 - 1))
def test_channels_that_contribute_nothing_can_leave_a_convolutional_network(model: ir.Model, seed: int) -> None:
    check(model, seed)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(model=sequences(), seed=st.integers(0, 2**32 - 1))
def test_channels_that_contribute_nothing_can_leave_a_network_of_sequences(model: ir.Model, seed: int) -> None:
    check(model, seed)


@pytest.mark.long
@pytest.mark.timeout(3600)
@settings(max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck))
@given(model=st.one_of(pictures(), sequences()), seed=st.integers(0, 2**32 - 1))
def test_thousands_of_networks(model: ir.Model, seed: int) -> None:
    check(model, seed)
