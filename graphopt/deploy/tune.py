"""Tiles chosen by counting: each kernel is built in the best few by the model, counted, and keeps the cheapest.

What was counted is kept in the user's cache folder by the content of the kernel (`Library.layers`) and the counter's
command: a kernel is counted once, whichever model it is met in again.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from graphopt.deploy.bench import count_layers
from graphopt.deploy.bundle import Bundle
from graphopt.errors import UsageError
from graphopt.pipeline.base import Progress, silent
from graphopt.targets.base import Library, TargetDescription, Tiling

PLACES = 6  # of the model's order: each costs a build and a run of each kernel

Costs = tuple[float, ...]  # of a kernel, by place


@dataclass(frozen=True)
class Tuned:
    """What counting came to."""

    tiling: Tiling
    kernels: int  # that have a choice of tiles
    counted: int  # of these now; the others' counts were kept
    changed: int  # from the model's choice
    before: float  # cost of all calls of these kernels as the model chooses, in the counter's cycles or instructions
    after: float  # and as chosen

    def to_json(self) -> dict[str, float]:
        """What does not depend on what was counted before, for the report."""
        return {"kernels": self.kernels, "changed": self.changed, "before": self.before, "after": self.after}


@dataclass(frozen=True)
class _Choice:
    layer: int  # the first call of the kernel
    calls: int
    tiles: int


def tune(
    build: Callable[[Path, Tiling], Library],
    name: str,
    target: TargetDescription,
    counter: Sequence[str],
    *,
    cache: Path | None = None,
    progress: Progress = silent,
) -> Tuned:
    """Choose the tiles of all kernels.

    Args:
        build: fills a folder with the bundle of the model in given tiles.
        name: of the library.
        counter: as for `graphopt.deploy.bench.bench`.
        cache: folder of what was counted; in the user's cache folder by default.

    Raises:
        UsageError: the target's library has variants, of which the counter would run one.
        InternalError: the counter failed, or printed something else.
    """
    if target.variants:
        raise UsageError(
            f"tiles are tuned for one core, and a library for '{target.name}' carries kernels for several",
            advice="name the core; `graphopt targets` lists them",
        )
    cache = cache or _cache_folder()
    with tempfile.TemporaryDirectory() as scratch:
        first = Path(scratch, "0")
        library = build(first, Tiling())
        choices = _choices(library)
        files = {content: cache / f"{_digest(content, counter)}.json" for content in choices}
        costs = {content: _kept(files[content], choice.tiles) for content, choice in choices.items()}
        new = {content: choices[content] for content, found in costs.items() if not found}
        for place in range(PLACES):
            wanted = {content: choice.layer for content, choice in new.items() if choice.tiles > place}
            if not wanted:
                break
            folder = Path(scratch, str(place))
            if place:
                library = build(folder, Tiling(others=place))
            bundle = Bundle(folder, name, target.name, library.inputs, library.outputs, fingerprint="")

            def report(done: int, total: int, what: str, place: int = place) -> None:
                progress(place * total + done, PLACES * total, f"count tile {place + 1}: {what}")

            counted = count_layers(bundle, target, counter, list(wanted.values()), progress=report)
            for content, cost in zip(wanted, counted, strict=True):
                costs[content] = (*costs[content], cost)
    for content in new:
        _keep(files[content], costs[content])
    places = {content: min(range(len(found)), key=found.__getitem__) for content, found in costs.items()}
    return Tuned(
        tiling=Tiling({content: place for content, place in sorted(places.items()) if place}),
        kernels=len(choices),
        counted=len(new),
        changed=sum(place > 0 for place in places.values()),
        before=sum(costs[content][0] * choice.calls for content, choice in choices.items()),
        after=sum(costs[content][places[content]] * choice.calls for content, choice in choices.items()),
    )


def _choices(library: Library) -> dict[str, _Choice]:
    """Kernels with a choice of tiles, by content."""
    found: dict[str, _Choice] = {}
    for index, layer in enumerate(library.layers):
        content, tiles = layer["content"], min(layer["tiles"], PLACES)
        if tiles > 1:
            known = found.get(content, _Choice(index, 0, tiles))
            found[content] = _Choice(known.layer, known.calls + 1, tiles)
    return found


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "graphopt", "tiles")


def _digest(content: str, counter: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps([content, *counter]).encode()).hexdigest()


def _kept(file: Path, tiles: int) -> Costs:
    """What was counted; nothing if it was not, or the file is damaged."""
    try:
        costs = tuple(float(cost) for cost in json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return ()
    return costs if len(costs) == tiles else ()


def _keep(file: Path, costs: Costs) -> None:
    """Write a file whole, or not at all. Tuning does not fail for a cache that cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False, encoding="utf-8") as written:
            json.dump(costs, written)
        Path(written.name).replace(file)
    except OSError:
        return
