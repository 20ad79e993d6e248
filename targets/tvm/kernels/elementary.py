"""Elementary functions of float32 as arithmetic, in place of calls of libm, which take one element at a time.

What calls `exp`, `log`, `tanh`, `sigmoid` or `erf` in TIR computes it here instead, whichever kernel it is in, and LLVM
makes vectors of the loop around it. Infinities give what they should, NaN stays NaN; errors are held by tests.

    exp      2ⁿ · (1 + r + r² (c₂ + c₃ r + c₄ r² + c₅ r³)) as in `softmax`; 3e-7 of the result. It is 0 below −86.9
    sigmoid  1 / (1 + exp(−x)); 1.2e-7
    log      x = 2ⁿ · (1 + r), √½ ≤ 1 + r < √2: r − r²/2 + r³ · P(r) + n ln 2, Cephes's `logf`; 2e-7 of the result.
             Numbers below 2⁻¹²⁶ count as that
    tanh     a rational function of degree 13 over 6 within ±9, Eigen's (Eigen/…/MathFunctionsImpl.h); 3e-7
    erf      a rational function of degree 13 over 8 within ±4, Eigen's (unsupported/…/SpecialFunctions); 4e-7

float16 is computed in float32, as libm would. The rational functions are evaluated by pairs (G. Estrin): a multiply-add
overwrites its addend, so that Horner's scheme copies each coefficient first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir import PrimType

from graphopt.targets.tvm.kernels.kept_names import flattened
from graphopt.targets.tvm.kernels.requantize import lanes_of, splat, wide
from graphopt.targets.tvm.kernels.softmax import COEFFICIENTS, LN2_HIGH, LN2_LOW

ROUNDER = 12582912.0 + 126  # 1.5 · 2²³, and an exponent's bias less 1
LARGEST = 88.72283  # whose exponential is finite
LEAST = -86.9  # whose exponential is a normal number
LOG = (7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1)
LOG_LAST = (2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1)
TANH_NUMERATOR = (
    4.89352455891786e-03,
    6.37261928875436e-04,
    1.48572235717979e-05,
    5.12229709037114e-08,
    -8.60467152213735e-11,
    2.00018790482477e-13,
    -2.76076847742355e-16,
)
TANH_DENOMINATOR = (4.89352518554385e-03, 2.26843463243900e-03, 1.18534705686654e-04, 1.19825839466702e-06)
ERF_NUMERATOR = (
    -1.60960333262415e-02,
    -2.95459980854025e-03,
    -7.34990630326855e-04,
    -5.69250639462346e-05,
    -2.10102402082508e-06,
    2.77068142495902e-08,
    -2.72614225801306e-10,
)
ERF_DENOMINATOR = (
    -1.42647390514189e-02,
    -7.37332916720468e-03,
    -1.68282697438203e-03,
    -2.13374055278905e-04,
    -1.45660718464996e-05,
)


class _Steps:
    """What a function computes on the way, each step once: `bind` gives its name."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.bound: list[tuple[Any, Any]] = []

    def bind(self, value: Any) -> Any:
        variable = tirx.Var(f"t{len(self.bound)}", PrimType(str(value.ty.dtype)))
        self.bound.append((variable, value))
        return variable

    def number(self, value: float) -> Any:
        return splat(tirx.const(value, "float32"), self.lanes)

    def integer(self, value: int) -> Any:
        return splat(tirx.const(value, "int32"), self.lanes)

    def bits(self, number: Any) -> Any:
        return tirx.reinterpret(wide("int32", self.lanes), number)

    def of_bits(self, integer: Any) -> Any:
        return tirx.reinterpret(wide("float32", self.lanes), integer)


def in_arithmetic(body: tirx.Stmt) -> tirx.Stmt:
    """`body` with the functions of this module in place of calls, their steps in front of the statement.

    Where a condition guards what a statement reads, its calls stay: their arguments must not be read in front of it.
    """
    return tvm_ffi.structural_map(body, [((tirx.Bind, tirx.BufferStore), _expanded), (tirx.SeqStmt, flattened)])


def _expanded(statement: Any) -> Any:
    if any(name == "tirx.if_then_else" for name in _called(statement.value)):
        return statement
    steps: list[tuple[Any, Any]] = []
    value = tvm_ffi.structural_map(statement.value, (tvm.ir.Call, lambda call: _replaced(call, steps)))
    if not steps:
        return statement
    if isinstance(statement, tirx.Bind):
        last = tirx.Bind(statement.var, value)
    else:
        last = tirx.BufferStore(statement.buffer, value, statement.indices)
    return tirx.SeqStmt([*(tirx.Bind(variable, step) for variable, step in steps), last])


