"""The golden fixture of the passes' tests. The option --update-goldens is defined in tests/conftest.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import graphopt.ir as graph_ir
from tests.passes.harness import Outcome

GOLDEN = Path(__file__).parent.parent / "golden" / "passes"


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, Outcome], None]:
    """golden(case, outcome): the outcome's graphs before and after equal tests/golden/passes/PASS/CASE.txt."""
    update = bool(request.config.getoption("--update-goldens"))

    def compare(case: str, outcome: Outcome) -> None:
        path = GOLDEN / outcome.name / f"{case}.txt"
        before, after = graph_ir.to_text(outcome.before), graph_ir.to_text(outcome.after)
        text = f"# before\n{before}\n# after {outcome.name}\n{after}\n"
        if update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"no golden file {path.name}: run pytest with --update-goldens, then read what it wrote"
        assert text == path.read_text(encoding="utf-8"), f"{path} differs; --update-goldens rewrites it"

    return compare
