"""Recurrences that begin with zeros say nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from graphopt.passes.cleanup.clean_up import CleanUp
from graphopt.passes.cleanup.eliminate_zero_states import EliminateZeroStates
from graphopt.pipeline.base import PassContext
from tests.passes.harness import Outcome, check, parse

HEAD = '<ir_version: 8, opset_import: ["" : 17]> '
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def weight(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def two_layers() -> Any:
    """As PyTorch exports them: one constant for all states."""
    return parse(
        HEAD + "g (float[5,1,3] x) => (float[5,1,1,2] y) { a = LSTM <hidden_size = 2> (x, w, r, , , z, z) "
        "b = Squeeze(a, one) y = LSTM <hidden_size = 2> (b, v, q, , , z, z) }",
        w=weight(1, 8, 3), r=weight(1, 8, 2, seed=1), v=weight(1, 8, 2, seed=2), q=weight(1, 8, 2, seed=3),
        z=np.zeros((1, 1, 2), np.float32), one=np.array([1]),
    )  # fmt: skip


def test_states_that_layers_share_golden(golden: Callable[[str, Outcome], None]) -> None:
    outcome = check(EliminateZeroStates(), two_layers())
    golden("shared", outcome)
    assert outcome.result.statistics == {"zero-states": 4} and "z" not in outcome.after.graph.initializers


@pytest.mark.parametrize("operator", GATES)
def test_the_state_of_each_recurrence_leaves_and_a_second_run_finds_none(operator: str) -> None:
    gates = GATES[operator]
    model = parse(
        HEAD + f"g (float[5,1,3] x) => (float[5,1,1,2] y) {{ y = {operator} <hidden_size = 2> (x, w, r, b, , z) }}",
        w=weight(1, 2 * gates, 3), r=weight(1, 2 * gates, 2, seed=1), b=weight(1, 4 * gates, seed=2),
        z=np.zeros((1, 1, 2), np.float32),
    )  # fmt: skip
    outcome = check(EliminateZeroStates(), model)
    assert len(outcome.after.graph[0].inputs) == 4
    assert not EliminateZeroStates().run(outcome.after, PassContext()).changed


@pytest.mark.parametrize("state", [np.float32([[[0, 1e-30]]]), None])
def test_other_states_stay(state: np.ndarray[Any, Any] | None) -> None:
    given = ", float[1,1,2] z" if state is None else ""
    constants = {} if state is None else {"z": state}
    model = parse(
        HEAD + f"g (float[5,1,3] x{given}) => (float[5,1,1,2] y) {{ y = RNN <hidden_size = 2> (x, w, r, , , z) }}",
        w=weight(1, 2, 3), r=weight(1, 2, 2, seed=1), **constants,
    )  # fmt: skip
    check(EliminateZeroStates(), model, changes=False)


def test_a_cell_that_is_not_zero_keeps_its_place() -> None:
    model = parse(
        HEAD + "g (float[5,1,3] x) => (float[5,1,1,2] y) { y = LSTM <hidden_size = 2> (x, w, r, , , z, c) }",
        w=weight(1, 8, 3), r=weight(1, 8, 2, seed=1), z=np.zeros((1, 1, 2), np.float32), c=weight(1, 1, 2),
    )  # fmt: skip
    node = check(EliminateZeroStates(), model).after.graph[0]
    assert node.inputs[5] is None and node.inputs[6] is not None


def test_clean_up_runs_it() -> None:
    assert "z" not in check(CleanUp(), two_layers()).after.graph.initializers
