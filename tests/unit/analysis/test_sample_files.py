"""Array files and folders of them: read row by row, checked whole, in the order of their paths."""

from __future__ import annotations

import io
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.analysis import sample_files
from graphopt.analysis.samples import Samples, load_samples
from graphopt.errors import DataError, ModelWarning

from .test_execution import parse

ONE = "g (float[1,3] x) => (float[1,3] y) { y = Neg(x) }"
TWO = "g (float[1,3] x, int64[1] n) => (float[1,3] y) { c = Cast<to=1>(n) y = Add(x, c) }"
X = np.arange(12, dtype=np.float32).reshape(4, 3)


def rows(samples: Samples, name: str = "x") -> Any:
    return np.concatenate([feeds[name] for feeds in samples])


def save(file: Path, array: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, array)
    return file


def test_an_npy_is_the_data_of_a_model_with_one_input(tmp_path: Path) -> None:
    samples = load_samples(save(tmp_path / "data.npy", X), parse(ONE))
    assert len(samples) == 4
    np.testing.assert_array_equal(rows(samples), X)
    np.testing.assert_array_equal(samples[2]["x"], X[2:3])
    np.testing.assert_array_equal(rows(samples.first(2)), X[:2])


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("array", [X, np.asfortranarray(X), X[::-1], X[:, None]])
def test_every_way_to_write_an_npz_is_read(tmp_path: Path, write: Callable[..., None], array: Any) -> None:
    write(tmp_path / "data.npz", x=array)
    samples = load_samples(tmp_path / "data.npz", parse(ONE))
    np.testing.assert_array_equal(rows(samples), array.reshape(4, 3))


@pytest.mark.parametrize("compressed", [False, True])
def test_memory_is_bounded_by_a_block_whatever_the_size_of_the_file(
    tmp_path: Path, compressed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample_files, "_UNPACKED_BYTES", 1 << 20)
    array = np.zeros((48, 1 << 18), np.float32)  # 48 MB
    array[0, 0] = 1
    (np.savez_compressed if compressed else np.savez)(tmp_path / "data.npz", x=array)
    del array
    model = parse("g (float[1,262144] x) => (float[1,262144] y) { y = Neg(x) }")
    tracemalloc.start()
    try:
        samples = load_samples(tmp_path / "data.npz", model)
        assert sum(float(feeds["x"].sum()) for feeds in samples) == 1
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20


def test_a_damaged_compressed_member_and_one_cut_short_are_errors(tmp_path: Path) -> None:
    file = tmp_path / "data.npz"
    np.savez_compressed(file, x=np.random.default_rng(0).random((400, 3), np.float32))
    content = bytearray(file.read_bytes())
    content[1000] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(DataError, match="array 'x' cannot be read"):
        load_samples(file, parse(ONE))
    short = save(tmp_path / "data.npy", X)
    short.write_bytes(short.read_bytes()[:-4])
    with pytest.raises(DataError, match="its header says 48 bytes, and 44 are there"):
        load_samples(short, parse(ONE))


def test_an_encrypted_or_unknown_member_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "data.npz"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x.npy", b"")
    content = bytearray(file.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"array 'x' cannot be read: .*encrypted"):
        load_samples(file, parse(ONE))


def test_a_file_that_shrinks_between_two_passes_is_an_error(tmp_path: Path) -> None:
    file = save(tmp_path / "data.npy", X)
    samples = load_samples(file, parse(ONE))
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match="became shorter"):
        list(samples)


