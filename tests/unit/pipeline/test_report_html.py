"""The HTML report: one file that stands alone, escapes what models say, and shows every part."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.formatting import change, number, shape, share, si, size, worst
from graphopt.pipeline.report import Snapshot, build_report
from graphopt.pipeline.report_html import to_html
from tests.unit.pipeline.test_report import full_report, model, quantized_report


class Page(HTMLParser):
    """Tags, attributes and text of a page; raises if tags do not close in order."""

    VOID = frozenset({"meta", "link", "input", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("script", "style"):
            self.text += data + " "


def test_it_stands_alone(tmp_path: Path) -> None:
    page = Page(to_html(full_report(tmp_path)))
    for _, attributes in page.tags:
        for name in ("src", "href", "action"):
            assert (attributes.get(name) or "data:").startswith("data:"), attributes
    policy = [a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    assert policy and "default-src 'none'" in str(policy[0])


def test_every_part_is_shown(tmp_path: Path) -> None:
    text = " ".join(Page(to_html(full_report(tmp_path))).text.split())
    for words in (
        "optimized for cortex-a76 : Armv8", "1 warning something", "Before and after", "−33.3 %",
        "Outputs against the original", "top-1 agreement on 8 samples: 100.0 % before, 75.0 % after", "libnet.so",
        "drop-identity{share=0.25}", "3 → 2", "removed 1", "its <weight> is shared", "first", "MatMul", "1×4 → 1×4",
        "matmul", "Recipe", "made by tests", "each layer quantized alone, on 7 samples",
        "20.5 12.5 % 16 50.0%", "∞ 0.0 %",
    ):  # fmt: skip
        assert words.replace("\xa0", " ") in text.replace("\xa0", " "), words


def test_a_quantized_model_is_shown_with_what_stayed_in_float_and_why() -> None:
    text = " ".join(Page(to_html(quantized_report())).text.split())
    for words in (
        "Quantization QDQ + weights; 33.3 % of the MACs on integers", "MatMul 1 1 1",
        "activations int8, asymmetric, per tensor; weights int8, symmetric, per tensor",
        "weights 16 not said first 16 its <weight> is shared", "int8 31.25",
    ):  # fmt: skip
        assert words.replace("\xa0", " ") in text.replace("\xa0", " "), words


def test_an_inspected_model_is_shown_without_what_it_has_not() -> None:
    text = Page(to_html(build_report("inspect", Snapshot.of(model(), name="net", file_bytes=None)))).text
    assert "as it was given" in text and "Totals" in text
    assert "Quantization" not in text and "Sensitivity" not in text and "computes in" not in text
    assert "Library" not in text and "Recipe" not in text and "Before and after" not in text


EVIL = "<script>alert('x')</script>\"'&{{ 7*7 }}"


def test_names_from_the_model_are_escaped_everywhere(tmp_path: Path) -> None:
    report = json.loads(json.dumps(full_report(tmp_path)).replace("first", json.dumps(EVIL)[1:-1]))
    report["model"]["name"] = report["model"]["producer"] = report["warnings"][0] = EVIL
    report["model"]["inputs"][0]["name"] = report["library"]["name"] = report["recipe"]["target"] = EVIL
    report["passes"][0]["statistics"] = {EVIL: EVIL}
    report["layers"][0]["notes"] = report["layers"][0]["kernels"] = [EVIL]
    html = to_html(report)
    assert "<script>alert" not in html
    page = Page(html)
    assert [tag for tag, _ in page.tags].count("script") == 1  # ours
    assert page.text.count(EVIL) >= 8


@settings(deadline=None)  # the machine may be busy
@given(st.text(max_size=30))
def test_any_name_survives_the_page(name: str) -> None:
    report = build_report("inspect", Snapshot.of(model(), name="net", file_bytes=1))
    report["layers"][0]["name"] = name
    titles = [attributes.get("title") for tag, attributes in Page(to_html(report)).tags if tag == "code"]
    assert _newlines(name) in [_newlines(title or "") for title in titles]


def _newlines(text: str) -> str:
    """HTML has one kind of line break, and no NUL."""
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (si(0), "0"), (si(999), "999"), (si(1500), "1.5 k"), (si(300_775_552), "300.8 M"), (si(None), "–"),
        (size(1023), "1023 B"), (size(13_956_388), "13.3 MiB"), (size(None), "–"),
        (shape([1, 3, "N"]), "1×3×N"), (shape([]), "scalar"), (shape(None), "?"),
        (share(1, 3), "33.3%"), (share(None, 3), "0.0%"), (share(0, 0), "0%"),
        (change(100, 81), "−19.0 %"), (change(100, 102.5), "+2.5 %"), (change(5, 5), "unchanged"),
        (change(0, 5), "new"),
        (change(1, 100), "×100.0"), (change(100_000, 99_992), "−0.008 %"), (change(None, 3), "–"),
        (number(0.000123456), "0.0001235"), (number("inf"), "∞"), (number("nan"), "NaN"), (number(None), "–"),
        (worst([]), "–"), (worst([{"relative": 0.1}, {"relative": "inf"}]), "∞"),
        (worst([{"relative": "nan"}, {"relative": 1}]), "NaN"),
        (worst([{"relative": 0.1}, {"relative": 0.25}]), "0.25"),
    ],
)  # fmt: skip
def test_numbers_are_short_and_right(found: str, expected: str) -> None:
    assert found == expected
