"""Small models for the tests of the IR."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

CONV = """
<ir_version: 8, opset_import: ["" : 17], producer_name: "tests", metadata_props: ["author" : "someone"]>
net (float[N,3,8,8] x) => (float[N,K] y)
<float[4,3,3,3] w, int64[2] shape = {0, -1}>
{
   [conv] h = Conv <pads = [1, 1, 1, 1]> (x, w)
   [act] r = Relu (h)
   [flat] y = Reshape (r, shape)
}
"""

BRANCHES = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[2,4] x, bool c) => (float[2,4] y)
<float[4] bias = {1, 2, 3, 4}>
{
   h = Add (x, bias)
   [choice] y = If (c) <
      then_branch = yes () => (float[2,4] a) { a = Mul (h, bias) },
      else_branch = no () => (float[2,4] b) { t = Neg (h)  b = Add (t, x) }
   >
}
"""

LOOP = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[3] x, int64 n) => (float[3] y, float[S,3] all)
{
   go = Constant <value = bool {1}> ()
   y, all = Loop (n, go, x) <
      body = step (int64 i, bool going, float[3] state) => (bool on, float[3] next, float[3] seen) {
         on = Identity (going)
         next = Add (state, x)
         seen = Identity (next)
      }
   >
}
"""

SCAN = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[3] start, float[5,3] xs, float[3] k) => (float[3] last, float[5,3] sums)
{
   last, sums = Scan (start, xs) <
      num_scan_inputs = 1,
      body = step (float[3] sum, float[3] x) => (float[3] more, float[3] out) {
         scaled = Mul (x, k)
         more = Add (sum, scaled)
         out = Identity (more)
      }
   >
}
"""


def parse(text: str) -> onnx.ModelProto:
    """The model that ONNX text describes; a weight `w` that is declared without data becomes 0, 1, 2, ..."""
    model = onnx.parser.parse_model(text)
    for info in list(model.graph.value_info):
        if info.name == "w" and not any(tensor.name == "w" for tensor in model.graph.initializer):
            shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
            values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
            model.graph.initializer.append(numpy_helper.from_array(values, "w"))
    return model


def with_external_data(folder: Path, **fields: str | int) -> Path:
    """The CONV model in `folder`, its weight in weights.bin; `fields` change location, offset and length."""
    model = parse(CONV)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
    data = weight.raw_data
    (folder / "weights.bin").write_bytes(bytes(16) + data)
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": "weights.bin", "offset": 16, "length": len(data), **fields}.items():
        weight.external_data.add(key=key, value=str(value))
    weight.ClearField("raw_data")
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path
