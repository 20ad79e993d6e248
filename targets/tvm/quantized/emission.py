"""A layer's node once its kernel is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from graphopt.targets.tvm.kernels.integer import describe
from graphopt.targets.tvm.quantized.cluster import Cluster
from graphopt.targets.tvm.quantized.conversion import KERNEL
from graphopt.targets.tvm.quantized.editor import DOMAIN, Editor
from graphopt.targets.tvm.quantized.parameters import INT8


def emit_kernel(
    cluster: Cluster, editor: Editor, kernel: Any, inputs: Sequence[ir.Value], shape: Sequence[int]
) -> ir.Value:
    """The int8 result, of `shape` in the kernel's layout, of a node that computes `cluster` by `kernel`."""
    return editor.add(
        type(kernel).__name__,
        inputs,
        INT8,
        shape,
        name=f"{cluster.layer}.int8",
        attributes={KERNEL: describe(kernel)},
        layer=cluster.layer,
        domain=DOMAIN,
    )
