"""The command line: parse, call the API, print.

What a program reads (--json, inspect --ir) goes to stdout alone; progress, warnings and errors go to stderr.
Exit status: 0 done, 1 the model or data is at fault, 2 usage, 3 a tolerance was missed, 4 a fault of graphopt itself,
130 interrupted.
"""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import typer

import graphopt
from graphopt import console
from graphopt.errors import GraphoptError, InternalError, ToleranceError, UsageError
from graphopt.source import collected_warnings

app = typer.Typer(
    name="graphopt",
    help="Compile an ONNX model to a C library for an ARM CPU.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_INTERRUPTED = 130  # typer's exit status for Ctrl-C, and the shell's

Model = Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="The model.", show_default=False)]
Folder = Annotated[Path, typer.Argument(metavar="OUT", help="A bundle that `optimize` wrote.", show_default=False)]
Plugins = Annotated[
    list[Path] | None,
    typer.Option("--plugin", metavar="FILE.py", help="Python file with passes or targets; repeatable."),
]
Shapes = Annotated[
    list[str] | None,
    typer.Option("--shape", metavar="NAME=1,3,224,224", help="Static shape of an input; repeatable."),
]
Inputs = Annotated[
    str | None,
    typer.Option("--inputs", metavar="DATA", help="Inputs to run on, as --calib takes them; made up by default."),
]
Calib = Annotated[
    str | None,
    typer.Option("--calib", metavar="DATA", help="Samples: .npz, .npy, a folder (of pictures too), module:function."),
]
Labels = Annotated[Path | None, typer.Option("--labels", metavar="FILE.npy", help="Class indices of the samples.")]
Threads = Annotated[
    int, typer.Option("--threads", metavar="N", min=0, help="That the library computes on; 0 takes one a core.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON to stdout, and nothing else there.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"graphopt {graphopt.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    trace: Annotated[bool, typer.Option("--traceback", help="Print the traceback of an error; anywhere.")] = False,
) -> None:
    """Read by `main`, before any command runs."""


@app.command()
def optimize(
    model: Model,
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", metavar="TARGET", help="Name of the target; `graphopt targets` lists them."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="OUT", help="Folder to write; MODEL.TARGET by default.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Of the library; from the model's name by default.")
    ] = None,
    calib: Calib = None,
    labels: Labels = None,
    max_drop: Annotated[
        float | None,
        typer.Option("--max-drop", metavar="D", help="Accuracy that lossy passes may cost, as a fraction."),
    ] = None,
    prune: Annotated[
        float | None, typer.Option("--prune", metavar="R", help="Remove the fraction R of the MACs, by channels.")
    ] = None,
    factorize: Annotated[
        float | None, typer.Option("--factorize", metavar="R", help="Remove the fraction R of the MACs, by low rank.")
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            "--quantize",
            metavar="SCHEME",
            help="int8, int16x8, dynamic-int8, weights-int8, weights-int4, weights-float16, float16, or none; "
            "`graphopt targets` says which a target serves.",
        ),
    ] = None,
    passes: Annotated[
        list[str] | None,
        typer.Option("--pass", metavar="SPEC", help="Run a pass, as name{key=value}; repeatable."),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", metavar="FILE.toml", help="Do what a recipe says; options override it.")
    ] = None,
    plugins: Plugins = None,
    shapes: Shapes = None,
    seed: Annotated[
        int | None, typer.Option("--seed", metavar="N", help="Of all random numbers; 0 by default.")
    ] = None,
    compress: Annotated[
        bool | None,
        typer.Option(
            "--compress/--no-compress", help="Store weights compressed; decoded once, at load time, to memory."
        ),
    ] = None,
    tune: Annotated[
        str | None,
        typer.Option("--tune", metavar="COMMAND", help="Choose tiles of kernels by a counter, as of bench --counter."),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", metavar="N", min=1, help="Compile with N workers; one a core by default."),
    ] = None,
    dump_ir: Annotated[
        Path | None, typer.Option("--dump-ir", metavar="DIR", help="Write the graph before and after each pass.")
    ] = None,
    json: Json = False,
) -> None:
    """Optimize a model and compile it to a C library."""
    with console.progress_bar() as progress:
        result = graphopt.optimize(
            model,
            target,
            out=out,
            name=name,
            passes=passes or (),
            recipe=recipe,
            prune=prune,
            factorize=factorize,
            quantize=quantize,
            calib=calib,
            labels=labels,
            max_drop=max_drop,
            shapes=_shapes(shapes),
            plugins=plugins or (),
            seed=seed,
            compress=compress,
            tune=shlex.split(tune or ""),
            jobs=jobs,
            dump_ir=dump_ir,
            progress=progress,
        )
    console.print_warnings(result.warnings)
    if json:
        console.print_json(result.report)
    else:
        console.print_optimized(result)


