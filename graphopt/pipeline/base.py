"""What a pass is: a frozen dataclass whose fields are its options, and what it reads and returns."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from graphopt.analysis.samples import Samples
    from graphopt.targets.base import TargetDescription


class Progress(Protocol):
    """Receives the progress of long work. Every call may raise KeyboardInterrupt; passes let it through."""

    def __call__(self, done: int, total: int, what: str) -> None:
        """`done` of `total` steps are finished; `what` is the step under way."""


def silent(done: int, total: int, what: str) -> None:
    """A Progress that shows nothing."""


@dataclasses.dataclass(frozen=True)
class Declined:
    """A layer that a pass could have rewritten and left alone."""

    layer: str  # name of the node
    reason: str  # one sentence, without a full stop


@dataclasses.dataclass(frozen=True)
class PassResult:
    """What a pass did.

    `changed` is True exactly if the model differs from before. `statistics` are plain numbers or strings for
    the report, keyed by kebab-case names. `declined` lists the layers left alone, with reasons.
    """

    changed: bool
    statistics: Mapping[str, int | float | str] = dataclasses.field(default_factory=dict)
    declined: tuple[Declined, ...] = ()


@dataclasses.dataclass(frozen=True)
class PassContext:
    """What a pass may read beside the model and its own options.

    target: what the model is rewritten for.
    calibration: samples of the inputs.
    labels: class indices of the samples; without them agreement with `original` stands in for accuracy.
    max_drop: accuracy, or agreement, that lossy passes may cost in all, as a fraction; None if nobody said.
    original: the model before the first pass, in float; to run and to read, never to edit. None outside of a run.
    seed: of every random number.
    """

    target: TargetDescription | None = None
    calibration: Samples | None = None
    labels: np.ndarray[Any, Any] | None = None
    max_drop: float | None = None
    original: ir.Model | None = None
    seed: int = 0
    progress: Progress = silent

    def rng(self) -> np.random.Generator:
        """A fresh generator: the same seed gives the same numbers in every run of a pass."""
        return np.random.default_rng(self.seed)


def option(default: Any, doc: str) -> Any:
    """A dataclass field that is a pass's option: its default, and its one-line documentation."""
    return dataclasses.field(default=default, metadata={"doc": doc})


class Pass(ABC):
    """A rewrite of a model, in place.

    A subclass is a frozen dataclass with a kebab-case `name`; its fields, made by `option`, are its options
    (bool, int, float, str, an Enum of strings, `T | None`, or tuples of these). `exact` says whether outputs
    stay equal up to rounding. A second run on its own result must change nothing.
    """

    name: ClassVar[str]
    exact: ClassVar[bool]

    @abstractmethod
    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Rewrite `model` in place and say what was done. The caller refreshes shapes and verifies."""