@given(data=st.data(), kind=st.sampled_from(["npy", "stored", "deflated"]))
@settings(max_examples=100, deadline=None)
def test_a_damaged_file_ends_in_a_clear_error_or_in_data_that_fit(
    data: st.DataObject, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    buffer = io.BytesIO()
    if kind == "npy":
        np.save(buffer, X)
    else:
        (np.savez if kind == "stored" else np.savez_compressed)(buffer, x=X)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.mktemp("damaged") / "data"
    file.write_bytes(content[: data.draw(st.integers(1, len(content)))])
    with warnings.catch_warnings(action="ignore"):
        try:
            samples = load_samples(file, parse(ONE))
        except DataError as error:
            assert str(file) in error.what
        else:
            assert all(feeds["x"].shape == (1, 3) for feeds in samples)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("(4611686018427387904, 3)", "its header says 55340232221128654848 bytes, and 48 are there"),
        ("(18446744073709551616, 3)", "its header says"),
        ("(-4, 3)", r"has shape \[-4, 3\], expected sizes of 0 or more"),
        ("(4.0, 3)", "shape is not valid"),
        ("(0, 3)", "the arrays hold no sample"),
    ],
)
def test_a_header_of_an_impossible_shape_is_an_error(tmp_path: Path, shape: str, message: str) -> None:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(48)
    (tmp_path / "data.npy").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_samples(tmp_path / "data.npy", parse(ONE))


def test_no_pickle_is_loaded(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (pytest.fail, ("a pickle was loaded",))

    np.save(tmp_path / "data.npy", np.array([Trap()], object), allow_pickle=True)
    with pytest.raises(DataError, match="holds Python objects"):
        load_samples(tmp_path / "data.npy", parse(ONE))
    np.savez_compressed(tmp_path / "data.npz", x=np.array([Trap()], object))
    with pytest.raises(DataError, match="holds Python objects"):
        load_samples(tmp_path / "data.npz", parse(ONE))


@pytest.mark.parametrize(
    ("shape", "array", "sample"),
    [
        ("1,3", (3,), (1, 3)),
        ("N,3", (3,), (1, 3)),
        ("1,2,3", (2, 3), (1, 2, 3)),
        ("1", (), (1,)),
        ("", (), ()),
    ],
)
def test_an_array_without_the_batch_axis_is_one_sample(
    tmp_path: Path, shape: str, array: tuple[int, ...], sample: tuple[int, ...]
) -> None:
    model = parse(f"g (float{f'[{shape}]' if shape else ''} x) => (float y) {{ y = ReduceMax<keepdims=0>(x) }}")
    samples = load_samples(save(tmp_path / "a.npy", np.ones(array, np.float32)), model)
    assert [feeds["x"].shape for feeds in samples] == [sample]


def test_a_fixed_batch_is_not_left_out(tmp_path: Path) -> None:
    model = parse("g (float[2,3] x) => (float[2,3] y) { y = Neg(x) }")
    with pytest.raises(DataError, match=r"has shape \[3\], expected \[2,3\] with"):
        load_samples(save(tmp_path / "a.npy", X[0]), model)


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    for index, name in ((3, "b/0.npy"), (0, "a.npy"), (2, "b.npy"), (1, "a/9.npy")):
        save(tmp_path / name, X[index])
    save(tmp_path / ".hidden.npy", X[0, :2])
    samples = load_samples(tmp_path, parse(ONE))
    assert rows(samples)[:, 0].tolist() == [0, 3, 6, 9]


@given(counts=st.lists(st.integers(1, 4), min_size=1, max_size=5), data=st.data())
@settings(max_examples=25, deadline=None)
def test_files_of_any_number_of_samples_are_joined(
    counts: list[int], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("data")
    whole = np.arange(3 * sum(counts), dtype=np.float32).reshape(-1, 3)
    for index, part in enumerate(np.split(whole, np.cumsum(counts)[:-1])):
        np.savez(folder / f"{index}.npz", x=part)
    with warnings.catch_warnings(action="ignore"):
        samples = load_samples(folder, parse(ONE))
    assert len(samples) == len(whole)
    np.testing.assert_array_equal(rows(samples), whole)
    index = data.draw(st.integers(0, len(whole) - 1))
    np.testing.assert_array_equal(samples[index]["x"], whole[index : index + 1])
    np.testing.assert_array_equal(rows(samples.first(index + 1)), whole[: index + 1])


def test_several_inputs_come_in_one_npz_a_sample_or_in_a_folder_each(tmp_path: Path) -> None:
    model = parse(TWO)
    for index in range(4):
        (tmp_path / "together").mkdir(exist_ok=True)
        np.savez(tmp_path / "together" / f"{index}.npz", x=X[index], n=np.array(index))
        save(tmp_path / "apart" / "x" / f"{index}.npy", X[index])
        save(tmp_path / "apart" / "n" / f"{index}.npy", np.array([index]))
    for name in ("together", "apart"):
        samples = load_samples(tmp_path / name, model)
        assert len(samples) == 4
        np.testing.assert_array_equal(rows(samples), X)
        np.testing.assert_array_equal(rows(samples, "n"), range(4))
        assert samples[3]["n"].tolist() == [3] and samples[3]["x"].tolist() == [[9, 10, 11]]
    (tmp_path / "apart" / "n" / "3.npy").unlink()
    with pytest.raises(DataError, match=r"different numbers of samples: \{'x': 4, 'n': 3\}"):
        load_samples(tmp_path / "apart", model)
    for file in (tmp_path / "apart" / "n").iterdir():
        file.unlink()
    (tmp_path / "apart" / "n").rmdir()
    with pytest.raises(DataError, match="has folders for the inputs 'x', and none for 'n'"):
        load_samples(tmp_path / "apart", model)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (X[:, :2], r"b\.npy: array 'x' has shape \[4, 2\]"),
        (X.astype(np.float64), r"b\.npy: array 'x' has type float64, expected float32"),
        (np.where(X == 4, np.nan, X), r"b\.npy: array 'x' holds NaN, first at index 1 of its first axis"),
        (X[:0], r"b\.npy: the arrays hold no sample"),
    ],
)
def test_a_file_of_a_folder_that_does_not_fit_is_named(tmp_path: Path, array: Any, message: str) -> None:
    save(tmp_path / "a.npy", X)
    save(tmp_path / "b.npy", array)
    with pytest.raises(DataError, match=message):
        load_samples(tmp_path, parse(ONE))


