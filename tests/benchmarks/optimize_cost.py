"""Time and memory of `graphopt optimize` for one model, with where the time goes.

    taskset --cpu-list 0,1 python -m tests.benchmarks.optimize_cost MODEL.onnx

Prints Markdown: seconds of each stage (load, passes, build, write), of the passes and steps of the build that take
longest, and the peak resident memory of the process and of the largest of the processes that it starts.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

START = time.perf_counter()  # before graphopt is imported: a command's time includes it


def main() -> None:
    """Read the command line, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--target", default="cortex-a76")
    options = parser.parse_args()
    import graphopt

    with tempfile.TemporaryDirectory() as folder:
        result = graphopt.optimize(options.model, options.target, out=Path(folder, "bundle"))
    total = time.perf_counter() - START
    stages = {stage: seconds for stage, seconds in result.timings.items() if " " not in stage}
    lines = {"import": total - sum(stages.values()), **stages}
    parts = {"passes": "pass ", "build": "build "}
    steps = {stage: seconds for stage, seconds in result.timings.items() if " " in stage and seconds >= 0.02 * total}

    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    peaks = [usage.ru_maxrss / 1e3 for usage in usages]
    processor = sum(usage.ru_utime + usage.ru_stime for usage in usages)
    print("| stage | s | % |\n|---|---:|---:|")
    for stage, seconds in lines.items():
        print(f"| {stage} | {seconds:.1f} | {100 * seconds / total:.0f} |")
        within = {step: part for step, part in steps.items() if step.startswith(parts.get(stage, "\n"))}
        for step, part in sorted(within.items(), key=lambda item: -item[1]):
            print(f"| – {step.partition(' ')[2]} | {part:.1f} | {100 * part / total:.0f} |")
        if within:
            rest = seconds - sum(within.values())
            print(f"| – other | {rest:.1f} | {100 * rest / total:.0f} |")
    print(f"| **total** | **{total:.1f}** | {processor:.1f} s of processor |")
    cores = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    print(f"\npeak memory {peaks[0]:.0f} MB, of the largest child {peaks[1]:.0f} MB; {cores} cores, load {load:.1f}")


if __name__ == "__main__":
    main()
