"""Small networks of convolutions with biases, for hypothesis: odd channels, depthwise layers, branches that meet."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from hypothesis import strategies as st

from tests.passes.harness import parse

Array = np.ndarray[Any, Any]

KINDS = st.lists(st.sampled_from(["conv", "depthwise", "relu", "add", "pool", "concat"]), min_size=1, max_size=5)


def weight(*shape: int, seed: int = 0) -> Array:
    """Normal numbers, float32."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def network(kinds: list[str], channels: int, seed: int) -> ir.Model:
    """From x [1,3,5,5] over a layer of each kind to y [1,2,5,5]."""
    text, now = ["v0 = Conv(x, w_in, b_in)"], channels
    arrays = {"w_in": weight(channels, 3, 1, 1, seed=seed), "b_in": weight(channels, seed=seed)}
    for index, kind in enumerate(kinds):
        last = f"v{index}"
        made = {
            "relu": f"Relu({last})",
            "add": f"Add({last}, {last})",
            "pool": f"AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>({last})",
            "concat": f"Concat<axis=1>({last}, v0)",
        }.get(kind)
        if made is None:
            groups = now if kind == "depthwise" else 1
            arrays[f"w{index}"] = weight(now, now // groups, 3, 3, seed=seed + index) / np.float32(3)
            arrays[f"b{index}"] = weight(now, seed=seed + index)
            made = f"Conv<pads=[1,1,1,1], group={groups}>({last}, w{index}, b{index})"
        now += channels if kind == "concat" else 0
        text.append(f"v{index + 1} = {made}")
    arrays |= {"w_out": weight(2, now, 1, 1, seed=9), "b_out": weight(2)}
    body = " ".join([*text, f"y = Conv(v{len(kinds)}, w_out, b_out)"])
    head = '<ir_version: 8, opset_import: ["" : 17]> g (float[1,3,5,5] x) => (float[1,2,5,5] y)'
    return parse(f"{head} {{ {body} }}", **arrays)