def test_other_files_are_left_out_with_a_warning_and_pictures_are_not_mixed_in(tmp_path: Path) -> None:
    save(tmp_path / "a.npy", X)
    (tmp_path / "labels.csv").write_text("cat\n")
    with pytest.warns(ModelWarning, match=r"1 files that hold no samples: labels\.csv"):
        assert len(load_samples(tmp_path, parse(ONE))) == 4
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds array files and pictures: a\.npy, a\.png"):
        load_samples(tmp_path, parse(ONE))


@pytest.mark.parametrize(
    ("x", "n", "messages"),
    [
        (np.ones((3, 3)), [1, 1, 1], ["all 3 samples are the same", "input 'x' is 1.0 in every sample"]),
        (np.tile([1, 2, 3], (3, 1)), [5, 5, 5], ["all 3 samples are the same"]),
        (np.ones((3, 3)), [1, 2, 3], ["input 'x' is 1.0 in every sample"]),
        (X[:3], [7, 7, 7], []),  # an integer that never changes, such as a sampling rate, is common
        (np.ones((1, 3)), [1], []),
    ],
)
def test_samples_that_are_all_the_same_are_warned_of(tmp_path: Path, x: Any, n: list[int], messages: list[str]) -> None:
    np.savez(tmp_path / "data.npz", x=np.asarray(x, np.float32), n=np.array(n))
    with warnings.catch_warnings(record=True, action="always") as caught:
        load_samples(tmp_path / "data.npz", parse(TWO))
    assert [str(warning.message).partition(": ")[2] for warning in caught] == messages
    assert all(warning.category is ModelWarning for warning in caught)


def test_a_model_without_inputs_takes_no_data(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=X)
    model = parse("g () => (float y) { y = Constant<value_float=1.0>() }")
    with pytest.raises(DataError, match="array 'x' is not an input of the model\n  the model's inputs are none"):
        load_samples(tmp_path / "data.npz", model)
