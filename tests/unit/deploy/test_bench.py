"""`bench` times what ran, layer by layer, and reads counts of a counting tool."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from graphopt.deploy import Bundle
from graphopt.deploy.bench import bench
from graphopt.errors import InternalError, UsageError
from tests.targets.toy import TARGETS
from tests.unit.deploy.toy_bundle import make_bundle

HOST = TARGETS["host"]
NAMES = ["check", "scale é + tanh??/ ", "add", "(copy)", "(copy)", "(copy)"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "toy.host")


def counter(folder: Path, body: str) -> tuple[str, ...]:
    """A stand-in for a tool that counts: a script that gets `-- PROGRAM count LAYER`."""
    script = folder / "counter.py"
    script.write_text(f"import json, subprocess, sys\n_, program, mode, layer = sys.argv[1:]\n{body}\n")
    return (sys.executable, str(script))


@pytest.mark.parametrize("threads", [1, 2])
def test_times_are_of_layers_and_whole_runs(bundle: Bundle, threads: int) -> None:
    result = bench(bundle, HOST, threads=threads, repeat=5)
    assert (result.unit, result.runs, result.threads) == ("ns", 5, threads)
    assert [layer.name for layer in result.layers] == NAMES
    assert 0 < result.least <= result.total < 1e9
    assert all(0 <= layer.cost < 1e9 for layer in result.layers)


def test_counts_are_read_for_the_run_and_each_layer(bundle: Bundle, tmp_path: Path) -> None:
    command = counter(
        tmp_path,
        "subprocess.run([program, mode, layer], check=True)\n"
        "print(json.dumps({'instructions': 100 + int(layer), 'x': 1}))",
    )
    result = bench(bundle, HOST, counter=command)
    assert (result.unit, result.total, result.counts) == ("instructions", 99, {"instructions": 99, "x": 1})
    assert [(layer.name, layer.cost) for layer in result.layers] == [(n, 100 + i) for i, n in enumerate(NAMES)]
    assert bench(bundle, HOST, counter=command, layers=False).layers == ()


@pytest.mark.parametrize(
    ("said", "cycles"),
    [("7", 7.0), ('{"n1": {"cycles": 9, "ipc": 2}, "a55": {"cycles": 30}}', 9.0), ('"many"', None), ("{}", None)],
)
def test_cycles_are_read_where_the_counter_estimates_them(
    bundle: Bundle, tmp_path: Path, said: str, cycles: float | None
) -> None:
    text = f'{{"instructions": 1, "cycles": {said}}}'
    result = bench(replace(bundle, macs=tuple(range(6))), HOST, counter=counter(tmp_path, f"print({text!r})"))
    assert [(layer.cycles, layer.macs) for layer in result.layers] == [(cycles, i) for i in range(6)]


@pytest.mark.parametrize("printed", ["nothing", "[1]", "{}", '{"instructions": "many"}'])
def test_a_counter_that_prints_something_else_is_an_error(bundle: Bundle, tmp_path: Path, printed: str) -> None:
    with pytest.raises(InternalError, match="printed no JSON object with 'instructions'"):
        bench(bundle, HOST, counter=counter(tmp_path, f"print({printed!r})"))


def test_times_under_emulation_are_refused(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=r"(?s)this machine cannot run programs for 'armv7'.*--counter"):
        bench(bundle, TARGETS["armv7"])


def test_no_run_is_refused(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="expected at least 1"):
        bench(bundle, HOST, repeat=0)
