"""The scores of the quantization benchmark on cases that are worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.quantization_data import UNKNOWN, Data
from tests.benchmarks.quantization_detection import average_precision, fastestdet, in_common, overlaps
from tests.benchmarks.quantization_metrics import cross_entropy, mean_overlap, psnr, same_class, same_side, sound_snr
from tests.benchmarks.quantization_rows import Row, append, read, table

LEFT, RIGHT = [0.0, 0.0, 0.4, 1.0], [0.6, 0.0, 1.0, 1.0]
TRUTH = [np.array([[3, *LEFT], [3, *RIGHT]])]


def detections(*rows: tuple[int, float, list[float]]) -> np.ndarray:
    return np.array([[kind, score, *box] for kind, score, box in rows]).reshape(-1, 6)


def test_overlap_is_intersection_over_union() -> None:
    boxes = np.array([[0.0, 0.0, 1.0, 1.0], [0.5, 0.0, 1.5, 1.0]])
    np.testing.assert_allclose(overlaps(boxes, boxes), [[1, 1 / 3], [1 / 3, 1]])


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (detections((3, 0.9, LEFT), (3, 0.8, RIGHT)), 1.0),
        (detections((3, 0.9, LEFT)), 51 / 101),  # recalls from 0 to 0.5 of the 101
        (detections((3, 0.9, LEFT), (3, 0.8, LEFT), (3, 0.7, RIGHT)), (51 + 50 * 2 / 3) / 101),  # one twice
        (detections((4, 0.9, LEFT)), 0.0),  # of another class
        (detections(), 0.0),
    ],
)
def test_average_precision(found: np.ndarray, expected: float) -> None:
    assert average_precision([found], TRUTH) == pytest.approx(expected)


def test_detections_in_common_are_counted_once_and_only_sure_ones() -> None:
    one = detections((3, 0.9, LEFT), (3, 0.8, RIGHT), (5, 0.1, LEFT))
    assert in_common([one], [one]) == 1
    assert in_common([one], [detections((3, 0.5, LEFT), (3, 0.4, LEFT))]) == 0.5
    assert in_common([one], [detections((5, 0.9, LEFT))]) == 0


def test_fastestdet_decodes_a_box_in_the_middle_of_its_cell() -> None:
    output = np.zeros((1, 85, 22, 22), np.float32)
    output[0, 0, 11, 5], output[0, 5 + 7, 11, 5] = 1.0, 0.5
    (found,) = fastestdet({"758": output})
    np.testing.assert_allclose(found, [7, 0.5**0.4, 5 / 22 - 0.25, 0.25, 5 / 22 + 0.25, 0.75])


def test_cross_entropy_of_equal_logits_is_the_logarithm_of_their_number() -> None:
    assert cross_entropy([{"y": np.zeros((1, 4, 8), np.float32)}], [np.arange(4)]) == pytest.approx(math.log(8))


def test_mean_overlap_leaves_out_what_is_unknown() -> None:
    mask = np.array([[0, 0], [1, UNKNOWN]])
    assert mean_overlap([{"y": np.array([[0, 1], [1, 1]])}], [mask]) == pytest.approx((1 / 2 + 1 / 2) / 2)


def test_psnr_is_in_decibels_of_a_range_of_one() -> None:
    assert psnr([{"y": np.full((1, 1, 20, 20), 0.6)}], [np.full((20, 20), 0.5)]) == pytest.approx(20)


def test_frames_that_overlap_add_up_to_the_sound() -> None:
    sound = np.random.default_rng(0).normal(size=256 * 6)
    frames = np.lib.stride_tricks.sliding_window_view(sound, 512)[::256]
    spectra = np.fft.rfft(frames * np.sqrt(np.hanning(513)[:-1]))
    runs = [{"enh": np.stack([s.real, s.imag], -1)[None, :, None]} for s in spectra]
    assert sound_snr(runs, list(frames)) > 200
    assert sound_snr([{"enh": run["enh"] * 1.1} for run in runs], list(frames)) == pytest.approx(20)


def test_agreement() -> None:
    runs = [{"y": np.array([[0.2, 0.8]])}, {"y": np.array([[0.6, 0.4]])}]
    assert same_class(runs, runs) == 1 and same_class(runs, runs[::-1]) == 0
    assert same_side([{"y": np.array([[0.4]])}], [{"y": np.array([[0.6]])}]) == 0


@pytest.mark.parametrize(("carried", "calibrating", "evaluating"), [({}, [0, 2], [1, 3]), ({"h": "h"}, [0, 1], [2, 3])])
def test_selection_stays_within_the_calibration_split(
    carried: dict[str, str], calibrating: list[int], evaluating: list[int]
) -> None:
    data = Data({"x": np.zeros((9, 1))}, None, np.arange(4), np.arange(4, 9), carried).within_calibration()
    assert list(data.calibrating) == calibrating and list(data.evaluating) == evaluating


def test_the_last_row_of_a_method_counts_and_a_failure_is_shown(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    append(Row("m", "a", "evaluation", 4, agreement=0.5, bytes=1000, float_bytes=4000), file)
    append(Row("m", "a", "evaluation", 4, agreement=0.75, bytes=1000, float_bytes=4000), file)
    append(Row("m", "b", "evaluation", 4, failed="no way"), file)
    rows = read(file)
    assert [row.agreement for row in rows] == [0.75, None]
    assert "| 0.7500 |" in table(rows) and "failed: no way" in table(rows)
