"""Load damaged models: each loads, or ends in an error of graphopt's own; none crashes, hangs or eats the memory.

GRAPHOPT_FUZZ_MUTANTS sets how many mutants to try (default 200), GRAPHOPT_FUZZ_SEED where to begin, and
GRAPHOPT_REAL_MODELS a folder of models to damage beside the small ones made here. The mutants run in a process of their
own under a watchdog, so that a crash of protobuf or onnx below Python is found and counted.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

import onnx
import onnx.parser
import pytest

from graphopt import ir
from graphopt.errors import GraphoptError
from tests.property.mutants import mutate, mutate_fields

MUTANTS = int(os.environ.get("GRAPHOPT_FUZZ_MUTANTS", "200"))
SEED = int(os.environ.get("GRAPHOPT_FUZZ_SEED", "0"))
SECONDS_EACH = 30
MEMORY_BYTES = 6 << 30

T = TypeVar("T")

_SMALL = """
<ir_version: 8, opset_import: ["" : 17, "local" : 1, "custom" : 2], metadata_props: ["author" : "fuzz"]>
net (float[N,3,8,8] x, bool c) => (float[N,K] y)
<float[4,3,3,3] w = {WEIGHTS}, int64[2] shape = {0, -1}>
{
   [conv] h = Conv <pads = [1, 1, 1, 1]> (x, w)
   [act] r = local.Act <alpha = 0.1> (h)
   [flat] f = Reshape (r, shape)
   [choice] y = If (c) <
      then_branch = yes () => (float[N,K] a) { a = Neg (f) },
      else_branch = no () => (float[N,K] b) { b = custom.Thing <k = 3> (f) }
   >
}
<domain: "local", opset_import: ["" : 17]>
Act <alpha> (t) => (u) { u = LeakyRelu <alpha: float = @alpha> (t) }
""".replace("WEIGHTS", ", ".join(["0.5"] * 108))


def corpus() -> list[bytes]:
    """The small model, and the real ones of less than 2 MB."""
    models = [onnx.parser.parse_model(_SMALL).SerializeToString()]
    if folder := os.environ.get("GRAPHOPT_REAL_MODELS"):
        files = sorted(Path(folder).glob("*.onnx"))
        models += [file.read_bytes() for file in files if file.stat().st_size < 2 << 20]
    return models


def structure_spans(data: bytes) -> list[tuple[int, int]]:
    """Where a file is not one long weight: the stretches between the raw data of its tensors."""
    proto = onnx.ModelProto.FromString(data)
    spans, at = [], 0
    for tensor in proto.graph.initializer:
        raw = tensor.raw_data
        if len(raw) > 64 and (found := data.find(raw, at)) >= 0:
            spans.append((at, found))
            at = found + len(raw)
    return [(start, end) for start, end in [*spans, (at, len(data))] if end > start]


def refused_or(work: Callable[[], T]) -> T | None:
    """What `work` returns, or None if it raises an error of graphopt's with a message of one line."""
    try:
        return work()
    except GraphoptError as error:
        message = error.what
    assert message
    assert "\n" not in message, f"more than one line: {message!r}"
    return None


def exercise(data: bytes, folder: Path) -> str:
    """What became of a mutant: "refused" or "loaded"; any other exception than graphopt's passes through."""
    path = folder / "mutant.onnx"
    path.write_bytes(data)
    model = refused_or(lambda: ir.load(path))
    if model is None:
        return "refused"
    ir.to_text(model)
    ir.fingerprint(model)
    ir.Interface.of(model)
    for step in (ir.refresh_shapes, ir.verify, lambda m: ir.bind_shapes(m, {})):
        refused_or(partial(step, model))
    ir.save(model, folder / "again.onnx")
    assert ir.fingerprint(ir.load(folder / "again.onnx")) == ir.fingerprint(model)
    return "loaded"


def mutant(models: list[bytes], spans: list[list[tuple[int, int]]], seed: int) -> bytes:
    """The mutant that `seed` makes."""
    rng = random.Random(seed)
    index = rng.randrange(len(models))
    if rng.random() < 0.5:
        model = onnx.ModelProto.FromString(models[index])
        mutate_fields(model, rng)
        return model.SerializeToString()
    focus = rng.choice(spans[index]) if rng.random() < 0.8 else None
    return mutate(models[index], rng.choice(models), rng, focus)


def _worker(channel: Connection, first: int, last: int) -> None:
    """Try mutants `first` to `last`; says before each which it is, and after it what became of it."""
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    models = corpus()
    spans = [structure_spans(data) for data in models]
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(first, last):
            channel.send((seed, "started"))
            try:
                outcome = exercise(mutant(models, spans, seed), Path(folder))
            except BaseException:  # noqa: BLE001 - whatever it is, it is the finding
                outcome = traceback.format_exc()
            channel.send((seed, outcome))


def run(first: int, count: int) -> dict[str, list[int]]:
    """The seeds of the mutants by what became of them; a crash or hang costs one mutant, the rest go on."""
    outcomes: dict[str, list[int]] = {}
    context = multiprocessing.get_context("spawn")
    seed, last = first, first + count
    while seed < last:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_worker, args=(sender, seed, last))
        process.start()
        sender.close()
        outcome = "died at start"
        try:
            outcome = "hung" if not receiver.poll(10 * SECONDS_EACH) else outcome
            while seed < last:
                if not receiver.poll(SECONDS_EACH):
                    outcome = "hung"
                    break
                seed, outcome = receiver.recv()
                if outcome != "started":
                    outcomes.setdefault(outcome, []).append(seed)
                    seed += 1
        except EOFError:
            outcome = "crashed"
        if seed < last:
            outcomes.setdefault(outcome, []).append(seed)
            seed += 1
        process.kill()
        process.join()
    return outcomes


@pytest.mark.timeout(0)
def test_damaged_models_load_or_are_refused_by_a_graphopt_error() -> None:
    began = time.monotonic()
    outcomes = run(SEED, MUTANTS)
    counts = {outcome.splitlines()[-1]: len(seeds) for outcome, seeds in outcomes.items()}
    print(f"{MUTANTS} mutants in {time.monotonic() - began:.0f} s: {counts}")
    faults = {outcome: seeds for outcome, seeds in outcomes.items() if outcome not in ("refused", "loaded")}
    assert not faults, "\n".join(f"mutants {seeds[:10]} ({len(seeds)}): {what}" for what, seeds in faults.items())
    assert sum(map(len, outcomes.values())) == MUTANTS
    assert outcomes["refused"]
    assert outcomes["loaded"], "no mutant survived: the fuzzer reaches nothing behind the parser"
