"""How results are written: as JSON for programs, and as short numbers for the console and the HTML report."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Report = dict[str, Any]  # in the types of JSON; a report has the shape that pipeline/report.schema.json describes

# (key of the totals, its title, how it is written)
TOTALS = (
    ("nodes", "Nodes", "count"),
    ("params", "Parameters", "si"),
    ("macs", "MACs", "si"),
    ("weight_bytes", "Weights", "size"),
    ("activation_bytes", "Activations written", "size"),
    ("file_bytes", "ONNX file", "size"),
)


def is_partial(totals: Mapping[str, Any], key: str) -> bool:
    """Whether a total lacks layers whose shapes are not known, so that it is a lower bound."""
    return bool(totals["uncounted"]) and key in ("macs", "activation_bytes")


def change_of(before: Mapping[str, Any], after: Mapping[str, Any], key: str) -> str:
    """How a total changed, in words; '–' where one of both is a lower bound."""
    partial = is_partial(before, key) or is_partial(after, key)
    return "–" if partial else change(before[key], after[key])


def to_json(report: Report | Sequence[Report]) -> str:
    """The report as text: two blanks of indent, keys in the schema's order, a final newline."""
    return json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """`value` in the types of JSON. JSON has no infinity and no NaN: they become the strings that Python prints."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def si(value: float | None) -> str:
    """A count with three significant digits and a decimal prefix: 300.8 M. '–' for None."""
    return "–" if value is None else _scaled(value, 1000, ("", "k", "M", "G", "T", "P"))


def size(value: float | None) -> str:
    """Bytes with a binary prefix: 13.3 MiB. '–' for None."""
    return "–" if value is None else _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"))


def count(value: int | None) -> str:
    """A count in full: 12,345. '–' for None."""
    return "–" if value is None else f"{value:,}"


def number(value: float | str | None) -> str:
    """A measured number in four digits; the strings 'inf' and 'nan' as symbols. '–' for None."""
    if value is None:
        return "–"
    return {"inf": "∞", "-inf": "−∞", "nan": "NaN"}[value] if isinstance(value, str) else f"{value:.4g}"


def shape(dims: Sequence[int | str] | None) -> str:
    """1×3×224×224; 'scalar' for no dimensions, '?' for an unknown shape."""
    return "?" if dims is None else "×".join(map(str, dims)) or "scalar"


def share(value: float | None, whole: float) -> str:
    """`value` as a percentage of `whole` for a style attribute; 0 % where either is missing."""
    return f"{100 * (value or 0) / whole:.1f}%" if whole else "0%"


def change(before: float | None, after: float | None) -> str:
    """The relative change in words: −12.3 %, unchanged, new; '–' where a number is not known."""
    if before is None or after is None:
        return "–"
    if before == after:
        return "unchanged"
    if not before:
        return "new"
    percent = 100 * (after - before) / before
    if abs(percent) >= 1000:
        return f"×{after / before:.1f}"
    return f"{'+' if percent > 0 else '−'}{abs(percent):{'.1f' if abs(percent) >= 0.1 else '.1g'}} %"


def worst(comparison: Iterable[Mapping[str, Any]]) -> str:
    """The greatest relative error of some outputs; '–' if none was compared."""
    values = [float(output["relative"]) for output in comparison]
    if not values:
        return "–"
    found = next((value for value in values if value != value), max(values))  # NaN is worse than any number
    return number(found if abs(found) < float("inf") else str(found))


def _scaled(value: float, step: int, units: Sequence[str]) -> str:
    power, scaled = 0, float(value)
    while abs(scaled) >= step and power < len(units) - 1:
        scaled, power = scaled / step, power + 1
    digits = f"{scaled:.0f}" if power == 0 else f"{scaled:.1f}"
    return f"{digits} {units[power]}".strip()
