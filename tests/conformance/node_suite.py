"""The onnx package's backend node tests, compiled for the host and run: what passes, what is refused, what is wrong.

A test whose model reads a shape, an axis or another structural value from an input (Reshape's `shape`) is refused as
it stands, since code for a fixed machine needs it fixed. Such inputs are then bound to the test's own data
and the test counts as `bound`.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from graphopt import ir as gir
from graphopt.errors import GraphoptError
from graphopt.passes.cleanup.fold_constants import FoldConstants
from graphopt.pipeline.base import PassContext
from graphopt.targets.base import TargetDescription
from graphopt.targets.tvm import codegen
from graphopt.targets.tvm.backend import assemble
from graphopt.targets.tvm.preparation import prepare
from graphopt.targets.tvm.importer import import_model
from graphopt.targets.tvm.lower import lower
from graphopt.targets.tvm.program import Program
from graphopt.targets.tvm.schedule import schedule
from tests.conformance import program_runner

CHUNK = 40  # tests that share one link

# ONNX Runtime's own absolute tolerance for these tests; the package's 1e-7 fails sums of float32 near zero.
ATOL = 1e-5
# float16 has 11 bits: its rounding in sums and products shows in units of the largest result, whatever rtol says.
FLOAT16_ULPS = 4

# Inputs that a compiled model needs to know: operator -> positions.
STRUCTURAL: dict[str, tuple[int, ...]] = {
    "AffineGrid": (1,), "BlackmanWindow": (0,), "CenterCropPad": (1,), "Clip": (1, 2), "Compress": (1,),
    "Col2Im": (1, 2), "ConstantOfShape": (0,), "CumProd": (1,), "CumSum": (1,), "Expand": (1,), "HannWindow": (0,), "HammingWindow": (0,),
    "MelWeightMatrix": (0, 1, 2, 3, 4), "OneHot": (1,), "Pad": (1, 2, 3), "Range": (0, 1, 2), "ReduceL1": (1,), "ReduceL2": (1,), "ReduceLogSum": (1,),
    "ReduceLogSumExp": (1,), "ReduceMax": (1,), "ReduceMean": (1,), "ReduceMin": (1,), "ReduceProd": (1,),
    "ReduceSum": (1,), "ReduceSumSquare": (1,), "Reshape": (1,), "Resize": (1, 2, 3), "Slice": (1, 2, 3, 4),
    "Split": (1,), "Squeeze": (1,), "Tile": (1,), "TopK": (1,), "Trilu": (1,), "Unsqueeze": (1,), "Upsample": (1,),
    "DFT": (1, 2), "STFT": (1, 3), "Dropout": (1, 2), "BitShift": (), "NonMaxSuppression": (2, 3, 4),
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """One test: `status` is passed, bound (passed with structural inputs bound), refused, wrong or crashed."""

    test: str
    status: str
    detail: str = ""


@dataclass
class _Compiled:
    case: Any
    program: Program
    bound: bool
    feeds: list[dict[str, np.ndarray]]
    expected: list[dict[str, np.ndarray]]


@functools.cache
def cases() -> list[Any]:
    """The tests, in the order of their names."""
    from onnx.backend.test import loader

    with np.errstate(all="ignore"):
        return sorted(loader.load_model_tests(kind="node"), key=lambda case: case.name)


@functools.cache
def _by_name() -> dict[str, Any]:
    return {case.name: case for case in cases()}


def run_suite(chosen: Sequence[Any], host: TargetDescription) -> Iterator[Outcome]:
    """Compile and run the tests, a chunk at a time."""
    for start in range(0, len(chosen), CHUNK):
        with tempfile.TemporaryDirectory() as folder:
            yield from _run_chunk(chosen[start : start + CHUNK], host, Path(folder))


def _run_chunk(chunk: Sequence[Any], host: TargetDescription, folder: Path) -> Iterator[Outcome]:
    compiled: list[_Compiled] = []
    objects: list[Path] = []
    for i, case in enumerate(chunk):
        try:
            item = _compile(case, host, folder, f"t{i}")
        except GraphoptError as error:
            yield Outcome(case.name, "refused", " ".join(str(error).split()))
            continue
        except Exception as error:  # a fault of ours, which the guard on the numbers does not allow
            yield Outcome(case.name, "crashed", f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}")
            continue
        compiled.append(item)
        objects += item.program.objects
    if not compiled:
        return
    library = program_runner.link_objects(objects, folder / "kernels.so") if objects else None
    for item in compiled:
        yield _run(item, library)


def _compile(case: Any, host: TargetDescription, folder: Path, symbol: str) -> _Compiled:
    feeds, expected = _data(case)
    try:
        program = _lower(gir.load(case.model), host, folder / f"{symbol}.o", symbol)
        return _Compiled(case, program, False, feeds, expected)
    except GraphoptError:
        model = _bind_structural(case, feeds[0])
        if model is None or len(feeds) > 1:
            raise
        program = _lower(gir.load(model), host, folder / f"{symbol}.o", symbol)
        return _Compiled(case, program, True, feeds, expected)


def _lower(model: ir.Model, host: TargetDescription, path: Path, symbol: str) -> Program:
    gir.bind_shapes(model, {})
    gir.refresh_shapes(model)
    FoldConstants().run(model, PassContext(target=host))
    gir.refresh_shapes(model)
    model = prepare(model)
    target = codegen.tvm_target(host)
    lowered = lower(import_model(model), target)
    symbols = {function: f"{symbol}_{i}" for i, function in enumerate(lowered.functions)}
    functions = {symbols[key]: schedule(function, host) for key, function in lowered.functions.items()}
    kernels = codegen.compile_kernels(functions, target, path) if functions else []
    objects = (path,) if functions else ()
    return assemble(model, lowered, symbols, {kernel.symbol: kernel for kernel in kernels}, objects)


def _bind_structural(case: Any, feed: dict[str, np.ndarray]) -> onnx.ModelProto | None:
    """The test's model with its structural inputs as constants, or None if it has none.

    The test of an operator's definition ("…_expanded") has the inputs of the operator's own test.
    """
    bound = onnx.ModelProto()
    bound.CopyFrom(case.model)
    original = _by_name().get(case.name.removesuffix("_expanded"), case).model
    names = {
        node.input[position]
        for node in original.graph.node
        for position in STRUCTURAL.get(node.op_type, ())
        if position < len(node.input) and node.input[position] in feed
    }
    if not names:
        return None
    kept = [value for value in bound.graph.input if value.name not in names]
    del bound.graph.input[:]
    bound.graph.input.extend(kept)
    bound.graph.initializer.extend(numpy_helper.from_array(feed[name], name) for name in sorted(names))
    return bound


def _data(case: Any) -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
    graph = case.model.graph
    given = [value.name for value in graph.input]
    made = [value.name for value in graph.output]
    return (
        [dict(zip(given, map(_array, inputs), strict=False)) for inputs, _ in case.data_sets],
        [dict(zip(made, map(_array, outputs), strict=False)) for _, outputs in case.data_sets],
    )


def _array(value: Any) -> Any:
    """Data of types that numpy lacks come as TensorProto."""
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _run(item: _Compiled, library: Any) -> Outcome:
    for feed, expected in zip(item.feeds, item.expected, strict=True):
        try:
            found = program_runner.run(item.program, library, feed)
        except program_runner.KernelFault as fault:
            return Outcome(item.case.name, "wrong", str(fault))
        except Exception as error:
            return Outcome(item.case.name, "crashed", f"{type(error).__name__}: {error}")
        for name, reference in expected.items():
            problem = _difference(found[name], np.asarray(reference), item.case)
            if problem:
                return Outcome(item.case.name, "wrong", f"{name}: {problem}")
    return Outcome(item.case.name, "bound" if item.bound else "passed")


def _difference(found: np.ndarray, expected: np.ndarray, case: Any) -> str:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return f"{found.dtype}{list(found.shape)}, expected {expected.dtype}{list(expected.shape)}"
    tolerance = ATOL
    if expected.dtype == np.float16:
        finite = np.abs(expected[np.isfinite(expected)].astype(np.float64))
        tolerance = max(ATOL, FLOAT16_ULPS * 2.0**-11 * float(finite.max(initial=0)))
    with contextlib.suppress(AssertionError):
        np.testing.assert_allclose(found, expected, rtol=case.rtol, atol=tolerance, equal_nan=True)
        return ""
    with np.errstate(all="ignore"):
        error = np.abs(found.astype(np.float64) - expected.astype(np.float64))
    return f"differs by {np.nanmax(error) if error.size else 0:g} (rtol {case.rtol}, atol {tolerance:g})"


def main() -> None:
    """Print the outcomes as JSON lines; arguments: parts of names to choose by, or with `-` to leave out."""
    from graphopt.targets.host import HOST

    start = time.perf_counter()
    parts = [part for part in sys.argv[1:] if not part.startswith("-")]
    without = [part[1:] for part in sys.argv[1:] if part.startswith("-")]
    chosen = [case for case in cases() if not parts or any(part in case.name for part in parts)]
    chosen = [case for case in chosen if not any(part in case.name for part in without)]
    for outcome in run_suite(chosen, HOST):
        print(json.dumps(outcome.__dict__), flush=True)
    print(f"{time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
