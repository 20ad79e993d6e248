"""graphopt compiles an ONNX model to a C library for an ARM CPU.

    import graphopt
    result = graphopt.optimize("model.onnx", target="cortex-a76", out="bundle")

Every name below is loaded when it is first used, so that `import graphopt` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from graphopt.analysis.sample_images import Preprocess as Preprocess
    from graphopt.analysis.samples import Samples as Samples
    from graphopt.analysis.samples import load_samples as load_samples
    from graphopt.api import OptimizeResult as OptimizeResult
    from graphopt.api import PassInfo as PassInfo
    from graphopt.api import bench as bench
    from graphopt.api import broken_plugins as broken_plugins
    from graphopt.api import list_passes as list_passes
    from graphopt.api import list_targets as list_targets
    from graphopt.api import optimize as optimize
    from graphopt.api import verify as verify
    from graphopt.errors import DataError as DataError
    from graphopt.errors import GraphoptError as GraphoptError
    from graphopt.errors import InternalError as InternalError
    from graphopt.errors import ModelError as ModelError
    from graphopt.errors import ModelWarning as ModelWarning
    from graphopt.errors import PassError as PassError
    from graphopt.errors import ShapeError as ShapeError
    from graphopt.errors import ToleranceError as ToleranceError
    from graphopt.errors import UnsupportedError as UnsupportedError
    from graphopt.errors import UsageError as UsageError
    from graphopt.errors import VerifyError as VerifyError
    from graphopt.inspection import CompareResult as CompareResult
    from graphopt.inspection import InspectResult as InspectResult
    from graphopt.inspection import compare as compare
    from graphopt.inspection import inspect as inspect
    from graphopt.inspection import model_text as model_text
    from graphopt.ir import load as load
    from graphopt.ir import save as save
    from graphopt.pipeline.base import Declined as Declined
    from graphopt.pipeline.base import Pass as Pass
    from graphopt.pipeline.base import PassContext as PassContext
    from graphopt.pipeline.base import PassResult as PassResult
    from graphopt.pipeline.base import option as option
    from graphopt.pipeline.recipe import Recipe as Recipe
    from graphopt.pipeline.recipe import load_recipe as load_recipe

# Where each public name is defined.
_HOMES = {
    "graphopt.analysis.sample_images": ("Preprocess",),
    "graphopt.analysis.samples": ("Samples", "load_samples"),
    "graphopt.api": (
        "OptimizeResult",
        "PassInfo",
        "bench",
        "broken_plugins",
        "list_passes",
        "list_targets",
        "optimize",
        "verify",
    ),
    "graphopt.errors": (
        "DataError",
        "GraphoptError",
        "InternalError",
        "ModelError",
        "ModelWarning",
        "PassError",
        "ShapeError",
        "ToleranceError",
        "UnsupportedError",
        "UsageError",
        "VerifyError",
    ),
    "graphopt.inspection": ("CompareResult", "InspectResult", "compare", "inspect", "model_text"),
    "graphopt.ir": ("load", "save"),
    "graphopt.pipeline.base": ("Declined", "Pass", "PassContext", "PassResult", "option"),
    "graphopt.pipeline.recipe": ("Recipe", "load_recipe"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = sorted([*_HOME, "__version__"])  # noqa: PLE0605  computed from one table


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'graphopt' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
