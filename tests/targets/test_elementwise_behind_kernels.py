"""Every element-wise operator behind every kernel that takes what follows it into its loops, against ONNX Runtime.

All operators behind a kernel are branches of one model, half of them alone, half with others behind them. Factors are
small multiples of powers of two (and of 9, which Winograd's transforms divide by), so that every product is exact, and
steps such as Floor fall on the same side.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from graphopt import ir as gir
from graphopt.analysis.execution import Session
from graphopt.targets.tvm.kernels import winograd
from graphopt.targets.tvm.program import KernelCall
from tests.conformance import program_runner
from tests.targets import compiled


@dataclass(frozen=True)
class Kernel:
    """A product of `x` and constant weights `w`, and the shapes around it."""

    node: str
    x: tuple[int, ...]
    w: tuple[int, ...]
    result: tuple[int, ...]
    channels: tuple[int, ...]  # of a constant for each channel
    function: str  # its name, within that of the fused function
    share: int = 1  # of the operators, one in so many is tested: what takes long to compile runs the same code for them


KERNELS = {
    "matmul": Kernel("MatMul(x, w)", (4, 8), (8, 17), (4, 17), (17,), "matmul"),
    "pointwise": Kernel("Conv(x, w)", (1, 6, 3, 4), (4, 6, 1, 1), (1, 4, 3, 4), (4, 1, 1), "matmul"),
    "convolution": Kernel(
        "Conv<strides = [2, 2]>(x, w)", (1, 3, 9, 11), (5, 3, 3, 3), (1, 5, 4, 5), (5, 1, 1), "convolution"
    ),
    "depthwise": Kernel(
        "Conv<group = 5, pads = [1, 1, 1, 1]>(x, w)", (1, 5, 4, 7), (5, 1, 3, 3), (1, 5, 4, 7), (5, 1, 1), "depthwise"
    ),
    "winograd": Kernel(
        "Conv<pads = [1, 1, 1, 1]>(x, w)", (1, 3, 4, 5), (4, 3, 3, 3), (1, 4, 4, 5), (4, 1, 1), "winograd", 3
    ),
    "max-pool": Kernel("MaxPool<kernel_shape = [3, 3]>(x)", (1, 3, 7, 9), (), (1, 3, 5, 7), (3, 1, 1), "pooling"),
    "average-pool": Kernel(
        "AveragePool<kernel_shape = [2, 4]>(x)", (1, 3, 7, 9), (), (1, 3, 6, 6), (3, 1, 1), "pooling"
    ),
    "transposed": Kernel(
        "ConvTranspose<strides = [2, 2]>(x, w)", (1, 3, 4, 5), (3, 3, 3, 3), (1, 3, 9, 11), (3, 1, 1), "transpose", 3
    ),
}

# From the product p, a tensor r of its shape, a constant c for each channel and a number s, to y.
UNARY = {
    "Abs": "y = Abs(p)",
    "Acos": "q = Mul(p, s) y = Acos(q)",
    "Acosh": "q = Abs(p) t = Add(q, one) y = Acosh(t)",
    "Asin": "q = Mul(p, s) y = Asin(q)",
    "Asinh": "y = Asinh(p)",
    "Atan": "y = Atan(p)",
    "Atanh": "q = Mul(p, s) y = Atanh(q)",
    "Cast": "q = Cast<to = 6>(p) y = Cast<to = 1>(q)",
    "Cast to float16": "q = Cast<to = 10>(p) y = Cast<to = 1>(q)",
    "Cast to bool": "q = Cast<to = 9>(p) y = Cast<to = 1>(q)",
    "Ceil": "y = Ceil(p)",
    "Celu": "y = Celu<alpha = 0.7>(p)",
    "Clip": "y = Clip(p, s, one)",
    "Cos": "y = Cos(p)",
    "Cosh": "y = Cosh(p)",
    "Elu": "y = Elu<alpha = 0.7>(p)",
    "Erf": "y = Erf(p)",
    "Exp": "y = Exp(p)",
    "Floor": "y = Floor(p)",
    "Gelu": "y = Gelu(p)",
    "Gelu by tanh": 'y = Gelu<approximate = "tanh">(p)',
    "HardSigmoid": "y = HardSigmoid(p)",
    "HardSwish": "y = HardSwish(p)",
    "Identity": "y = Identity(p)",
    "IsInf": "q = Div(one, p) t = IsInf(q) y = Cast<to = 1>(t)",
    "IsNaN": "q = Sqrt(p) t = IsNaN(q) y = Cast<to = 1>(t)",
    "LeakyRelu": "y = LeakyRelu(p)",
    "Log": "y = Log(p)",
    "Mish": "y = Mish(p)",
    "Neg": "y = Neg(p)",
    "Not": "q = Greater(p, s) t = Not(q) y = Cast<to = 1>(t)",
    "Reciprocal": "y = Reciprocal(p)",
    "Relu": "y = Relu(p)",
    "Round": "y = Round(p)",
    "Selu": "y = Selu(p)",
    "Shrink": "y = Shrink<lambd = 0.6, bias = 0.2>(p)",
    "Sigmoid": "y = Sigmoid(p)",
    "Sign": "y = Sign(p)",
    "Sin": "y = Sin(p)",
    "Sinh": "y = Sinh(p)",
    "Softplus": "y = Softplus(p)",
    "Softsign": "y = Softsign(p)",
    "Sqrt": "y = Sqrt(p)",
    "Tan": "y = Tan(p)",
    "Tanh": "y = Tanh(p)",
    "ThresholdedRelu": "y = ThresholdedRelu<alpha = 0.6>(p)",
}
ARITHMETIC = ["Add", "Sub", "Mul", "Div", "Pow", "Max", "Min", "Mean", "Sum", "Mod<fmod = 1>"]
COMPARISONS = ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"]
OPERANDS = ["p, r", "p, c", "p, s", "r, p", "c, p", "s, p", "p, p"]
BINARY = {
    **{name: [f"y = {name}({of})" for of in OPERANDS] for name in ARITHMETIC},
    "PRelu": [f"y = PRelu({of})" for of in OPERANDS if of[0] in "pr"],
    **{name: [f"q = {name}({of}) y = Cast<to = 1>(q)" for of in OPERANDS] for name in COMPARISONS},
    **{
        name: [f"q = Greater(p, s) t = Less({of}) v = {name}(q, t) y = Cast<to = 1>(v)" for of in OPERANDS]
        for name in ("And", "Or", "Xor")
    },
    "Where": [f"q = Greater(p, s) y = Where(q, {of})" for of in OPERANDS],
    "Where of another": [f"q = Greater(r, s) y = Where(q, {of})" for of in OPERANDS if "p" in of[:1]],
    "BitwiseAnd": ["q = Cast<to = 6>(p) t = Cast<to = 6>(r) v = BitwiseAnd(q, t) y = Cast<to = 1>(v)"],
    "BitShift": ['q = Abs(p) t = Cast<to = 13>(q) v = BitShift<direction = "LEFT">(t, t) y = Cast<to = 1>(v)'],
}


def branches_of(number: int, share: int) -> dict[str, str]:
    """One of `share` parts of the operators, alone and in chains in turn; operands in another form for each kernel."""
    forms = [*((name, [steps]) for name, steps in UNARY.items()), *BINARY.items()]
    found = {}
    for i, (name, steps) in enumerate(forms[number % share :: share]):
        alone = steps[(i + number) % len(steps)]
        found[name] = f"{alone} m = Mul(y, p) z = Add(m, r)" if (i + number) % 2 else f"{alone} z = Identity(y)"
    return found


def model_of(kernel: Kernel, branches: Iterable[str]) -> ir.Model:
    """A branch for each operator: the kernel, and what is behind it."""
    inputs, outputs, body = [], [], []
    shape, result = ",".join(map(str, kernel.x)), ",".join(map(str, kernel.result))
    for i, branch in enumerate(branches):
        inputs += [f"float[{shape}] x{i}", f"float[{result}] r{i}"]
        outputs.append(f"float[{result}] z{i}")
        steps = f"p = {kernel.node} {branch}"
        body.append(re.sub(r"\b([mpqrtvxyz])\b(?=[,)]| = \w+[(<])", rf"\g<1>{i}", steps))
    text = f"""<ir_version: 9, opset_import: ["" : 20]>
        g ({", ".join(inputs)}) => ({", ".join(outputs)}) <float s = {{0.0625}}, float one = {{1}}>
        {{ {" ".join(body)} }}"""
    proto = onnx.parser.parse_model(text)
    random = np.random.default_rng(1)
    weights = random.integers(-3, 4, kernel.w) * np.float32(9 / 16)
    constant = (random.integers(1, 9, kernel.channels) * random.choice([-1, 1], kernel.channels)) / np.float32(8)
    proto.graph.initializer.append(numpy_helper.from_array(weights.astype(np.float32), "w"))
    proto.graph.initializer.append(numpy_helper.from_array(constant.astype(np.float32), "c"))
    model = gir.load(proto)
    gir.refresh_shapes(model)
    return model


def feeds_of(model: ir.Model) -> dict[str, np.ndarray]:
    """Multiples of 1/8 within ±1 for x; without 0 for r, which is a divisor too."""
    random = np.random.default_rng(2)
    feeds = {}
    for value in model.graph.inputs:
        shape = [int(extent) for extent in value.shape]
        numbers = random.integers(value.name[0] == "r", 9, shape) * random.choice([-1, 1], shape)
        feeds[value.name] = numbers.astype(np.float32) / 8
    return feeds


def assert_as_onnxruntime(kind: str, branches: Mapping[str, str]) -> None:
    kernel = KERNELS[kind]
    model = model_of(kernel, branches.values())
    feeds = feeds_of(model)
    expected = Session(model).run(feeds)
    with tempfile.TemporaryDirectory() as folder:
        program = compiled.program(model, Path(folder) / "kernels.o")
        library = program_runner.link_objects(list(program.objects), Path(folder) / "kernels.so")
        found = program_runner.run(program, library, feeds)
    symbols = [call.symbol for call in program.calls if isinstance(call, KernelCall)]
    assert sum(kernel.function in symbol for symbol in symbols) == len(branches)
    wrong = {}
    for name, (output, reference) in zip(branches, expected.items(), strict=True):
        # functions differ by a few units of 1, which a chain multiplies by up to 15
        if not np.allclose(found[output], reference, rtol=4e-6, atol=1e-5, equal_nan=True):
            wrong[name] = float(np.nanmax(np.abs(found[output] - reference)))
    assert not wrong


@pytest.mark.parametrize("kind", KERNELS)
def test_operators_behind_a_kernel_give_what_onnx_runtime_gives(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "pays", lambda _: kind == "winograd")
    assert_as_onnxruntime(kind, branches_of(list(KERNELS).index(kind), KERNELS[kind].share))


@pytest.mark.long
@pytest.mark.parametrize("kind", KERNELS)
def test_every_form_of_each_operator_behind_each_kernel(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "pays", lambda _: kind == "winograd")
    for number in range(len(OPERANDS) * 2):
        assert_as_onnxruntime(kind, branches_of(number, 1))
