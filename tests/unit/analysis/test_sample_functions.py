"""Samples from Python functions: found by name, called for each pass, and held to what they yielded first."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graphopt.analysis.samples import load_samples
from graphopt.errors import DataError

from .test_execution import parse

MODEL = "g (float[1,3] x) => (float[1,3] y) { y = Neg(x) }"
X = np.arange(12, dtype=np.float32).reshape(4, 3)

SOURCE = """
from __future__ import annotations
from dataclasses import dataclass
import numpy as np
from sibling import ROWS

@dataclass
class Setting:
    factor: float

def samples():
    for index in range(ROWS):
        yield {"x": np.full((1, 3), index * Setting(2.0).factor, np.float32)}

DATA = [1]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "calibration_source.py").write_text(SOURCE)
    (tmp_path / "sibling.py").write_text("ROWS = 5\n")
    monkeypatch.chdir(tmp_path)
    for name in ("calibration_source", "sibling"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.parametrize("text", ["calibration_source:samples", "FOLDER/calibration_source.py:samples"])
def test_a_function_is_found_by_module_and_by_file(folder: Path, text: str) -> None:
    before = list(sys.path)
    samples = load_samples(text.replace("FOLDER", str(folder)), parse(MODEL))
    assert [float(feeds["x"][0, 0]) for feeds in samples] == [0, 2, 4, 6, 8]
    assert sys.path == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("calibration_source:sample", "calibration_source defines no 'sample'\n  its functions are samples"),
        ("calibration_source:DATA", "is a list, expected a function that yields dicts"),
        ("no_such_module:samples", "No module named 'no_such_module'"),
        ("missing.py:samples", r"missing\.py: there is no such file"),
        ("broken.py:samples", r"importing it raises SyntaxError"),
        ("raising.py:samples", r"(?s)importing it raises RuntimeError: oops.*raising\.py, line 2"),
        ("data.npz", "there is no such file\n  expected an .npz or .npy file, a folder of them or of pictures"),
    ],
)
def test_a_function_that_cannot_be_found_is_an_error(folder: Path, text: str, message: str) -> None:
    (folder / "broken.py").write_text("def samples(:\n")
    (folder / "raising.py").write_text("import os\nraise RuntimeError('oops')\n")
    with pytest.raises(DataError, match=message):
        load_samples(text, parse(MODEL))


def test_each_pass_calls_the_function_and_makes_no_item_before_it_is_wanted() -> None:
    made: list[int] = []

    def source() -> Iterator[dict[str, Any]]:
        for index, row in enumerate(X):
            made.append(index)
            yield {"x": row[None]}

    samples = load_samples(source, parse(MODEL))
    for _ in range(2):
        made.clear()
        for count, feeds in enumerate(samples, 1):
            assert len(made) == count
            np.testing.assert_array_equal(feeds["x"], X[count - 1 : count])
    made.clear()
    assert len(list(samples.first(2))) == 2 and made == [0, 1]


def test_items_of_one_or_more_samples_in_any_accepted_shape() -> None:
    items = [X[0], X[1:2], X[2:4], X[:2, None]]
    samples = load_samples(lambda: ({"x": item} for item in items), parse(MODEL))
    expected = np.concatenate([X, X[:2]])
    assert len(samples) == 6
    np.testing.assert_array_equal(np.concatenate([feeds["x"] for feeds in samples]), expected)
    np.testing.assert_array_equal(np.concatenate([feeds["x"] for feeds in samples.first(3)]), expected[:3])
    part = samples.part(1, 4).part(2, 9)
    assert len(part) == 2 and len(samples.part(7, 2)) == 0
    np.testing.assert_array_equal(np.concatenate([feeds["x"] for feeds in part]), expected[3:5])
    np.testing.assert_array_equal(part[1]["x"], expected[4:5])
    for index in range(6):
        np.testing.assert_array_equal(samples[index]["x"], expected[index : index + 1])


def test_a_function_may_fill_the_same_array_again() -> None:
    def source() -> Iterator[dict[str, Any]]:
        buffer = np.empty((1, 3), np.float32)
        for row in X:
            buffer[:] = row
            yield {"x": buffer}

    np.testing.assert_array_equal(np.concatenate([f["x"] for f in load_samples(source, parse(MODEL))]), X)


def test_lists_of_numbers_are_arrays_too() -> None:
    samples = load_samples(lambda: [{"n": [1, 2]}], parse("g (int64[2] n) => (int64[2] y) { y = Neg(n) }"))
    assert samples[0]["n"].tolist() == [1, 2]


def test_a_generator_that_can_be_read_only_once_is_an_error() -> None:
    once = ({"x": row[None]} for row in X)
    with pytest.raises(DataError, match=r"yields 0 samples when it is called again, 4 the first time\n  data are read"):
        list(load_samples(lambda: once, parse(MODEL)))


@pytest.mark.parametrize("later", [3, 5])
def test_another_number_of_samples_at_a_later_call_is_an_error(later: int) -> None:
    counts = itertools.chain([4, 4], itertools.repeat(later))  # counting, looking for constants, and reading
    samples = load_samples(lambda: [{"x": X[:1] + index} for index in range(next(counts))], parse(MODEL))
    with pytest.raises(DataError, match=f"yields {later} samples when it is called again, 4 the first time"):
        list(samples)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "yields no sample"),
        ([X], "item 0 is a ndarray, expected a dict of arrays by the inputs' names"),
        ([{"x": X}, {"X": X}], "item 1: array 'X' is not an input of the model"),
        ([{"x": X}, {"x": X[:, :2]}], r"item 1: array 'x' has shape \[4, 2\], expected \[1,3\]"),
        ([{"x": X.astype(np.float64)}], "item 0: array 'x' has type float64, expected float32"),
        ([{"x": X}, {"x": X * np.float32("nan")}], "item 1: array 'x' holds NaN"),
        ([{"x": X[:0]}], "item 0: the arrays hold no sample"),
        ([{"x": [[1.0], [1.0, 2.0]]}], "item 0: array 'x' is no array: .*inhomogeneous"),
        ([{"x": [None]}], "item 0: array 'x' has .*expected"),
        (3, "raises TypeError: 'int' object is not iterable"),
    ],
)
def test_what_does_not_fit_is_an_error_that_names_the_item(items: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"function .*{message}"):
        load_samples(lambda: items, parse(MODEL))


def test_a_function_that_raises_is_an_error_with_its_line() -> None:
    def made() -> Iterator[dict[str, Any]]:
        yield {"x": X[:1]}
        raise OSError("the disk is gone")

    with pytest.raises(DataError, match="item 1 raises OSError: the disk is gone") as caught:
        load_samples(made, parse(MODEL))
    assert f"{Path(__file__).name}, line" in caught.value.where and "raise OSError" in caught.value.where
