"""Recipes: TOML and back without loss, the same bytes for the same recipe, errors with their line."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.analysis.sample_images import Channels, Layout, Preprocess, Resize
from graphopt.errors import UsageError
from graphopt.pipeline.base import Pass
from graphopt.pipeline.recipe import Recipe, load_preprocess, load_recipe, read_recipe, write_recipe
from graphopt.pipeline.registry import Registry

from .test_spec import Criterion, Everything, everything, make_registry

text = st.text(st.characters(exclude_categories=["Cs"]))  # a lone surrogate is not Unicode, and not TOML
sides = st.lists(st.integers(1, 512), max_size=2).map(tuple)
numbers = st.sampled_from([0, 1, 3]).flatmap(lambda n: st.lists(st.floats(0.5, 300), min_size=n, max_size=n).map(tuple))
preprocesses = st.builds(
    Preprocess,
    size=sides,
    resize=st.sampled_from(Resize),
    crop=sides,
    channels=st.sampled_from([Channels.RGB, Channels.BGR]),
    scale=st.floats(1e-6, 2),
    mean=numbers,
    std=numbers,
    layout=st.sampled_from(Layout),
)
recipes = st.builds(
    Recipe,
    target=text,
    passes=st.lists(everything, max_size=3).map(tuple),
    seed=st.integers(0, 2**64),
    max_drop=st.none() | st.floats(0, 1),
    calib=st.none() | text,
    labels=st.none() | text,
    plugins=st.lists(text, max_size=2).map(tuple),
    compress=st.booleans(),
    shapes=st.dictionaries(text, st.lists(st.integers(1, 512), max_size=4).map(tuple), max_size=3),
    preprocess=st.none() | preprocesses,
    tiles=st.dictionaries(text, st.integers(0, 99), max_size=3),
)


def is_unicode(recipe: Recipe) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in _characters(dataclasses.astuple(recipe)))


def _characters(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return "".join(map(_characters, value))
    return ""


def read(source: str, passes: Registry[type[Pass]] | None = None) -> Recipe:
    return read_recipe(source, origin="r.toml", passes=passes or make_registry(), plugin=lambda path: None)


@settings(deadline=None)  # the machine may be busy
@given(recipes.filter(is_unicode))
def test_a_recipe_is_read_back_without_loss_and_written_as_the_same_bytes(recipe: Recipe) -> None:
    written = write_recipe(recipe)
    found = read(written)
    plain, given = (dataclasses.replace(one, shapes={}, tiles={}) for one in (found, recipe))
    assert repr(plain) == repr(given)
    assert (found.shapes, found.tiles) == (recipe.shapes, recipe.tiles)
    assert write_recipe(found) == written


def test_the_order_in_which_shapes_were_given_leaves_no_trace() -> None:
    first = Recipe("arm", shapes={"a": (1,), "b": (2,)})
    second = Recipe("arm", shapes={"b": (2,), "a": (1,)})
    assert write_recipe(first) == write_recipe(second)


def test_a_recipe_reads_as_a_person_would_write_it() -> None:
    recipe = Recipe(
        "cortex-a76",
        passes=(Everything(), Everything(ratio=0.25, criterion=Criterion.L2, label=None, layers=("a", "b c"))),
        max_drop=0.01,
        calib="digits.npz",
        plugins=("my pass.py",),
        shapes={"image": (1, 3, 224, 224)},
    )
    assert write_recipe(recipe) == (
        'target = "cortex-a76"\nseed = 0\nmax_drop = 0.01\ncalib = "digits.npz"\nplugins = ["my pass.py"]\n'
        '\n[shapes]\n"image" = [1,3,224,224]\n'
        '\n[[pass]]\nname = "everything"\n'
        '\n[[pass]]\nname = "everything"\nratio = 0.25\ncriterion = "l2-norm"\nlabel = {}\nlayers = ["a","b c"]\n'
    )


def test_the_preprocessing_reads_as_a_person_would_write_it() -> None:
    recipe = read(
        HEAD + '[preprocess]\nsize = 256\ncrop = [224, 192]\nmean = 128\nscale = 2\nchannels = "BGR"\nlayout = "NHWC"\n'
    )
    assert recipe.preprocess == Preprocess(
        size=(256,), crop=(224, 192), mean=(128.0,), scale=2.0, channels=Channels.BGR, layout=Layout.NHWC
    )
    assert write_recipe(recipe) == (
        'target = "arm"\nseed = 0\n\n[preprocess]\nsize = [256]\ncrop = [224,192]\nchannels = "BGR"\n'
        'scale = 2.0\nmean = [128.0]\nlayout = "NHWC"\n'
    )
    assert read(HEAD + "[preprocess]\n").preprocess == Preprocess()
    assert read(HEAD).preprocess is None


def test_the_preprocessing_alone_is_read_without_executing_plugins(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text(HEAD + "plugins = ['no such file.py']\n[preprocess]\ncrop = 3\n")
    assert load_preprocess(file) == Preprocess(crop=(3,))
    file.write_text(HEAD)
    assert load_preprocess(file) is None
    file.write_text("target = \n")
    with pytest.raises(UsageError, match="is not TOML"):
        load_preprocess(file)


HEAD = 'target = "arm"\n'


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("target = arm\n", "r.toml is not TOML: Invalid value (at line 1"),
        ("seed = 1\n", "r.toml: there is no key 'target'"),
        (
            HEAD + "\n# calibration\ncalibration = 'x'\n",
            "r.toml, line 4: unknown key 'calibration'\n  did you mean 'calib'?",
        ),
        (HEAD + "[calibration]\nx = 1\n", "r.toml, line 2: unknown key 'calibration'"),
        (HEAD + "seed = 1.5\n", "r.toml, line 2: 'seed': found 1.5, expected integer"),
        (HEAD + "seed = -1\n", "r.toml: seed is -1, expected 0 or more"),
        (HEAD + "max_drop = 2\n", "r.toml: max_drop is 2.0, expected a fraction from 0 to 1"),
        (HEAD + "plugins = 'x.py'\n", "line 2: 'plugins': found \"x.py\", expected list of string"),
        (HEAD + "shapes = 3\n", "r.toml, line 2: shapes is no table"),
        (HEAD + "[shapes]\na = [1]\nb = [\n  1,\n  'x'\n]\n", "r.toml, line 7: 'b': found \"x\", expected integer"),
        (HEAD + "preprocess = 3\n", "r.toml, line 2: preprocess is no table"),
        (
            HEAD + "[preprocess]\ncrop = 2\nmeans = 3\n",
            "line 4: unknown key 'means'\n  did you mean 'mean'? the keys are",
        ),
        (HEAD + "[preprocess]\ncrop = 'x'\n", "r.toml, line 3: 'crop': found \"x\", expected list of integer"),
        (HEAD + "[preprocess]\ncrop = 2.5\n", "r.toml, line 3: 'crop': found"),
        (HEAD + "[preprocess]\nlayout = 'CHW'\n", "line 3: 'layout': found \"CHW\", expected one of NCHW, NHWC"),
        (HEAD + "[preprocess]\nstd = 0\n", "r.toml: preprocess: scale and std are not to be 0"),
        (HEAD + "[shapes]\na = [0]\n", "r.toml: shape of 'a' is [0], expected sizes of 1 or more"),
        (HEAD + "tiles = 3\n", 'r.toml, line 2: tiles is no table, expected [tiles] and lines as "KERNEL" = 1'),
        (HEAD + "[tiles]\na = 1\nb = 'x'\n", "r.toml, line 4: 'b': found \"x\", expected integer"),
        (HEAD + "[tiles]\na = -1\n", "r.toml: tile of 'a' is -1, expected a place of 0 or more"),
        (HEAD + "[pass]\nname = 'x'\n", "r.toml, line 2: pass is no list of tables"),
        (HEAD + "[[pass]]\nratio = 1\n", "r.toml, line 2: the pass has no name"),
        (HEAD + "[[pass]]\nname = 'everythin'\n", "r.toml, line 3: unknown pass 'everythin'"),
        (
            HEAD + "[[pass]]\nname = 'everything'\nratoi = 1\n\n[[pass]]\nname = 'everything'\n",
            "r.toml, line 4: pass 'everything' has no option 'ratoi'\n  did you mean 'ratio'?",
        ),
        (
            HEAD + "[[pass]]\nname = 'everything'\n[[pass]]\nname = 'everything'\nflag = true\ncount = 'many'\n",
            "r.toml, line 7: pass 'everything', option 'count': found \"many\", expected integer",
        ),
        (HEAD + "[[pass]]\nname = 'picky'\nsize = 0\n", "r.toml, line 4: pass 'picky': size is 0, expected 1 or more"),
    ],
)
def test_an_error_names_the_line(source: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(source)
    assert message in str(caught.value)


def test_plug_ins_are_loaded_before_the_passes_are_looked_up() -> None:
    loaded: list[str] = []
    registry = make_registry()
    found = read_recipe(
        HEAD + "plugins = ['a.py', 'b.py']\n[[pass]]\nname = 'picky'\n", passes=registry, plugin=loaded.append
    )
    assert loaded == ["a.py", "b.py"]
    assert found.passes[0].name == "picky"


def test_what_is_not_unicode_is_refused_when_written() -> None:
    with pytest.raises(UsageError, match="is not valid Unicode"):
        write_recipe(Recipe("arm", calib="\udcff.npz"))


def test_a_file_that_cannot_be_read_is_a_usage_error(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    with pytest.raises(UsageError, match="cannot be read"):
        load_recipe(file)
    file.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="cannot be read"):
        load_recipe(file)
    file.write_bytes(b'target = "arm"\r\nseed = 3\r\n')
    assert load_recipe(file) == Recipe("arm", seed=3)
