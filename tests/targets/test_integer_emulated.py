"""A small quantized network gives the same bits on ARM cores, with and without the dot product, as on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from graphopt import ir as gir
from graphopt import optimize
from graphopt.deploy.bundle import open_bundle
from graphopt.deploy.toolchain import build_program, launcher, run_program
from graphopt.targets.arm.cores import CORES
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
        self, operator: str, inputs: list[str], weights: tuple[int, ...] = (), bias: float = 1.0, **given: Any
    ) -> str:
        """The name of the integers that a layer makes of others."""
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
        self.nodes.append(helper.make_node(operator, floats, [f"{name}_f"], name=name, **given))
        self.parameters(name, 0.1 * bias, int(self.random.integers(-20, 20)))
        self.nodes.append(helper.make_node("QuantizeLinear", [f"{name}_f", f"{name}_sy", f"{name}_zy"], [name]))
        return name

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
    ]
    graph = helper.make_graph(
        net.nodes,
        "network",
        [helper.make_tensor_value_info("x", onnx.TensorProto.INT8, SHAPE)],
        [
            helper.make_tensor_value_info(name, onnx.TensorProto.INT8, None)
            for name in (swished, result, large, *windows)
        ],
        [numpy_helper.from_array(array, name) for name, array in net.arrays.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    model = gir.load(onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True))
    gir.refresh_shapes(model)
    return model


@pytest.mark.emulation
@pytest.mark.parametrize(
    ("name", "processor"),
    [
        ("cortex-a76", None),  # sdot
        ("cortex-a72", None),  # neither
        ("cortex-a710", None),  # smmla, weights packed for it
        ("arm", "max,sve-default-vector-length=16,sme=off"),  # smmla of a variant, weights packed for all
    ],
)
def test_arm_gives_the_bits_of_the_host(name: str, processor: str | None, tmp_path: Path) -> None:
    model = network()
    assert prepare(model).meta[LEFT_IN_FLOAT] == []
    x = np.random.default_rng(1).integers(-128, 128, SHAPE, np.int8)
    expected = compiled.run(model, {"x": x})
    assert all(len(np.unique(values)) > 5 for values in expected.values())  # not saturated to a few
    target = next(core for core in CORES if core.name == name)
    optimize(model, target=name, out=tmp_path / "made", name="net", jobs=1)
    bundle = open_bundle(tmp_path / "made")
    program = tmp_path / "example"
    build_program(bundle.example, target, bundle.include, bundle.static, program)
    (tmp_path / "x.bin").write_bytes(x.tobytes())
    command = launcher(target) if processor is None else (launcher(target)[0], "-cpu", processor)
    run_program((*command, str(program), "-o", str(tmp_path), str(tmp_path / "x.bin")))
    for i, spec in enumerate(bundle.outputs):
        found = np.frombuffer((tmp_path / f"output_{i}.bin").read_bytes(), np.int8).reshape(spec.shape)
        np.testing.assert_array_equal(found, expected[spec.name])
