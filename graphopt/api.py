"""Optimize a model, and list what there is to do it with: what the command line and user programs call.

onnxruntime and tvm are imported by what runs, not by this module.
"""

from __future__ import annotations

import dataclasses
import os
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

import graphopt.ir as graph_ir
from graphopt.analysis.accuracy import load_labels
from graphopt.analysis.execution import processors
from graphopt.analysis.sample_functions import Function
from graphopt.analysis.samples import Samples, load_samples
from graphopt.building import build, tuned, unused_tiles
from graphopt.errors import UsageError
from graphopt.formatting import Report, to_json
from graphopt.inspection import cleaned, rank_table
from graphopt.losses import LastFloats, accuracy_drop
from graphopt.output_folder import check_destination, replacing
from graphopt.pipeline.base import Pass, PassContext, Progress, silent
from graphopt.pipeline.manager import run_passes
from graphopt.pipeline.options import Option, options_of, write_value
from graphopt.pipeline.recipe import Recipe, load_preprocess, write_recipe
from graphopt.pipeline.registry import PASSES, TARGETS, load_plugin
from graphopt.pipeline.report import Snapshot, build_report
from graphopt.pipeline.report_html import to_html
from graphopt.pipeline.spec import parse_spec
from graphopt.resolution import Request, resolve
from graphopt.source import Source, collected_warnings, file_bytes, title
from graphopt.targets.base import Library, TargetDescription, Tiling

if TYPE_CHECKING:
    from graphopt.deploy import Bundle
    from graphopt.deploy.bench import Benchmark
    from graphopt.deploy.verify import Verification


