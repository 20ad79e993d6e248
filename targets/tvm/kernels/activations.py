"""The activation functions that ONNX names for LSTM, GRU and RNN, as TIR expressions of float32.

All are free of branches, so that a loop around them can be vectorized. They bind intermediate values, so they work
only while an IRBuilder builds a function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script.ir_builder import tirx as T  # noqa: N812


@dataclass(frozen=True)
class Activation:
    """`function(x, alpha, beta)`; the parameters are float constants, fixed at compile time."""

    function: Callable[[Any, float, float], Any]
    alpha: float = 0.0
    beta: float = 0.0

    def __call__(self, x: Any) -> Any:
        return self.function(x, self.alpha, self.beta)


@dataclass(frozen=True)
class ActivationKind:
    """What ONNX knows by a name: the formula, and which parameters it takes.

    `defaults` holds a value for each parameter that the formula takes, alpha first; None where the specification and
    ONNX Runtime disagree on the default, so that the model has to give one.
    """

    function: Callable[[Any, float, float], Any]
    defaults: tuple[float | None, ...] = ()


def tanh(x: Any) -> Any:
    """Hyperbolic tangent: a rational approximation of degree 13 over 6, to 3 units in the last place.

    The minimax coefficients are those of Eigen (Eigen/src/Core/MathFunctionsImpl.h, `ptanh`): beyond ±9 the result
    rounds to ±1. Written out here since libm's takes one element a call.
    """
    x = T.Bind(T.max(T.min(x, T.float32(9.0)), T.float32(-9.0)))
    square = T.Bind(x * x)
    return x * _horner(square, TANH_NUMERATOR) / _horner(square, TANH_DENOMINATOR)


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)) = tanh(x/2)/2 + 1/2; the absolute error is below 1e-7."""
    half = T.float32(0.5)
    return tanh(x * half) * half + half


def _horner(x: Any, coefficients: tuple[float, ...]) -> Any:
    result = T.float32(coefficients[0])
    for coefficient in coefficients[1:]:
        result = result * x + T.float32(coefficient)
    return result


TANH_NUMERATOR = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
TANH_DENOMINATOR = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)


def _softplus(x: Any, _alpha: float, _beta: float) -> Any:
    return T.max(x, T.float32(0)) + T.log(T.float32(1) + T.exp(-T.abs(x)))


def _elu(x: Any, alpha: float, _beta: float) -> Any:
    return T.max(x, T.float32(0)) + T.float32(alpha) * (T.exp(T.min(x, T.float32(0))) - T.float32(1))


def _hard_sigmoid(x: Any, alpha: float, beta: float) -> Any:
    return T.max(T.float32(0), T.min(T.float32(1), _affine(x, alpha, beta)))


def _affine(x: Any, alpha: float, beta: float) -> Any:
    return T.float32(alpha) * x + T.float32(beta)


ACTIVATIONS: dict[str, ActivationKind] = {  # by ONNX's name in lower case: names are compared without case
    "affine": ActivationKind(_affine, (None, None)),
    "elu": ActivationKind(_elu, (1.0,)),
    "hardsigmoid": ActivationKind(_hard_sigmoid, (0.2, 0.5)),
    "leakyrelu": ActivationKind(lambda x, alpha, _: T.Select(x >= T.float32(0), x, T.float32(alpha) * x), (0.01,)),
    "relu": ActivationKind(lambda x, _alpha, _beta: T.max(x, T.float32(0))),
    "scaledtanh": ActivationKind(lambda x, alpha, beta: T.float32(alpha) * tanh(T.float32(beta) * x), (None, None)),
    "sigmoid": ActivationKind(lambda x, _alpha, _beta: sigmoid(x)),
    "softplus": ActivationKind(_softplus),
    "softsign": ActivationKind(lambda x, _alpha, _beta: x / (T.float32(1) + T.abs(x))),
    "tanh": ActivationKind(lambda x, _alpha, _beta: tanh(x)),
    "thresholdedrelu": ActivationKind(lambda x, alpha, _: T.Select(x >= T.float32(alpha), x, T.float32(0)), (None,)),
}
