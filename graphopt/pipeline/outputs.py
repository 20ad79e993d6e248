"""Watching the outputs of a model while passes rewrite it.

How closely an exact pass is held to the outputs before it: EXACT_TOLERANCE, relative to each output's range. Float32
rounds by up to u = 6e-8. An exact pass rounds once more in each weight that it folds and in each sum that it reorders;
over some dozen layers such errors, of random sign, come to some dozen u (ONNX Runtime's own fusions moved the outputs
of twenty trained models by 1e-7 to 6e-6). 1e-5 is 170 u: rounding stays below, and a wrong weight, which changes
outputs by parts in a thousand, above.

Some models amplify rounding: half precision, Round and QuantizeLinear, ArgMax and TopK near a tie, subtraction of
nearly equal numbers. Only if the tolerance is exceeded, the rounding noise of the model itself is measured: the
original with every float between its nodes moved by one unit in the last place. Outputs then count as equal within
NOISE_FACTOR times that noise, because a rewrite may round several times where the original rounds once. The tolerance
that was applied is in the pass's record.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.comparison import OutputComparison, compare_runs
from graphopt.analysis.execution import Session, required_inputs
from graphopt.analysis.samples import Samples, probe_samples
from graphopt.errors import DataError, ModelError
from graphopt.ir import clone

EXACT_TOLERANCE = 1e-5
NOISE_FACTOR = 4.0

_EXACT_SAMPLES = 4  # an error in a rewrite shows on nearly every input
_PROBES = 4
_MAX_REFERENCE_BYTES = 256 << 20  # of the original's outputs that are kept to compare with

_MOVABLE = (ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE)
_NUDGES = 2

_RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)

Outputs = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Verdict:
    """The comparison of a rewritten model with the original.

    outputs: against the original's; empty if there was no comparison, and then `skipped` says why.
    samples: how many inputs it was made on.
    tolerance: what the largest relative difference was held to; None if it was only measured.
    fault: what is wrong, in one sentence; empty if nothing is.
    """

    outputs: tuple[OutputComparison, ...] = ()
    skipped: str = ""
    samples: int = 0
    tolerance: float | None = None
    fault: str = ""


class OutputWatch:
    """Runs a model, and compares later versions of it with this one.

    Args:
        model: the original; it must stay as it is.
        calibration: inputs to compare on; made up if None.
        seed: of inputs that are made up.

    Raises:
        DataError: the model cannot be computed on the calibration data. On made-up inputs that is no error: it may
            be the input that is wrong, and there is nothing to compare.
    """

    def __init__(self, model: ir.Model, calibration: Samples | None, seed: int) -> None:
        self._original = model
        self._reference: list[Outputs] = []
        self._baseline: list[Outputs] = []  # what exact passes are held to: the outputs after the last lossy pass
        self._samples = Samples({}, {})
        self.skipped = _random_operator(model)
        if self.skipped:
            return
        try:
            self._samples = calibration or probe_samples(model, seed, _PROBES)
            self._reference = _run(self._original, self._samples, limit=_MAX_REFERENCE_BYTES)
        except (DataError, ModelError) as error:
            if calibration is not None and isinstance(error, DataError):
                raise
            self.skipped = f"the original cannot be computed: {error.what}"
        self._baseline = self._reference

    def judge(self, model: ir.Model, *, exact: bool, tolerance: float | None) -> Verdict:
        """Compare the model after a pass.

        An exact pass is compared on a few samples and held to `tolerance` of the outputs before it, since the last
        lossy pass; a lossy one on all samples, and held to `tolerance` of the original's outputs unless it is None.
        """
        if self.skipped:
            return Verdict(skipped=self.skipped)
        count = min(len(self._reference), _EXACT_SAMPLES) if exact else len(self._reference)
        samples = self._samples.first(count)
        try:
            found = _run(model, samples)
        except ModelError as error:
            return Verdict(samples=count, fault=f"the original could be computed, the result cannot: {error.what}")
        outputs = compare_runs(self._reference[:count], found)
        held = compare_runs(self._baseline[:count], found) if exact else outputs
        if not exact:
            self._baseline = found
        worst = max(held, key=lambda output: output.relative, default=None)
        if worst is None or tolerance is None or worst.relative <= tolerance:
            return Verdict(outputs, samples=count, tolerance=tolerance)
        if exact:
            tolerance = max(tolerance, NOISE_FACTOR * self._noise(samples).get(worst.name, 0.0))
        fault = "" if worst.relative <= tolerance else _describe(worst, tolerance)
        return Verdict(outputs, samples=count, tolerance=tolerance, fault=fault)

    def _noise(self, samples: Samples) -> dict[str, float]:
        """By output, the largest relative change of the original under rounding alone; 0 where it is not finite."""
        reference = self._reference[: len(samples)]
        noise: dict[str, float] = {}
        for seed in range(_NUDGES):
            try:
                variant = _run(_nudged(self._original, seed), samples)
            except ModelError:
                return {}  # a value that may not be moved, such as the scales of a Resize: no noise is known
            for output in compare_runs(reference, variant):
                if math.isfinite(output.relative):
                    noise[output.name] = max(noise.get(output.name, 0.0), output.relative)
        return noise


def _run(model: ir.Model, samples: Samples, *, limit: int | None = None) -> list[Outputs]:
    """The outputs for each sample, or for as many as fit into `limit` bytes (one at least)."""
    runs: list[Outputs] = []
    size = 0
    with Session(model) as session:
        for feeds in samples:
            runs.append(session.run(feeds))
            size += sum(array.nbytes for array in runs[-1].values())
            if limit is not None and size >= limit:
                break
    return runs


def _nudged(model: ir.Model, seed: int) -> ir.Model:
    """A copy in which each float that goes from a node, or an input, to a node is moved by about one unit in the last
    place: all numbers of one value up, or all of them down.
    """
    copy = clone(model)
    rng = np.random.default_rng(seed)
    first = next(iter(copy.graph), None)
    made: list[tuple[ir.Value, ir.Node | None]] = [(value, None) for value in required_inputs(copy)]
    made += [(value, node) for node in copy.graph for value in node.outputs]
    for index, (value, node) in enumerate(made):
        if value.dtype not in _MOVABLE or not value.uses():
            continue
        dtype = value.dtype.numpy()
        factor = (1 + rng.choice((-1, 1)) * np.finfo(dtype).eps).astype(dtype)
        constant = ir.Value(name=f"nudge/{index}", const_value=ir.tensor(factor, name=f"nudge/{index}"))
        copy.graph.register_initializer(constant)
        uses = value.uses()
        move = ir.node("Mul", [value, constant], name=f"nudge/{index}")
        move.outputs[0].name = f"nudge/{index}/moved"
        for use in uses:
            use.node.replace_input_with(use.idx, move.outputs[0])
        if node is not None:
            copy.graph.insert_after(node, move)
        elif first is not None:
            copy.graph.insert_before(first, move)
    return copy


def _random_operator(model: ir.Model) -> str:
    for node in model.graph.all_nodes():
        training = node.op_type == "Dropout" and len(node.inputs) > 2 and node.inputs[2] is not None
        if node.domain in ("", "ai.onnx") and (node.op_type in _RANDOM or training):
            return f"the model draws random numbers ({node.op_type} '{node.name}')"
    return ""


def _describe(output: OutputComparison, tolerance: float) -> str:
    if output.note:
        return f"output '{output.name}' differs from before: {output.note}"
    return (
        f"output '{output.name}' differs by {output.relative:.2g} of its range (at most {output.max_abs:.3g}), "
        f"expected at most {tolerance:.2g}"
    )
