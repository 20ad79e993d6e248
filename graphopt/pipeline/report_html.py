"""The report as one HTML file that stands alone: no network, no other file, readable with scripts switched off.

Everything from the model (names, reasons, recipe) is escaped by the template's autoescape.
"""

from __future__ import annotations

import functools
import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from graphopt.analysis.quantization import FLOAT
from graphopt.formatting import TOTALS, Report, change_of, count, is_partial, number, shape, share, si, size, worst


def to_html(report: Report) -> str:
    """The report as an HTML page."""
    return _environment().get_template("report.html.jinja").render(
        report=report,
        recipe=json.dumps(report["recipe"], indent=2, ensure_ascii=False),
        totals=TOTALS,
        precise=any(item["precision"] not in (None, FLOAT) for item in report["layers"]),
        in_float=[item for item in report["layers"] if item["macs"] and (item["precision"] or "").startswith(FLOAT)],
        declined=[_by_reason(item) for item in report["passes"]],
        most={key: max((layer[key] or 0 for layer in report["layers"]), default=0) for key in ("macs", "weight_bytes")},
    )  # fmt: skip


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("graphopt.pipeline", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "si": si, "size": size, "count": count, "shape": shape, "share": share, "change_of": change_of,
        "number": number,
        "worst": worst,
    }  # fmt: skip
    environment.tests["partial"] = is_partial
    return environment


def _by_reason(item: Mapping[str, Any]) -> tuple[str, list[tuple[str, list[str]]]]:
    """The spec of a pass, and its declined layers grouped by the reason, the most frequent first."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for declined in item["declined"]:
        groups[declined["reason"]].append(declined["layer"])
    return item["spec"], sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
