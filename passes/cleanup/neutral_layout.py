"""When an operator that moves, selects or repeats elements gives its input back: the rules by operator.

A rule takes a node and returns the input that stands for the node's first
output, a reason if it looks neutral and is not, or None.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.ir.reading import axes_of, constant, has_parameter, integers, same_shape, static_shape

Array = npt.NDArray[np.generic]
Rule = Callable[[ir.Node], ir.Value | str | None]

LAST = np.iinfo(np.int64).max
# coordinate transformations that map every index to itself when the scale is one
IDENTITY_COORDINATES = frozenset(
    {"half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"}
)


def first_input(node: ir.Node) -> ir.Value | None:
    """Identity."""
    return node.inputs[0]


def same_shape_out(node: ir.Node) -> ir.Value | None:
    """Reshape, Flatten, Squeeze, Unsqueeze and Expand keep the elements' order: the same shape is the same tensor."""
    return node.inputs[0] if same_shape(node.inputs[0], node.outputs[0]) else None


def ascending_transpose(node: ir.Node) -> ir.Value | None:
    """Transpose with the permutation 0, 1, 2 …, or of fewer than two dimensions."""
    data = node.inputs[0]
    permutation = integers(node, "perm", len(node.inputs))
    if permutation is None:
        return data if data is not None and data.shape is not None and len(data.shape) < 2 else None
    return data if permutation == tuple(range(len(permutation))) else None


def whole_slice(node: ir.Node) -> ir.Value | None:
    """Slice that takes every element of each of its axes in ascending order."""
    data = node.inputs[0]
    if has_parameter(node, "steps", 4) and set(integers(node, "steps", 4) or (0,)) != {1}:
        return None
    shape = static_shape(data)
    if shape is not None and shape == static_shape(node.outputs[0]):
        return data
    starts, ends = integers(node, "starts", 1), integers(node, "ends", 2)
    if starts is None or ends is None:
        return None
    return data if all(start == 0 for start in starts) and all(end == LAST for end in ends) else None


def single_input(node: ir.Node) -> ir.Value | None:
    """Concat, Sum, Mean, Max and Min of one tensor."""
    return node.inputs[0] if len(node.inputs) == 1 else None


def single_output(node: ir.Node) -> ir.Value | None:
    """Split into one part."""
    return node.inputs[0] if len(node.outputs) == 1 else None


def no_padding(node: ir.Node) -> ir.Value | None:
    """Pad by nothing."""
    pads = integers(node, "pads", 1)
    return node.inputs[0] if pads is not None and not any(pads) else None


def tile_by_one(node: ir.Node) -> ir.Value | None:
    """Tile once along each axis."""
    repeats = integers(node, "repeats", 1)
    return node.inputs[0] if repeats is not None and set(repeats) <= {1} else None


def block_of_one(node: ir.Node) -> ir.Value | None:
    """DepthToSpace and SpaceToDepth by blocks of one element."""
    return node.inputs[0] if node.attributes.get_int("blocksize", 0) == 1 else None


def gather_everything(node: ir.Node) -> ir.Value | None:
    """Gather of the indices 0, 1, 2 … of a whole axis."""
    shape, indices = static_shape(node.inputs[0]), constant(node.inputs[1])
    if not shape or indices is None or indices.ndim != 1:
        return None
    size = shape[node.attributes.get_int("axis", 0)]
    return node.inputs[0] if np.array_equal(_from_start(indices, size), np.arange(size)) else None


def scatter_everything(node: ir.Node) -> ir.Value | None:
    """ScatterND that overwrites every element in order: the updates remain."""
    shape, indices = static_shape(node.inputs[0]), constant(node.inputs[1])
    if not shape or indices is None or not indices.ndim or node.attributes.get_string("reduction", "none") != "none":
        return None
    depth = indices.shape[-1]
    if not 0 < depth <= len(shape) or shape != static_shape(node.inputs[2]):
        return None
    every = np.moveaxis(np.indices(shape[:depth]), 0, -1)
    return node.inputs[2] if np.array_equal(_from_start(indices, shape[:depth]), every) else None


def scatter_elements_everything(node: ir.Node) -> ir.Value | None:
    """ScatterElements that overwrites every element in order: the updates remain."""
    shape, indices = static_shape(node.inputs[0]), constant(node.inputs[1])
    if not shape or indices is None or node.attributes.get_string("reduction", "none") != "none":
        return None
    axis = node.attributes.get_int("axis", 0)
    every = np.indices(shape)[axis] if indices.shape == shape else None
    return node.inputs[2] if every is not None and np.array_equal(_from_start(indices, shape[axis]), every) else None


