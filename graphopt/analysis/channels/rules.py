"""The rule of each operator, as a table. An operator that is not in it protects the channels that reach it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import onnx_ir as ir

from graphopt.analysis.channels import layout, pointwise, products, recurrence, reshaping
from graphopt.analysis.channels.labels import Labelling

Rule = Callable[[ir.Node, Labelling], None]

_UNARY = """
    Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Clip Cos Cosh Dropout Elu Erf Exp Floor Gelu
    HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign
    Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu
""".split()
_BROADCAST = """
    Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod
    Mul Or PRelu Pow Sub Sum Where Xor
""".split()
_REDUCTION = """
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
""".split()
_POOLING = "AveragePool GlobalAveragePool GlobalLpPool GlobalMaxPool LpPool MaxPool".split()

RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_UNARY, pointwise.unary),
    **dict.fromkeys(_BROADCAST, pointwise.broadcast),
    **dict.fromkeys(_REDUCTION, pointwise.reduction),
    **dict.fromkeys(_POOLING, pointwise.pooling),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), pointwise.per_channel),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), pointwise.layer_norm),
    "GroupNormalization": pointwise.group_norm,
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "CumSum"), pointwise.along_axis),
    **dict.fromkeys(("Resize", "Upsample"), pointwise.resize),
    "Conv": products.convolution,
    "ConvTranspose": products.transposed_convolution,
    "Gemm": products.gemm,
    "MatMul": products.matrix_product,
    **dict.fromkeys(("LSTM", "GRU", "RNN"), recurrence.recurrence),
    **dict.fromkeys(("Reshape", "Flatten"), reshaping.reshape),
    "Concat": layout.concat,
    "DepthToSpace": layout.depth_to_space,
    "Expand": layout.expand,
    "Gather": layout.gather,
    "Pad": layout.pad,
    "Shape": layout.shape,
    "Slice": layout.slice_,
    "SpaceToDepth": layout.space_to_depth,
    "Split": layout.split,
    "Squeeze": layout.squeeze,
    "Tile": layout.tile,
    "Transpose": layout.transpose,
    "Unsqueeze": layout.unsqueeze,
}
