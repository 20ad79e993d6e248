"""Matrix products and 1×1 convolutions in floating point: which operators the kernel takes, how weights are packed.

The kernel (`register_tile`) computes C[m, n] = Σₖ L[m, k]·R[k, n] in tiles that stay in registers: in each step k it
multiplies a column of the tile's rows of L, element by element, with vectors of its columns of R. So R is read along n,
and what is constant is packed into panels, in the order in which the tile reads it:

    R, the right factor of a MatMul or Gemm      [panel of n, k, n in the panel]
    L, the weights of a convolution              [panel of m, k, m in the panel]

A convolution over NCHW is W[oc, ic]·X[ic, h·w], whose right side lies as the kernel wants it; over a single pixel it is
the product of a row, X[1, ic], with Wᵀ. What is not constant is read where it lies.

The packed product is an ordinary TE reduction, which FuseOps and FuseTIR fuse with the element-wise operators behind
it. Attributes on its block tell `register_tile.schedule` how to read it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tvm
from tvm import relax, te, tirx, topi
from tvm.ir import GenericConst
from tvm.target.codegen import target_has_features

# Marks on the product's block, for `register_tile.schedule`.
ROW_AXES = "graphopt.row_axes"  # how many of C's axes, after those of the batch, are rows
COLUMN_AXES = "graphopt.column_axes"  # how many of C's axes, the last ones, are columns
TILE = "graphopt.tile"  # [rows, columns, lanes]
PACKED = "graphopt.packed"  # [left, right]: 1 if the factor is packed

FUSABLE = 4  # relax::OpPatternKind::kOutEWiseFusable: takes the element-wise operators behind it in


@dataclass(frozen=True)
class Tile:
    """A block of C in registers: rows × vectors sums of `lanes` elements each."""

    rows: int
    vectors: int
    lanes: int

    @property
    def columns(self) -> int:
        return self.vectors * self.lanes


def tile_for(target: tvm.target.Target | None) -> Tile:
    """The tile that fits the target's vector registers, with some left that the two factors pass through.

    32 registers hold 8×3 sums, 3 vectors of R and 2 of L; 16 hold 4×2 or, where L comes from memory, 6×2 sums.
    """
    triple = "" if target is None else str(target.attrs.get("mtriple", ""))
    if triple.startswith(("aarch64", "arm64")):
        return Tile(rows=8, vectors=3, lanes=4)
    if triple.startswith("arm"):
        return Tile(rows=4, vectors=2, lanes=4)
    wide = target is not None and target.kind.name == "llvm" and target_has_features("avx2", target)
    return Tile(rows=6, vectors=2, lanes=8 if wide else 4)


def current_tile(dtype: str = "float32") -> Tile:
    """The tile of the target that TVM's passes are run for; a vector holds twice as many float16."""
    tile = tile_for(tvm.target.Target.current(allow_none=True))
    return replace(tile, lanes=2 * tile.lanes) if dtype == "float16" else tile


@dataclass(frozen=True)
class Factor:
    """One side of a product: its tensor, and the width of its panels (0: not packed, read where it lies)."""

    value: Any
    panel: int = 0


@dataclass(frozen=True)
class Product:
    """C with axes (*batch, *rows, *columns), summed over `depth`: m runs over all of `rows`, n over all of `columns`.

    A packed left factor is [rows / panel, depth, panel], a packed right one [columns / panel, depth, panel], rounded
    up. Others are [*batch, *rows, depth] and [*batch, depth, *columns], with trailing axes of extent 1 allowed.
    """

    batch: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    depth: int

    def emit(self, builder: relax.BlockBuilder, left: Factor, right: Factor) -> relax.Expr:
        """A call of the product, as a function marked for `register_tile.schedule`."""
        tile = current_tile(_dtype(left.value))
        first, second = len(self.batch), len(self.batch) + len(self.rows)

        def product(lhs: te.Tensor, rhs: te.Tensor) -> te.Tensor:
            k = te.reduce_axis((0, self.depth), name="k")

            def element(*axes: Any) -> Any:
                batch, rows, columns = axes[:first], axes[first:second], axes[second:]
                a = _in_panel(lhs, rows[0], k, left.panel) if left.panel else _element(lhs, (*batch, *rows, k))
                b = _in_panel(rhs, columns[0], k, right.panel) if right.panel else _element(rhs, (*batch, k, *columns))
                return te.sum(a * b, axis=k)

            marks = {
                ROW_AXES: len(self.rows),
                COLUMN_AXES: len(self.columns),
                TILE: [left.panel or tile.rows, right.panel or tile.columns, tile.lanes],
                PACKED: [int(left.panel > 0), int(right.panel > 0)],
            }
            return te.compute((*self.batch, *self.rows, *self.columns), element, name="matmul", attrs=marks)

        attributes = {"op_pattern": FUSABLE}
        return builder.call_te(product, left.value, right.value, primfunc_name_hint="matmul", primfunc_attrs=attributes)


