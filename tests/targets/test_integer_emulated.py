"""A small quantized network gives the same bits on ARM cores, with and without the dot product, as on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from graphopt import ir as gir
from graphopt import optimize
from graphopt.building import build
from graphopt.deploy.bundle import Bundle, open_bundle
from graphopt.deploy.toolchain import build_program, launcher, run_program
from graphopt.targets.arm.cores import CORES
from graphopt.targets.base import Library, Tiling
from graphopt.targets.tvm.preparation import prepare
from graphopt.targets.tvm.quantized.rewrite import LEFT_IN_FLOAT
from tests.targets import compiled

SHAPE = (1, 3, 15, 13)


class Network:
    """A graph that grows layer by layer, each quantized."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.nodes: list[Any] = []
        self.arrays: dict[str, np.ndarray] = {}

    def layer(
        self,
        operator: str,
        inputs: list[str],
        weights: tuple[int, ...] = (),
        bias: float = 1.0,
        more: Sequence[tuple[str, Any]] = (),
        **given: Any,
    ) -> str:
        """The name of the integers that a layer makes of others; `more`: its further inputs, constants."""
        name = f"v{len(self.nodes)}"
        floats = [self.dequantized(value) for value in inputs]
        if weights:
            self.arrays[f"{name}_w"] = self.random.integers(-128, 128, weights, np.int8)
            self.arrays[f"{name}_s"] = self.random.uniform(0.002, 0.01, weights[0]).astype(np.float32)
            self.arrays[f"{name}_z"] = np.zeros(weights[0], np.int8)
            self.arrays[f"{name}_b"] = (bias * self.random.standard_normal(weights[0])).astype(np.float32)
            of_weights = [f"{name}_{suffix}" for suffix in "wsz"]
            self.nodes.append(helper.make_node("DequantizeLinear", of_weights, [f"{name}_wf"], axis=0))
            floats += [f"{name}_wf", f"{name}_b"]
        for suffix, array in more:
            floats.append(f"{name}_{suffix}" if suffix else "")
            self.arrays |= {f"{name}_{suffix}": array} if suffix else {}
        self.nodes.append(helper.make_node(operator, floats, [f"{name}_f"], name=name, **given))
        self.parameters(name, 0.1 * bias, int(self.random.integers(-20, 20)))
        self.nodes.append(helper.make_node("QuantizeLinear", [f"{name}_f", f"{name}_sy", f"{name}_zy"], [name]))
        return name

    def normalized(self, value: str, channels: int) -> str:
        """The name of what a BatchNormalization of its own makes of others."""
        vectors = [(name, self.random.uniform(0.5, 2, channels).astype(np.float32)) for name in "abcd"]
        return self.layer("BatchNormalization", [value], more=vectors)

    def shuffled(self, value: str, groups: tuple[int, ...], shape: tuple[int, ...]) -> str:
        """The name of a convolution of shuffled channels, all of one quantization."""
        parameters = [self.arrays[f"{value}_{suffix}"] for suffix in ("sy", "zy")]
        for operator, more in (("Reshape", groups), ("Transpose", None), ("Reshape", shape)):
            inputs = [] if more is None else [("shape", np.array(more))]
            given = {"perm": [0, 2, 1, 3, 4]} if more is None else {}
            value = self.layer(operator, [value], more=inputs, **given)
            self.arrays |= dict(zip((f"{value}_sy", f"{value}_zy"), parameters, strict=True))
        return self.layer("Conv", [value], (21, shape[1], 1, 1))

    def parameters(self, name: str, scale: float, zero_point: int) -> None:
        self.arrays |= {f"{name}_sy": np.array(scale, np.float32), f"{name}_zy": np.array(zero_point, np.int8)}

    def dequantized(self, value: str) -> str:
        made = f"{value}_{len(self.nodes)}"
        self.nodes.append(helper.make_node("DequantizeLinear", [value, f"{value}_sy", f"{value}_zy"], [made]))
        return made


