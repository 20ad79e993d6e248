"""Relax operators on constants, computed by numpy.

TVM's FoldConstant compiles and runs a program for each: minutes for a model with many. It still folds what is left.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.relax.expr_functor import PyExprMutator, mutator

_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "relax.add": np.add,
    "relax.subtract": np.subtract,
    "relax.multiply": np.multiply,
    "relax.less": np.less,
    "relax.greater_equal": np.greater_equal,
    "relax.equal": np.equal,
    "relax.logical_not": np.logical_not,
    "relax.negative": np.negative,
    "relax.isnan": np.isnan,
    "relax.where": np.where,
    "relax.sqrt": np.sqrt,
}
_SHAPED: dict[str, Callable[[np.ndarray, Any, Any], np.ndarray]] = {
    "relax.reshape": lambda x, call, shape: x.reshape(shape),
    "relax.expand_dims": lambda x, call, shape: x.reshape(shape),
    "relax.squeeze": lambda x, call, shape: x.reshape(shape),
    "relax.astype": lambda x, call, shape: x.astype(str(call.ty.dtype.dtype)),
    "relax.permute_dims": lambda x, call, shape: x.transpose(
        None if call.attrs.axes is None else [int(axis) for axis in call.attrs.axes]
    ),
}


def evaluate_constants(module: tvm.IRModule) -> tvm.IRModule:
    """`module` with the operators of `main` on constants replaced by their values."""
    evaluator = _Evaluator(module)
    main = module.get_global_var("main")
    evaluator.builder_.update_func(main, evaluator.visit_expr(module["main"]))
    return evaluator.builder_.get()


@mutator
class _Evaluator(PyExprMutator):  # type: ignore[misc]
    def visit_call_(self, call: relax.Call) -> relax.Expr:
        call = self.visit_expr_post_order(call)
        name = getattr(call.op, "name", "")
        if name not in _ELEMENTWISE and name not in _SHAPED:
            return call
        arguments = [self._constant(argument) for argument in call.args]
        shape = [int(extent) for extent in call.ty.shape] if _is_static(call.ty) else None
        if shape is None:
            return call
        if name in _ELEMENTWISE and all(a is not None for a in arguments):
            result = _ELEMENTWISE[name](*arguments)
        elif name in _SHAPED and arguments[0] is not None:
            result = _SHAPED[name](arguments[0], call, shape)
        else:
            return call
        array = np.ascontiguousarray(result).astype(str(call.ty.dtype.dtype)).reshape(shape)
        return relax.const(tvm.runtime.tensor(array))

    def _constant(self, expression: Any) -> np.ndarray | None:
        if isinstance(expression, relax.Var):
            expression = self.lookup_binding(expression)
        return expression.value.numpy() if isinstance(expression, tvm.ir.GenericConst) else None


def _is_static(ty: Any) -> bool:
    return (
        isinstance(ty, relax.TensorType)
        and ty.shape is not None
        and all(isinstance(extent, tvm.tirx.IntImm) for extent in ty.shape)
    )
