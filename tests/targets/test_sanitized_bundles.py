"""The generated C of a model of each kind runs clean under AddressSanitizer and UBSan, on one thread and on three."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt import ir as gir
from graphopt.deploy.example import render_example
from graphopt.deploy.header import render_header
from graphopt.deploy.verify import TOLERANCE
from graphopt.targets.host import HOST
from graphopt.targets.tvm.driver import RUNTIME, render_driver, render_weights
from graphopt.targets.tvm.program import Program
from graphopt.targets.tvm.storage.compression import compress
from tests.conformance import program_runner
from tests.targets import compiled
from tests.targets.test_integer_emulated import network

RANDOM = np.random.default_rng(0)


def filled(text: str, **shapes: tuple[int, ...]) -> Any:
    """A model from ONNX's text form, with random weights."""
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    for name, shape in shapes.items():
        array = RANDOM.normal(size=shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = gir.load(proto)
    gir.refresh_shapes(model)
    return model


def convolutions() -> Any:
    return filled(
        """g (float[1,3,64,64] x) => (float[1,10] y, float[1,32,64,64] b) {
          a = Conv<pads=[1,1,1,1]>(x, w1) b = Relu(a) c = Conv<pads=[1,1,1,1], group=32>(b, w2) d = Concat<axis=1>(b, c)
          e = GlobalAveragePool(d) f = Flatten(e) y = MatMul(f, w3) }""",
        w1=(32, 3, 3, 3),
        w2=(32, 1, 3, 3),
        w3=(64, 10),
    )


def recurrent() -> Any:
    return filled(
        """g (float[7,1,9] x) => (float[7,1,1,12] y, float[1,1,12] h) {
          y, h, c = LSTM<hidden_size=12>(x, w, r) }""",
        w=(1, 48, 9),
        r=(1, 48, 12),
    )


def dynamic() -> Any:
    return filled(
        """g (float[5,32] x) => (float[5,16] y) {
          q, s, z = DynamicQuantizeLinear(x) wf = Cast<to=3>(w) a = MatMulInteger(q, wf, z)
          b = Cast<to=1>(a) y = Mul(b, s) }""",
        w=(32, 16),
    )


def as_it_is(program: Program) -> Program:
    return program


def compressed(program: Program) -> Program:
    made, _ = compress(program, lambda *_: None)
    assert made.decoded_bytes > program.decoded_bytes
    return made


KINDS: dict[str, tuple[Callable[[], Any], Callable[[Program], Program]]] = {
    "convolutions": (convolutions, as_it_is),
    "compressed": (convolutions, compressed),
    "int8": (network, as_it_is),
    "dynamic int8": (dynamic, as_it_is),
    "recurrent": (recurrent, as_it_is),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_sanitizers_find_nothing_and_outputs_are_right(kind: str, tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc for its sanitizers (Debian: apt-get install gcc)")
    make, stored = KINDS[kind]
    model = make()
    plain = compiled.program(model, tmp_path / "kernels.o")
    program = stored(plain)
    (tmp_path / "t.h").write_text(render_header("t", program.inputs, program.outputs))
    (tmp_path / "driver.c").write_text(render_driver(program, "t", alignment=HOST.vector_bits // 8))
    (tmp_path / "weights.S").write_text(render_weights("t"))
    (tmp_path / "weights.bin").write_bytes(program.weights)
    (tmp_path / "example.c").write_text(render_example("t", program.inputs, program.outputs))
    subprocess.run(
        [
            *("gcc", "-std=c11", "-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
            *("-Wall", "-Wextra", "-Werror", "-I", ".", "-I", str(RUNTIME), "driver.c", "weights.S", "example.c"),
            *("kernels.o", "-o", "example", "-lm", "-lpthread"),
        ],
        cwd=tmp_path,
        check=True,
    )
    feeds = {
        spec.name: (RANDOM.normal(size=spec.shape) * (1 if spec.dtype == "float32" else 60)).astype(spec.dtype)
        for spec in program.inputs
    }
    expected = program_runner.run(
        plain, program_runner.link_objects([tmp_path / "kernels.o"], tmp_path / "k.so"), feeds
    )
    for index, array in enumerate(feeds.values()):
        (tmp_path / f"input_{index}.bin").write_bytes(array.tobytes())
    inputs = [f"input_{index}.bin" for index in range(len(feeds))]
    for threads in ("1", "3"):
        run = subprocess.run(
            ["./example", "-t", threads, "-o", ".", *inputs],
            cwd=tmp_path,
            env={**os.environ, "ASAN_OPTIONS": "detect_leaks=1", "REPEAT": "2"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        for index, spec in enumerate(program.outputs):
            found = np.frombuffer((tmp_path / f"output_{index}.bin").read_bytes(), spec.dtype).reshape(spec.shape)
            # Filters that the driver transforms for Winograd differ from the runner's in their last digit.
            tolerance = TOLERANCE * np.abs(expected[spec.name]).max() if spec.dtype == "float32" else 0
            np.testing.assert_allclose(found, expected[spec.name], rtol=0, atol=tolerance)
