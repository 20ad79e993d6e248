"""What the command line prints for people: tables, progress, warnings and errors.

Names from models are never read as markup, and control characters in them are shown, not sent to the terminal.
Little is imported here, so that the command line is there to report an error, or Ctrl-C, in what it imports then.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from graphopt.errors import GraphoptError
from graphopt.formatting import (
    TOTALS,
    Report,
    change,
    change_of,
    count,
    is_partial,
    number,
    plain,
    shape,
    si,
    size,
    to_json,
    worst,
)
from graphopt.interruption import interruptible

if TYPE_CHECKING:
    from graphopt.api import OptimizeResult, PassInfo
    from graphopt.deploy.bench import Benchmark
    from graphopt.deploy.verify import Verification
    from graphopt.inspection import CompareResult
    from graphopt.pipeline.base import Progress as ProgressCallback
    from graphopt.targets.base import TargetDescription

_WIDE = 220  # columns where there is no terminal: nothing is cut in a file


@contextmanager
def progress_bar() -> Iterator[ProgressCallback]:
    """A bar on stderr while the block runs, gone after it; nothing if stderr is no terminal. Ctrl-C ends the block."""
    console = _console(sys.stderr)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with interruptible() as check, bar:
        task = bar.add_task("", total=None)

        def report(done: int, total: int, what: str) -> None:
            check()
            bar.update(task, completed=done, total=total or None, description=_clean(what))

        yield report


def as_json(value: Any) -> Report:
    """A result that is a dataclass, in the types of JSON."""
    fields: Report = plain(dataclasses.asdict(value))
    return fields


def print_json(value: Report | Sequence[Report]) -> None:
    """JSON on stdout."""
    print_text(to_json(value))


def print_text(text: str) -> None:
    """Text on stdout, as it is."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


def print_warnings(warnings: Iterable[str]) -> None:
    """Each warning on stderr, once."""
    console = _console(sys.stderr)
    for warning in dict.fromkeys(warnings):
        console.print(Text.assemble(("warning: ", "yellow"), _clean(warning)), soft_wrap=True)


def print_error(error: GraphoptError) -> None:
    """What went wrong, on stderr."""
    name = type(error).__name__
    _console(sys.stderr).print(Text.assemble((f"{name}: ", "bold red"), _clean(str(error))), soft_wrap=True)


def print_interrupted() -> None:
    """That Ctrl-C ended the command, on stderr."""
    _console(sys.stderr).print(Text("interrupted; nothing was left behind", "yellow"))


def print_optimized(result: OptimizeResult) -> None:
    """What `optimize` did: totals, passes that did something, the library, and where it lies."""
    report, console = result.report, _console(sys.stdout)
    console.print(_totals(report))
    done = [item for item in report["passes"] if item["changed"] or item["declined"]]
    if done:
        console.print(_passes(done, "changed"))
    if report["comparison"]:
        console.print(_outputs(report["comparison"], "outputs against the original"))
    if report["quantization"]:
        _print_quantization(report, console)
    library = report["library"]
    stages = ", ".join(
        f"{stage} {seconds:.1f}" for stage, seconds in result.timings.items() if " " not in stage and seconds >= 0.05
    )
    lines = (
        f"library  {library['name']} for {report['target']['name']}: .so {size(library['shared_bytes'])}, "
        f".a {size(library['static_bytes'])}, {len(library['calls'])} kernel calls",
        f"memory   weights {size(library['weight_bytes'])} shared, {size(library['arena_bytes'])} a context",
        *_storage(library["storage"]),
        *_tuning(library["tuning"]),
        f"seconds  {stages}",
        f"wrote    {result.out}",
    )
    for line in lines:
        console.print(_text(line), soft_wrap=True)