def _called(value: Any) -> list[str]:
    names: list[str] = []
    tvm_ffi.structural_walk(value, (tvm.ir.Call, lambda call: names.append(getattr(call.op, "name", ""))))
    return names


def _replaced(call: Any, steps: list[tuple[Any, Any]]) -> Any:
    function = FUNCTIONS.get(getattr(call.op, "name", ""))
    dtype = str(call.ty.dtype).partition("x")[0] if function else ""
    if function is None or dtype not in ("float32", "float16"):
        return call
    made = _Steps(lanes_of(call))
    x = made.bind(call.args[0] if dtype == "float32" else tirx.Cast(wide("float32", made.lanes), call.args[0]))
    value = function(made, x)
    steps += made.bound
    return value if dtype == "float32" else tirx.Cast(wide("float16", made.lanes), value)


def _exp(steps: _Steps, x: Any) -> Any:
    number = steps.number
    shifted = steps.bind(x * number(1 / math.log(2)) + number(ROUNDER))
    n = steps.bind(shifted - number(ROUNDER))
    r = steps.bind(x - n * number(LN2_HIGH) - n * number(LN2_LOW))
    square = steps.bind(r * r)
    c2, c3, c4, c5 = (number(2 * c) for c in COEFFICIENTS)
    twice = steps.bind(number(2) + number(2) * r + square * (c2 + c3 * r + square * (c4 + c5 * r)))
    half = steps.of_bits(steps.bits(shifted) << steps.integer(23))  # 2ⁿ⁻¹
    power = steps.bind(tirx.Select(x > number(LARGEST), number(math.inf), twice * half))
    return tirx.Select(x < number(LEAST), number(0), power)


def _sigmoid(steps: _Steps, x: Any) -> Any:
    power = _exp(steps, steps.bind(steps.number(0) - x))
    return steps.number(1) / (steps.number(1) + power)


def _log(steps: _Steps, x: Any) -> Any:
    number, integer = steps.number, steps.integer
    least = number(2.0**-126)
    bits = steps.bind(steps.bits(tirx.Select(x < least, least, x)) - integer(0x3F3504F3))  # of √½
    n = tirx.Cast(wide("float32", steps.lanes), bits >> integer(23))
    r = steps.bind(steps.of_bits((bits & integer(0x7FFFFF)) + integer(0x3F3504F3)) - number(1))
    series = number(LOG[0])
    for c in (*LOG[1:], *LOG_LAST):
        series = series * r + number(c)
    square = steps.bind(r * r)
    n = steps.bind(n)
    found = steps.bind((series * r * square + n * number(LN2_LOW)) - square * number(0.5) + r + n * number(LN2_HIGH))
    found = steps.bind(tirx.Select(x <= number(0), number(-math.inf), found))
    found = steps.bind(tirx.Select(x < number(0), number(math.nan), found))
    return tirx.Select(x < number(math.inf), found, x)  # ∞ and NaN


def _tanh(steps: _Steps, x: Any) -> Any:
    return _rational(steps, x, 9.0, TANH_NUMERATOR, TANH_DENOMINATOR)


def _erf(steps: _Steps, x: Any) -> Any:
    return _rational(steps, x, 4.0, ERF_NUMERATOR, ERF_DENOMINATOR)


def _rational(steps: _Steps, x: Any, limit: float, above: tuple[float, ...], below: tuple[float, ...]) -> Any:
    """x P(x²) / Q(x²) of x within ±limit."""
    for name, end in (("llvm.minimum", limit), ("llvm.maximum", -limit)):  # unlike minnum and maxnum these keep NaN
        x = steps.bind(tirx.call_llvm_pure_intrin(wide("float32", steps.lanes), name, x, steps.number(end)))
    square = steps.bind(x * x)
    fourth = steps.bind(square * square)
    return x * _polynomial(steps, square, fourth, above) / _polynomial(steps, square, fourth, below)


def _polynomial(steps: _Steps, x: Any, square: Any, coefficients: tuple[float, ...]) -> Any:
    """Σ cᵢ xⁱ, by pairs."""
    pairs = [coefficients[i : i + 2] for i in range(0, len(coefficients), 2)]
    parts = [
        steps.number(pair[0]) if len(pair) == 1 else steps.number(pair[0]) + steps.number(pair[1]) * x for pair in pairs
    ]
    total = parts[-1]
    for part in reversed(parts[:-1]):
        total = part + total * square
    return total


FUNCTIONS: dict[str, Callable[[_Steps, Any], Any]] = {
    "tirx.erf": _erf,
    "tirx.exp": _exp,
    "tirx.log": _log,
    "tirx.sigmoid": _sigmoid,
    "tirx.tanh": _tanh,
}
# TVM does not know that a loop around erf can be a vector: it is arithmetic here.
tvm.ir.register_op_attr("tirx.erf", "TVectorizable", True)
