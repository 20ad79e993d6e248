"""Side by side with onnxsim and onnxslim: clean-up leaves no more nodes than the better of the two.

On the onnx package's light models always, and on the models of the folder that GRAPHOPT_REAL_MODELS names. All three
get the same model, its shapes bound. `docs/cleanup.md` has the table, and the reasons for the exceptions below.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test
import onnx_ir as ir
import pytest

import graphopt.ir as graph_ir
from graphopt.errors import ModelError
from graphopt.passes.cleanup.clean_up import CleanUp
from graphopt.pipeline.base import PassContext
from tests.passes.harness import assert_same_outputs

onnxsim = pytest.importorskip("onnxsim")
onnxslim = pytest.importorskip("onnxslim")

LIGHT = sorted((Path(onnx.backend.test.__file__).parent / "data" / "light").glob("light_*.onnx"))
FOLDER = os.environ.get("GRAPHOPT_REAL_MODELS")
REAL = sorted(Path(FOLDER).glob("*.onnx")) if FOLDER else []

SHAPES: dict[str, dict[str, Sequence[int]]] = {
    "silero_vad_16k_op15": {"input": (1, 576), "state": (2, 1, 128)},
    "silero_vad_op18_ifless": {"input": (1, 576), "state": (2, 1, 128)},
}
# ConstantOfShape nodes of more than 16 MB that stay, where the peers store all those zeros in the file
LARGE_CONSTANTS = {"light_bvlc_alexnet": 2, "light_vgg19": 2, "light_zfnet512": 1}
# operators that have left ONNX: refused before any pass
REFUSED = {"styletransfer_candy"}


def voiced() -> dict[str, np.ndarray[Any, Any]]:
    """36 ms of a buzzing voice: on noise a voice detector's output is about as small as the rounding of its sigmoid."""
    time = np.arange(576) / 16000
    wave = sum(np.sin(2 * np.pi * 140 * harmonic * time) / harmonic for harmonic in range(1, 25))
    state = np.zeros((2, 1, 128), np.float32)
    return {"input": 0.3 * np.asarray(wave, np.float32)[None], "state": state, "sr": np.array(16000)}


FEEDS = {name: voiced() for name in SHAPES}


def name_of(path: Path) -> str:
    return path.stem


def models(paths: Sequence[Path], *marks: pytest.MarkDecorator) -> list[Any]:
    return [pytest.param(path, id=path.stem, marks=marks) for path in paths if path.stem not in REFUSED]


SMALL = {"light_squeezenet", "light_shufflenet"}  # those that take seconds
ALL = [
    *models([path for path in LIGHT if path.stem in SMALL], pytest.mark.slow),
    *models([path for path in LIGHT if path.stem not in SMALL], pytest.mark.long),
    *models(REAL, pytest.mark.real, pytest.mark.long),
]


def bound(path: Path) -> ir.Model:
    """The model with static shapes, as all three get it."""
    model = graph_ir.load(path)
    graph_ir.bind_shapes(model, SHAPES.get(path.stem, {}))
    return model


def cleaned(model: ir.Model) -> ir.Model:
    result = graph_ir.clone(model)
    CleanUp().run(result, PassContext())
    graph_ir.verify(result, interface=graph_ir.Interface.of(model))
    return result


def nodes(model: ir.Model) -> int:
    """The nodes of all graphs, Constant nodes, which are weights in another place, left out."""
    return sum(node.op_type != "Constant" for node in model.graph.all_nodes())


def best_of_peers(model: ir.Model) -> int:
    """The fewest nodes that a peer leaves; one that fails leaves all."""
    counts = [nodes(model)]
    try:
        simplified, _ = onnxsim.simplify(ir.to_proto(model), check_n=0)
        counts.append(nodes(ir.from_proto(simplified)))
    except RuntimeError as error:  # its own checker refuses what it made of silero_vad_16k_op15
        assert "topologically sorted" in str(error)
    counts.append(nodes(ir.from_proto(onnxslim.slim(ir.to_proto(model)))))
    return min(counts)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", ALL)
def test_clean_up_leaves_no_more_nodes_than_the_better_peer(path: Path) -> None:
    model = bound(path)
    ours = cleaned(model)
    best = best_of_peers(model)
    large = [node for node in ours.graph.all_nodes() if node.op_type == "ConstantOfShape"]
    assert len(large) == LARGE_CONSTANTS.get(path.stem, 0)
    assert nodes(ours) <= best + len(large)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", ALL)
def test_clean_up_keeps_the_outputs(path: Path) -> None:
    """Light models compute the same number everywhere from constant weights, so they get random ones."""
    model = bound(path)
    if path in LIGHT:
        randomize(model)
    assert_same_outputs(model, cleaned(model), feeds=FEEDS.get(path.stem), relative=1e-5)


def randomize(model: ir.Model) -> None:
    """Give random data to the weights that ConstantOfShape nodes make, and take the softmax, which saturates, away."""
    rng = np.random.default_rng(0)
    for node in tuple(model.graph):
        if node.op_type == "Softmax":
            node.op_type = "Identity"
            node.attributes.clear()
        if node.op_type != "ConstantOfShape":
            continue
        output = node.outputs[0]
        assert output.shape is not None
        shape = tuple(int(dim) for dim in output.shape.numpy())
        user, index = next(iter(output.uses()))
        if user.op_type == "BatchNormalization" and index == 4:
            array = rng.uniform(0.5, 1.5, shape)  # variances
        else:
            array = rng.standard_normal(shape, np.float32) * np.sqrt(2 / max(1, np.prod(shape[1:])))
        value = ir.Value(name=f"{output.name}:random", const_value=ir.Tensor(array.astype(np.float32)))
        value.shape, value.type = output.shape, ir.TensorType(ir.DataType.FLOAT)
        model.graph.register_initializer(value)
        output.replace_all_uses_with(value)
        model.graph.remove(node, safe=True)


@pytest.mark.parametrize("path", [path for path in REAL if path.stem in REFUSED], ids=name_of)
def test_models_with_operators_that_left_onnx_are_refused(path: Path) -> None:
    with pytest.raises(ModelError, match="no standard operator set defines"):
        graph_ir.load(path)
