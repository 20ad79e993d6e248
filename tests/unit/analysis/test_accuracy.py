"""Accuracy and agreement on a model whose classes can be read off its inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from graphopt.analysis.accuracy import cross_entropy, load_labels, log_probabilities, measure_drop
from graphopt.analysis.samples import Samples
from graphopt.errors import DataError
from graphopt.ir import load


def classifier(matrix: np.ndarray, output: str = "float[1,3]") -> ir.Model:
    """Scores are the input times the matrix; the identity gives the class that the input marks."""
    head = '<ir_version: 8, opset_import: ["" : 17]>'
    body = f"{head} g (float[1,3] x) => ({output} y) {{ y = MatMul(x, w) }}"
    proto = onnx.parser.parse_model(body)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(matrix.astype(np.float32), "w"))
    return load(proto)


CLASSES = np.array([0, 1, 2, 0, 1, 2, 2, 2])
SAMPLES = Samples({"x": np.eye(3, dtype=np.float32)[CLASSES]}, {"x": 1})
EXACT = classifier(np.eye(3))
SWAPPED = classifier(np.eye(3)[[1, 0, 2]])  # takes 0 for 1 and 1 for 0


def test_accuracy_is_the_share_of_right_classes() -> None:
    labels = CLASSES.copy()
    labels[-1] = 0  # one that even the original gets wrong
    cost = measure_drop(EXACT, SWAPPED, SAMPLES, labels)
    assert (cost.measure, cost.before, cost.after, cost.samples) == ("accuracy", 7 / 8, 3 / 8, 8)
    assert cost.drop == 0.5


def test_without_labels_agreement_stands_in() -> None:
    cost = measure_drop(EXACT, SWAPPED, SAMPLES)
    assert (cost.measure, cost.before, cost.after, cost.output) == ("agreement", 1.0, 4 / 8, "y")
    assert measure_drop(EXACT, EXACT, SAMPLES).drop == 0


def test_labels_must_be_as_many_as_samples() -> None:
    with pytest.raises(DataError, match="7 labels for 8 samples"):
        measure_drop(EXACT, EXACT, SAMPLES, CLASSES[:7])


def test_an_output_without_classes_is_refused() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1,3] x) => (int64[3] y) { y = Shape(x) }'
    )
    proto.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 2
    model = load(proto)
    with pytest.raises(DataError, match="no output looks like class scores"):
        measure_drop(model, model, SAMPLES)


@pytest.mark.parametrize("labels", [np.zeros((2, 2), np.int64), np.zeros(3, np.float32)])
def test_labels_are_integers_on_one_axis(labels: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", labels)
    with pytest.raises(DataError, match="expected one axis of class indices"):
        load_labels(tmp_path / "labels.npy")


def test_labels_that_are_no_array_are_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.npy").write_text("0 1 2")
    for name in ("labels.npy", "missing.npy"):
        with pytest.raises(DataError, match="cannot be read"):
            load_labels(tmp_path / name)
    np.save(tmp_path / "objects.npy", np.array([None, 1], dtype=object))
    with pytest.raises(DataError, match="cannot be read"):
        load_labels(tmp_path / "objects.npy")


def test_labels_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "labels.npy", CLASSES)
    np.testing.assert_array_equal(load_labels(tmp_path / "labels.npy"), CLASSES)


def test_probabilities_are_read_as_they_are_and_other_scores_through_a_softmax() -> None:
    scores = np.log([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.7, 0.2, 0.1]])[CLASSES]
    raw = Samples({"x": scores.astype(np.float32) + 3}, {"x": 1})
    ready = Samples({"x": np.exp(scores).astype(np.float32)}, {"x": 1})
    for samples in (raw, ready):
        np.testing.assert_allclose(log_probabilities(EXACT, samples), scores, atol=1e-6)


def test_cross_entropy_is_of_the_labels_in_nats() -> None:
    found = cross_entropy(log_probabilities(classifier(2 * np.eye(3)), SAMPLES), CLASSES)
    assert found == pytest.approx(np.log(np.e**2 + 2) - 2, rel=1e-6)


@pytest.mark.parametrize(("labels", "message"), [(CLASSES[:7], "7 labels for 8"), (CLASSES + 1, "label 3, expected")])
def test_cross_entropy_needs_a_label_among_the_classes_for_each_row(labels: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        cross_entropy(log_probabilities(EXACT, SAMPLES), labels)