@app.command()
def inspect(
    model: Model,
    target: Annotated[
        str | None, typer.Option("--target", "-t", metavar="TARGET", help="What passes may know of the target.")
    ] = None,
    shapes: Shapes = None,
    plugins: Plugins = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Measure what quantizing each layer alone costs; needs --calib.")
    ] = False,
    calib: Calib = None,
    labels: Labels = None,
    samples: Annotated[
        int | None, typer.Option("--samples", metavar="N", help="That --sensitivity runs each layer on; 32 by default.")
    ] = None,
    groups: Annotated[
        bool, typer.Option("--groups", help="List the channels that can only be pruned together.")
    ] = False,
    ranks: Annotated[
        bool, typer.Option("--ranks", help="List how low the ranks of weights are, and what two factors would save.")
    ] = False,
    text: Annotated[
        bool, typer.Option("--ir", help="Print the graph as text, its shapes as --shape binds them.")
    ] = False,
    json: Json = False,
) -> None:
    """Show layers, shapes, parameters, MACs, and what each pass could do."""
    if text:
        console.print_text(graphopt.model_text(model, shapes=_shapes(shapes)))
        return
    with console.progress_bar() as progress:
        result = graphopt.inspect(
            model,
            target=target,
            shapes=_shapes(shapes),
            plugins=plugins or (),
            sensitivity=sensitivity,
            calib=calib,
            labels=labels,
            samples=samples,
            groups=groups,
            ranks=ranks,
            progress=progress,
        )
    console.print_warnings(result.report["warnings"])
    if json:
        console.print_json(result.report)
    else:
        console.print_inspected(result.report)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A.onnx", help="The reference.", show_default=False)],
    second: Annotated[Path, typer.Argument(metavar="B.onnx", help="What is compared with it.", show_default=False)],
    inputs: Inputs = None,
    shapes: Shapes = None,
    tolerance: Annotated[
        float | None,
        typer.Option("--tolerance", metavar="T", min=0, help="Fail if an output differs by more than T of its range."),
    ] = None,
    json: Json = False,
) -> None:
    """Compare two models: interface, operators, costs and outputs."""
    result = graphopt.compare(first, second, inputs=inputs, shapes=_shapes(shapes))
    console.print_warnings(result.warnings)
    if json:
        console.print_json(result.to_json())
    else:
        console.print_compared(result)
    if tolerance is not None and not result.within(tolerance):
        raise ToleranceError(
            f"{second} does not agree with {first} within {tolerance:g} of the outputs' ranges",
            where=result.skipped or "\n".join(f"{o.name}: {o.relative:.3g} {o.note}" for o in result.outputs),
        )


