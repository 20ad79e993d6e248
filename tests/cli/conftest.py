"""What the tests of the command line share: running it, and one small model with a bundle for this machine."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from graphopt.cli import main


@dataclasses.dataclass(frozen=True)
class Outcome:
    status: int
    stdout: str
    stderr: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """run("inspect", path, …): what the command printed and its exit status, as a shell would see them."""

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["graphopt", *map(str, arguments)])
        monkeypatch.delenv("COLUMNS", raising=False)  # set by pytest-xdist
        capsys.readouterr()
        status = 0
        try:
            main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        captured = capsys.readouterr()
        return Outcome(status, captured.out, captured.err)

    return call


def small_model(batch: int | str = 1, weight: np.ndarray | None = None) -> onnx.ModelProto:
    """x[batch, 4] -> MatMul with 4x3, Add, Relu -> scores[batch, 3], and an Identity for the clean-up."""
    proto = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        small (float[{batch},4] x) => (float[{batch},3] scores)
        {{ product = MatMul(x, w) sum = Add(product, b) kept = Identity(sum) scores = Relu(kept) }}"""
    )
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 3)).astype(np.float32) if weight is None else weight
    for name, array in {"w": weight, "b": np.ones(3, np.float32)}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for index, node in enumerate(proto.graph.node):
        node.name = f"node_{index}"
    return proto


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small model in a folder of its own."""
    path = tmp_path / "small.onnx"
    onnx.save(small_model(), path)
    return path


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the small model for this machine."""
    import graphopt

    folder = tmp_path_factory.mktemp("bundle")
    onnx.save(small_model(), folder / "small.onnx")
    return graphopt.optimize(folder / "small.onnx", "host", jobs=1).out
