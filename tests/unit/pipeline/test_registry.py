"""Passes and targets by name: entry points, plug-ins, clashes, and what is said when something is wrong."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import onnx_ir as ir
import pytest

from graphopt.errors import UsageError
from graphopt.pipeline.base import Pass, PassContext, PassResult, option
from graphopt.pipeline.registry import PASSES, TARGETS, Registry, check_pass, check_target, load_plugin

ROOT = Path(__file__).resolve().parents[3]


def make_pass(name: str, **members: Any) -> type[Pass]:
    """A pass class of this name, with what `members` add or replace."""
    body = {"name": name, "exact": True, "run": lambda self, model, context: PassResult(False), **members}
    return dataclasses.dataclass(frozen=True)(type("Made", (Pass,), body))


@pytest.fixture
def passes() -> Registry[type[Pass]]:
    return Registry("pass", "", check_pass)


@pytest.fixture
def targets() -> Registry[Any]:
    return Registry("target", "", check_target)


def test_an_unknown_name_lists_the_nearest(passes: Registry[type[Pass]]) -> None:
    for name in ("fold-batch-norm", "fold-constants", "quantize"):
        passes.add(make_pass(name), "the tests")
    with pytest.raises(UsageError, match="unknown pass 'fold-batchnorm'") as caught:
        passes.find("fold-batchnorm")
    assert caught.value.advice == "nearest: fold-batch-norm, fold-constants; `graphopt passes` lists them all"
    with pytest.raises(UsageError) as caught:
        passes.find("zzz")
    assert "known: fold-batch-norm, fold-constants, quantize" in caught.value.advice


def test_two_passes_of_one_name_are_an_error_that_names_both_origins(passes: Registry[type[Pass]]) -> None:
    first = make_pass("fold")
    passes.add(first, "the first")
    passes.add(first, "the first again")  # the same class
    with pytest.raises(UsageError, match="two passes are named 'fold'") as caught:
        passes.add(make_pass("fold"), "the second")
    assert caught.value.where == "the first\nthe second"
    assert passes.find("fold") is first


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"name": "FoldNorm"}, "its name is 'FoldNorm', expected kebab-case"),
        ({"exact": None}, "it does not say whether it is exact"),
        ({"run": Pass.run}, "has no method run(model, context)"),
        ({"size": 1, "__annotations__": {"size": "int"}}, "field 'size' has no default or no documentation"),
        ({"size": option(1, "x"), "__annotations__": {"size": "int | str"}}, "only T | None is supported"),
        ({"size": option(1, "x"), "__annotations__": {"size": "list[int]"}}, "is none of bool, int, float"),
        ({"size": option("1", "x"), "__annotations__": {"size": "int"}}, "option 'size': found '1', expected integer"),
        ({"size": option(1, "x"), "__annotations__": {"size": "Missing"}}, "an annotation cannot be resolved"),
    ],
)
def test_a_class_that_breaks_the_rules_of_a_pass_is_refused(
    passes: Registry[type[Pass]], members: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        passes.add(make_pass(members.pop("name", "made"), **members), "the tests")
    assert message in str(caught.value)


def test_a_class_that_is_not_a_frozen_dataclass_is_refused(passes: Registry[type[Pass]]) -> None:
    class Plain(Pass):
        name: ClassVar[str] = "plain"
        exact: ClassVar[bool] = True

        def run(self, model: ir.Model, context: PassContext) -> PassResult:
            return PassResult(False)

    with pytest.raises(UsageError, match="is not a frozen dataclass"):
        passes.add(Plain, "the tests")
    with pytest.raises(UsageError, match="expected a subclass of"):
        passes.add(Plain(), "the tests")


def test_the_built_in_passes_and_targets_come_through_entry_points() -> None:
    assert not PASSES.broken() and not TARGETS.broken()
    assert "fold-batch-norm" in PASSES.names() and PASSES.origin("fold-batch-norm").endswith("of graphopt")
    assert {"arm", "cortex-a76", "host"} <= set(TARGETS.names())
    assert all(item.name in TARGETS.names() for item in TARGETS)


PLUGIN = """
from __future__ import annotations
from dataclasses import dataclass
from typing import ClassVar
from graphopt.pipeline import Pass, PassResult, option

@dataclass(frozen=True)
class Mine(Pass):
    name: ClassVar[str] = "mine"
    exact: ClassVar[bool] = True
    size: int = option(1, "a size")
    def run(self, model, context):
        return PassResult(False)
