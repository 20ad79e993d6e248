"""Running a model in ONNX Runtime, as written: its own optimizations are off unless asked for.

onnxruntime is imported when a Session is made, not before.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import DataError, ModelError, UnsupportedError
from graphopt.ir import clone

if TYPE_CHECKING:
    import onnxruntime

# Initializers above this size are handed over beside the model: a protobuf holds no more than 2 GB. Smaller ones stay
# inside, because ONNX Runtime's shape inference reads the constants among them.
_BESIDE_BYTES = 1 << 20

# Types that numpy, and so ONNX Runtime's Python interface, does not have. Outputs come out as float32, which holds each
# of their values, and are turned back; inputs go in as bits, if these fill whole bytes.
_FOREIGN = frozenset(
    {
        ir.DataType.BFLOAT16,
        ir.DataType.FLOAT8E4M3FN,
        ir.DataType.FLOAT8E4M3FNUZ,
        ir.DataType.FLOAT8E5M2,
        ir.DataType.FLOAT8E5M2FNUZ,
        ir.DataType.INT4,
        ir.DataType.UINT4,
        ir.DataType.FLOAT4E2M1,
    }
)
_BITS = {16: np.uint16, 8: np.uint8}


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def is_foreign(dtype: ir.DataType | None) -> bool:
    """Whether numpy lacks the type, so that ml_dtypes stands in."""
    return dtype in _FOREIGN


def required_inputs(model: ir.Model) -> tuple[ir.Value, ...]:
    """The graph's inputs without a default: an input that is also an initializer need not be fed."""
    return tuple(value for value in model.graph.inputs if value.name not in model.graph.initializers)