def _storage(storage: Report | None) -> tuple[str, ...]:
    if storage is None:
        return ()
    coders = ", ".join(
        f"{use['coder']} {size(use['bytes'])} to {size(use['stored_bytes'])}" for use in storage["coders"]
    )
    return (
        f"storage  weights {size(storage['bytes'])} in {size(storage['stored_bytes'])} ({coders}); "
        f"{size(storage['decoded_bytes'])} decoded once for all contexts",
    )


def _tuning(tuning: Report | None) -> tuple[str, ...]:
    if tuning is None:
        return ()
    saved = f": {1 - tuning['after'] / tuning['before']:.1%} less in all of them" if tuning["changed"] else ""
    return (f"tiles    of {tuning['kernels']} kernels counted, {tuning['changed']} changed{saved}",)


def print_inspected(report: Report) -> None:
    """A model: its layers, what passes could do, its totals, quantization, interface, sensitivity, groups and ranks."""
    console = _console(sys.stdout)
    layers = _table("layers", "#", "layer", "operator", "outputs", "MACs", "params", "weights", "written", "notes")
    for index, layer in enumerate(report["layers"], start=1):
        shapes = ", ".join(map(shape, layer["outputs"][:3])) + (", …" if len(layer["outputs"]) > 3 else "")
        cells = (si(layer["macs"]), si(layer["params"]), size(layer["weight_bytes"]), size(layer["activation_bytes"]))
        _row(layers, index, layer["name"], layer["op"], shapes, *cells, "; ".join(layer["notes"]))
    console.print(layers)
    console.print(_passes(report["passes"], "would change"))
    console.print(_totals(report))
    if report["quantization"]:
        _print_quantization(report, console)
    interface = _table("interface", "", "name", "type", "shape")
    for direction in ("inputs", "outputs"):
        for port in report["model"][direction]:
            _row(interface, direction[:-1], port["name"], port["type"], shape(port["shape"]))
    console.print(interface)
    if report["sensitivity"]:
        console.print(_sensitivity(report["sensitivity"]))
    if report["groups"] is not None:
        console.print(_groups(report["groups"]))
    if report["ranks"] is not None:
        console.print(_ranks(report["ranks"]))


def print_compared(result: CompareResult) -> None:
    """Two models side by side."""
    console = _console(sys.stdout)
    table = _table("", "", "A", "B", "change")
    for key, title, form in TOTALS:
        totals = (result.first.totals, result.second.totals)
        _row(table, title, *(_total(sums, key, form) for sums in totals), change_of(*totals, key))
    for op, sides in result.operators.items():
        _row(table, op, *map(str, sides), change(*sides))
    console.print(table)
    console.print(_text(f"structure and weights: {'the same' if result.same else 'they differ'}"))
    console.print(_text(f"interface: {result.interface or 'the same'}"), soft_wrap=True)
    if result.skipped:
        console.print(_text(f"outputs: not compared: {result.skipped}"), soft_wrap=True)
    else:
        outputs = [plain(dataclasses.asdict(output)) for output in result.outputs]
        console.print(_outputs(outputs, f"outputs on {result.samples} inputs"))


def print_verified(result: Verification) -> None:
    """What `verify` measured."""
    console = _console(sys.stdout)
    where = f"under {result.command[0]}" if result.command else "on this machine"
    title = f"{result.samples} samples {where}, against the {result.reference}"
    console.print(_outputs([plain(dataclasses.asdict(output)) for output in result.outputs], title))
    console.print(_text(f"within {result.tolerance:g} of each output's range"))


