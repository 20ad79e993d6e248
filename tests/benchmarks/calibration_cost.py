"""Time and memory of calibrating one model with pictures, and putting Q/DQ into it.

    taskset --cpu-list 0,1 python -m tests.benchmarks.calibration_cost MODEL.onnx PICTURES --samples 100

PICTURES is a folder, read as the table [preprocess] below says; they are decoded again in each pass over them. Prints
Markdown: seconds of each stage by the clock and of processor time (which other programs disturb less), and the peak
resident memory of the process.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import time
import warnings
from pathlib import Path

START = time.perf_counter()  # before graphopt is imported: a command's time includes it


def main() -> None:
    """Read the command line, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--passes", nargs="+", default=["quantize"], metavar="SPEC", help="after the clean-up")
    options = parser.parse_args()

    import graphopt.ir as graph_ir
    from graphopt.analysis.sample_images import Preprocess
    from graphopt.analysis.samples import load_samples
    from graphopt.errors import ModelWarning
    from graphopt.passes.cleanup import DEFAULT
    from graphopt.pipeline.base import PassContext
    from graphopt.pipeline.manager import run_passes
    from graphopt.pipeline.spec import parse_spec

    warnings.simplefilter("ignore", ModelWarning)
    clock = [(START, 0.0, "import"), (time.perf_counter(), time.process_time(), "")]

    def lap(stage: str) -> None:
        clock[-1] = (*clock[-1][:2], stage)
        clock.append((time.perf_counter(), time.process_time(), ""))

    model = graph_ir.load(options.model)
    graph_ir.bind_shapes(model, {})
    preprocess = Preprocess(crop=(224,), mean=(128.0,), std=(128.0,))
    samples = load_samples(options.pictures, model, preprocess=preprocess).first(options.samples)
    lap("load")
    for spec in (*DEFAULT, *options.passes):
        run_passes(model, [parse_spec(spec)], PassContext(calibration=samples), compare=False)
        lap(spec)

    print(f"{options.model.name}, {len(samples)} pictures\n\n| stage | s | processor s |\n|---|---:|---:|")
    for (start, before, stage), (end, after, _) in itertools.pairwise(clock):
        print(f"| {stage} | {end - start:.1f} | {after - before:.1f} |")
    print(f"| **total** | **{clock[-1][0] - START:.1f}** | **{clock[-1][1]:.1f}** |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    cores = len(os.sched_getaffinity(0))
    print(f"\npeak memory {peak:.0f} MB; {cores} cores, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
