"""The committed sample models: whole, small, and as accurate as their README says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

MODELS = ("digits_resnet", "digits_mobilenet", "digits_transformer", "digits_gru")


def accuracy(model: Path, data: Path, labels: Path) -> float:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    with np.load(data) as arrays:
        (logits,) = session.run(None, dict(arrays))
    return float(np.mean(np.argmax(logits, axis=1) == np.load(labels)))


@pytest.mark.parametrize("name", MODELS)
def test_sample_is_valid_and_under_one_megabyte(name: str, samples: Path) -> None:
    path = samples / f"{name}.onnx"
    onnx.checker.check_model(onnx.load(path), full_check=True)
    assert path.stat().st_size < 1_000_000


@pytest.mark.parametrize("name", MODELS)
def test_sample_reaches_97_percent_on_the_test_split(name: str, samples: Path) -> None:
    found = accuracy(samples / f"{name}.onnx", samples / "digits_test.npz", samples / "digits_test_labels.npy")
    assert found >= 0.97


@pytest.mark.parametrize("name", MODELS)
def test_readme_states_the_accuracy_that_the_sample_has(name: str, samples: Path) -> None:
    found = accuracy(samples / f"{name}.onnx", samples / "digits_test.npz", samples / "digits_test_labels.npy")
    row = re.search(rf"^\| `{name}\.onnx` \|.*\| ([0-9.]+) % \|$", (samples / "README.md").read_text(), re.MULTILINE)
    assert row is not None, f"samples/README.md has no row that ends in the accuracy of {name}"
    assert abs(float(row[1]) - 100 * found) <= 0.3, f"measured {100 * found:.2f} %"  # one image of 360


def test_calibration_and_test_splits_share_no_image(samples: Path) -> None:
    with np.load(samples / "digits_calib.npz") as calib, np.load(samples / "digits_test.npz") as test:
        assert {image.tobytes() for image in calib["image"]}.isdisjoint(image.tobytes() for image in test["image"])
        assert len(calib["image"]) == len(np.load(samples / "digits_calib_labels.npy"))
        assert len(test["image"]) == len(np.load(samples / "digits_test_labels.npy"))


@pytest.mark.parametrize(
    ("name", "operators"),
    [
        ("digits_resnet", {"Conv", "BatchNormalization", "Add", "Relu"}),
        ("digits_mobilenet", {"Conv", "BatchNormalization", "Clip", "HardSwish", "HardSigmoid"}),
        ("digits_transformer", {"MatMul", "Softmax", "LayerNormalization", "Erf"}),
        ("digits_gru", {"GRU"}),
    ],
)
def test_sample_keeps_the_operators_that_it_is_a_sample_of(name: str, operators: set[str], samples: Path) -> None:
    graph = onnx.load(samples / f"{name}.onnx").graph
    assert operators <= {node.op_type for node in graph.node}
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
