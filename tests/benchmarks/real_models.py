"""Build every real model for a core and compare it with ONNX Runtime on real inputs, emulated where need be.

    python -m tests.benchmarks.real_models REAL --out rows.jsonl          # minutes a model under emulation
    python -m tests.benchmarks.real_models REAL --out rows.jsonl --table  # print what is there

REAL has models/*.onnx, data/ and SOURCES.md. Pictures need Pillow.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.benchmarks.inputs import CASES
from tests.benchmarks.measuring import Row, measure, read_lines, table, write_line


def main() -> None:
    """Read the command line, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path, help="folder of real models")
    parser.add_argument("--out", type=Path, required=True, help="file of JSON lines to append to")
    parser.add_argument("--target", default="cortex-a76")
    parser.add_argument("--only", nargs="+", metavar="MODEL", help="names without .onnx")
    parser.add_argument("--samples", type=int, help="of each model, instead of its own number")
    parser.add_argument("--quantize", metavar="SCHEME", help="that needs no samples, such as float16")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="where to leave the bundles, by model")
    parser.add_argument("--table", action="store_true", help="print the table of --out, and measure nothing")
    options = parser.parse_args()
    if options.table:
        print(table(read_lines(options.out)))
        return
    models = {file.stem: file.resolve() for file in sorted((options.real / "models").glob("*.onnx"))}
    if unknown := set(options.only or ()) - set(models):
        parser.error(f"{', '.join(sorted(unknown))}: no such model in {options.real / 'models'}")
    if unplanned := set(models) - set(CASES):
        parser.error(f"{', '.join(sorted(unplanned))}: say in inputs.py how to run it")
    for name in options.only or models:
        case = CASES[name]
        count = options.samples or case.samples
        inputs = case.inputs(options.real / "data", models[name], count) if case.inputs else None
        row = measure(
            Row(name, case.what, count),
            models[name],
            target=options.target,
            inputs=inputs,
            shapes=case.shapes or {},
            options=("--quantize", options.quantize) if options.quantize else (),
            keep=options.keep and options.keep.resolve() / f"{name}.{options.target}",
        )
        write_line(options.out, row)
        print(f"{name}: {row.status} {row.relative:.2g} {row.message.partition(chr(10))[0]}", file=sys.stderr)


if __name__ == "__main__":
    main()