@app.command()
def verify(
    out: Folder,
    inputs: Inputs = None,
    original: Annotated[
        Path | None,
        typer.Option("--original", metavar="MODEL.onnx", help="Compare with this model; OUT/model.onnx by default."),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            metavar="T",
            min=0,
            help="Largest difference of an output's range; 1e-4 by default, 5e-2 with quantized activations.",
        ),
    ] = None,
    threads: Threads = 1,
    plugins: Plugins = None,
    json: Json = False,
) -> None:
    """Run a bundle, natively or emulated, and compare it with ONNX Runtime."""
    with collected_warnings() as notices, console.progress_bar() as progress:
        result = graphopt.verify(
            out,
            inputs=inputs,
            original=original,
            tolerance=tolerance,
            threads=threads,
            plugins=plugins or (),
            progress=progress,
        )
    console.print_warnings(notices)
    if json:
        console.print_json(console.as_json(result))
    else:
        console.print_verified(result)


@app.command()
def bench(
    out: Folder,
    threads: Threads = 1,
    repeat: Annotated[int, typer.Option("--repeat", metavar="N", min=1, help="Timed runs.")] = 10,
    counter: Annotated[
        str | None,
        typer.Option("--counter", metavar="COMMAND", help="Count instructions with a command that runs a program."),
    ] = None,
    plugins: Plugins = None,
    json: Json = False,
) -> None:
    """Time a bundle on this machine, whole and by layer, or count its instructions."""
    with console.progress_bar() as progress:
        result = graphopt.bench(
            out,
            threads=threads,
            repeat=repeat,
            counter=shlex.split(counter or ""),
            plugins=plugins or (),
            progress=progress,
        )
    if json:
        console.print_json(console.as_json(result))
    else:
        console.print_benchmark(result)


@app.command("passes")
def passes_command(plugins: Plugins = None, json: Json = False) -> None:
    """List the passes and their options."""
    found = graphopt.list_passes(plugins or ())
    console.print_warnings(graphopt.broken_plugins())
    if json:
        console.print_json([item.to_json() for item in found])
    else:
        console.print_passes(found)


@app.command("targets")
def targets_command(plugins: Plugins = None, json: Json = False) -> None:
    """List the targets."""
    found = graphopt.list_targets(plugins or ())
    console.print_warnings(graphopt.broken_plugins())
    if json:
        console.print_json([console.as_json(item) for item in found])
    else:
        console.print_targets(found)


def _shapes(given: list[str] | None) -> dict[str, tuple[int, ...]]:
    """NAME=1,3,224,224 of each --shape; a name may hold '='. Raises UsageError."""
    shapes: dict[str, tuple[int, ...]] = {}
    for text in given or ():
        name, equals, sizes = text.rpartition("=")
        try:
            shape = tuple(int(size) for size in sizes.split(",")) if sizes else ()
        except ValueError:
            shape, equals = (), ""
        if not name or not equals:
            raise UsageError(f"--shape {text}: expected NAME=SIZE,SIZE,…, such as image=1,3,224,224")
        if name in shapes:
            raise UsageError(f"--shape is given twice for '{name}'")
        shapes[name] = shape
    return shapes


def main() -> None:
    """Run the command line; raises SystemExit with its status."""
    trace = "--traceback" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--traceback"]
    try:
        app(arguments, prog_name="graphopt")
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            console.print_interrupted()
        raise
    except GraphoptError as error:
        if trace:
            traceback.print_exc()
        console.print_error(error)
        sys.exit(error.exit_status)
    except Exception as error:  # noqa: BLE001  nothing may end in a traceback that nobody asked for
        if trace:
            traceback.print_exc()
        console.print_error(
            InternalError(
                f"{type(error).__name__}: {error}",
                advice="this is a fault of graphopt" + ("" if trace else "; rerun with --traceback to see where"),
            )
        )
        sys.exit(InternalError.exit_status)


def run_process() -> NoReturn:
    """`main` as the whole process: what the shell's `graphopt` and `python -m graphopt` call."""
    try:
        main()
    except SystemExit as end:
        if end.code != _INTERRUPTED:
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        # Not sys.exit: an interrupt that passed through exec() (dataclasses call it) makes CPython kill itself by
        # SIGINT at its end, although the exception was handled.
        os._exit(_INTERRUPTED)
    sys.exit(0)
