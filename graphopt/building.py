"""The C side of a bundle by graphopt's backend, in tiles that a recipe names, or that counting chooses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.pipeline.base import Progress
from graphopt.targets.base import Library, TargetDescription, Tiling

if TYPE_CHECKING:
    from graphopt.deploy.tune import Tuned


def build(
    model: ir.Model,
    target: TargetDescription,
    folder: Path,
    *,
    name: str,
    jobs: int,
    compress: bool,
    tiling: Tiling,
    progress: Progress,
) -> Library:
    """Fill `folder` with the library, header, example and CMake package of a model; see `deploy.write_bundle`."""
    from graphopt.deploy import write_bundle
    from graphopt.targets.tvm.backend import TvmBackend

    return write_bundle(
        model,
        target,
        name=name,
        folder=folder,
        jobs=jobs,
        progress=progress,
        backend=TvmBackend(),
        compress=compress,
        tiling=tiling,
    )


def tuned(
    model: ir.Model, target: TargetDescription, counter: Sequence[str], *, name: str, jobs: int, progress: Progress
) -> Tuned:
    """The tiles that `counter` finds cheapest; see `deploy.tune.tune`."""
    from graphopt.deploy.tune import tune

    def in_tiles(folder: Path, tiling: Tiling) -> Library:
        return build(
            model, target, folder, name=name, jobs=jobs, compress=False, tiling=tiling, progress=lambda *_: None
        )

    return tune(in_tiles, name, target, counter, progress=progress)


def unused_tiles(library: Library, places: Mapping[str, int]) -> str:
    """What is wrong with a recipe's tiles, if some of them are of no kernel of the library; empty if none is."""
    unused = set(places) - {layer["content"] for layer in library.layers}
    if not unused:
        return ""
    return (
        f"{len(unused)} of the recipe's {len(places)} tiles are of kernels that are not built here: of another model, "
        "core or version; those that are get the tiles of the model of the core. --tune counts again"
    )
