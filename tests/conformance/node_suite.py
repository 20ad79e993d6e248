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
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from graphopt import ir as gir
from graphopt.errors import ModelError, ModelWarning
from graphopt.targets.tvm.program import Program
from tests.conformance import program_runner
from tests.conformance.compilation import compile_program

CHUNK = 40  # tests that share one link
NUMBERS = Path(__file__).with_name("numbers.json")
STATUSES = ("passed", "bound", "refused", "wrong", "crashed")
LONGEST_REASON = 160

# ONNX Runtime's own absolute tolerance for these tests; the package's 1e-7 fails sums of float32 near zero.
ATOL = 1e-5
# float16 has 11 bits: its rounding in sums and products shows in units of the largest result, whatever rtol says.
FLOAT16_ULPS = 4

# Inputs that a compiled model needs to know, by their positions: of which operators.
_POSITIONS: dict[tuple[int, ...], str] = {
    (0,): "BlackmanWindow ConstantOfShape HammingWindow HannWindow",
    (0, 1, 2): "Range",
    (0, 1, 2, 3, 4): "MelWeightMatrix",
    (1,): (
        "AffineGrid CenterCropPad Compress CumProd CumSum Expand OneHot ReduceL1 ReduceL2 ReduceLogSum "
        "ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Reshape Split "
        "Squeeze Tile TopK Trilu Unsqueeze Upsample"
    ),
    (1, 2): "Col2Im DFT Dropout",
    (1, 2, 3): "Pad Resize",
    (1, 2, 3, 4): "Slice",
    (1, 3): "STFT",
    (2, 3, 4): "NonMaxSuppression",
}
STRUCTURAL = {operator: positions for positions, names in _POSITIONS.items() for operator in names.split()}


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


def run_suite(chosen: Sequence[Any]) -> Iterator[Outcome]:
    """Compile and run the tests, a chunk at a time."""
    for start in range(0, len(chosen), CHUNK):
        with tempfile.TemporaryDirectory() as folder:
            yield from _run_chunk(chosen[start : start + CHUNK], Path(folder))


def _run_chunk(chunk: Sequence[Any], folder: Path) -> Iterator[Outcome]:
    compiled: list[_Compiled] = []
    objects: list[Path] = []
    for i, case in enumerate(chunk):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ModelWarning)  # infinite constants are what some tests are about
                item = _compile(case, folder, f"t{i}")
        except ModelError as error:
            yield Outcome(case.name, "refused", " ".join(str(error).split()))
            continue
        except Exception as error:  # noqa: BLE001 - a fault of ours, which the guard on the numbers does not allow
            yield Outcome(case.name, "crashed", f"{type(error).__name__}: {' '.join(str(error).split())[-300:]}")
            continue
        compiled.append(item)
        objects += item.program.objects
    if not compiled:
        return
    library = program_runner.link_objects(objects, folder / "kernels.so")
    for item in compiled:
        yield _run(item, library)


def _compile(case: Any, folder: Path, symbol: str) -> _Compiled:
    feeds, expected = _data(case)
    try:
        program = compile_program(gir.load(case.model), folder / f"{symbol}.o", symbol)
        return _Compiled(case, program, False, feeds, expected)
    except ModelError:
        model = _bind_structural(case, feeds[0])
        if model is None or len(feeds) > 1:
            raise
        program = compile_program(gir.load(model), folder / f"{symbol}.o", symbol)
        return _Compiled(case, program, True, feeds, expected)


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
        except program_runner.KernelError as fault:
            return Outcome(item.case.name, "wrong", str(fault))
        except Exception as error:  # noqa: BLE001 - as above
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


def record(outcomes: Sequence[Outcome]) -> str:
    """The outcome of a whole run as it is kept in NUMBERS: the counts, and why each refused test is."""
    counts = {status: sum(outcome.status == status for outcome in outcomes) for status in STATUSES}
    refused = {outcome.test: _short(outcome.detail) for outcome in outcomes if outcome.status == "refused"}
    content = {"onnx": onnx.__version__, "counts": counts, "refused": dict(sorted(refused.items()))}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _short(reason: str) -> str:
    """A refusal without the part that all share."""
    _, _, detail = reason.rpartition("cannot be compiled")
    detail = detail.partition("replace these operators before export")[0].strip()
    return detail if len(detail) <= LONGEST_REASON else detail[:LONGEST_REASON] + "…"


def main() -> None:
    """Print the outcomes as JSON lines; arguments: parts of names to choose by, or with `-` to leave out.

    With --record all tests run, and NUMBERS is written.
    """
    start = time.perf_counter()
    recording = "--record" in sys.argv
    parts = [part for part in sys.argv[1:] if not part.startswith("-")]
    without = [part[1:] for part in sys.argv[1:] if part.startswith("-") and part != "--record"]
    chosen = [case for case in cases() if not parts or any(part in case.name for part in parts)]
    chosen = [case for case in chosen if not any(part in case.name for part in without)]
    outcomes = []
    for outcome in run_suite(chosen):
        outcomes.append(outcome)
        print(json.dumps(outcome.__dict__, ensure_ascii=False), flush=True)
    if recording:
        NUMBERS.write_text(record(outcomes), encoding="utf-8")
    counts = {status: sum(outcome.status == status for outcome in outcomes) for status in STATUSES}
    print(f"{counts} in {time.perf_counter() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
