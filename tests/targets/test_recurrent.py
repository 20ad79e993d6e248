"""LSTM, GRU and RNN, compiled for the host, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from tvm import relax

from graphopt import ir as gir
from graphopt.errors import UnsupportedError
from graphopt.targets.tvm.importer import import_model
from tests.targets import compiled

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
OUTPUTS = {"LSTM": ("Y", "Y_h", "Y_c"), "GRU": ("Y", "Y_h"), "RNN": ("Y", "Y_h")}
INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
TOLERANCE = 1e-5  # of the largest magnitude in the reference


def arrays(
    op: str,
    *,
    steps: int = 5,
    batch: int = 2,
    width: int = 3,
    hidden: int = 4,
    directions: int = 1,
    optional: str = "B",
) -> dict[str, np.ndarray]:
    """Random inputs of an operator, by name: X, W, R and those named in `optional`, in layout 0.

    Weights have the scale of a common initialization, 1/√H: with larger ones a layer amplifies rounding at every step.
    """
    rng = np.random.default_rng(7)
    rows = GATES[op] * hidden
    shapes = {
        "X": (steps, batch, width),
        "W": (directions, rows, width),
        "R": (directions, rows, hidden),
        "B": (directions, 2 * rows),
        "initial_h": (directions, batch, hidden),
        "initial_c": (directions, batch, hidden),
        "P": (directions, 3 * hidden),
    }
    made = {
        name: rng.uniform(-1, 1, shape).astype(np.float32)
        for name, shape in shapes.items()
        if name in ("X", "W", "R", *optional.split())
    }
    for name in ("W", "R"):
        made[name] /= np.float32(hidden**0.5)
    if "sequence_lens" in optional:
        made["sequence_lens"] = rng.integers(0, steps + 1, batch, dtype=np.int32)
    return made


def model_of(
    op: str,
    values: dict[str, np.ndarray],
    *,
    constant: bool = True,
    outputs: tuple[str, ...] | None = None,
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one node; all inputs but X and the states are constants if `constant`."""
    outputs = OUTPUTS[op] if outputs is None else outputs
    used = [name if name in values else "" for name in INPUTS[: 8 if op == "LSTM" else 6]]
    node = helper.make_node(op, used, list(outputs), name="layer", **attributes)
    fixed = {"W", "R", "B", "P"} if constant else set()
    graph = helper.make_graph(
        [node],
        "recurrent",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
            for name, value in values.items()
            if name not in fixed
        ],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs if name],
        [onnx.numpy_helper.from_array(value, name) for name, value in values.items() if name in fixed],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def compiled_outputs(model: onnx.ModelProto, values: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What the importer's Relax computes, compiled for the machine at hand."""
    executable = tvm.compile(import_model(ir.from_proto(model)), target="llvm")
    machine = relax.VirtualMachine(executable, tvm.cpu())
    result = machine["main"](*(tvm.runtime.tensor(values[value.name]) for value in model.graph.input))
    return [tensor.numpy() for tensor in result]


def reference_outputs(model: onnx.ModelProto, values: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {value.name: values[value.name] for value in model.graph.input}))


def assert_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert np.max(np.abs(a - b), initial=0) <= TOLERANCE * max(np.max(np.abs(b), initial=0), 1e-3)


def assert_agrees(op: str, values: dict[str, np.ndarray], **attributes: Any) -> None:
    """The compiled node and ONNX Runtime give the same."""
    hidden = values["R"].shape[-1]
    model = model_of(op, values, hidden_size=hidden, **attributes)
    assert_same(compiled_outputs(model, values), reference_outputs(model, values))


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_any_shape_direction_and_set_of_inputs_agrees(op: str, data: st.DataObject) -> None:
    size = st.sampled_from([1, 3, 5, 7, 17])
    direction = data.draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    names = ["B", "sequence_lens", "initial_h"] + (["initial_c", "P"] if op == "LSTM" else [])
    values = arrays(
        op,
        steps=data.draw(size),
        batch=data.draw(st.integers(1, 4)),
        width=data.draw(size),
        hidden=data.draw(size),
        directions=2 if direction == "bidirectional" else 1,
        optional=" ".join(data.draw(st.sets(st.sampled_from(names)))),
    )
    attributes = {"linear_before_reset": data.draw(st.integers(0, 1))} if op == "GRU" else {}
    assert_agrees(op, values, direction=direction, **attributes)


