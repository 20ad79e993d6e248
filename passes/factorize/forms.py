"""The forms that a layer may take."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.ir.reading import constant
from graphopt.passes.factorize.cp import Cp
from graphopt.passes.factorize.form import Form, Method
from graphopt.passes.factorize.layers import Layer
from graphopt.passes.factorize.low_rank import Directions, OutputEnergy
from graphopt.passes.factorize.matrix_forms import Svd
from graphopt.passes.factorize.window_forms import decoupled, spatial, tucker2

Array = np.ndarray[Any, Any]


def forms_of(layer: Layer, method: Method, covariance: Array | None, found: Directions) -> list[Form]:
    """The forms that the method allows; none where it has no form for such a layer.

    found: directions of the layer's output. covariance: of its columns.
    """
    output = OutputEnergy(covariance, found.varying)
    forms: list[Form] = []
    if method in (Method.AUTO, Method.SVD):
        forms.append(Svd(layer, found))
    window = _window(layer.node)
    if window is None:
        return forms
    is_pair = len(window) == 2 and min(window) > 1
    if method in (Method.AUTO, Method.SPATIAL) and is_pair:
        forms.append(spatial(layer, window, output))
    if method in (Method.AUTO, Method.TUCKER2):
        forms.append(tucker2(layer, window, output, found))
    if method in (Method.AUTO, Method.DECOUPLED):
        forms.append(decoupled(layer, window, output))
    if method is Method.CP and is_pair:
        forms.append(Cp(layer, window, output))
    return forms


def _window(node: ir.Node) -> tuple[int, ...] | None:
    """The window of a Conv that covers several places, and whose padding is written down."""
    weight = constant(node.inputs[1]) if node.op_type == "Conv" else None
    if weight is None or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return None
    window = tuple(int(size) for size in weight.shape[2:])
    return window if math.prod(window) > 1 else None
