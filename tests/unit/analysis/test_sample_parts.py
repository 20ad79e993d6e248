"""Parts of samples: others judge than are fitted to, of all classes, in whatever order these stand in the data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.analysis.sample_parts import parted, spread
from graphopt.analysis.samples import Samples, load_samples
from graphopt.errors import DataError

from .test_execution import parse

MODEL = "g (float[1,2] x) => (float[1,2] y) { y = Relu(x) }"
X = np.arange(80, dtype=np.float32).reshape(40, 2)


def stacked(count: int) -> Samples:
    return Samples({"x": np.arange(count)}, {"x": 0})


@given(total=st.integers(0, 3000), count=st.integers(0, 3000))
@settings(max_examples=200, deadline=None)
def test_places_rise_and_no_stretch_is_left_out(total: int, count: int) -> None:
    places = spread(total, count)
    assert len(places) == min(total, count) and np.all(np.diff(places) > 0)
    if len(places):
        assert places[0] >= 0 and places[-1] < total
        assert np.diff(np.r_[-1, places, total]).max() <= 2 * -(-total // len(places))


@given(total=st.integers(0, 300), fitting=st.integers(0, 300), apart=st.integers(0, 300))
@settings(max_examples=100, deadline=None)
def test_no_sample_is_in_both_parts(total: int, fitting: int, apart: int) -> None:
    parts = parted(stacked(total), fitting, apart)
    assert not set(parts.fitting_places) & set(parts.apart_places)
    assert len(parts.fitting_places) + len(parts.apart_places) == min(total, fitting + apart)
    assert [int(feeds["x"]) for feeds in parts.apart] == parts.apart_places.tolist()
    assert [int(feeds["x"]) for feeds in parts.fitting] == parts.fitting_places.tolist()


@pytest.mark.parametrize("order", [np.repeat, np.tile])  # a class after the other, and classes that take turns
@pytest.mark.parametrize(
    ("count", "classes", "fitting", "apart"), [(2000, 10, 1024, 32), (100, 10, 80, 20), (114, 23, 91, 23)]
)
def test_both_parts_are_of_nearly_all_classes_in_any_order(
    order: object, count: int, classes: int, fitting: int, apart: int
) -> None:
    each = -(-count // classes)
    labels = np.repeat(np.arange(classes), each) if order is np.repeat else np.tile(np.arange(classes), each)
    parts = parted(stacked(count), fitting, apart, labels[:count])
    assert parts.fitting_labels is not None and parts.apart_labels is not None
    assert len(set(parts.fitting_labels)) == classes
    whole = order is np.repeat and apart > classes
    assert len(set(parts.apart_labels)) >= (classes if whole else 0.6 * classes)
    np.testing.assert_array_equal(parts.apart_labels, labels[parts.apart_places])


def test_labels_of_samples_that_are_batches_are_those_of_all_their_rows() -> None:
    parts = parted(stacked(5), 4, 1, np.arange(10))
    (place,) = parts.apart_places
    assert parts.apart_labels is not None and parts.apart_labels.tolist() == [2 * place, 2 * place + 1]
    with pytest.raises(DataError, match="there are 9 labels for 5 samples"):
        parted(stacked(5), 4, 1, np.arange(9)).apart_labels  # noqa: B018


def sources(folder: Path, model: ir.Model) -> Iterator[Samples]:
    """The same 40 samples in an array, a file, a folder of files, and from a function in one item or in many."""
    yield Samples({"x": X}, {"x": 1})
    np.save(folder / "whole.npy", X)
    yield load_samples(folder / "whole.npy", model)
    (folder / "parts").mkdir()
    for number, part in enumerate(np.split(X, [3, 4, 20])):
        np.save(folder / "parts" / f"{number}.npy", part)
    yield load_samples(folder / "parts", model)
    yield load_samples(lambda: iter([{"x": X}]), model)
    yield load_samples(lambda: ({"x": part} for part in np.split(X, [3, 4, 20])), model)


def test_samples_at_places_are_the_same_whatever_they_are_read_from(tmp_path: Path) -> None:
    for places in ([0, 3, 4, 19, 39], [5], [], list(range(7, 31))):
        for number, samples in enumerate(sources(tmp_path_of(tmp_path, places), parse(MODEL))):
            some = samples.at(places)
            for each in (some, some.in_memory(1 << 20), some.in_memory(0)):
                assert len(each) == len(places), number
                np.testing.assert_array_equal(np.reshape([feeds["x"] for feeds in each], (-1, 2)), X[places])
            np.testing.assert_array_equal(
                np.reshape([feeds["x"] for feeds in some.part(1, 2)], (-1, 2)), X[places[1:3]]
            )


def tmp_path_of(folder: Path, places: list[int]) -> Path:
    made = folder / f"{len(places)}"
    made.mkdir()
    return made


def test_a_function_is_not_called_again_for_samples_in_memory() -> None:
    calls = []

    def source() -> Iterator[dict[str, np.ndarray]]:  # type: ignore[type-arg]
        calls.append(1)
        return ({"x": row[None]} for row in X)

    some = load_samples(source, parse(MODEL)).at([1, 30])
    kept = some.in_memory(16)
    calls.clear()
    assert [feeds["x"][0, 0] for _ in range(3) for feeds in kept] == [2, 60] * 3 and not calls
    assert some.in_memory(15) is some