@pytest.mark.parametrize("hidden", [33, 64])
@pytest.mark.parametrize(
    ("op", "attributes"), [("LSTM", {}), ("GRU", {}), ("GRU", {"linear_before_reset": 1}), ("RNN", {})]
)
def test_layers_of_several_panels_agree(op: str, attributes: dict[str, int], hidden: int) -> None:
    assert_agrees(op, arrays(op, hidden=hidden, steps=9, width=12, batch=1), **attributes)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_outputs_stop_at_each_sequence_s_length(op: str, direction: str) -> None:
    values = arrays(op, steps=6, batch=4, directions=2 if direction == "bidirectional" else 1, optional="B initial_h")
    values["sequence_lens"] = np.array([3, 0, 6, 1], dtype=np.int32)
    assert_agrees(op, values, direction=direction)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_a_length_out_of_range_stays_within_the_buffers(op: str) -> None:
    values = arrays(op, steps=4, batch=2)
    model = model_of(op, {**values, "sequence_lens": np.zeros(2, np.int32)}, hidden_size=4)
    whole = compiled_outputs(model, {**values, "sequence_lens": np.array([4, 0], np.int32)})
    assert_same(compiled_outputs(model, {**values, "sequence_lens": np.array([1 << 30, -5], np.int32)}), whole)


@pytest.mark.parametrize(
    ("activation", "parameters"),
    [
        ("Affine", {"activation_alpha": [0.4], "activation_beta": [0.1]}),
        ("Elu", {}),
        ("Elu", {"activation_alpha": [0.7]}),
        ("HardSigmoid", {}),
        ("HardSigmoid", {"activation_alpha": [0.3], "activation_beta": [0.4]}),
        ("LeakyRelu", {}),
        ("Relu", {}),
        ("ScaledTanh", {"activation_alpha": [1.2], "activation_beta": [0.8]}),
        ("Sigmoid", {}),
        ("Softplus", {}),
        ("Softsign", {}),
        ("Tanh", {}),
        ("ThresholdedRelu", {"activation_alpha": [0.2]}),
    ],
)
def test_every_activation_agrees(activation: str, parameters: dict[str, list[float]]) -> None:
    values = arrays("RNN", steps=3, hidden=7)
    values["X"] *= 4  # to reach where functions saturate
    assert_agrees("RNN", values, activations=[activation], **parameters)


@pytest.mark.parametrize(
    ("op", "names"),
    [("LSTM", ["HardSigmoid", "Softsign", "Relu"]), ("LSTM", ["sigmoid", "RELU", "Elu"]), ("GRU", ["Softsign", "Elu"])],
)
def test_each_place_has_its_activation(op: str, names: list[str]) -> None:
    assert_agrees(op, arrays(op), activations=names)


def test_alphas_go_only_to_the_activations_that_take_one() -> None:
    assert_agrees("LSTM", arrays("LSTM"), activations=["Sigmoid", "LeakyRelu", "Elu"], activation_alpha=[0.3, 0.6])


def test_each_direction_has_its_own_activations() -> None:
    names = ["Sigmoid", "Tanh", "HardSigmoid", "Softsign"]
    assert_agrees("GRU", arrays("GRU", directions=2), direction="bidirectional", activations=names)


@pytest.mark.parametrize(
    ("op", "attributes"), [("LSTM", {}), ("GRU", {}), ("GRU", {"linear_before_reset": 1}), ("RNN", {})]
)
def test_clip_bounds_what_enters_the_activations(op: str, attributes: dict[str, int]) -> None:
    values = arrays(op)
    assert_agrees(op, values, clip=0.25, **attributes)
    clipped, free = (model_of(op, values, hidden_size=4, **a, **attributes) for a in ({"clip": 0.25}, {}))
    assert not np.allclose(compiled_outputs(clipped, values)[0], compiled_outputs(free, values)[0])


