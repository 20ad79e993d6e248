"""Build the onnx package's light models for a core, and compare them with ONNX Runtime, emulated where need be.

    python -m tests.benchmarks.light_models --out rows.jsonl [--as-shipped]
    python -m tests.benchmarks.light_models --out rows.jsonl --table

As shipped, each weight is the constant 0.02: all channels are equal, and no output depends on which is which. So the
weights are random here, from a fixed seed and scaled so that outputs depend on all of them; `--as-shipped`
leaves the constants.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.backend.test
import onnx.helper
from onnx import numpy_helper

from graphopt.analysis.execution import Session
from graphopt.ir import load
from tests.benchmarks.measuring import Row, measure, read_lines, table, write_line

FOLDER = Path(onnx.backend.test.__file__).parent / "data" / "light"

# Parameters of a batch normalization by position: their lowest and highest value. A variance is positive.
_BATCH_NORM = {1: (0.5, 1.5), 2: (-0.5, 0.5), 3: (-0.5, 0.5), 4: (0.5, 1.5)}


def randomize(model: onnx.ModelProto, seed: int = 0) -> None:
    """Give each constant weight random values, as initializers: He's normal distribution for products."""
    generator = np.random.default_rng(seed)
    known = {tensor.name: tensor for tensor in model.graph.initializer}
    shapes = {
        node.output[0]: tuple(int(size) for size in numpy_helper.to_array(known[node.input[0]]))
        for node in model.graph.node
        if node.op_type == "ConstantOfShape"
    }
    uses = {name: (node.op_type, place) for node in model.graph.node for place, name in enumerate(node.input)}
    model.ir_version = 4  # the first whose initializers need not be inputs
    kept = [node for node in model.graph.node if node.op_type != "ConstantOfShape"]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    for name, shape in shapes.items():
        values = _values(generator, shape, *uses[name])
        model.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))


def soften(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Scale the last layer: a softmax after it sees scores of deviation 1: a lone winner would hide errors."""
    last, softmax = model.graph.node[-2:]
    if (last.op_type, softmax.op_type) != ("Gemm", "Softmax"):
        return
    with Session(load(model), outputs=[last.output[0]]) as session:
        deviation = session.run(feeds)[last.output[0]].std()
    last.attribute.extend(onnx.helper.make_attribute(name, 1 / float(deviation)) for name in ("alpha", "beta"))


def _values(generator: np.random.Generator, shape: tuple[int, ...], op: str, place: int) -> np.ndarray[Any, Any]:
    if op in ("Conv", "Gemm") and place == 1:
        return generator.normal(0, math.sqrt(2 / math.prod(shape[1:])), shape)  # [out, in, ...], Gemm with transB
    if op == "BatchNormalization":
        return generator.uniform(*_BATCH_NORM[place], shape)
    if op == "Unsqueeze":  # densenet and inception: a scale or shift of channels
        return generator.uniform(0.5, 1.5, shape)
    return generator.uniform(-0.1, 0.1, shape)  # a bias


def main() -> None:
    """Read the command line, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines to append to")
    parser.add_argument("--target", default="cortex-a76")
    parser.add_argument("--only", nargs="+", metavar="MODEL", help="names without .onnx")
    parser.add_argument("--samples", type=int, default=1, help="random pictures of each model")
    parser.add_argument("--as-shipped", action="store_true", help="keep the constant weights")
    parser.add_argument("--table", action="store_true", help="print the table of --out, and measure nothing")
    options = parser.parse_args()
    if options.table:
        print(table(read_lines(options.out)))
        return
    for file in sorted(FOLDER.glob("*.onnx")):
        if options.only and file.stem not in options.only:
            continue
        model = onnx.load(file)
        weights = {tensor.name for tensor in model.graph.initializer}
        picture = next(value for value in model.graph.input if value.name not in weights)
        shape = [size.dim_value for size in picture.type.tensor_type.shape.dim]
        pictures = np.random.default_rng(1).normal(0, 1, (options.samples, *shape)).astype(np.float32)
        if not options.as_shipped:
            randomize(model)
            soften(model, {picture.name: pictures[0]})
        with tempfile.TemporaryDirectory() as folder:
            changed = Path(folder, file.name)
            onnx.save(model, changed)
            what = "random, weights as shipped" if options.as_shipped else "random, random weights"
            row = measure(
                Row(file.stem, what, options.samples),
                changed,
                target=options.target,
                inputs={picture.name: pictures},
                shapes={},
            )
        write_line(options.out, row)
        print(f"{file.stem}: {row.status} {row.relative:.2g} {row.message.partition(chr(10))[0]}", file=sys.stderr)


if __name__ == "__main__":
    main()