def print_benchmark(result: Benchmark) -> None:
    """What `bench` measured, the costly layers first."""
    console = _console(sys.stdout)
    estimated = any(layer.cycles is not None for layer in result.layers)
    units = (result.unit, "cycles", "MACs a cycle") if estimated else (result.unit, f"MACs per {result.unit}")
    table = _table("layers", "layer", *units, "share")
    costs = [layer.cost if layer.cycles is None else layer.cycles for layer in result.layers]
    whole = sum(costs) or 1.0
    for layer, cost in sorted(zip(result.layers, costs, strict=True), key=lambda pair: -pair[1]):
        cells = [f"{layer.cost:,.0f}", *([f"{cost:,.0f}"] if estimated else [])]
        rate = f"{layer.macs / cost:.1f}" if layer.macs and cost else ""
        _row(table, layer.name, *cells, rate, f"{100 * cost / whole:.1f} %")
    console.print(table)
    threads = "1 thread" if result.threads == 1 else f"{result.threads} threads"
    console.print(
        _text(f"total {result.total:,.0f} {result.unit}, least {result.least:,.0f}, {result.runs} runs, {threads}")
    )


def print_passes(found: Iterable[PassInfo]) -> None:
    """Passes with their options."""
    from graphopt.pipeline.options import write_value

    table = _table("passes", "pass", "", "default", "what it does", "options")
    for item in found:
        options = "\n".join(f"{o.name}={write_value(o.default, o.type)}  {o.doc} ({o.kind})" for o in item.options)
        _row(table, item.name, "exact" if item.exact else "lossy", "yes" if item.default else "", item.summary, options)
    _console(sys.stdout).print(table)


def print_targets(found: Iterable[TargetDescription]) -> None:
    """Targets with what passes and kernels read of them."""
    table = _table("targets", "target", "what it is", "features", "vector", "L1d", "L2", "channels", "quantization")
    for item in found:
        caches = (size(item.l1d_bytes) if item.l1d_bytes else "–", size(item.l2_bytes) if item.l2_bytes else "–")
        lists = (" ".join(item.features), f"{item.vector_bits} bit", *caches, str(item.channel_multiple))
        _row(table, item.name, item.summary, *lists, " ".join(item.quantization))
    _console(sys.stdout).print(table)


_FORMS = {"count": count, "si": si, "size": size}


def _total(totals: Mapping[str, Any], key: str, form: str) -> str:
    return ("≥ " if is_partial(totals, key) else "") + _FORMS[form](totals[key])


def _totals(report: Report) -> Table:
    before, after = report["totals"]["before"], report["totals"]["after"]
    table = _table(report["model"]["name"], "", "before", "after", "change") if after else _table("totals", "", "")
    for key, title, form in TOTALS:
        sides = [_total(sums, key, form) for sums in (before, after) if sums]
        _row(table, title, *sides, *([change_of(before, after, key)] if after else []))
    return table


def _passes(items: Iterable[Mapping[str, Any]], changed: str) -> Table:
    table = _table("passes", "pass", changed, "nodes", "statistics", "relative error", "declined")
    for item in items:
        nodes = item["nodes"]
        moved = f"{nodes['before']} → {nodes['after']}" if nodes["before"] != nodes["after"] else str(nodes["after"])
        statistics = ", ".join(f"{key} {value}" for key, value in item["statistics"].items() if value)
        declined = str(len(item["declined"]) or "")
        _row(
            table,
            item["spec"],
            "yes" if item["changed"] else "",
            moved,
            statistics,
            worst(item["comparison"]),
            declined,
        )
    return table


def _print_quantization(report: Report, console: Console) -> None:
    """The form, scheme and maker of a quantized model, and how many layers of each operator compute on integers."""
    found = report["quantization"]
    table = _table("quantization", "operator", "on integers", "small weights", "in float")
    for op, counts in found["operators"].items():
        _row(table, op, *(str(counts[key] or "") for key in ("integer", "small_weights", "float")))
    console.print(table)
    schemes = (f"{kind} {found[kind]['text']}" for kind in ("activations", "weights") if found[kind])
    maker = report["model"]["producer"] if report["kind"] == "inspect" else ""
    totals = report["totals"]["after"] or report["totals"]["before"]
    integer = f"{100 * found['integer_macs'] / totals['macs']:.1f} % of the MACs on integers" if totals["macs"] else ""
    parts = (found["form"], *schemes, integer, f"made by {maker}" if maker else "")
    console.print(_text("; ".join(filter(None, parts))), soft_wrap=True)