@dataclasses.dataclass(frozen=True)
class OptimizeResult:
    """A finished bundle: where it is, what was done, and how long each stage took (seconds; never written to files)."""

    out: Path
    name: str  # NAME of include/NAME.h and lib/libNAME.so
    report: Report
    library: Library
    timings: Mapping[str, float]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What deserves a look; also in the report."""
        return tuple(self.report["warnings"])

    def model(self) -> ir.Model:
        """The optimized model, loaded from the bundle."""
        return graph_ir.load(self.out / "model.onnx")


@dataclasses.dataclass(frozen=True)
class PassInfo:
    """A registered pass."""

    name: str
    exact: bool
    summary: str
    options: tuple[Option, ...]
    origin: str
    default: bool  # part of what `optimize` runs without being asked

    def to_json(self) -> Report:
        """The description in the types of JSON; a default is written as in a spec."""
        options = [
            {"name": o.name, "type": o.kind, "default": write_value(o.default, o.type), "doc": o.doc}
            for o in self.options
        ]
        return {**dataclasses.asdict(self), "options": options}


def optimize(
    model: Source,
    target: str | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    name: str | None = None,
    passes: Sequence[str | Pass] = (),
    recipe: str | Path | Recipe | None = None,
    prune: float | None = None,
    factorize: float | None = None,
    quantize: str | None = None,
    calib: str | os.PathLike[str] | Samples | Function | None = None,
    labels: str | os.PathLike[str] | np.ndarray[Any, Any] | None = None,
    max_drop: float | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    plugins: Sequence[str | Path] = (),
    seed: int | None = None,
    compress: bool | None = None,
    tune: Sequence[str] = (),
    jobs: int | None = None,
    dump_ir: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> OptimizeResult:
    """Optimize a model and compile it to a C library.

    Args:
        model: a path of an .onnx file, its bytes, or a model that onnx or onnx_ir holds; it is not changed.
        target: a name that `list_targets` gives; the recipe's, or "arm", by default.
        out: folder of the bundle; beside the model by default, as MODEL.TARGET. An older bundle is replaced.
        name: of the library, a C identifier; made from the model's file name by default.
        passes: run after the clean-up, in order: specs such as "name{key=value}", or passes.
        recipe: a TOML file (or its content); its passes take the place of the default ones.
        prune, factorize: fraction of the MACs to remove.
        quantize: a scheme of the target, such as "int8"; "none" leaves floating point. None does too, unless there
            are samples and nothing else that is lossy is asked for: then it is the target's first scheme.
        calib: samples, or what `load_samples` makes them of: a file, a folder, or a function.
        labels: class indices of the samples, from an .npy file.
        max_drop: accuracy (or agreement with the original, without labels) that lossy passes may cost, as a fraction.
        shapes: static shapes of inputs, by name.
        plugins: Python files with passes or targets.
        seed: of all random numbers; 0 by default.
        compress: store the weights of the library entropy coded, and decode them when the first context is made; the
            recipe's choice, or no, by default. Outputs stay the same.
        tune: a counter's command, as for `bench`: build each kernel in several tiles and keep the cheapest, in the
            recipe too. By default tiles are those of the recipe, or of a model of the core. Outputs stay the same.
        jobs: processes or threads to compile with; one a core by default. It does not change the result.
        dump_ir: folder to write the graph to, before and after each pass.
        progress: called as progress(done, total, what).

    Raises:
        UsageError, ModelError, DataError, ToleranceError, InternalError: as their documentation says. After an error,
        or KeyboardInterrupt, `out` is as it was before.
    """
    clock = _Clock()
    with collected_warnings(model) as asked:
        resolved = resolve(
            Request(
                target=target,
                passes=passes,
                recipe=recipe,
                prune=prune,
                factorize=factorize,
                quantize=quantize,
                calib=None if calib is None or isinstance(calib, Samples) or callable(calib) else os.fspath(calib),
                labels=None if labels is None or isinstance(labels, np.ndarray) else os.fspath(labels),
                calib_in_memory=isinstance(calib, Samples) or callable(calib),
                labels_in_memory=isinstance(labels, np.ndarray),
                max_drop=max_drop,
                shapes=shapes or {},
                plugins=plugins,
                seed=seed,
                compress=compress,
            )
        )
    description = TARGETS.find(resolved.target)
    called = title(model)
    library_name = _library_name(called, name)
    destination = _destination(model, called, resolved.target, out)
    check_destination(destination)  # before the work, not after it

    with collected_warnings(model) as notices:
        notices.extend(asked)
        progress(0, 0, "load")
        work = graph_ir.load(model)
        notices.extend(graph_ir.bind_shapes(work, resolved.shapes))
        samples = calib if isinstance(calib, Samples) else None
        source = calib if callable(calib) else resolved.calib
        if source is not None and samples is None:
            samples = load_samples(source, work, preprocess=resolved.preprocess)
        classes = labels if isinstance(labels, np.ndarray) else None
        if resolved.labels is not None and classes is None:
            classes = load_labels(resolved.labels)
        before = Snapshot.of(work, name=called, file_bytes=file_bytes(model, work))
        original = graph_ir.clone(work)
        clock.lap("load")

        context = PassContext(
            target=description,
            calibration=samples,
            labels=classes,
            max_drop=resolved.max_drop,
            seed=resolved.seed,
            progress=progress,
        )
        floats = LastFloats()
        dump = None if dump_ir is None else Path(dump_ir)
        records = run_passes(work, resolved.passes, context, dump_ir=dump, before_each=floats.keep)
        clock.lap("passes")
        accuracy = accuracy_drop(original, work, samples, classes, resolved, notices)
        noise = floats.noise(work, samples)
        factored = any(item.name == "factorize" for item in resolved.passes)
        ranks = rank_table(cleaned(original, PassContext(target=description)), description) if factored else None
        del original, floats
        clock.lap("accuracy")

        tiles = None
        if tune:
            tiles = tuned(work, description, tune, name=library_name, jobs=jobs or processors(), progress=progress)
            resolved = dataclasses.replace(resolved, tiles=tiles.tiling.places)
            clock.lap("tune")
        with replacing(destination) as folder:
            library = build(
                work,
                description,
                folder,
                name=library_name,
                jobs=jobs or processors(),
                compress=resolved.compress,
                tiling=Tiling(resolved.tiles),
                progress=progress,
            )
            clock.lap("build")
            notices.extend(filter(None, [unused_tiles(library, resolved.tiles)]))
            graph_ir.save(work, folder / "model.onnx")
            size = sum(file.stat().st_size for file in folder.glob("model.onnx*"))
            text = write_recipe(resolved)
            report = build_report(
                "optimize",
                before,
                after=Snapshot.of(work, name=called, file_bytes=size),
                passes=records,
                comparison=next((record.comparison for record in reversed(records) if record.comparison), ()),
                accuracy=accuracy,
                target=description,
                recipe=tomllib.loads(text),
                library=library,
                library_name=library_name,
                tuning=None if tiles is None else tiles.to_json(),
                noise=noise,
                ranks=ranks,
                warnings=dict.fromkeys(notices),
            )
            (folder / "recipe.toml").write_text(text, encoding="utf-8")
            (folder / "report.json").write_text(to_json(report), encoding="utf-8")
            (folder / "report.html").write_text(to_html(report), encoding="utf-8")
    clock.lap("write")
    timings = {**clock.laps, **{f"pass {record.spec}": record.seconds for record in records}}
    timings |= {f"build {stage}": seconds for stage, seconds in library.timings.items()}
    moved = dataclasses.replace(
        library,
        shared=destination / library.shared.relative_to(folder),
        static=destination / library.static.relative_to(folder),
    )
    return OptimizeResult(destination, library_name, report, moved, timings)


def list_passes(plugins: Sequence[str | Path] = ()) -> tuple[PassInfo, ...]:
    """Every registered pass, by name. Raises UsageError for a plug-in that cannot be loaded."""
    from graphopt.passes.cleanup import DEFAULT

    for plugin in plugins:
        load_plugin(plugin)
    default = {parse_spec(spec).name for spec in DEFAULT}
    return tuple(
        PassInfo(
            item.name, item.exact, _summary(item), options_of(item), PASSES.origin(item.name), item.name in default
        )
        for item in PASSES
    )


def list_targets(plugins: Sequence[str | Path] = ()) -> tuple[TargetDescription, ...]:
    """Every registered target, by name. Raises UsageError for a plug-in that cannot be loaded."""
    for plugin in plugins:
        load_plugin(plugin)
    return tuple(TARGETS)


def broken_plugins() -> tuple[str, ...]:
    """What went wrong with entry points of installed packages; passes and targets of others work all the same."""
    return tuple(str(error) for registry in (PASSES, TARGETS) for error in registry.broken())


def verify(
    out: str | os.PathLike[str],
    *,
    inputs: str | os.PathLike[str] | Samples | Function | None = None,
    original: str | os.PathLike[str] | ir.Model | None = None,
    tolerance: float | None = None,
    threads: int = 1,
    plugins: Sequence[str | Path] = (),
    progress: Progress = silent,
) -> Verification:
    """Run a bundle, natively or emulated, and compare its outputs with ONNX Runtime's.

    Args:
        out: the folder that `optimize` wrote.
        inputs: samples, or what `load_samples` makes them of; made up by default. Pictures are read as for `optimize`.
        original: the model that the bundle was made from; by default the bundle's own optimized model.
        tolerance: the largest difference allowed, relative to an output's range; 1e-4 by default, 5e-2 for a model
            whose activations are quantized or float16.
        threads: that the library computes on; 0 takes one a core.

    Raises:
        ToleranceError: an output differs by more.
        DataError: the bundle is not whole, or the inputs do not fit.
        UsageError: programs of the target cannot run here.
    """
    from graphopt.deploy.verify import verify as run

    bundle, description = _opened(out, plugins)
    if inputs is not None and not isinstance(inputs, Samples):
        recipe = bundle.folder / "recipe.toml"
        preprocess = load_preprocess(recipe) if recipe.is_file() else None
        inputs = load_samples(inputs, graph_ir.load(bundle.model), preprocess=preprocess)
    return run(
        bundle,
        description,
        samples=inputs,
        original=original if original is None or isinstance(original, ir.Model) else Path(original),
        tolerance=tolerance,
        threads=threads,
        progress=progress,
    )


def bench(
    out: str | os.PathLike[str],
    *,
    threads: int = 1,
    repeat: int = 10,
    counter: Sequence[str] = (),
    plugins: Sequence[str | Path] = (),
    progress: Progress = silent,
) -> Benchmark:
    """Time a bundle on this machine, whole and by layer, or count its instructions.

    Args:
        out: the folder that `optimize` wrote.
        threads: that the library computes on; 0 takes one a core.
        repeat: timed runs.
        counter: a command that counts instructions of an emulated program; see `graphopt.deploy.bench.bench`.

    Raises:
        UsageError: programs of the target cannot run here, and there is no counter.
        DataError: the bundle is not whole.
    """
    from graphopt.deploy.bench import bench as run

    bundle, description = _opened(out, plugins)
    return run(bundle, description, threads=threads, repeat=repeat, counter=counter, progress=progress)


def _opened(out: str | os.PathLike[str], plugins: Sequence[str | Path]) -> tuple[Bundle, TargetDescription]:
    from graphopt.deploy import open_bundle

    for plugin in plugins:
        load_plugin(plugin)
    bundle = open_bundle(Path(out))
    return bundle, TARGETS.find(bundle.target)


class _Clock:
    """Seconds of the stages of a run."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._start = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.laps[stage] = now - self._start
        self._start = now


def _summary(item: type[Pass]) -> str:
    return (item.__doc__ or "").strip().partition("\n")[0]


def _library_name(called: str, name: str | None) -> str:
    from graphopt.deploy.header import check_name, identifier

    if name is None:
        return identifier(called)
    check_name(name)
    return name


def _destination(model: Source, called: str, target: str, out: str | os.PathLike[str] | None) -> Path:
    if out is not None:
        return Path(out).absolute()
    if not isinstance(model, str | os.PathLike):
        raise UsageError("a model in memory needs a place for its bundle", advice="give out=FOLDER")
    return Path(model).absolute().with_name(f"{called}.{target}")
