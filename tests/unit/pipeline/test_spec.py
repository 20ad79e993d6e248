"""Specs: what is written is read back equal, and what is wrong is said in full."""

from __future__ import annotations

import dataclasses
import enum
import math
from typing import Any, ClassVar

import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.errors import UsageError
from graphopt.pipeline.base import Pass, PassContext, PassResult, option
from graphopt.pipeline.registry import Registry, check_pass
from graphopt.pipeline.spec import format_spec, parse_spec


class Criterion(enum.Enum):
    L1 = "l1"
    L2 = "l2-norm"
    ODD = "with, comma"


@dataclasses.dataclass(frozen=True)
class Everything(Pass):
    """Has an option of every type."""

    name: ClassVar[str] = "everything"
    exact: ClassVar[bool] = True
    flag: bool = option(False, "a flag")
    count: int = option(3, "a count")
    ratio: float = option(0.5, "a ratio from 0 to 1")
    layer: str = option("all", "a layer")
    criterion: Criterion = option(Criterion.L1, "a criterion")
    limit: float | None = option(None, "a limit")
    label: str | None = option("x", "a label")
    layers: tuple[str, ...] = option((), "layers")
    window: tuple[int, float] = option((1, 2.0), "a window")
    nested: tuple[tuple[int, ...], ...] | None = option(None, "groups")
    holes: tuple[str | None, ...] = option((), "labels with holes")

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        return PassResult(False)


@dataclasses.dataclass(frozen=True)
class Picky(Pass):
    """Refuses negative sizes."""

    name: ClassVar[str] = "picky"
    exact: ClassVar[bool] = True
    size: int = option(1, "a size above 0")

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size is {self.size}, expected 1 or more")

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        return PassResult(False)


@pytest.fixture(scope="session")
def passes() -> Registry[type[Pass]]:
    return make_registry()


def make_registry() -> Registry[type[Pass]]:
    registry: Registry[type[Pass]] = Registry("pass", "", check_pass)
    registry.add(Everything, "the tests")
    registry.add(Picky, "the tests")
    return registry


everything = st.builds(
    Everything,
    flag=st.booleans(),
    count=st.integers(),
    ratio=st.floats(),
    layer=st.text(),
    criterion=st.sampled_from(Criterion),
    limit=st.none() | st.floats(),
    label=st.none() | st.text() | st.sampled_from(["none", "true", "1", "{}"]),
    layers=st.lists(st.text(), max_size=4).map(tuple),
    window=st.tuples(st.integers(), st.floats()),
    nested=st.none() | st.lists(st.lists(st.integers(), max_size=3).map(tuple), max_size=3).map(tuple),
    holes=st.lists(st.none() | st.text(max_size=3), max_size=3).map(tuple),
)


def same(first: Any, second: Any) -> bool:
    """Equality where NaN equals itself and -0.0 differs from 0.0."""
    return repr(dataclasses.astuple(first)) == repr(dataclasses.astuple(second))


@settings(deadline=None)  # the machine may be busy
@given(everything)
def test_a_pass_is_read_back_from_its_spec_without_loss(item: Everything) -> None:
    registry = make_registry()
    text = format_spec(item)
    found = parse_spec(text, registry)
    assert same(found, item)
    assert format_spec(found) == text


@settings(deadline=None)  # the machine may be busy
@given(st.text() | st.text(alphabet='everything{}[]=," \\flagcountlyr0.5').map(lambda tail: f"everything{{{tail}"))
def test_any_text_is_a_pass_or_a_usage_error(text: str) -> None:
    try:
        parse_spec(text, make_registry())
    except UsageError as error:
        assert error.what.startswith(("pass '", "unknown pass '"))


def test_only_options_that_differ_from_their_default_are_printed() -> None:
    assert format_spec(Everything()) == "everything"
    assert format_spec(Everything(ratio=0.25, criterion=Criterion.L2, layers=("a/b.c", "d e"), label=None)) == (
        'everything{ratio=0.25,criterion=l2-norm,label=none,layers=[a/b.c,"d e"]}'
    )


def test_an_integer_is_a_number_and_spaces_between_words_mean_nothing(passes: Registry[type[Pass]]) -> None:
    assert parse_spec(" everything { ratio = 1 , layers = [ a , b ] } ", passes) == Everything(
        ratio=1.0, layers=("a", "b")
    )
    assert parse_spec("everything{}", passes) == Everything()


def test_words_are_strings_where_a_string_is_expected(passes: Registry[type[Pass]]) -> None:
    assert parse_spec("everything{layer=true,label=1}", passes) == Everything(layer="true", label="1")
    assert parse_spec('everything{label="none"}', passes) == Everything(label="none")
    assert parse_spec("everything{label=none}", passes) == Everything(label=None)


def test_not_a_number_and_infinity_are_numbers(passes: Registry[type[Pass]]) -> None:
    found = parse_spec("everything{ratio=nan,limit=-inf}", passes)
    assert isinstance(found, Everything)
    assert math.isnan(found.ratio) and found.limit == -math.inf


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("everythin", "unknown pass 'everythin'\n  nearest: everything"),
        (
            "everything{ratoi=1}",
            "pass 'everything' has no option 'ratoi'\n  did you mean 'ratio'? its options: flag (true",
        ),
        (
            "everything{ratio=high}",
            "pass 'everything', option 'ratio': found 'high', expected number\n  a ratio from 0",
        ),
        ('everything{ratio="0.5"}', "option 'ratio': found \"0.5\", expected number"),
        ("everything{count=1.5}", "option 'count': found '1.5', expected integer"),
        ("everything{flag=yes}", "option 'flag': found 'yes', expected true or false"),
        ("everything{criterion=l3}", "found 'l3', expected one of l1, l2-norm, with, comma"),
        ("everything{layers=a}", "found 'a', expected list of string, written [a,b]"),
        ("everything{window=[1]}", "found 1 values, expected list [integer, number]"),
        ("everything{limit=[]}", "found [], expected number"),
        ("everything{count=1,count=2}", "found 'c' at column 20, expected option 'count' once only"),
        ("everything{count}", "found 'c' at column 12, expected key=value"),
        ("everything{count=}", "found '}' at column 18, expected a value"),
        ("everything{count=1", "found the end at column 19, expected ',' or '}'"),
        ("everything{count=1,}", "found '}' at column 20, expected a value after ','"),
        ("everything{count=1}x", "found 'x' at column 20, expected the end after '}'"),
        ('everything{layer="\\q"}', "expected a string with JSON's escapes"),
        ("everything x", "found 'x' at column 12, expected '{' or the end"),
        ("", "found the end at column 1, expected the name of a pass"),
        ("everythingratio=1", "found '=' in the name, expected name{key=value,...}\n  quote it on the command line"),
        ("picky{size=0}", "pass 'picky': size is 0, expected 1 or more\n  its options: size (integer)"),
    ],
)
def test_an_error_says_what_was_found_and_what_is_valid(passes: Registry[type[Pass]], text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_spec(text, passes)
    assert message in str(caught.value)


def test_a_value_of_another_type_is_not_printed() -> None:
    with pytest.raises(UsageError, match="option 'ratio': found 'much', expected number"):
        format_spec(Everything(ratio="much"))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="option 'window': found 3 values"):
        format_spec(Everything(window=(1, 2.0, 3)))  # type: ignore[arg-type]


def test_an_error_points_at_the_column() -> None:
    with pytest.raises(UsageError) as caught:
        parse_spec("everything{count}", make_registry())
    assert caught.value.where == "everything{count}\n           ^"
