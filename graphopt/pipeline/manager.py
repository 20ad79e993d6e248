"""Run passes over a model: each is timed, its result verified, and its outputs compared with the original's.

A pass that raises, leaves the graph broken, changes what an exact pass must not, or is dishonest about what it
changed ends the run with an error that names it. A user's mistake that a pass finds stays the error that it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import onnx_ir as ir

from graphopt.analysis.comparison import OutputComparison
from graphopt.analysis.cost import layer_costs, total
from graphopt.errors import GraphoptError, PassError, ShapeError, ToleranceError, VerifyError
from graphopt.ir import Interface, clone, refresh_shapes, save, to_text, verify
from graphopt.ir.verification import verify_structure
from graphopt.pipeline.base import Declined, Pass, PassContext, PassResult
from graphopt.pipeline.changes import Snapshot
from graphopt.pipeline.outputs import EXACT_TOLERANCE, OutputWatch, Verdict
from graphopt.pipeline.spec import format_spec


@dataclass(frozen=True)
class PassRecord:
    """What a pass did to a model, and what that did to its outputs.

    spec: the pass with its options, as `format_spec` writes it.
    exact, changed, statistics, declined: what the pass says.
    seconds: wall-clock time of the pass alone, without the checks after it.
    comparison: outputs against the original model's, before the first pass; empty if they were not compared.
    comparison_skipped: why they were not compared; empty if they were.
    samples: on how many inputs.
    tolerance: what the largest relative difference was held to; None if it was only measured.
    nodes, params, macs: before and after; Constant nodes are not counted.
    """

    spec: str
    exact: bool
    changed: bool
    statistics: Mapping[str, int | float | str]
    declined: tuple[Declined, ...]
    seconds: float
    comparison: tuple[OutputComparison, ...]
    comparison_skipped: str
    samples: int
    tolerance: float | None
    nodes_before: int
    nodes_after: int
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int


@dataclass(frozen=True)
class _Size:
    nodes: int
    params: int
    macs: int

    @classmethod
    def of(cls, model: ir.Model) -> _Size:
        costs = total(layer_costs(model))
        nodes = sum(node.op_type != "Constant" for node in model.graph.all_nodes())
        return cls(nodes, costs.params, costs.macs)


def run_passes(
    model: ir.Model,
    passes: Sequence[Pass],
    context: PassContext,
    *,
    tolerance: float | None = None,
    exact_tolerance: float = EXACT_TOLERANCE,
    dump_ir: Path | None = None,
    compare: bool = True,
    before_each: Callable[[Pass, ir.Model], None] | None = None,
) -> list[PassRecord]:
    """Rewrite `model` in place by each pass in turn. After an error its state is undefined.

    Args:
        model: its shapes are refreshed and it is verified first.
        passes: in the order in which they run.
        context: outputs are compared on its calibration samples, or on inputs made up from its seed. Passes get it with
            a copy of `model` as the original.
        tolerance: largest difference from the original, relative to an output's range, that a lossy pass may leave;
            None measures only.
        exact_tolerance: the same for exact passes, against the outputs before them; `pipeline.outputs` gives reasons.
        dump_ir: folder for the graph before the first pass and after each pass that changes it, as .onnx and .txt.
        compare: whether outputs are compared; a dry run does without.
        before_each: called with each pass and the model before it runs, which it leaves as it is.

    Raises:
        PassError: a pass raised, broke the graph or its interface, was wrong about `changed`, or is exact and
            changed the outputs.
        ToleranceError: a lossy pass exceeded `tolerance`.
        GraphoptError: as a pass raised it for a user's mistake, with the pass named.
    """
    refresh_shapes(model)
    verify(model)
    interface = Interface.of(model)
    original = clone(model)
    context = replace(context, original=original)
    watch = OutputWatch(original, context.calibration, context.seed) if compare else None
    size = _Size.of(model)
    snapshot = Snapshot(model)
    if dump_ir is not None:
        _dump(model, dump_ir, "00-original")
    records = []
    for number, item in enumerate(passes, start=1):
        spec = format_spec(item)
        context.progress(number - 1, len(passes), spec)
        name = f"{number:02d}-{item.name}"
        if before_each is not None:
            before_each(item, model)
        start = time.perf_counter()
        try:
            result = _run_one(item, spec, model, context)
            seconds = time.perf_counter() - start
            _check(spec, model, result, snapshot, interface)
            verdict = _compare(item, spec, model, result, watch, exact_tolerance if item.exact else tolerance)
        except GraphoptError as error:
            if dump_ir is not None:
                _dump_failed(model, dump_ir, f"{name}.failed")
            raise _with_advice(error, dump_ir, name) from error.__cause__
        if dump_ir is not None and result.changed:
            _dump(model, dump_ir, name)
        before = size
        if result.changed:
            size, snapshot = _Size.of(model), Snapshot(model)
        records.append(_record(item, spec, result, seconds, verdict, before, size))
    context.progress(len(passes), len(passes), "")
    return records


def _run_one(item: Pass, spec: str, model: ir.Model, context: PassContext) -> PassResult:
    try:
        result = item.run(model, context)
    except GraphoptError as error:
        if isinstance(error, VerifyError | ShapeError | PassError):
            where = error.where or _nodes_around(model, error.__traceback__)
            raise PassError(f"in pass '{spec}': {error.what}", where=where, advice=error.advice) from error
        raise type(error)(f"in pass '{spec}': {error.what}", where=error.where, advice=error.advice) from error
    except Exception as error:
        raise PassError(
            f"in pass '{spec}': {type(error).__name__}: {error}", where=_nodes_around(model, error.__traceback__)
        ) from error
    if not isinstance(result, PassResult):
        raise PassError(f"pass '{spec}' returned {type(result).__name__}, expected a PassResult")
    return result


def _check(spec: str, model: ir.Model, result: PassResult, snapshot: Snapshot, interface: Interface) -> None:
    """Raises PassError unless the graph is right and `result.changed` is honest."""
    try:
        verify_structure(model)  # what follows reads graphs that are sound
        if fault := snapshot.dishonesty(model, result.changed):
            raise PassError(f"pass '{spec}': {fault}", where=snapshot.difference(model))
        if fault := interface.difference(Interface.of(model)):
            raise PassError(f"after pass '{spec}': the public interface changed: {fault}")
        if result.changed:
            refresh_shapes(model)
            verify(model, interface=interface)
    except (VerifyError, ShapeError) as error:
        raise PassError(f"after pass '{spec}': {error.what}", where=error.where, advice=error.advice) from error


def _compare(
    item: Pass, spec: str, model: ir.Model, result: PassResult, watch: OutputWatch | None, tolerance: float | None
) -> Verdict:
    if watch is None:
        return Verdict(skipped="the run was told not to compare")
    if not result.changed:
        return Verdict(skipped=watch.skipped or "the pass changed nothing")
    verdict = watch.judge(model, exact=item.exact, tolerance=tolerance)
    if verdict.fault and (item.exact or not verdict.outputs):
        raise PassError(f"after {'exact ' if item.exact else ''}pass '{spec}': {verdict.fault}")
    if verdict.fault:
        raise ToleranceError(f"after lossy pass '{spec}': {verdict.fault}")
    return verdict


def _record(
    item: Pass, spec: str, result: PassResult, seconds: float, verdict: Verdict, before: _Size, after: _Size
) -> PassRecord:
    return PassRecord(
        spec=spec,
        exact=item.exact,
        changed=result.changed,
        statistics=result.statistics,
        declined=result.declined,
        seconds=seconds,
        comparison=verdict.outputs,
        comparison_skipped=verdict.skipped,
        samples=verdict.samples,
        tolerance=verdict.tolerance,
        nodes_before=before.nodes,
        nodes_after=after.nodes,
        params_before=before.params,
        params_after=after.params,
        macs_before=before.macs,
        macs_after=after.macs,
    )


def _with_advice(error: GraphoptError, folder: Path | None, name: str) -> GraphoptError:
    """The error with how to look into it, if the pass and not the user is at fault."""
    if isinstance(error, PassError):
        hint = (
            f"the graph before the pass and the failed one are in {folder}, see {name}.failed.txt"
            if folder is not None
            else "rerun with --dump-ir DIR to keep the graph before and after"
        )
        error.advice = f"{error.advice}; {hint}" if error.advice else hint
    return error


def _nodes_around(model: ir.Model, trace: TracebackType | None) -> str:
    """Five lines of IR around the node that the code was looking at when it raised; empty if there is none.

    A pass need not say which node that is: the innermost local variable that holds a node of the model tells.
    """
    frames = []
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    for frame in reversed(frames):
        for value in reversed(frame.f_locals.values()):
            if isinstance(value, ir.Node) and value.graph is not None:
                return to_text(model, around=value)
    return ""


def _dump(model: ir.Model, folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.txt").write_text(to_text(model), encoding="utf-8")
    save(model, folder / f"{name}.onnx")


def _dump_failed(model: ir.Model, folder: Path, name: str) -> None:
    """Keep what can be kept of a graph that a pass may have broken: it may have no text, and often no file."""
    for suffix, write in (
        (".txt", lambda path: path.write_text(to_text(model), encoding="utf-8")),
        (".onnx", lambda path: save(model, path)),
    ):
        try:
            write(folder / f"{name}{suffix}")
        except Exception as error:  # noqa: BLE001  the broken graph decides what is raised; the reason stands in for it
            (folder / f"{name}{suffix}.txt").write_text(
                f"not written: {type(error).__name__}: {error}\n", encoding="utf-8"
            )
