"""What a request comes to: passes in order, options over recipe, and refusals before any work."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import ClassVar

import onnx_ir as ir
import pytest

from graphopt import resolution
from graphopt.analysis.sample_images import Preprocess
from graphopt.errors import ModelWarning, UsageError
from graphopt.passes.cleanup import DEFAULT
from graphopt.pipeline.base import Pass, PassContext, PassResult, option
from graphopt.pipeline.recipe import Recipe, read_recipe, write_recipe
from graphopt.pipeline.registry import PASSES
from graphopt.pipeline.spec import format_spec
from graphopt.resolution import Request, resolve


@dataclasses.dataclass(frozen=True)
class Shrink(Pass):
    """Stands for pruning and the rest, which come in their own issues."""

    name: ClassVar[str] = "shrink-of-test-resolution"
    exact: ClassVar[bool] = False
    ratio: float = option(0.0, "how much")
    scheme: str = option("", "which")

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        return PassResult(False)


@pytest.fixture
def shorthands(monkeypatch: pytest.MonkeyPatch) -> None:
    """--prune, --factorize and --quantize stand for Shrink."""
    PASSES.add(Shrink, "test_resolution")
    table = {"prune": (Shrink.name, "ratio"), "factorize": (Shrink.name, "ratio")}
    monkeypatch.setattr(resolution, "SHORTHANDS", table)
    monkeypatch.setattr(resolution, "SCHEMES", {"int8": f"{Shrink.name}{{scheme=int8}}"})


def specs(recipe: Recipe) -> list[str]:
    return [format_spec(item) for item in recipe.passes]


def test_compression_is_the_recipes_unless_the_request_says_otherwise() -> None:
    recipe = Recipe("host", compress=True)
    asked = [resolve(Request(recipe=recipe, compress=said)).compress for said in (None, True, False)]
    assert asked == [True, True, False]
    assert not resolve(Request()).compress and resolve(Request(compress=True)).compress


def test_the_default_is_the_clean_up_for_arm() -> None:
    recipe = resolve(Request())
    assert recipe.target == "arm" and specs(recipe) == list(DEFAULT)


def test_what_is_asked_for_stands_between_two_clean_ups_and_quantize_last(shorthands: None) -> None:
    recipe = resolve(Request(prune=0.5, factorize=0.25, quantize="int8", passes=["fold-pad"], calib="data.npz"))
    name = Shrink.name
    assert specs(recipe) == [
        *DEFAULT, f"{name}{{ratio=0.5}}", f"{name}{{ratio=0.25}}", "fold-pad", *DEFAULT, f"{name}{{scheme=int8}}",
    ]  # fmt: skip


def test_what_is_quantized_behind_is_pruned_and_factored_for_integer_kernels() -> None:
    given = {"prune": 0.2, "factorize": 0.1, "calib": "data.npz"}
    asked = [specs(resolve(Request(quantize=scheme, **given))) for scheme in ("int8", "none")]
    assert {"prune-channels{ratio=0.2,kernels=int8}", "factorize{ratio=0.1,kernels=int8}"} <= set(asked[0])
    assert {"prune-channels{ratio=0.2}", "factorize{ratio=0.1}"} <= set(asked[1])


def test_a_recipe_runs_as_it_stands_and_options_override_it(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('target = "cortex-a53"\nseed = 7\n[shapes]\n"a" = [1]\n"b" = [2]\n[[pass]]\nname = "fold-pad"\n')
    plain = resolve(Request(recipe=path))
    assert (plain.target, plain.seed, specs(plain)) == ("cortex-a53", 7, ["fold-pad"])
    changed = resolve(Request(recipe=path, target="host", seed=0, shapes={"b": [3]}, passes=["fold-affine"]))
    assert (changed.target, changed.seed, specs(changed)) == ("host", 0, ["fold-pad", "fold-affine"])
    assert changed.shapes == {"a": (1,), "b": (3,)}


def test_a_recipe_for_pictures_alone_says_that_nothing_is_done() -> None:
    recipe = Recipe("host", preprocess=Preprocess(crop=(224,)))
    with pytest.warns(ModelWarning, match="the recipe names no pass"):
        assert resolve(Request(recipe=recipe)).preprocess == recipe.preprocess


def test_the_resolved_recipe_resolves_to_itself(shorthands: None) -> None:
    recipe = resolve(Request(target="host", prune=0.5, passes=["fold-pad"], calib="data.npz", max_drop=0.01, seed=3))
    assert resolve(Request(recipe=read_recipe(write_recipe(recipe)))) == recipe


def test_a_short_option_without_its_pass_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolution, "SHORTHANDS", {**resolution.SHORTHANDS, "prune": ("no-such-pass", "ratio")})
    with pytest.raises(UsageError, match="--prune needs the pass 'no-such-pass'"):
        resolve(Request(prune=0.5))


@pytest.mark.parametrize("ratio", [-0.1, 1, 1.5])
def test_a_ratio_out_of_range_is_refused(ratio: float) -> None:
    with pytest.raises(UsageError, match="from 0 to less than 1"):
        resolve(Request(prune=ratio))


def test_nothing_asked_for_is_nothing_done() -> None:
    assert resolve(Request(prune=0.0, factorize=0.0, quantize="none")) == resolve(Request())


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown target 'cortex-a75'"):
        resolve(Request(target="cortex-a75"))


def test_samples_alone_mean_the_first_scheme_of_the_target_and_the_command_says_so(shorthands: None) -> None:
    quantized = f"{Shrink.name}{{scheme=int8}}"
    for request in (Request(calib="data.npz"), Request(calib_in_memory=True, passes=["fold-pad"])):
        with pytest.warns(ModelWarning, match="quantized to int8; --quantize none leaves floating point"):
            assert specs(resolve(request))[-1] == quantized


def test_samples_beside_a_word_about_loss_quantize_nothing(shorthands: None, tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('target = "arm"\n[[pass]]\nname = "fold-pad"\n')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for request in (
            Request(calib="data.npz", quantize="none"),
            Request(calib="data.npz", prune=0.5),
            Request(calib="data.npz", factorize=0.0),
            Request(calib="data.npz", passes=[f"{Shrink.name}{{ratio=0.5}}"]),
            Request(calib="data.npz", recipe=recipe),
            Request(),
        ):
            assert f"{Shrink.name}{{scheme=int8}}" not in specs(resolve(request))


def test_an_unknown_scheme_is_refused_with_those_that_the_target_serves() -> None:
    with pytest.raises(UsageError, match=r"--quantize int3: target 'arm' knows no such scheme") as found:
        resolve(Request(quantize="int3"))
    assert "int8" in found.value.advice and "none" in found.value.advice


def test_labels_and_max_drop_need_data(shorthands: None) -> None:
    for request in (Request(labels="l.npy"), Request(labels_in_memory=True), Request(prune=0.5, max_drop=0.1)):
        with pytest.raises(UsageError, match="samples of --calib"):
            resolve(request)
        resolve(dataclasses.replace(request, calib_in_memory=True, quantize="none"))
        resolve(dataclasses.replace(request, calib="data.npz", quantize="none"))


def test_max_drop_without_a_lossy_pass_needs_none() -> None:
    assert resolve(Request(max_drop=0.1)).max_drop == 0.1