"""


def test_a_plug_in_registers_the_passes_that_it_defines_and_loads_once(
    tmp_path: Path, passes: Registry[type[Pass]]
) -> None:
    file = tmp_path / "plugin.py"
    file.write_text(PLUGIN)
    assert load_plugin(file, passes) == ("mine",)
    assert load_plugin(str(file), passes) == ("mine",)
    assert passes.names() == ("mine",) and passes.origin("mine") == f"plug-in {file}"


def test_a_plug_in_may_define_a_target(tmp_path: Path, passes: Registry[type[Pass]], targets: Registry[Any]) -> None:
    file = tmp_path / "core.py"
    file.write_text(
        "import dataclasses\nfrom graphopt.pipeline.registry import TARGETS\n"
        "CORE = dataclasses.replace(TARGETS.find('cortex-a76'), name='my-core')\n"
    )
    assert load_plugin(file, passes, targets) == ("my-core",)
    assert targets.find("my-core").triple == TARGETS.find("cortex-a76").triple


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\ndef f(:\n", ", line 2: SyntaxError: invalid syntax\n    2: def f(:"),
        (
            "import nowhere_to_be_found\n",
            ", line 1: ModuleNotFoundError: No module named 'nowhere_to_be_found'\n    1: import",
        ),
        (
            "\n\ndef f():\n    return 1 / 0\nf()\n",
            ", line 4: ZeroDivisionError: division by zero\n    4:     return 1 / 0",
        ),
        ("import sys\nsys.exit(3)\n", ", line 2: SystemExit: 3\n    2: sys.exit(3)"),
        ("x = 1\n", ": it defines no pass\n  expected a subclass of"),
        ("from graphopt.pipeline import Pass\nfrom graphopt.pipeline.base import *\n", ": it defines no pass"),
        (PLUGIN.replace("frozen=True", "frozen=False"), "is not a frozen dataclass"),
        (PLUGIN.replace('"mine"', '"My Pass"'), "expected kebab-case"),
        ("x = '\0'\n", "SyntaxError"),
    ],
)
def test_a_broken_plug_in_is_a_usage_error_with_the_line(
    tmp_path: Path, passes: Registry[type[Pass]], source: str, message: str
) -> None:
    file = tmp_path / "broken.py"
    file.write_text(source)
    with pytest.raises(UsageError) as caught:
        load_plugin(file, passes)
    assert message in str(caught.value)
    assert passes.names() == ()


def test_a_plug_in_that_is_not_there_is_a_usage_error(tmp_path: Path, passes: Registry[type[Pass]]) -> None:
    for path in (tmp_path / "none.py", tmp_path):
        with pytest.raises(UsageError, match="there is no such file"):
            load_plugin(path, passes)


def test_an_interrupt_while_a_plug_in_loads_passes_through(tmp_path: Path, passes: Registry[type[Pass]]) -> None:
    file = tmp_path / "slow.py"
    file.write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_plugin(file, passes)


def install_toy(folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    source = folder / "source"
    source.mkdir()
    for file in (ROOT / "tests" / "toy_plugin").iterdir():
        if file.is_file():
            (source / file.name).write_bytes(file.read_bytes())  # pip builds beside the source
    subprocess.run([*command, "--target", str(folder / "site"), str(source)], check=True, capture_output=True)


def run_with(site: Path, code: str) -> str:
    """What a fresh Python prints that has `site` on its path."""
    setup = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(site)!r}]\n"
    done = subprocess.run([sys.executable, "-c", setup + code], check=False, capture_output=True, text=True, cwd=site)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_installed_package_gives_a_pass_through_its_entry_point(tmp_path: Path) -> None:
    install_toy(tmp_path)
    code = (
        "from graphopt.pipeline.registry import PASSES\n"
        "from graphopt.pipeline.spec import parse_spec\n"
        "print(parse_spec('toy-rename{to=a}'), PASSES.origin('toy-rename'))\n"
    )
    assert run_with(tmp_path / "site", code) == "Rename(to='a') entry point 'toy-rename' of graphopt-toy\n"


def test_a_broken_entry_point_is_told_and_leaves_the_others_alone(tmp_path: Path) -> None:
    info = tmp_path / "bad-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[graphopt.passes]\nbad = nowhere_to_be_found:Bad\n")
    code = (
        "from graphopt.pipeline.registry import PASSES\n"
        "from graphopt.errors import UsageError\n"
        "PASSES.find('fold-batch-norm')\n"
        "try: PASSES.find('bad')\n"
        "except UsageError as error: print(error)\n"
    )
    assert "entry point 'bad' of bad (nowhere_to_be_found:Bad) cannot be loaded: ModuleNotFoundError" in run_with(
        tmp_path, code
    )
