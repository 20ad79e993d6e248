"""Where a model's bytes are, and what they are worth: what each layer loses by a low rank, or by fewer channels.

    python -m tests.benchmarks.layer_profile REAL MODEL        # prints Markdown

Of each product: the largest rank that pays in int8, the ranks that keep 95 and 99 % of its output's energy on the
calibration samples, and what fewer channels of its output save in int8 (bytes of weights, estimated cycles) and cost
(divergence of the class scores on a fifth of the samples, by each group alone, its readers refitted to the others).
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

import graphopt.ir as graph_ir
from graphopt.analysis.channels import Group, Role, channels
from graphopt.analysis.samples import Samples
from graphopt.errors import ModelWarning
from graphopt.passes.factorize.costs import Saving
from graphopt.passes.factorize.form import now_costs, would_cost
from graphopt.passes.factorize.kernel_time import IntegerKernels
from graphopt.passes.factorize.layers import Layer, layers
from graphopt.passes.factorize.low_rank import directions
from graphopt.passes.factorize.matrix_forms import Svd
from graphopt.passes.factorize.sharing import spread_of
from graphopt.passes.prune import budget
from graphopt.passes.prune.allocation import Candidate
from graphopt.passes.prune.importance import Importance, rank
from graphopt.passes.prune.readers import Reader, observe, readers
from graphopt.passes.prune.sensitivity import Sensitivity, losses, measure_of
from graphopt.passes.prune.variants import few_apart
from graphopt.pipeline.base import PassContext, silent
from graphopt.pipeline.registry import TARGETS
from graphopt.pipeline.spec import parse_spec
from tests.benchmarks.pruning import data_of
from tests.benchmarks.quantization_tasks import TASKS

FEWER = (8, 32)  # channels
PLACES = 65536  # of a layer, in all samples
ENERGIES = (0.95, 0.99)


def _row(layer: Layer, observed: dict[ir.Node, Reader], kernels: IntegerKernels) -> list[str]:
    spread = spread_of(layer, observed)
    form = Svd(layer, directions(layer.matrix, spread.covariance, spread.common))
    now = now_costs(layer, kernels, Saving.TIME)
    paying = [at for at in range(1, layer.full_rank) if would_cost(form, at, kernels, Saving.TIME) < now]
    needed = [next(at for at in range(layer.full_rank + 1) if form.lost(at) <= 1 - kept) for kept in ENERGIES]
    lost = f"{100 * form.lost(paying[-1]):.1f} %" if paying else ""
    size = " × ".join(map(str, layer.matrix.shape))
    return [size, f"{layer.matrix.size / 1000:.1f}", str(paying[-1] if paying else ""), lost, *map(str, needed)]


def profile(real: Path, name: str) -> Iterator[str]:
    """Lines of a table, in the order of the graph."""
    model = graph_ir.load(real / "models" / f"{name}.onnx")
    graph_ir.bind_shapes(model, TASKS[name].shapes)
    parse_spec("clean-up").run(model, PassContext())
    graph_ir.refresh_shapes(model)
    data, target = data_of(real, name), TARGETS.find("cortex-a76")
    arrays = {key: array[data.calibrating] for key, array in data.arrays.items()}
    samples = Samples(arrays, dict.fromkeys(arrays, 0))
    parts = few_apart(samples, 1024, 32)
    places = -(-PLACES // len(parts.fitting))
    kernels = IntegerKernels(target.vector_bits // 32, target.channel_multiple)
    products, _ = layers(model.graph, ())
    seen = {layer.node: reader for layer in products if (reader := layer.reader()) is not None}
    observe(model, seen, parts.fitting, places, 0, silent)
    found = channels(model.graph)
    groups = [group for group in found.groups if not group.protection]
    reading, _ = readers(groups, found)
    observe(model, reading, parts.fitting, places, 0, silent)
    rng = np.random.default_rng(0)
    rankings = [rank(group, found, reading, Importance.SURGEON, rng) for group in groups]
    candidates = [Candidate(each, _levels(group)) for each, group in zip(rankings, groups, strict=True)]
    measure = measure_of(model, parts.apart, Sensitivity.DIVERGENCE, None)
    lost = losses(model, found, groups, candidates, reading, measure, silent)
    whole = budget.Budget(model, found, budget.Saving.TIME, kernels)
    weights = budget.Budget(model, found, budget.Saving.PARAMS)
    kept = np.ones(found.count, bool)
    fewer: dict[ir.Node, list[str]] = {}
    for group, candidate, loss in zip(groups, candidates, lost, strict=True):
        cells = []
        for level in range(1, len(candidate.levels)):
            gone = candidate.gone(level)
            cells.append(
                f"{candidate.levels[level]}: {weights.saved(kept, gone) / 1000:.1f} kB, "
                f"{100 * whole.saved(kept, gone) / whole.total:.2f} %, {loss[level]:.4f}"
            )
        for slot in group.weights(Role.OUT):
            fewer.setdefault(slot.node, cells)
    energies = (f"{100 * share:.0f} %" for share in ENERGIES)
    head = ["weight", "kB", "pays up to", "loses there", *energies, *("channels fewer" for _ in FEWER)]
    yield f"| {' | '.join(head)} |"
    yield "|" + " --- |" * len(head)
    for layer in products:
        yield f"| {' | '.join([*_row(layer, seen, kernels), *fewer.get(layer.node, [])])} |"


def _levels(group: Group) -> tuple[int, ...]:
    return (0, *(count for count in FEWER if count <= group.width // 2))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path, help="a folder with models, data and SOURCES.md")
    parser.add_argument("model", choices=TASKS)
    options = parser.parse_args()
    warnings.simplefilter("ignore", ModelWarning)
    for line in profile(options.real, options.model):
        print(line)


if __name__ == "__main__":
    main()
