"""A bundle around the hand-written kernels of tests/targets/toy.py, with the ONNX model that they compute."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from graphopt.deploy import Bundle, open_bundle, write_bundle
from graphopt.ir import fingerprint, load, save
from graphopt.targets.base import MODELLED, Library, TargetDescription, TensorSpec, Tiling
from tests.targets.toy import CONSTANT, INPUTS, OUTPUTS, TARGETS, build_toy

SUM = OUTPUTS[0].name


def toy_model(factors: tuple[float, ...] = (1, 2, 3, 4)) -> ir.Model:
    """What the toy program computes, as ONNX."""
    weights = {
        "factors": np.tile(np.array(factors, np.float32), 6).reshape(3, 8),
        "shape": np.array([3, 8], np.int64),
        "five": np.frombuffer(CONSTANT, np.int8),
    }
    nodes = [
        helper.make_node("Mul", ["x", "factors"], ["scaled"], "scale"),
        helper.make_node("Reshape", ["y", "shape"], ["rows"], "reshape"),
        helper.make_node("Add", ["scaled", "rows"], [SUM], "add"),
        helper.make_node("Identity", ["n"], ["n_out"], "copy"),
        helper.make_node("Identity", ["five"], ["constant"], "constant"),
    ]

    def ports(specs: tuple[TensorSpec, ...]) -> list[onnx.ValueInfoProto]:
        types = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64, "int8": TensorProto.INT8}
        return [helper.make_tensor_value_info(spec.name, types[spec.dtype], spec.shape) for spec in specs]

    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "toy", ports(INPUTS), ports(OUTPUTS), initializers)
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10))


class ToyBackend:
    """A backend that knows one model."""

    def unsupported(self, model: ir.Model) -> list[tuple[str, str, str]]:
        return []

    def build(
        self,
        model: ir.Model,
        target: TargetDescription,
        *,
        name: str,
        header: Path,
        folder: Path,
        jobs: int,
        progress: Callable[[int, int, str], None],
        compress: bool = False,
        tiling: Tiling = MODELLED,
    ) -> Library:
        folder.mkdir(parents=True)
        toy = build_toy(folder.parent / "build", target, name)
        shared, static = (path.rename(folder / path.name) for path in (toy.shared, toy.static))
        return Library(shared, static, INPUTS, OUTPUTS, 192, 80, 0)


def make_bundle(folder: Path, target: str = "host", factors: tuple[float, ...] = (1, 2, 3, 4)) -> Bundle:
    """A bundle named `toy`. Its model.onnx has these factors, its library always 1, 2, 3, 4."""
    model = toy_model(factors)
    write_bundle(
        model, TARGETS[target], name="toy", folder=folder, jobs=1, progress=lambda *_: None, backend=ToyBackend()
    )
    save(model, folder / "model.onnx")
    specs = {
        kind: [{"name": spec.name, "type": spec.dtype, "shape": list(spec.shape)} for spec in tensors]
        for kind, tensors in (("inputs", INPUTS), ("outputs", OUTPUTS))
    }
    report = {
        "schema_version": 1,
        "kind": "optimize",
        "model": {"fingerprint": fingerprint(toy_model())},
        "target": {"name": target},
        "library": {"name": "toy", **specs, "calls": []},
    }
    (folder / "report.json").write_text(json.dumps(report))
    return open_bundle(folder)
