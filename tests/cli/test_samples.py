"""`--calib` and `--inputs` on the command line: pictures by a recipe, functions by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from PIL import Image

import graphopt
from graphopt import api
from tests.cli.conftest import Run

RECIPE = """target = "host"
calib = "{folder}"

[preprocess]
mean = 128
std = 64

[[pass]]
name = "clean-up"

[[pass]]
name = "quantize"
"""


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """A convolution over pictures of 8x8, the mean of each channel, and two pictures in a folder."""
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,3,8,8] image) => (float[1,4,1,1] y)
        { c = Conv<kernel_shape=[3,3]>(image, w) r = Relu(c) y = GlobalAveragePool(r) }"""
    )
    weights = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    onnx.save(proto, tmp_path / "g.onnx")
    (tmp_path / "pictures").mkdir()
    for index in range(2):
        pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{index}.png")
    return tmp_path / "g.onnx"


def test_pictures_calibrate_by_a_recipe_and_the_bundle_remembers_how(classifier: Path, run: Run) -> None:
    folder = classifier.parent
    (folder / "r.toml").write_text(RECIPE.format(folder=folder / "pictures"))
    out = folder / "out"
    done = run("optimize", classifier, "--recipe", folder / "r.toml", "-o", out, "--jobs", 1, "--json")
    assert done.status == 0, done.stderr
    report = json.loads(done.stdout)
    (record,) = [record for record in report["passes"] if record["spec"] == "quantize"]
    assert record["statistics"]["samples"] == 2
    assert report["recipe"]["preprocess"] == {"mean": [128.0], "std": [64.0]}

    verified = run("verify", out, "--inputs", folder / "pictures", "--tolerance", 0.1, "--json")
    assert verified.status == 0 and json.loads(verified.stdout)["samples"] == 2, verified.stderr


def test_pictures_without_a_preprocessing_end_in_a_usage_error_that_shows_the_table(classifier: Path, run: Run) -> None:
    for command in (("optimize", classifier, "-t", "host", "--calib"), ("compare", classifier, classifier, "--inputs")):
        outcome = run(*command, classifier.parent / "pictures")
        assert outcome.status == 2 and "[preprocess]" in outcome.stderr and "--recipe" in outcome.stderr


def test_a_warning_about_samples_is_one_line_of_the_commands(classifier: Path, run: Run) -> None:
    np.savez(classifier.parent / "flat.npz", image=np.ones((3, 3, 8, 8), np.float32))
    outcome = run("compare", classifier, classifier, "--inputs", classifier.parent / "flat.npz")
    assert outcome.status == 0 and "all 3 samples are the same" in outcome.stderr, outcome.stderr
    assert "ModelWarning" not in outcome.stderr


def test_a_function_calibrates_from_python(classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*arguments: object, **options: object) -> None:
        raise RuntimeError("the passes have run")

    monkeypatch.setattr(api, "build", build)
    images = np.random.default_rng(0).normal(size=(3, 1, 3, 8, 8)).astype(np.float32)
    seen = set()
    with pytest.raises(RuntimeError, match="the passes have run"):
        graphopt.optimize(
            classifier,
            "host",
            calib=lambda: ({"image": image} for image in images),
            quantize="int8",
            progress=lambda done, total, what: seen.add((what, total)),
        )
    assert ("calibrate", 3) in seen


def test_a_function_gives_the_inputs(classifier: Path, run: Run) -> None:
    source = classifier.parent / "source.py"
    source.write_text(
        "import numpy as np\n"
        "def samples():\n"
        "    for seed in range(3):\n"
        "        yield {'image': np.random.default_rng(seed).normal(size=(3, 8, 8)).astype(np.float32)}\n"
    )
    outcome = run("compare", classifier, classifier, "--inputs", f"{source}:samples", "--json")
    assert outcome.status == 0 and json.loads(outcome.stdout)["samples"] == 3, outcome.stderr
    wrong = run("compare", classifier, classifier, "--inputs", f"{source}:sample")
    assert wrong.status == 1 and "defines no 'sample'" in wrong.stderr