def _sensitivity(found: Mapping[str, Any]) -> Table:
    lost = [f"lost {found['measure']}"] if found["measure"] else []
    title = f"each layer quantized alone, on {found['samples']} samples, the worst first"
    table = _table(title, "layer", "operator", "SQNR, dB", *lost, "MACs", "share")
    for layer in found["layers"]:
        drop = [f"{100 * layer['drop']:.1f} %"] if lost else []
        share = "–" if layer["macs_share"] is None else f"{100 * layer['macs_share']:.1f} %"
        _row(table, layer["layer"], layer["op"], number(layer["sqnr_db"]), *drop, si(layer["macs"]), share)
    return table


def _groups(groups: Iterable[Mapping[str, Any]]) -> Table:
    title = "groups of channels that can only leave together; least and most: by L2 norm, relative to the mean"
    table = _table(title, "made by", "channels", "read by", "MACs", "least", "most", "stays because")
    for group in groups:
        sides = (", ".join(group["makers"]) or group["name"], ", ".join(group["readers"]))
        spread = (f"{group['least']:.2f}", f"{group['most']:.2f}")
        _row(table, sides[0], group["width"], sides[1], si(group["macs"]), *spread, "; ".join(group["protection"]))
    return table


_BARS = "▁▂▃▄▅▆▇█"


def _ranks(ranks: Iterable[Mapping[str, Any]]) -> Table:
    title = (
        "ranks of weights; energy: left outside of rank 0 to the full one; below it the ranks that keep 90, 95, 99 %"
    )
    kept = ("90 %", "95 %", "99 %")
    table = _table(title, "layer", "matrix", "energy left out", "pays below", *kept)
    for layer in ranks:
        bars = "".join(_BARS[round(value * (len(_BARS) - 1))] for value in layer["profile"][::2])
        cells = [
            f"{saving['rank']} ({100 * saving['macs']:+.0f} % MACs)".replace("+", "−", 1)
            if (saving["macs"] or 0) > 0
            else str(saving["rank"])
            for saving in layer["savings"]
        ]
        matrix = f"{layer['outputs']} × {layer['features']}"
        _row(table, layer["layer"], matrix, bars, layer["break_even"] or "never", *cells)
    return table


def _outputs(outputs: Iterable[Mapping[str, Any]], title: str) -> Table:
    rows = list(outputs)
    noted = any(output["note"] for output in rows)
    table = _table(title, "output", "largest error", "relative", "SQNR, dB", "same top-1", *["note"] * noted)
    for output in rows:
        numbers = (number(output[key]) for key in ("max_abs", "relative", "sqnr_db", "top1_agreement"))
        _row(table, output["name"], *numbers, *[output["note"]] * noted)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=_text(title) if title else None, title_justify="left", header_style="bold", expand=False)
    for column in columns:
        numeric = column in _NUMERIC
        table.add_column(column, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
    return table


_NUMERIC = frozenset(
    "#|A|B|L1d|L2|MACs|SQNR, dB|after|before|change|channels|declined|in float|instructions|small weights"
    "|largest error|least|lost accuracy|lost agreement|matrix|most|nodes|ns|on integers|params|pays below|relative"
    "|relative error|same top-1|share|vector|weights|written|90 %|95 %|99 %|cycles|MACs a cycle|MACs per ns".split("|")
)


def _row(table: Table, *cells: object) -> None:
    table.add_row(*(_text(str(cell)) for cell in cells))


def _text(text: str) -> Text:
    return Text(_clean(text))


def _clean(text: str) -> str:
    """Control characters but newlines as escapes, so that a name cannot steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _console(stream: Any) -> Console:
    """A console for the stream as it is now: tests and users redirect it."""
    width = None if stream.isatty() or "COLUMNS" in os.environ else _WIDE
    return Console(file=stream, width=width, highlight=False)
