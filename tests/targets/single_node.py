"""One ONNX node, compiled for the host and run, against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from graphopt import ir as gir
from tests.targets import compiled

TOLERANCE = 1e-5  # of the largest magnitude in the reference


def model_of(
    op: str,
    inputs: Mapping[str, np.ndarray | None],
    constants: Sequence[str] = (),
    *,
    outputs: int = 1,
    opset: int = 17,
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one node. Inputs that are None are absent; those in `constants` are initializers."""
    names = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(op, [k if v is not None else "" for k, v in inputs.items()], names, "node", **attributes)
    given = {name: array for name, array in inputs.items() if array is not None}
    graph = helper.make_graph(
        [node],
        "single",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in given.items()
            if name not in constants
        ],
        [helper.make_empty_tensor_value_info(name) for name in names],
        [numpy_helper.from_array(given[name], name) for name in constants if name in given],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def assert_as_onnxruntime(
    op: str,
    inputs: Mapping[str, np.ndarray | None],
    constants: Sequence[str] = (),
    *,
    outputs: int = 1,
    opset: int = 17,
    **attributes: Any,
) -> None:
    """The compiled node gives what ONNX Runtime gives: integers exactly, floats within TOLERANCE."""
    model = model_of(op, inputs, constants, outputs=outputs, opset=opset, **attributes)
    feeds = {name: array for name, array in inputs.items() if array is not None and name not in constants}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    expected = dict(zip((output.name for output in session.get_outputs()), session.run(None, feeds), strict=True))
    found = compiled.run(gir.load(model), feeds)
    for name, reference in expected.items():
        assert found[name].shape == reference.shape
        assert found[name].dtype == reference.dtype
        if reference.dtype.kind != "f":
            np.testing.assert_array_equal(found[name], reference)
            continue
        finite = np.abs(reference[np.isfinite(reference)])
        np.testing.assert_allclose(found[name], reference, rtol=0, atol=TOLERANCE * max(finite.max(initial=0), 1e-3))
