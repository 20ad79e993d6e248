"""Calibration: inner tensors of the float model, in groups of bounded size, the same whatever the groups are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx.parser
import onnx_ir as ir
import pytest

import graphopt.ir as graph_ir
from graphopt.analysis import calibration
from graphopt.analysis.samples import Samples, load_samples
from graphopt.errors import DataError

MODEL = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1,4] x) => (float[1,4] y) { a = Relu(x)  b = Neg(x)  y = Add(a, b) }"""


def loaded() -> ir.Model:
    model = graph_ir.load(onnx.parser.parse_model(MODEL))
    graph_ir.refresh_shapes(model)
    return model


def samples(count: int) -> Samples:
    return Samples({"x": np.arange(4 * count, dtype=np.float32).reshape(count, 4) - 6}, {"x": 1})


def ignore(done: int, total: int, what: str) -> None:
    pass


def test_histograms_hold_every_sample_of_inputs_and_inner_values() -> None:
    model = loaded()
    found = calibration.histograms(model, ["x", "a", "b"], samples(3), ignore)
    assert list(found) == ["x", "a", "b"]
    assert [(h.low, h.high, h.total) for h in found.values()] == [(-6, 5, 12), (0, 5, 12), (-5, 6, 12)]


def test_groups_bound_what_is_kept_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded()
    names = ["x", "a", "b", "y"]
    whole = calibration.histograms(model, names, samples(3), ignore)
    monkeypatch.setattr(calibration, "GROUP_BYTES", 64)
    kept: list[int] = []

    def receive(tensors: Any) -> None:
        kept.append(sum(array.nbytes for array in tensors.values()))

    calibration.each_run(model, names, samples(3), receive, ignore)
    assert kept == [32] * 6
    split = calibration.histograms(model, names, samples(3), ignore)
    for name in names:
        np.testing.assert_array_equal(whole[name].counts, split[name].counts)


def test_a_tensor_larger_than_a_group_is_a_group_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded()
    monkeypatch.setattr(calibration, "GROUP_BYTES", 1)
    assert calibration.histograms(model, ["a", "b"], samples(1), ignore)["b"].total == 4


def test_progress_counts_every_run() -> None:
    model = loaded()
    seen: list[tuple[int, int]] = []
    calibration.histograms(model, ["a"], samples(2), lambda done, total, what: seen.append((done, total)))
    assert seen == [(0, 2), (1, 2), (2, 2)]


@pytest.mark.parametrize("at_once", [1, 2, 7])
def test_samples_arrive_in_order_however_many_are_computed_at_once(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "processors", lambda: at_once)
    firsts: list[float] = []
    calibration.each_run(loaded(), ["x"], samples(20), lambda tensors: firsts.append(tensors["x"][0, 0]), ignore)
    assert firsts == [4 * index - 6 for index in range(20)]


def test_no_more_samples_are_ahead_than_there_is_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample has 16 bytes: three of them and the one that is looked at fit into 64."""
    monkeypatch.setattr(calibration, "processors", lambda: 8)
    monkeypatch.setattr(calibration, "GROUP_BYTES", 64)
    read = []

    def source() -> Iterator[dict[str, Any]]:
        for index in range(20):
            read.append(index)
            yield {"x": np.full((1, 4), index, np.float32)}

    model = loaded()
    streamed = load_samples(source, model)
    read.clear()
    seen: list[int] = []
    calibration.each_run(model, ["x"], streamed, lambda tensors: seen.append(len(read) - len(seen)), ignore)
    assert len(seen) == 20 and max(seen) == 4


def test_a_sample_that_fails_ends_the_run_with_its_error() -> None:
    def source() -> Iterator[dict[str, Any]]:
        yield from ({"x": np.full((1, 4), index, np.float32)} for index in range(3))
        if fail:
            raise ValueError("gone")

    fail = False
    model = loaded()
    streamed = load_samples(source, model)
    fail = True
    with pytest.raises(DataError, match="raises ValueError: gone"):
        calibration.histograms(model, ["a"], streamed, ignore)


def test_an_interrupt_passes_through() -> None:
    def interrupt(done: int, total: int, what: str) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibration.histograms(loaded(), ["a"], samples(50), interrupt)


def test_no_sample_is_an_error() -> None:
    model = loaded()
    with pytest.raises(DataError, match="no calibration sample"):
        calibration.histograms(model, ["a"], samples(0), ignore)


def test_the_model_is_left_as_it_is() -> None:
    model = loaded()
    before = graph_ir.to_text(model)
    calibration.histograms(model, ["a", "b"], samples(1), ignore)
    assert graph_ir.to_text(model) == before
