"""Tiles are chosen by counting: each kernel's best few, once, and what was counted is kept by content."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from graphopt.deploy import write_bundle
from graphopt.deploy.tune import PLACES, Tuned, tune
from graphopt.errors import InternalError, UsageError
from graphopt.targets.base import Library, Tiling
from tests.targets.toy import TARGETS
from tests.unit.deploy.toy_bundle import ToyBackend, toy_model

# Of calls 0 to 4: b is called twice, c has no choice, and d two tiles.
CONTENTS = ("a", "b", "c", "b", "d")
TILES = {"a": 3, "b": 9, "c": 1, "d": 2}
COSTS = {  # by layer and place; the best of a is 2, of b 0, of d 1
    0: [50, 40, 30],
    1: [10, 11, 12, 13, 14, 10, 5],
    4: [8, 7],
}
Counter = Callable[[], tuple[str, ...]]


class Built:
    """A build of the toy's bundle that remembers the tilings which were asked for."""

    def __init__(self, folder: Path) -> None:
        self.now = folder / "place"  # read by the counter
        self.asked: list[int] = []

    def __call__(self, folder: Path, tiling: Tiling) -> Library:
        self.asked.append(tiling.others)
        self.now.write_text(str(tiling.others))
        made = write_bundle(
            toy_model(),
            TARGETS["host"],
            name="toy",
            folder=folder,
            jobs=1,
            progress=lambda *_: None,
            backend=ToyBackend(),
            tiling=tiling,
        )
        return replace(made, layers=tuple({"content": c, "tiles": TILES[c]} for c in CONTENTS))


@pytest.fixture
def counter(tmp_path: Path) -> Counter:
    def command() -> tuple[str, ...]:
        script = tmp_path / "counter.py"
        script.write_text(
            "import json, pathlib, sys\n"
            "place = int(pathlib.Path(sys.argv[1]).read_text())\n"
            f"cost = {COSTS}[int(sys.argv[-1])][place]\n"
            "pathlib.Path(sys.argv[2]).open('a').write('x')\n"
            "print(json.dumps({'instructions': 1000, 'cycles': {'core': {'cycles': cost}}}))\n"
        )
        return (sys.executable, str(script), str(tmp_path / "place"), str(tmp_path / "runs"))

    return command


def tuned(build: Built, counter: tuple[str, ...], folder: Path) -> Tuned:
    return tune(build, "toy", TARGETS["host"], counter, cache=folder / "cache")


def test_each_kernel_gets_the_tile_that_costs_least(tmp_path: Path, counter: Counter) -> None:
    build = Built(tmp_path)
    found = tuned(build, counter(), tmp_path)
    assert found.tiling == Tiling({"a": 2, "d": 1})
    assert (found.kernels, found.counted, found.changed) == (3, 3, 2)
    assert (found.before, found.after) == (50 + 2 * 10 + 8, 30 + 2 * 10 + 7)
    assert build.asked == list(range(PLACES))
    assert len((tmp_path / "runs").read_text()) == 3 + PLACES + 2  # each kernel once a tile, whatever its calls


def test_what_was_counted_is_not_counted_again(tmp_path: Path, counter: Counter) -> None:
    first = tuned(Built(tmp_path), counter(), tmp_path)
    (tmp_path / "runs").unlink()
    again = Built(tmp_path)
    assert tuned(again, counter(), tmp_path) == replace(first, counted=0)
    assert again.asked == [0] and not (tmp_path / "runs").exists()
    assert tuned(Built(tmp_path), (*counter()[:-1], str(tmp_path / "other")), tmp_path).counted == 3  # other counter


def test_a_damaged_count_is_counted_again(tmp_path: Path, counter: Counter) -> None:
    first = tuned(Built(tmp_path), counter(), tmp_path)
    files = sorted((tmp_path / "cache").iterdir())
    assert len(files) == 3
    for file, text in zip(files, ("", "[1]", '["x", 1, 2]'), strict=True):
        file.write_text(text)
    assert tuned(Built(tmp_path), counter(), tmp_path) == first


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, counter: Counter) -> None:
    (tmp_path / "cache").write_text("a file")
    assert tuned(Built(tmp_path), counter(), tmp_path).changed == 2


def test_a_target_with_variants_is_refused_before_anything_is_built(tmp_path: Path, counter: Counter) -> None:
    build = Built(tmp_path)
    with pytest.raises(UsageError, match=r"(?s)a library for 'arm' carries kernels for several.*name the core"):
        tune(build, "toy", TARGETS["arm"], counter())
    assert build.asked == []


def test_a_counter_that_fails_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match="printed no JSON object"):
        tuned(Built(tmp_path), (sys.executable, "-c", "print('nothing')"), tmp_path)
    assert not (tmp_path / "cache").exists()
