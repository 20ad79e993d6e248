"""Samples: what an .npz may hold, how it is cut into runs, and what is said of files that do not fit."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from graphopt.analysis.execution import Session
from graphopt.analysis.samples import Samples, load_samples, probe_samples
from graphopt.errors import DataError

from .test_execution import parse

IMAGE = "g (float[N,3] x, int64 n) => (float[N,3] y) { c = Cast<to=1>(n) y = Add(x, c) }"
X = np.arange(12, dtype=np.float32).reshape(4, 3)
N = np.arange(4)


def write(folder: Path, **arrays: Any) -> Path:
    file = folder / "data.npz"
    np.savez(file, **arrays)
    return file


def test_samples_are_stacked_on_the_batch_axis_or_on_a_new_first_axis(tmp_path: Path) -> None:
    samples = load_samples(write(tmp_path, x=X, n=N), parse(IMAGE))
    assert len(samples) == 4
    feeds = list(samples)
    assert [feed["x"].shape for feed in feeds] == [(1, 3)] * 4
    assert [feed["n"].shape for feed in feeds] == [()] * 4
    assert feeds[2]["x"].tolist() == [[6, 7, 8]] and feeds[2]["n"] == 2
    assert len(samples.first(2)) == 2 and len(samples.first(9)) == 4
    with pytest.raises(IndexError, match="sample 4 of 4"):
        samples[4]


@pytest.mark.parametrize(
    ("shape", "array", "count", "sample"),
    [
        ("1,3", (5, 3), 5, (1, 3)),  # a batch of one
        ("N,3", (5, 3), 5, (1, 3)),  # an unknown batch
        ("N,3", (5, 1, 3), 5, (1, 3)),  # a new first axis before the batch axis
        ("N,3", (5, 2, 3), 5, (2, 3)),
        ("2,3", (6, 3), 3, (2, 3)),  # a fixed larger batch
        ("2,3", (5, 2, 3), 5, (2, 3)),
        ("3", (5, 3), 5, (3,)),  # no batch axis
        ("3", (3,), 1, (3,)),  # one sample
        ("N,T", (5, 7), 5, (1, 7)),  # another unknown dimension
    ],
)
def test_every_way_to_stack_is_cut_right(
    tmp_path: Path, shape: str, array: tuple[int, ...], count: int, sample: tuple[int, ...]
) -> None:
    model = parse(f"g (float[{shape}] x) => (float[{shape}] y) {{ y = Neg(x) }}")
    data = np.random.default_rng(0).standard_normal(array).astype(np.float32)
    samples = load_samples(write(tmp_path, x=data), model)
    feeds = list(samples)
    assert len(samples) == len(feeds) == count
    assert all(feed["x"].shape == sample for feed in feeds)
    np.testing.assert_array_equal(np.concatenate([feed["x"].ravel() for feed in feeds]), data.ravel())


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, "there is no array for input 'n'\n  the model's inputs are 'x', 'n'"),
        ({"x": X, "n": N, "xx": X}, "array 'xx' is not an input of the model\n  did you mean 'x'? the model's inputs"),
        (
            {"x": X.astype(np.float64), "n": N},
            "array 'x' has type float64, expected float32\n  convert it with .astype(",
        ),
        ({"x": X[:, :2], "n": N}, "array 'x' has shape [4, 2], expected [N,3] with the samples stacked"),
        ({"x": X[None, None], "n": N}, "array 'x' has shape [1, 1, 4, 3], expected [N,3]"),
        ({"x": X, "n": N[0]}, "the arrays hold different numbers of samples: {'x': 4, 'n': 1}"),
        ({"x": X, "n": N[:3]}, "the arrays hold different numbers of samples: {'x': 4, 'n': 3}"),
        ({"x": X[:0], "n": N[:0]}, "the arrays hold no sample"),
        ({"x": np.where(X == 7, np.nan, X).astype(np.float32), "n": N}, "array 'x' holds NaN, first at index 2 of its"),
        ({"x": X.astype(object), "n": N}, "array 'x' holds Python objects\n  arrays of Python objects are not read"),
        ({}, "there is no array for input 'x'"),
    ],
)
def test_data_that_does_not_fit_is_an_error_that_names_the_array(
    tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError) as caught:
        load_samples(write(tmp_path, **arrays), parse(IMAGE))
    assert message in str(caught.value)
    assert "data.npz" in caught.value.what


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def archive(member: bytes) -> bytes:
    """An archive as numpy writes it, whose only member holds any bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("x.npy", member)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is neither an .npz nor an .npy file\n  write it with numpy.savez"),
        (b"x,n\n1,2\n", "is neither an .npz nor an .npy file"),
        (npz(x=X, n=N)[:200], "is neither an .npz nor an .npy file"),
        (npy(X), "holds one array, and the model has 2 inputs\n  write an .npz file with an array for each: 'x', 'n'"),
        (archive(b"1,2,3"), "array 'x' is not a numpy array"),
        (archive(npy(X).replace(b"(4, 3)", b"(9, 9)")), "array 'x' cannot be read"),
        (npz(x=X, n=N).replace(b"NUMPY", b"NUMPI"), "array 'x' cannot be read: Bad CRC-32"),
    ],
)
def test_a_file_that_is_no_npz_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "data.npz"
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_samples(file, parse(IMAGE))
    assert message in str(caught.value)


def test_a_missing_file_and_a_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        load_samples(tmp_path / "none.npz", parse(IMAGE))
    with pytest.raises(DataError, match="holds nothing to read"):
        load_samples(tmp_path, parse(IMAGE))