def legalize_matmul(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """relax.matmul as the kernel's product; by TVM's own legalization where the kernel does not apply."""
    left, right = call.args
    if static_float(call) is None:
        return _by_tvm(builder, call)
    l_shape, r_shape = _shape(left), _shape(right)
    if len(r_shape) == 2 and len(l_shape) >= 2:
        product = Product(batch=(), rows=l_shape[:-1], columns=r_shape[1:], depth=r_shape[0])
        return product.emit(builder, Factor(left), _packed_right(right))
    if len(l_shape) == 2 and len(r_shape) > 2 and isinstance(left, GenericConst):
        product = Product(batch=r_shape[:-2], rows=l_shape[:1], columns=r_shape[-1:], depth=l_shape[1])
        return product.emit(builder, _packed_left(left.value.numpy()), Factor(right))
    if len(l_shape) == len(r_shape) > 2 and l_shape[:-2] == r_shape[:-2]:
        product = Product(batch=l_shape[:-2], rows=l_shape[-2:-1], columns=r_shape[-1:], depth=l_shape[-1])
        return product.emit(builder, Factor(left), Factor(right))
    return _by_tvm(builder, call)


def legalize_conv2d(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """relax.nn.conv2d with a constant 1×1 kernel as the kernel's product; any other by TVM's own legalization."""
    data, weights = call.args
    if static_float(call) is None or not isinstance(weights, GenericConst) or not _is_pointwise(call):
        return _by_tvm(builder, call)
    strides = [int(stride) for stride in call.attrs.strides]
    if strides != [1, 1]:
        end = [int(extent) for extent in _shape(data)[2:]]
        data = builder.emit_te(topi.strided_slice, data, [0, 0], end, strides, [2, 3])
    batch, _, height, width = _shape(data)
    channels, depth = _shape(weights)[:2]
    matrix = weights.value.numpy().reshape(channels, depth)
    if height * width == 1:
        product = Product(batch=(), rows=(batch,), columns=(channels, 1, 1), depth=depth)
        return product.emit(builder, Factor(data), _packed_right(relax.const(matrix.T)))
    product = Product(batch=(batch,), rows=(channels,), columns=(height, width), depth=depth)
    return product.emit(builder, _packed_left(matrix), Factor(data))


LEGALIZE: dict[str, Callable[..., Any]] = {"relax.matmul": legalize_matmul, "relax.nn.conv2d": legalize_conv2d}


def pack_left(matrix: np.ndarray, panel: int) -> np.ndarray:
    """[m, k] as panels [⌈m / panel⌉, k, panel], padded with zeros."""
    m, k = matrix.shape
    padded = np.pad(matrix, ((0, -m % panel), (0, 0)))
    return np.ascontiguousarray(padded.reshape(-1, panel, k).transpose(0, 2, 1))


def pack_right(matrix: np.ndarray, panel: int) -> np.ndarray:
    """[k, n] as panels [⌈n / panel⌉, k, panel], padded with zeros."""
    return pack_left(matrix.T, panel)


def even_panel(extent: int, most: int, multiple: int) -> int:
    """The width of the narrowest panels that are multiples of `multiple`, no more in number than those of width `most`.

    13 columns are two panels of 8 and not of 12: less padding, and tiles of one shape.
    """
    panels = -(-extent // most)
    return -(-extent // (panels * multiple)) * multiple


def _packed_left(matrix: np.ndarray) -> Factor:
    panel = even_panel(matrix.shape[0], current_tile(str(matrix.dtype)).rows, 1)
    return Factor(_constant(pack_left(matrix, panel)), panel)


def _packed_right(value: Any) -> Factor:
    if not isinstance(value, GenericConst):
        return Factor(value)
    matrix = value.value.numpy()
    tile = current_tile(str(matrix.dtype))
    panel = even_panel(matrix.shape[1], tile.columns, tile.lanes)
    return Factor(_constant(pack_right(matrix, panel)), panel)


def _constant(array: np.ndarray) -> Any:
    return relax.const(tvm.runtime.tensor(array))


def _in_panel(tensor: te.Tensor, position: Any, k: Any, panel: int) -> Any:
    return tensor[position // panel, k, position % panel]


def _element(tensor: te.Tensor, indices: tuple[Any, ...]) -> Any:
    return tensor(*indices, *[0] * (len(tensor.shape) - len(indices)))


def static_float(call: relax.Call) -> str | None:
    """float32 or float16, if all of a call's arguments and its result are of it and of known shapes, not empty."""
    types = [*(argument.ty for argument in call.args), call.ty]
    known = all(
        ty.shape is not None and all(isinstance(extent, tirx.IntImm) and int(extent) > 0 for extent in ty.shape)
        for ty in types
    )
    dtypes = {str(ty.dtype.dtype) for ty in types}
    return dtypes.pop() if known and dtypes in ({"float32"}, {"float16"}) else None


def is_static_float32(call: relax.Call) -> bool:
    """Whether all of a call's arguments and its result are float32 of a shape that is known, and not empty."""
    return static_float(call) == "float32"


def _is_pointwise(call: relax.Call) -> bool:
    attributes = call.attrs
    layouts = (attributes.data_layout, attributes.kernel_layout, attributes.out_layout)
    return (
        layouts == ("NCHW", "OIHW", "NCHW")
        and int(attributes.groups) == 1
        and _shape(call.args[1])[2:] == (1, 1)
        and not any(int(padding) for padding in attributes.padding)
    )


def _dtype(value: Any) -> str:
    return str(value.ty.dtype.dtype)


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(int(extent) for extent in value.ty.shape)


def _by_tvm(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    return call.op.get_attr("FLegalize")(builder, call)
