"""Conv, Gemm and MatMul with constant weights as integer kernels.

With x = s_x (q_x - z_x), w_n = s_n (q_w - z_n) and b the bias, the float layer computes

    y_n = s_x s_n (Σ q_w' q_x  -  z_x Σ q_w'  +  round(b_n / (s_x s_n))),    q_w' = q_w - z_n

and the result is quantized by s_y: the sum is an int32, the multiplier s_x s_n / s_y a float32 (computed in float32, as
ONNX Runtime does), and `kernels.requantize` says how one becomes an int8 by the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from graphopt.targets.tvm.kernels.integer_depthwise import IntegerDepthwise, pack_depthwise_weights
from graphopt.targets.tvm.kernels.integer_product import IntegerProduct, pack_weights
from graphopt.targets.tvm.kernels.requantize import ROUNDER_BITS, may_be_lifted
from graphopt.targets.tvm.kernels.window import Window
from graphopt.targets.tvm.quantized.cluster import Cluster
from graphopt.targets.tvm.quantized.editor import Editor, shape_of
from graphopt.targets.tvm.quantized.emission import emit_kernel
from graphopt.targets.tvm.quantized.parameters import INT8, UINT8, Quantized, constant, dequantized

INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class Factors:
    """The constants of a product: int8 weights with output channels first, int32 bias and float32 multipliers.

    `lifted`: no input makes sums too large to be lifted (`requantize`); ROUNDER_BITS are in the bias then.
    """

    weights: np.ndarray
    bias: np.ndarray
    multipliers: np.ndarray
    lifted: bool

    @property
    def pairs(self) -> bool:
        return bool(self.weights.min(initial=0) > -128)


def rewrite_convolution(cluster: Cluster, editor: Editor) -> str | None:
    """Conv in one or two dimensions: replaced, or why not."""
    node = cluster.node
    x, w = dequantized(node.inputs[0]), dequantized(node.inputs[1])
    reason = unfit_factors(x, w)
    if reason is not None or x is None or w is None:
        return reason
    reason = unfit_convolution(x)
    if reason is not None:
        return reason
    shape, kernel = shape_of(x.integers), shape_of(w.integers)
    group = _integer(node, "group", 1)
    found = _factors(cluster, x, w, node.inputs[2] if len(node.inputs) > 2 else None, 0)
    if isinstance(found, str):
        return found
    window = window_of(node, shape, kernel[2:], x.signed_zero_point)
    source = editor.channels_last(x.integers)
    kernel_last = np.moveaxis(found.weights, 1, -1)  # [out, (height,) width, in]
    if group == shape[1] == kernel[0] and group > 1:
        depthwise = IntegerDepthwise(window, cluster.bounds, found.pairs, found.lifted)
        packed = pack_depthwise_weights(kernel_last[..., 0])
        made = emit_product(editor, cluster, depthwise, source, packed, found)
    else:
        window = replace(window, groups=group)
        product = IntegerProduct(window, kernel[0] // group, cluster.bounds, found.pairs, lifted=found.lifted)
        made = emit_product(editor, cluster, product, source, pack_weights(kernel_last, window), found)
    editor.replace(cluster.result.integers, made, channels_last=True)
    return None


def rewrite_matrix_product(cluster: Cluster, editor: Editor) -> str | None:
    """MatMul and Gemm with constant weights: replaced, or why not."""
    node = cluster.node
    x, w = dequantized(node.inputs[0]), dequantized(node.inputs[1])
    reason = unfit_factors(x, w)
    if reason is not None or x is None or w is None:
        return reason
    reason = unfit_matrix_product(node, x, w)
    if reason is not None:
        return reason
    transposed = _integer(node, "transB", 0) == 1
    found = _factors(cluster, x, w, node.inputs[2] if len(node.inputs) > 2 else None, 0 if transposed else 1)
    if isinstance(found, str):
        return found
    *rows, depth = shape_of(x.integers)
    window = Window((1, 1, int(np.prod(rows)), depth), padding=x.signed_zero_point)
    product = IntegerProduct(window, found.weights.shape[0], cluster.bounds, found.pairs, lifted=found.lifted)
    packed = pack_weights(found.weights.reshape(-1, 1, 1, depth), window)
    made = emit_product(editor, cluster, product, editor.int8(x.integers), packed, found)
    editor.replace(cluster.result.integers, made, channels_last=False)
    return None


def emit_product(
    editor: Editor,
    cluster: Cluster,
    kernel: IntegerProduct | IntegerDepthwise,
    source: ir.Value,
    packed: np.ndarray,
    factors: Factors,
    made: tuple[int, ...] | None = None,
) -> ir.Value:
    """The integers of the result, in the kernel's layout; of the shape `made`, if that is not the cluster's."""
    name = cluster.layer
    vectors = {"bias": factors.bias, "multipliers": factors.multipliers}
    if isinstance(kernel, IntegerProduct):
        vectors = {kind: kernel.padded(vector) for kind, vector in vectors.items()}
    constants = [editor.constant(packed, f"{name}.weights")]
    constants += [editor.constant(vector, f"{name}.{kind}") for kind, vector in vectors.items()]
    shape = shape_of(cluster.result.integers)
    if cluster.node.op_type == "Conv":
        shape = (shape[0], *shape[2:], shape[1])
    return emit_kernel(cluster, editor, kernel, [source, *constants], made or shape)


def unfit_factors(x: Quantized | None, w: Quantized | None) -> str | None:
    if x is None or x.integers.dtype not in (INT8, UINT8):
        return "its input is not quantized to 8 bits"
    if not x.per_tensor:
        return "its input is quantized by channel"
    if w is None:
        return "its weights are not quantized"
    if constant(w.integers) is None:
        return "both factors are activations"
    return None


def unfit_convolution(x: Quantized) -> str | None:
    """Why a Conv has no integer kernel, if it has none."""
    dimensions = len(shape_of(x.integers)) - 2
    return None if dimensions in (1, 2) else f"it has {dimensions} spatial dimensions; integer kernels have one or two"


def unfit_matrix_product(node: ir.Node, x: Quantized, w: Quantized) -> str | None:
    """Why a MatMul or Gemm has no integer kernel, if it has none."""
    if any(_float(node, name, 1.0) != 1.0 for name in ("alpha", "beta")) or _integer(node, "transA", 0):
        return "it has alpha, beta or a transposed left factor"
    if len(shape_of(w.integers)) != 2 or len(shape_of(x.integers)) < 2:
        return "its factors are not a matrix of activations and one of weights"
    return None


def scaled_weights(x: Quantized, w: Quantized, axis: int) -> tuple[np.ndarray, np.ndarray] | str:
    """int64 weights less their zero point, output channels first, and the float32 scale of the products of each.

    Args:
        axis: of the output channels.
    """
    given = constant(w.integers)
    assert given is not None  # unfit_factors looked
    if not w.per_tensor and (w.axis is None or w.axis % given.ndim != axis):
        return "its weights are quantized along another axis than the output channels"
    weights = np.moveaxis(given.astype(np.int64), axis, 0)
    channels = weights.shape[0]
    along = (-1, *[1] * (weights.ndim - 1))
    weights = weights - np.broadcast_to(w.zero_point, channels).reshape(along)
    if weights.min(initial=0) < -128 or weights.max(initial=0) > 127:
        return "its weights less their zero point do not fit int8"
    return weights, (x.scale * np.broadcast_to(w.scale, channels)).astype(np.float32)


def start_of_sums(weights: np.ndarray, steps: np.ndarray, zero_point: int) -> np.ndarray | str:
    """int32 [channels]: `steps` less the zero point of the input times the sum of the weights."""
    sums = weights.reshape(len(weights), -1)
    folded = steps - zero_point * sums.sum(1)
    if (np.abs(folded) + 128 * np.abs(sums).sum(1)).max(initial=0) > INT32_MAX:
        return "its sums may overflow 32 bits"
    return np.asarray(folded.astype(np.int32))


def _factors(cluster: Cluster, x: Quantized, w: Quantized, bias: ir.Value | None, axis: int) -> Factors | str:
    """The constants of a product whose weights have their output channels along `axis`."""
    found = scaled_weights(x, w, axis)
    if isinstance(found, str):
        return found
    steps = bias_steps(bias, found[1])
    return steps if isinstance(steps, str) else factors_of(cluster, x, *found, steps)


def factors_of(
    cluster: Cluster, x: Quantized, weights: np.ndarray, product_scale: np.ndarray, steps: np.ndarray
) -> Factors | str:
    """The constants of a product with these weights, output channels first, the scales of their products, and bias."""
    multipliers = (product_scale / cluster.result.scale).astype(np.float32)
    if not (np.isfinite(multipliers).all() and (multipliers >= np.finfo(np.float32).tiny).all()):
        return "the ratio of its scales is not a normal number"
    start = start_of_sums(weights, steps, x.signed_zero_point)
    if isinstance(start, str):
        return start
    largest = np.abs(start.astype(np.int64)) + 128 * np.abs(weights.reshape(len(weights), -1)).sum(1)
    lifted = may_be_lifted(largest, multipliers)
    return Factors(weights.astype(np.int8), start + np.int32(ROUNDER_BITS if lifted else 0), multipliers, lifted)


def bias_steps(bias: ir.Value | None, scale: np.ndarray) -> np.ndarray | str:
    """The bias in steps of `scale`, the scale of the products: int64 [channels]."""
    if bias is None or not bias.name:
        return np.zeros(len(scale), np.int64)
    stored = dequantized(bias)
    integers = None if stored is None else constant(stored.integers)
    if stored is not None and integers is not None:
        if not stored.zero_point.any() and np.allclose(stored.scale, scale, rtol=1e-5, atol=0):
            exact = integers.astype(np.int64)
            return np.broadcast_to(exact.reshape(-1), scale.shape) if exact.size in (1, len(scale)) else NO_VECTOR
        real = (integers.astype(np.int64) - stored.zero_point) * stored.scale.astype(np.float64)
    else:
        array = constant(bias)
        if array is None:
            return "its bias is not constant"
        real = array.astype(np.float64)
    if real.ndim and (real.size != real.shape[-1] or real.size not in (1, len(scale))):
        return NO_VECTOR
    steps: np.ndarray = np.rint(np.broadcast_to(real.reshape(-1), scale.shape) / scale)
    return steps.astype(np.int64)


NO_VECTOR = "its bias is not a vector"


def window_of(node: ir.Node, shape: tuple[int, ...], kernel: tuple[int, ...], padding: int) -> Window:
    """The window of a Conv over [batch, channels, (height,) width]; in one dimension the height is 1."""
    rank = len(kernel)
    strides, dilations = (_integers(node, name, (1,) * rank) for name in ("strides", "dilations"))
    pads = _integers(node, "pads", (0,) * (2 * rank))
    auto = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max((-(-size // stride) - 1) * stride + (extent - 1) * dilation + 1 - size, 0)
            for size, extent, stride, dilation in zip(shape[2:], kernel, strides, dilations, strict=True)
        ]
        less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
        pads = (*less, *more) if auto == "SAME_UPPER" else (*more, *less)
    elif auto == "VALID":
        pads = (0,) * (2 * rank)
    window = Window((shape[0], *((1,) * (2 - rank)), *shape[2:], shape[1]), padding=padding)  # type: ignore[arg-type]
    if rank == 1:
        return replace(
            window,
            kernel=(1, kernel[0]),
            strides=(1, strides[0]),
            dilations=(1, dilations[0]),
            pads=(0, pads[0], 0, pads[1]),
        )
    return replace(window, kernel=kernel, strides=strides, dilations=dilations, pads=pads)  # type: ignore[arg-type]


def _integer(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


def _float(node: ir.Node, name: str, default: float) -> float:
    return node.attributes[name].as_float() if name in node.attributes else default


def _integers(node: ir.Node, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(node.attributes[name].as_ints()) if name in node.attributes else default