def test_a_fixed_batch_must_divide_the_rows(tmp_path: Path) -> None:
    model = parse("g (float[2,3] x) => (float[2,3] y) { y = Neg(x) }")
    with pytest.raises(DataError, match=r"shape \[5, 3\], expected \[2,3\]"):
        load_samples(write(tmp_path, x=np.zeros((5, 3), np.float32)), model)


def test_infinity_strings_and_bfloat16_are_data(tmp_path: Path) -> None:
    model = parse("g (float[1] x, string[1] s, bfloat16[1] b) => (string[1] t) { t = Identity(s) }")
    x = np.array([np.inf], np.float32)
    samples = load_samples(write(tmp_path, x=x, s=np.array(["a"]), b=np.array([1.5], np.float32)), model)
    assert samples[0]["b"].dtype == ml_dtypes.bfloat16
    assert Session(model).run(samples[0])["t"].tolist() == ["a"]


def probe(text: str, count: int = 16, **weights: Any) -> tuple[Samples, ir.Model]:
    model = parse(text, **weights)
    return probe_samples(model, 0, count), model


def stacked(samples: Samples, name: str) -> Any:
    return np.stack([feeds[name] for feeds in samples])


def run_all(samples: Samples, model: ir.Model) -> list[dict[str, Any]]:
    with Session(model) as session:
        return [session.run(feeds) for feeds in samples]


def test_probes_depend_on_the_seed_and_the_input_alone() -> None:
    first, _ = probe("g (float[N,3] x, float[2] z) => (float[N,3] y) { y = Neg(x) }", 2)
    again, _ = probe("g (float[2] z, float[N,3] x) => (float[N,3] y) { y = Neg(x) }", 2)
    assert stacked(first, "x").shape == (2, 1, 3)
    for name in ("x", "z"):
        np.testing.assert_array_equal(stacked(first, name), stacked(again, name))
    other = probe_samples(parse("g (float[N,3] x) => (float[N,3] y) { y = Neg(x) }"), 1, 2)
    assert (stacked(other, "x") != stacked(first, "x")).any()


@pytest.mark.parametrize(
    "name",
    ["float", "double", "float16", "bfloat16", "int8", "uint8", "int32", "int64", "uint64", "bool", "string"],
)
def test_every_type_can_be_probed_and_run(name: str) -> None:
    samples, model = probe(f"g ({name}[2,3] x) => ({name}[2,3] y) {{ y = Identity(x) }}", 3)
    found = run_all(samples, model)
    assert len(found) == 3 and all(run["y"].shape == (2, 3) for run in found)
    assert len(np.unique(stacked(samples, "x"))) > 1


TABLE = np.arange(10, dtype=np.float32).reshape(5, 2)


@pytest.mark.parametrize(
    "body",
    [
        "y = Gather(w, x)",
        "c = Cast<to=6>(x) y = Gather(w, c)",
        "a = Constant<value_ints=[2,3]>() r = Reshape(x, a) t = Transpose(r) y = Gather(w, t)",
        "y = Gather<axis=1>(v, x)",
        "o = Constant<value_ints=[3,2]>() r = Reshape(x, o) y = GatherElements<axis=0>(w, r)",
        "o = Constant<value_ints=[6,1]>() r = Reshape(x, o) y = GatherND(w, r)",
        "d = Constant<value_int=5>() o = Constant<value_floats=[0.0,1.0]>() y = OneHot(x, d, o)",
    ],
)
def test_an_integer_that_indexes_stays_below_the_size_of_what_it_indexes(body: str) -> None:
    weights = {name: array for name, array in (("w", TABLE), ("v", TABLE.T.copy())) if f"({name}," in body}
    samples, model = probe(f"g (int64[6] x) => (float[A] y) {{ {body} }}".replace("[A]", ""), 8, **weights)
    values = stacked(samples, "x")
    assert values.min() == 0 and values.max() in (1, 4)  # GatherND's and GatherElements' smaller axis may bound it
    run_all(samples, model)


def test_a_float_that_becomes_an_index_is_bounded_too() -> None:
    samples, model = probe("g (float[6] x) => (float[6,2] y) { c = Cast<to=7>(x) y = Gather(w, c) }", 8, w=TABLE)
    assert set(np.unique(stacked(samples, "x"))) == {0, 1, 2, 3, 4}
    run_all(samples, model)


def test_a_sequence_length_is_the_whole_sequence() -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((1, 8, 2)).astype(np.float32) for name in ("w", "r")}
    samples, model = probe(
        "g (float[7,1,2] x, int32[1] n) => (float[7,1,1,2] y) { y = LSTM<hidden_size=2>(x, w, r, , n) }", 2, **weights
    )
    assert stacked(samples, "n").tolist() == [[7], [7]]
    run_all(samples, model)


def test_a_switch_takes_a_value_that_the_model_compares_it_with() -> None:
    rate = np.array(16000)
    samples, _ = probe("g (int64 sr) => (bool y) { y = Equal(sr, r) }", 2, r=rate)
    assert stacked(samples, "sr").tolist() == [16000, 16000]


def test_an_integer_without_a_use_that_bounds_it_is_a_mask() -> None:
    samples, _ = probe("g (int64[99] x) => (float[99] y) { y = Cast<to=1>(x) }")
    assert set(np.unique(stacked(samples, "x"))) == {0, 1}


def test_what_cannot_be_made_up_is_an_error() -> None:
    with pytest.raises(DataError, match="input 's' is not a tensor"):
        probe("g (seq(float[1]) s) => (int64 y) { y = SequenceLength(s) }")
