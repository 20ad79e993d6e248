"""The activation functions that ONNX names for LSTM, GRU and RNN, as TIR expressions of float32.

All are free of branches, so that a loop around them can be vectorized; `elementary` computes what they call.
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
    "scaledtanh": ActivationKind(lambda x, alpha, beta: T.float32(alpha) * T.tanh(T.float32(beta) * x), (None, None)),
    "sigmoid": ActivationKind(lambda x, _alpha, _beta: T.sigmoid(x)),
    "softplus": ActivationKind(_softplus),
    "softsign": ActivationKind(lambda x, _alpha, _beta: x / (T.float32(1) + T.abs(x))),
    "tanh": ActivationKind(lambda x, _alpha, _beta: T.tanh(x)),
    "thresholdedrelu": ActivationKind(lambda x, alpha, _: T.Select(x >= T.float32(alpha), x, T.float32(0)), (None,)),
}
