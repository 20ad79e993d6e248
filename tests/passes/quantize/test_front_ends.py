"""Networks that begin with signal processing: spectra as convolutions, magnitudes, filter banks, logarithms."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import graphopt.ir as graph_ir
from graphopt.analysis.quantization import precisions
from graphopt.analysis.samples import Samples
from graphopt.passes.quantize import placement
from graphopt.passes.quantize.quantize import Quantize
from graphopt.passes.quantize.sensitivity import output_noise
from graphopt.pipeline.base import PassContext
from tests.passes.harness import parse, run
from tests.passes.quantize.test_sensitivity import HEAD, weight

Array = np.ndarray[Any, Any]

WINDOW, HOP, BINS, BANDS = 64, 32, 33, 12
FRAMES = 1024 // HOP - 1


def fourier() -> Array:
    """Rows of cosine and sine under a Hann window, [2 BINS, 1, WINDOW]."""
    angles = 2 * np.pi * np.arange(BINS)[:, None] * np.arange(WINDOW) / WINDOW
    rows = np.concatenate([np.cos(angles), -np.sin(angles)]) * np.hanning(WINDOW)
    return rows[:, None].astype(np.float32)


def bands() -> Array:
    """Triangles over the bins, [BINS, BANDS]."""
    centres = np.linspace(1, BINS - 1, BANDS)
    return np.maximum(0, 1 - np.abs(np.arange(BINS)[:, None] - centres) / 3).astype(np.float32)


def sounds(count: int = 24) -> Samples:
    """Chirps with noise, as loud as speech is: over three powers of ten."""
    rng = np.random.default_rng(5)
    time = np.arange(1024) / 1024
    waves = [np.sin(2 * np.pi * rng.uniform(20, 300) * time * (1 + rng.uniform() * time)) for _ in range(count)]
    loud = [10 ** rng.uniform(-3, 0) * (wave + 0.05 * rng.normal(size=1024)) for wave in waves]
    return Samples({"x": np.array(loud, np.float32)[:, None]}, {"x": 1})


SPECTRUM = (
    f" f = Conv<strides=[{HOP}]>(x, fourier) re, im = Split<axis=1, num_outputs=2>(f)"
    " a = Pow(re, two) b = Mul(im, im) p = Add(a, b) "
)
BODY = " c1 = Conv<pads=[1,1]>(features, w1, b1) r1 = Relu(c1) c2 = Conv<pads=[1,1]>(r1, w2) r2 = Relu(c2)"
HEAD_OF = " g = GlobalAveragePool(r2) v = Flatten(g) y = Gemm(v, w3) }"
FRONT_ENDS = {
    "magnitude": (BINS, " features = Sqrt(p)"),
    "power-in-decibels": (BINS, " q = Add(p, tiny) features = Log(q)"),
    "log-filter-bank": (
        BANDS,
        " t = Transpose<perm=[0,2,1]>(p) m = MatMul(t, bands) n = Add(m, tiny) l = Log(n)"
        " features = Transpose<perm=[0,2,1]>(l)",
    ),
}


def network(front_end: str) -> ir.Model:
    """From sound to scores, with a convolutional network of two layers behind the front end."""
    channels, middle = FRONT_ENDS[front_end]
    model = parse(
        HEAD.replace("17", "18") + "g (float[1,1,1024] x) => (float[1,5] y) {" + SPECTRUM + middle + BODY + HEAD_OF,
        fourier=fourier(),
        two=np.float32(2),
        tiny=np.float32(1e-7),
        bands=bands(),
        w1=weight(16, channels, 3, seed=1) / np.float32(np.sqrt(3 * channels)),
        b1=weight(16, seed=4),
        w2=weight(16, 16, 3, seed=2) / np.float32(7),
        w3=weight(16, 5, seed=3),
    )
    graph_ir.refresh_shapes(model)
    return model


def quantized(model: ir.Model) -> ir.Model:
    after = graph_ir.clone(model)
    assert run(Quantize(), after, PassContext(calibration=sounds())).changed
    return after


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_the_front_end_stays_in_float_and_the_network_does_not(front_end: str) -> None:
    model = network(front_end)
    after = quantized(model)
    computes = {node.name: str(precision) for node, precision in precisions(after.graph).items()}
    learned = [node.name for node in model.graph if node.op_type in ("Conv", "Gemm")]
    in_float = 2 if front_end == "magnitude" else 1  # what reads plain magnitudes has to keep the faint ones apart
    assert {computes[name] for name in learned[:in_float]} == {"float32"}
    assert {computes[name] for name in learned[in_float:]} == {"int8"}
    assert {computes[node.name] for node in after.graph if node.op_type in ("Pow", "Mul", "Sqrt", "Log", "MatMul")} == {
        "float32"
    }
    assert output_noise(model, after, sounds()) > 30


@pytest.mark.parametrize("front_end", ["power-in-decibels", "log-filter-bank"])
def test_without_the_rule_a_logarithm_would_collapse(front_end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(front_end)
    kept = output_noise(model, quantized(model), sounds())
    monkeypatch.setattr(placement, "_front_end", lambda graph, layers: {})
    assert output_noise(model, quantized(model), sounds()) < 20 < kept - 20