def network() -> Any:
    net = Network()
    net.parameters("x", 0.05, 4)
    first = net.layer("Conv", ["x"], (19, 3, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1])
    wide = net.layer("Conv", [first], (45, 19, 1, 1))
    depthwise = net.layer("Conv", [wide], (45, 1, 3, 3), group=45, pads=[1, 1, 1, 1])
    narrow = net.layer("Conv", [depthwise], (19, 45, 1, 1))
    residual = net.layer("Add", [first, narrow])
    swished = net.layer("Mul", [residual, net.layer("Sigmoid", [residual])])
    mean = net.layer("Flatten", [net.layer("GlobalAveragePool", [swished])])
    result = net.layer("Gemm", [mean], (10, 19), transB=1)
    large = net.layer("Conv", [narrow], (21, 19, 1, 1), bias=20000.0)  # sums beyond what a float32 holds exactly
    windows = [  # more than four rows, a single row, and one spread out: other groups of taps
        net.layer("Conv", [wide], (45, 1, 5, 5), group=45, pads=[2, 2, 2, 2], strides=[2, 2]),
        net.layer("Conv", [wide], (45, 1, 1, 6), group=45),
        net.layer("Conv", [wide], (45, 1, 2, 3), group=45, pads=[1, 0, 2, 3], dilations=[2, 2]),
        net.layer("Conv", [wide], (21, 15, 3, 3), group=3, pads=[1, 1, 1, 1]),
        net.layer("MaxPool", [wide], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]),
        net.layer("Concat", [first, narrow, wide], axis=1),
        net.normalized(first, 19),
        net.layer("Resize", [narrow], more=[("", None), ("scales", np.array([1, 1, 2, 2], np.float32))]),
        net.shuffled(wide, (1, 9, 5, 8, 7), (1, 45, 8, 7)),
    ]
    net.parameters("photo", 0.037, -3)
    net.nodes.append(helper.make_node("QuantizeLinear", ["image", "photo_sy", "photo_zy"], ["photo"]))
    decoded = net.dequantized(net.layer("Conv", ["photo"], (17, 3, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1]))
    graph = helper.make_graph(
        net.nodes,
        "network",
        [
            helper.make_tensor_value_info("x", onnx.TensorProto.INT8, SHAPE),
            helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, SHAPE),
        ],
        [
            *(
                helper.make_tensor_value_info(n, onnx.TensorProto.INT8, None)
                for n in (swished, result, large, *windows)
            ),
            helper.make_tensor_value_info(decoded, onnx.TensorProto.FLOAT, None),
        ],
        [numpy_helper.from_array(array, name) for name, array in net.arrays.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    model = gir.load(onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True))
    gir.refresh_shapes(model)
    return model


def inputs() -> dict[str, np.ndarray]:
    """Of the network, by name, in its order."""
    random = np.random.default_rng(1)
    return {"x": random.integers(-128, 128, SHAPE, np.int8), "image": random.standard_normal(SHAPE).astype(np.float32)}


def written(feeds: dict[str, np.ndarray], folder: Path) -> list[str]:
    """The files that the example program of a bundle reads."""
    for name, array in feeds.items():
        (folder / f"{name}.bin").write_bytes(array.tobytes())
    return [str(folder / f"{name}.bin") for name in feeds]


def check_outputs(bundle: Bundle, folder: Path, expected: dict[str, np.ndarray]) -> None:
    """What the example program wrote is `expected`, to the bit."""
    for i, spec in enumerate(bundle.outputs):
        array = expected[spec.name]
        found = np.frombuffer((folder / f"output_{i}.bin").read_bytes(), array.dtype).reshape(spec.shape)
        np.testing.assert_array_equal(found, array)


def check_emulated(
    model: ir.Model,
    name: str,
    place: int,
    feeds: dict[str, np.ndarray],
    expected: dict[str, np.ndarray],
    folder: Path,
) -> Library:
    """A model built for a core in the tiles at a place of the order, once its outputs are as expected, to the bit."""
    target = next(core for core in CORES if core.name == name)
    library = build(
        model,
        target,
        folder,
        name="net",
        jobs=1,
        compress=False,
        tiling=Tiling(others=place),
        progress=lambda *_: None,
    )
    bundle = Bundle(folder, "net", name, library.inputs, library.outputs, "")
    program = folder / "example"
    build_program(bundle.example, target, bundle.include, bundle.static, program)
    run_program((*launcher(target), str(program), "-o", str(folder), *written(feeds, folder)))
    check_outputs(bundle, folder, expected)
    return library


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return compiled.run(network(), inputs())


@pytest.mark.emulation
@pytest.mark.parametrize("place", [2, 99])
@pytest.mark.parametrize("name", ["cortex-a55", "cortex-a72", "cortex-a710", "armv7"])  # sdot, neither, smmla, 32 bits
def test_every_tile_gives_the_bits_of_the_host(
    name: str, place: int, expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    library = check_emulated(network(), name, place, inputs(), expected, tmp_path)
    assert sum(layer["tiles"] > 1 for layer in library.layers) >= 8


@pytest.mark.emulation
@pytest.mark.parametrize(
    ("name", "processor"),
    [
        ("cortex-a76", None),  # sdot
        ("cortex-a72", None),  # neither
        ("cortex-a710", None),  # smmla, weights packed for it
        ("armv7", None),  # vmull, vmlal, vpadal
        ("arm", "max,sve-default-vector-length=16,sme=off"),  # smmla of a variant, weights packed for all
    ],
)
def test_arm_gives_the_bits_of_the_host(
    name: str, processor: str | None, expected: dict[str, np.ndarray], tmp_path: Path
) -> None:
    model = network()
    assert prepare(model).meta[LEFT_IN_FLOAT] == []
    assert all(len(np.unique(values)) > 5 for values in expected.values())  # not saturated to a few
    target = next(core for core in CORES if core.name == name)
    optimize(model, target=name, out=tmp_path / "made", name="net", jobs=1)
    bundle = open_bundle(tmp_path / "made")
    program = tmp_path / "example"
    build_program(bundle.example, target, bundle.include, bundle.static, program)
    files = written(inputs(), tmp_path)
    command = launcher(target) if processor is None else (launcher(target)[0], "-cpu", processor)
    run_program((*command, str(program), "-o", str(tmp_path), *files))
    check_outputs(bundle, tmp_path, expected)