class Session:
    """A model loaded into ONNX Runtime on the CPU.

    Args:
        model: left as it is.
        outputs: names of the outputs wanted; all by default. Names of inner values are allowed.
        optimize: with ONNX Runtime's graph optimizations. Off by default, so that the model is computed as written.
        threads: within an operator; 0 takes one for each core.

    Raises:
        UnsupportedError: ONNX Runtime does not know an operator or a type of the model.
        ModelError: it refuses the model for another reason, or `outputs` names a value that is not there.
    """

    def __init__(
        self, model: ir.Model, *, outputs: Sequence[str] | None = None, optimize: bool = False, threads: int = 0
    ) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
        options.intra_op_num_threads = threads
        # Threads that spin while they wait take twice the processor's time, and stall each other where others work too.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # what matters is raised
        self._inputs = required_inputs(model)
        prepared, self._outputs, beside = _prepare(model, outputs)
        values = {name: ort.OrtValue.ortvalue_from_numpy(tensor.numpy()) for name, tensor in beside.items()}
        options.add_external_initializers(list(values), list(values.values()))
        try:
            serialized = ir.to_proto(prepared).SerializeToString()
            self._session = ort.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no narrower base class
            raise _load_error(error) from error
        finally:
            values.clear()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        del self._session

    def run(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        """The outputs by name.

        A sequence output `s` of n tensors gives n entries `s[0]`, `s[1]`, …; an empty optional gives none.

        Raises:
            DataError: the feeds do not fit the inputs by name, shape or type.
            ModelError: the computation failed.
        """
        self._check(feeds)
        given = {value.name: _ort_value(feeds[str(value.name)], value) for value in self._inputs}
        try:
            computed = self._session.run(None, given)
        except Exception as error:  # onnxruntime's errors share no narrower base class
            raise ModelError(f"ONNX Runtime failed while running the model: {_reason(error)}") from error
        outputs: dict[str, np.ndarray[Any, Any]] = {}
        for (name, dtype), value in zip(self._outputs, computed, strict=True):
            outputs.update(_named_arrays(name, value if dtype is None else value.astype(dtype)))
        return outputs

    def _check(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> None:
        expected = {str(value.name): value for value in self._inputs}
        if feeds.keys() != expected.keys():
            missing, extra = sorted(expected.keys() - feeds.keys()), sorted(feeds.keys() - expected.keys())
            raise DataError(
                f"the feeds do not name the model's inputs: missing {missing or 'none'}, unknown {extra or 'none'}",
                advice=f"the inputs are {sorted(expected)}",
            )
        for name, value in expected.items():
            check_array(name, feeds[name], value)


def check_array(name: str, array: np.ndarray[Any, Any], value: ir.Value) -> None:
    """Raises DataError unless the array has the type of the input `value` and a shape that fits."""
    if not isinstance(value.type, ir.TensorType):
        raise DataError(f"input '{name}' is a {type(value.type).__name__}; only tensors can be fed")
    wanted = array_type(value)
    fits = array.dtype.kind in "OUT" if wanted is None else array.dtype == wanted
    if not fits:
        raise DataError(
            f"input '{name}': found an array of {array.dtype}, expected {wanted or 'str'}",
            advice="" if wanted is None else f"convert it with .astype('{wanted}')",
        )
    if value.shape is None:
        return
    dims = value.shape.dims
    if len(dims) != array.ndim or any(isinstance(d, int) and d != n for d, n in zip(dims, array.shape, strict=False)):
        raise DataError(f"input '{name}': found shape {list(array.shape)}, expected {describe_shape(value.shape)}")


def array_type(value: ir.Value) -> np.dtype[Any] | None:
    """The numpy (or ml_dtypes) type of a tensor input; None for strings."""
    if value.dtype is None or value.dtype == ir.DataType.STRING:
        return None
    return value.dtype.numpy()


def describe_shape(shape: ir.Shape) -> str:
    """A shape as in an error message: [1,3,H,W], `?` where a dimension has no name."""
    return f"[{','.join(str(d) if isinstance(d, int) else str(d.value or '?') for d in shape.dims)}]"


def _prepare(
    model: ir.Model, outputs: Sequence[str] | None
) -> tuple[ir.Model, list[tuple[str, np.dtype[Any] | None]], dict[str, ir.TensorProtocol]]:
    """A copy for ONNX Runtime; its outputs' names, with the types that they are to be turned back into; and the large
    initializers that are to be handed over beside it.
    """
    prepared = clone(model)
    graph = prepared.graph
    if outputs is not None:
        _select_outputs(graph, outputs)
    names: list[tuple[str, np.dtype[Any] | None]] = []
    for index, value in enumerate(tuple(graph.outputs)):
        if isinstance(value.type, ir.TensorType) and value.dtype in _FOREIGN:
            graph.outputs[index] = _as_float32(graph, value)
            names.append((str(value.name), value.dtype.numpy()))
        else:
            names.append((str(value.name), None))
    beside = {}
    for owner in prepared.graphs():
        for name, value in owner.initializers.items():
            tensor = value.const_value
            if tensor is None:
                continue
            if owner is graph and _goes_beside(tensor):
                beside[name] = tensor
                place = ir.Shape(tensor.shape.numpy())
                value.const_value = ir.ExternalTensor("beside", 0, tensor.nbytes, tensor.dtype, shape=place, name=name)
            elif isinstance(tensor, ir.ExternalTensor):
                value.const_value = ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name)
    return prepared, names, beside


def _goes_beside(tensor: ir.TensorProtocol) -> bool:
    return tensor.nbytes >= _BESIDE_BYTES and tensor.dtype not in _FOREIGN and tensor.dtype != ir.DataType.STRING


def _select_outputs(graph: ir.Graph, outputs: Sequence[str]) -> None:
    values = {value.name: value for value in graph.inputs} | dict(graph.initializers.items())
    values |= {value.name: value for node in graph for value in node.outputs if value.name}
    unknown = [name for name in outputs if name not in values]
    if unknown:
        raise ModelError(f"the model has no value {', '.join(map(repr, unknown))} to compute")
    graph.outputs.clear()
    graph.outputs.extend(values[name] for name in outputs)


def _as_float32(graph: ir.Graph, value: ir.Value) -> ir.Value:
    node = ir.node("Cast", [value], attributes={"to": ir.DataType.FLOAT})
    node.outputs[0].name = f"{value.name}/as_float32"
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    node.outputs[0].shape = value.shape
    graph.append(node)
    return node.outputs[0]


def _ort_value(array: np.ndarray[Any, Any], value: ir.Value) -> onnxruntime.OrtValue | np.ndarray[Any, Any]:
    if value.dtype is None or value.dtype not in _FOREIGN:
        return np.asarray(array, dtype=object) if value.dtype == ir.DataType.STRING else array
    if value.dtype.bitwidth not in _BITS:
        raise UnsupportedError(f"input '{value.name}' has type {value.dtype.name}, which ONNX Runtime cannot be given")
    import onnxruntime as ort

    bits = np.ascontiguousarray(array).view(_BITS[value.dtype.bitwidth])
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, int(value.dtype))


def _named_arrays(name: str, value: Any) -> dict[str, np.ndarray[Any, Any]]:
    if value is None:
        return {}
    if isinstance(value, list):
        named: dict[str, np.ndarray[Any, Any]] = {}
        for index, member in enumerate(value):
            named.update(_named_arrays(f"{name}[{index}]", member))
        return named
    if isinstance(value, dict):
        raise UnsupportedError(f"output '{name}' is a map; only tensors and sequences of them can be compared")
    return {name: np.asarray(value)}


def _load_error(error: Exception) -> ModelError:
    reason = _reason(error)
    lacking = (
        "is not a registered function/op",
        "No Op registered",
        "NOT_IMPLEMENTED",
        "Could not find an implementation",
    )
    text = str(error)
    if any(words in text for words in lacking) or ("Type Error" in text and "is invalid" in text):
        return UnsupportedError(f"ONNX Runtime cannot run the model: {reason}")
    return ModelError(f"ONNX Runtime refuses the model: {reason}")


def _reason(error: Exception) -> str:
    """ONNX Runtime's message without its error codes, C++ source positions and stack traces."""
    text = str(error).split("\n")[0]
    for marker in ("FAIL : ", "INVALID_GRAPH : ", "INVALID_ARGUMENT : ", "NOT_IMPLEMENTED : ", "RUNTIME_EXCEPTION : "):
        text = text.rpartition(marker)[2]
    return text[:400].strip()
