"""What the floating-point convolution kernels read of relax.nn.conv2d: one reading of layouts and shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import relax, tirx
from tvm.ir import GenericConst
from tvm.ir.expr import Call, TensorLoad

from graphopt.targets.tvm.kernels.matmul import static_float
from graphopt.targets.tvm.kernels.rows import lanes_for


@dataclass(frozen=True)
class Conv2d:
    """A convolution, NCHW, of constant weights OIHW; rows are the first of a pair, columns the second."""

    batch: int
    channels: int
    filters: int
    groups: int
    image: tuple[int, int]
    result: tuple[int, int]
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int]  # before the first row and column; not negative
    dtype: str = "float32"  # or float16

    @property
    def lanes(self) -> int:
        """Elements of a vector: of 128 bits, or of 64 where a row of float16 has no more."""
        return lanes_for(self.dtype, self.result[1])


def read_conv2d(call: relax.Call) -> Conv2d | None:
    """The convolution that a call of relax.nn.conv2d computes; None if it is of another kind, or crops its input."""
    data, weights = call.args
    attributes = call.attrs
    layouts = (attributes.data_layout, attributes.kernel_layout, attributes.out_layout)
    dtype = static_float(call)
    if layouts != ("NCHW", "OIHW", "NCHW") or dtype is None or not isinstance(weights, GenericConst):
        return None
    (batch, channels, *image), (filters, _, *kernel), (_, _, *result) = (
        [int(extent) for extent in ty.shape] for ty in (data.ty, weights.ty, call.ty)
    )
    strides, dilations, pads = (
        [int(item) for item in items] for items in (attributes.strides, attributes.dilation, attributes.padding)
    )
    if min(pads) < 0:
        return None
    return Conv2d(
        batch,
        channels,
        filters,
        int(attributes.groups),
        (image[0], image[1]),
        (result[0], result[1]),
        (kernel[0], kernel[1]),
        (strides[0], strides[1]),
        (dilations[0], dilations[1]),
        (pads[0], pads[1]),
        dtype,
    )


def read_buffers(block: Any) -> tuple[Any, Any] | None:
    """The image and the weights that a marked block sums the products of; None where TVM has folded the sum.

    It does where every place that a window reads is padding. Where none is, the image is read without a condition.
    """
    value = block.body.value
    if not isinstance(value, tirx.Add) or not isinstance(value.b, tirx.Mul):
        return None
    pixel, weight = value.b.a, value.b.b
    if isinstance(pixel, Call):
        pixel = pixel.args[1]
    if not isinstance(pixel, TensorLoad) or not isinstance(weight, TensorLoad):
        return None
    return pixel.source, weight.source
