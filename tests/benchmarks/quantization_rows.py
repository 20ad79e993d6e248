"""What is measured of one model by one method, kept as lines of JSON and shown as a Markdown table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_HEAD = ("model", "method", "n", "metric", "float", "int8", "agreement", "SQNR dB", "kB", "of float", "s")


@dataclass(frozen=True)
class Row:
    """One model by one method.

    samples: that were evaluated. metric, float_score, score: of the task; empty and None where nothing is known to
    compare with. agreement: with the float model, as the task means it. sqnr_db: of the worst output. bytes: of the
    file. seconds: to quantize, calibration included. integer_layers: of graphopt, and how many it declined.
    failed: why the method gave no model; the rest is empty then.
    """

    model: str
    method: str
    split: str
    samples: int
    metric: str = ""
    float_score: float | None = None
    score: float | None = None
    agreement: float | None = None
    sqnr_db: float | None = None
    max_difference: float | None = None
    bytes: int = 0
    float_bytes: int = 0
    seconds: float = 0.0
    integer_layers: int | None = None
    failed: str = ""


def append(row: Row, file: Path) -> None:
    """Add a line of JSON."""
    with file.open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(asdict(row)) + "\n")


def read(file: Path) -> list[Row]:
    """The rows; the last of a model, method and split counts."""
    found = [Row(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
    return list({(row.model, row.method, row.split): row for row in found}.values())


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table, those of a model together, in the order in which the models come first."""
    order = list(dict.fromkeys(row.model for row in rows))
    lines = [f"| {' | '.join(_HEAD)} |", "|" + " --- |" * 4 + " ---: |" * (len(_HEAD) - 4)]
    for row in sorted(rows, key=lambda row: order.index(row.model)):
        cells = [row.model, row.method, row.samples, row.metric]
        if row.failed:
            cells += [f"failed: {row.failed.replace('|', '/')}", *[""] * (len(_HEAD) - len(cells) - 1)]
        else:
            cells += [_number(row.float_score), _number(row.score), _number(row.agreement), _number(row.sqnr_db, 1)]
            cells += [f"{row.bytes / 1000:,.0f}", f"{row.bytes / row.float_bytes:.2f}", f"{row.seconds:.0f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def _number(value: Any, places: int = 4) -> str:
    """Fractions with four places, decibels with two."""
    if value is None:
        return ""
    return f"{value:.{places if abs(value) < 10 else min(places, 2)}f}"
