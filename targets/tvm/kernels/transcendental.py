"""The error function and softmax without calls of libm, which take one element at a time: their loops become vectors.

erf is a rational approximation of degree 13 over 8 on [-4, 4], beyond which it rounds to ±1, with the minimax
coefficients of Eigen (unsupported/Eigen/src/SpecialFunctions, `perf`); off by 3.4e-7 at most. Softmax along the last
axis has a kernel of its own (`softmax`); along another one it takes the exponential of Cephes (`expf`): a power of 2
times a polynomial of degree 5, 2e-7 of the result off. These two are TVM's.
"""

from __future__ import annotations

from typing import Any

from tvm import topi

from graphopt.targets.tvm.kernels import softmax


def legalize_erf(builder: Any, call: Any) -> Any:
    """relax.erf of float32 by the approximation; of other types by TVM's own legalization."""
    if str(call.ty.dtype.dtype) != "float32":
        return call.op.get_attr("FLegalize")(builder, call)
    return builder.call_te(topi.fast_erf, call.args[0], primfunc_name_hint="erf")


def legalize_softmax(builder: Any, call: Any) -> Any:
    """relax.nn.softmax of float32 by the kernel or the approximation; of other types by TVM's own legalization."""
    made = softmax.legalize(builder, call)
    if made is not None:
        return made
    if str(call.ty.dtype.dtype) != "float32":
        return call.op.get_attr("FLegalize")(builder, call)
    return builder.call_te(topi.nn.fast_softmax, call.args[0], int(call.attrs.axis), primfunc_name_hint="softmax")


LEGALIZE = {"relax.erf": legalize_erf, "relax.nn.softmax": legalize_softmax}