def test_the_coupled_forget_gate_agrees() -> None:
    assert_agrees("LSTM", arrays("LSTM", optional="B P initial_c"), input_forget=1)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_batch_first_is_the_same_layer_with_its_axes_exchanged(op: str) -> None:
    values = arrays(op, directions=2, optional="B sequence_lens initial_h")
    steps_first = model_of(op, values, hidden_size=4, direction="bidirectional")
    exchanged = {name: value.swapaxes(0, 1) if name in ("X", "initial_h") else value for name, value in values.items()}
    exchanged = {name: np.ascontiguousarray(value) for name, value in exchanged.items()}
    batch_first = model_of(op, exchanged, hidden_size=4, direction="bidirectional", layout=1)
    y, *states = reference_outputs(steps_first, values)
    expected = [y.transpose(2, 0, 1, 3), *(state.swapaxes(0, 1) for state in states)]
    assert_same(compiled_outputs(batch_first, exchanged), expected)


@pytest.mark.parametrize("outputs", [("", "Y_h"), ("Y",), ("", "", "Y_c"), ("Y", "", "Y_c")])
def test_any_output_may_be_absent(outputs: tuple[str, ...]) -> None:
    values = arrays("LSTM")
    model = model_of("LSTM", values, outputs=outputs, hidden_size=4)
    assert_same(compiled_outputs(model, values), reference_outputs(model, values))


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_weights_may_be_inputs_of_the_model(op: str) -> None:
    values = arrays(op)
    model = model_of(op, values, constant=False, hidden_size=4)
    assert_same(compiled_outputs(model, values), reference_outputs(model, values))


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_what_is_no_number_stays_none(op: str) -> None:
    values = arrays(op, hidden=9)
    values["X"][2, 1] = np.nan
    model = gir.load(model_of(op, values, hidden_size=9))
    gir.refresh_shapes(model)
    fed = {value.name or "": values[value.name or ""] for value in model.graph.inputs}
    result = compiled.run(model, fed)["Y"]
    assert np.isnan(result[2:, :, 1]).all()
    assert np.isfinite(result[:2]).all() and np.isfinite(result[:, :, 0]).all()


def test_time_is_a_loop_and_not_unrolled() -> None:
    def text(steps: int) -> int:
        return len(import_model(ir.from_proto(model_of("LSTM", arrays("LSTM", steps=steps), hidden_size=4))).script())

    assert text(500) < text(5) + 100


@pytest.mark.parametrize(
    ("op", "attributes", "found"),
    [
        ("LSTM", {"activations": ["Sigmoid", "Tanh", "Cosine"]}, "activation 'Cosine' is unknown"),
        ("LSTM", {"activations": ["Sigmoid", "Tanh"]}, "activations has 2 names, not 3"),
        ("GRU", {"activations": ["Affine", "Tanh"]}, "'Affine' has no activation_alpha"),
    ],
)
def test_what_cannot_be_computed_is_refused_by_name(op: str, attributes: dict[str, Any], found: str) -> None:
    model = ir.from_proto(model_of(op, arrays(op), hidden_size=4, **attributes))
    with pytest.raises(UnsupportedError, match=found) as raised:
        import_model(model)
    assert f"{op} 'layer'" in str(raised.value)


def test_an_unknown_direction_is_refused() -> None:
    model = ir.from_proto(model_of("RNN", arrays("RNN"), hidden_size=4))
    model.graph[0].attributes["direction"] = ir.AttrString("direction", "sideways")
    with pytest.raises(UnsupportedError, match="direction is 'sideways'"):
        import_model(model)


def test_inputs_of_wrong_shape_are_refused() -> None:
    values = arrays("LSTM", optional="B initial_h")
    values["initial_h"] = values["initial_h"][:, :1]
    model = ir.from_proto(model_of("LSTM", values, hidden_size=4))
    with pytest.raises(UnsupportedError, match=r"initial_h has shape \(1, 1, 4\), not \(1, 2, 4\)"):
        import_model(model)
