"""int8 models by ONNX Runtime's quantize_static and by NNCF, each used as its documentation recommends."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

import graphopt.ir as graph_ir
from graphopt.ir.reading import opset_of

Array = np.ndarray[Any, Any]

_CHANNEL_OPSET = 13  # the first with a scale for each channel
_AT_ONCE = 10  # samples whose activations the histograms of ONNX Runtime's tool are given together
ONNX_RUNTIME = ("ORT min-max", "ORT percentile", "ORT entropy")
NNCF = ("NNCF", "NNCF mixed")


class PeerError(Exception):
    """A peer could not quantize the model; its own words."""


@dataclass(frozen=True)
class Peers:
    """How to reach them. nncf: the interpreter of an environment that has NNCF, or None."""

    nncf: str | None

    def quantized(self, method: str, model: ir.Model, feeds: Sequence[Mapping[str, Array]]) -> ir.Model:
        """`model` by one of `ONNX_RUNTIME` and `NNCF`, calibrated on the feeds. Raises PeerError."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            source, result = folder / "float.onnx", folder / "int8.onnx"
            graph_ir.save(_with_channels(model), source)
            try:
                if method in ONNX_RUNTIME:
                    _onnxruntime(source, result, feeds, method)
                else:
                    _nncf(
                        self.nncf or "", source, result, feeds, "mixed" if method.endswith("mixed") else "performance"
                    )
            except Exception as error:
                raise PeerError(f"{type(error).__name__}: {str(error).strip().splitlines()[-1][:300]}") from error
            return graph_ir.load(result.read_bytes())


def _with_channels(model: ir.Model) -> ir.Model:
    """Both tools ask for opset 13 at least, for scales by channel."""
    return graph_ir.convert_opset(model, _CHANNEL_OPSET) if opset_of(model) < _CHANNEL_OPSET else model


def _onnxruntime(source: Path, result: Path, feeds: Sequence[Mapping[str, Array]], method: str) -> None:
    """QDQ, int8 for both, a scale for each output channel, after the tool's own preparation."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize
    from onnxruntime.quantization.calibrate import HistogramCalibrater
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, some: Sequence[Mapping[str, Array]]) -> None:
            self.feeds: Iterator[dict[str, Array]] = iter([dict(each) for each in some])

        def get_next(self) -> dict[str, Array] | None:
            return next(self.feeds, None)

    prepared = source.with_name("prepared.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    methods = (CalibrationMethod.MinMax, CalibrationMethod.Percentile, CalibrationMethod.Entropy)
    whole = HistogramCalibrater.collect_data

    def in_parts(self: Any, _: Any) -> None:
        """All samples, a few at a time: the tool keeps every activation of those that it is given at once."""
        for start in range(0, len(feeds), _AT_ONCE):
            whole(self, Reader(feeds[start : start + _AT_ONCE]))

    HistogramCalibrater.collect_data = in_parts
    try:
        quantize(
            prepared,
            result,
            Reader(feeds),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=methods[ONNX_RUNTIME.index(method)],
        )
    finally:
        HistogramCalibrater.collect_data = whole


def _nncf(python: str, source: Path, result: Path, feeds: Sequence[Mapping[str, Array]], preset: str) -> None:
    samples = source.with_name("samples.npz")
    arrays: dict[str, Any] = {name: np.stack([each[name] for each in feeds]) for name in feeds[0]}
    np.savez(samples, **arrays)
    script = Path(__file__).with_name("quantization_nncf.py")
    command = [python, str(script), str(source), str(samples), str(result), preset]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, cwd=source.parent)
    if finished.returncode:
        raise PeerError(finished.stderr.strip() or f"exit status {finished.returncode}")
