"""From what a user asks for to a recipe that says everything: target, passes in order, data, shapes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from graphopt.errors import ModelWarning, UsageError
from graphopt.passes.cleanup import DEFAULT as CLEANUP
from graphopt.pipeline.base import Pass
from graphopt.pipeline.recipe import Recipe, load_recipe
from graphopt.pipeline.registry import PASSES, TARGETS, load_plugin
from graphopt.pipeline.spec import parse_spec
from graphopt.targets.base import TargetDescription

_TARGET = "arm"  # unless a target is named

# The short options: the pass that each stands for, and the option of the pass that its value becomes.
SHORTHANDS: Mapping[str, tuple[str, str]] = {
    "prune": ("prune-channels", "ratio"),
    "factorize": ("factorize", "ratio"),
}
# What the pass of a short option is told where --quantize follows with a scheme.
BEFORE: Mapping[tuple[str, str | None], str] = {
    ("prune-channels", "int8"): ",kernels=int8",
    ("factorize", "int8"): ",kernels=int8",
}
# What --quantize takes: the pass that each scheme stands for. Which of them a core serves, its description says.
SCHEMES: Mapping[str, str] = {
    "int8": "quantize{scheme=int8}",
    "int16x8": "quantize{scheme=int16x8}",
    "dynamic-int8": "quantize-dynamic",
    "weights-int8": "quantize-weights{bits=8}",
    "weights-int4": "quantize-weights{bits=4}",
    "weights-float16": "convert-float16",
    "float16": "compute-float16",
}


@dataclass(frozen=True)
class Request:
    """What `optimize` was asked for; None and empty stand for what was not said."""

    target: str | None = None
    passes: Sequence[str | Pass] = ()
    recipe: str | Path | Recipe | None = None
    prune: float | None = None
    factorize: float | None = None
    quantize: str | None = None
    calib: str | None = None  # a path, or module:function
    labels: str | None = None
    calib_in_memory: bool = False  # given as an object, which the recipe cannot name
    labels_in_memory: bool = False
    max_drop: float | None = None
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    plugins: Sequence[str | Path] = ()
    seed: int | None = None
    compress: bool | None = None


def resolve(request: Request) -> Recipe:
    """The recipe that a request comes to; loads its plug-ins.

    Without a recipe the clean-up passes run first. Then come --prune, --factorize and the passes that were given, in
    order; clean-up again, for what these leave; and --quantize. With a recipe its passes run as they stand, and then
    those that were given. What was given beside a recipe replaces what the recipe says.

    Samples without any word about lossy passes mean the target's first scheme of quantization, with a warning.

    Raises UsageError for anything misspelt, out of range, or contradictory.
    """
    for plugin in request.plugins:
        load_plugin(plugin)
    base = request.recipe
    if base is not None and not isinstance(base, Recipe):
        base = load_recipe(base)
    given = [
        *_shorthand("prune", request.prune, request.quantize),
        *_shorthand("factorize", request.factorize, request.quantize),
        *(parse_spec(item) if isinstance(item, str) else item for item in request.passes),
    ]
    target = TARGETS.find(request.target or (base.target if base is not None else _TARGET))  # misspelt: ends here
    scheme = request.quantize
    if scheme is None and base is None and _is_silent_about_loss(request, given) and target.quantization:
        scheme = target.quantization[0]
        text = f"there are samples and nothing lossy is asked for: the model is quantized to {scheme}"
        warnings.warn(f"{text}; --quantize none leaves floating point", ModelWarning, stacklevel=2)
    if base is None:
        cleanup = [parse_spec(spec) for spec in CLEANUP]
        base = Recipe(target=_TARGET, passes=tuple(cleanup))
        given += cleanup if given else []
    resolved = Recipe(
        target=target.name,
        passes=(*base.passes, *given, *_scheme(scheme, target)),
        seed=base.seed if request.seed is None else request.seed,
        max_drop=base.max_drop if request.max_drop is None else request.max_drop,
        calib=request.calib or base.calib,
        labels=request.labels or base.labels,
        preprocess=base.preprocess,
        plugins=tuple(dict.fromkeys([*base.plugins, *map(str, request.plugins)])),
        compress=base.compress if request.compress is None else request.compress,
        tiles=base.tiles,
        shapes={**base.shapes, **{name: tuple(shape) for name, shape in request.shapes.items()}},
    )
    if not resolved.passes:
        text = 'the recipe names no pass, and the model stays as it is; [[pass]] with name = "clean-up" is a beginning'
        warnings.warn(text, ModelWarning, stacklevel=2)
    _check_data(resolved, request)
    return resolved


def _is_silent_about_loss(request: Request, given: Sequence[Pass]) -> bool:
    """Whether there are samples, and no word about what may be lost by them."""
    sampled = request.calib is not None or request.calib_in_memory
    asked = request.prune is not None or request.factorize is not None
    return sampled and not asked and all(item.exact for item in given)


def _scheme(name: str | None, target: TargetDescription) -> list[Pass]:
    if name is None or name == "none":
        return []
    if name not in target.quantization or name not in SCHEMES:
        served = [scheme for scheme in target.quantization if scheme in SCHEMES]
        raise UsageError(
            f"--quantize {name}: target '{target.name}' "
            + ("does not serve this scheme" if name in SCHEMES else "knows no such scheme"),
            advice=f"it serves {', '.join([*served, 'none'])}; `graphopt targets` lists them all",
        )
    return [parse_spec(SCHEMES[name])]


def _shorthand(option: str, value: float | None, scheme: str | None) -> list[Pass]:
    if not value:  # None, and the fraction 0
        return []
    name, key = SHORTHANDS[option]
    if not 0 <= value < 1:
        raise UsageError(f"--{option} is {value}, expected a fraction from 0 to less than 1")
    if name not in PASSES.names():
        raise UsageError(
            f"--{option} needs the pass '{name}', and no pass of this name is registered",
            advice="`graphopt passes` lists what there is; --plugin FILE.py adds to it",
        )
    return [parse_spec(f"{name}{{{key}={value}{BEFORE.get((name, scheme), '')}}}")]


def _check_data(recipe: Recipe, request: Request) -> None:
    if recipe.calib is not None or request.calib_in_memory:
        return
    lossy = any(not item.exact for item in recipe.passes)
    for option, given in (
        ("labels", recipe.labels is not None or request.labels_in_memory),
        ("max-drop", recipe.max_drop is not None and lossy),
    ):
        if given:
            raise UsageError(
                f"--{option} is about the samples of --calib, and there are none", advice="add --calib DATA.npz"
            )