def _from_start(indices: Array, size: int | tuple[int, ...]) -> Array:
    """Indices with those that count from the end made to count from the start."""
    numbers = indices.astype(np.int64)
    return np.where(numbers < 0, numbers + np.asarray(size), numbers)


def resize_to_same(node: ir.Node) -> ir.Value | str | None:
    """Resize and Upsample to the size that the input has, by scales that are exactly one."""
    data, attributes = node.inputs[0], node.attributes
    index = 2 if len(node.inputs) > 2 else 1  # Resize took its second input, roi, in version 11
    if has_parameter(node, "scales", index):
        floats = attributes.get_floats("scales")
        scales = constant(node.inputs[index]) if floats is None else np.asarray(floats)
        if scales is None or not np.all(scales == 1):
            return None
    else:
        scales = np.zeros(0)
    if not scales.size:  # sizes decide
        shape = static_shape(data)
        if shape is None or shape != static_shape(node.outputs[0]):
            return None
        if attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
            return None
    if node.op_type == "Upsample" or index == 1:
        return data
    if (mode := attributes.get_string("coordinate_transformation_mode", "half_pixel")) not in IDENTITY_COORDINATES:
        return f"keeps the size, but samples between the elements: coordinate_transformation_mode is {mode!r}"
    return data


def reduce_single_elements(node: ir.Node) -> ir.Value | None:
    """Sum, mean, product, maximum or minimum of one element each, with the reduced axes kept; or over no axis."""
    data = node.inputs[0]
    if not node.attributes.get_int("keepdims", 1):
        return None
    if not has_parameter(node, "axes", 1) or integers(node, "axes", 1) == ():
        shape = static_shape(data)
        if node.attributes.get_int("noop_with_empty_axes", 0):
            return data
        return data if shape is not None and set(shape) <= {1} else None
    if data is None or data.shape is None:
        return None
    axes = axes_of(node, len(data.shape))
    return data if axes is not None and all(data.shape[axis] == 1 for axis in axes) else None


def pool_single_elements(node: ir.Node) -> ir.Value | None:
    """AveragePool and MaxPool over a window of one element, without padding or stride."""
    attributes = node.attributes
    window = integers(node, "kernel_shape", len(node.inputs))
    if window is None or set(window) != {1} or attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    strides, pads = attributes.get_ints("strides", (1,)) or (1,), attributes.get_ints("pads", (0,)) or (0,)
    return node.inputs[0] if set(strides) == {1} and set(pads) == {0} else None


def global_pool_of_one(node: ir.Node) -> ir.Value | None:
    """GlobalAveragePool and GlobalMaxPool of a plane of one element."""
    data = node.inputs[0]
    if data is None or data.shape is None or len(data.shape) < 3:
        return None
    return data if all(dim == 1 for dim in data.shape.dims[2:]) else None


LAYOUT_RULES: dict[str, Rule] = {
    "Identity": first_input,
    "Reshape": same_shape_out,
    "Flatten": same_shape_out,
    "Squeeze": same_shape_out,
    "Unsqueeze": same_shape_out,
    "Expand": same_shape_out,
    "Transpose": ascending_transpose,
    "Slice": whole_slice,
    "Concat": single_input,
    "Sum": single_input,
    "Mean": single_input,
    "Max": single_input,
    "Min": single_input,
    "Split": single_output,
    "Pad": no_padding,
    "Tile": tile_by_one,
    "DepthToSpace": block_of_one,
    "SpaceToDepth": block_of_one,
    "Gather": gather_everything,
    "ScatterND": scatter_everything,
    "ScatterElements": scatter_elements_everything,
    "Resize": resize_to_same,
    "Upsample": resize_to_same,
    "ReduceSum": reduce_single_elements,
    "ReduceMean": reduce_single_elements,
    "ReduceMax": reduce_single_elements,
    "ReduceMin": reduce_single_elements,
    "ReduceProd": reduce_single_elements,
    "AveragePool": pool_single_elements,
    "MaxPool": pool_single_elements,
    "GlobalAveragePool": global_pool_of_one,
    "GlobalMaxPool": global_pool_of_one,
}
