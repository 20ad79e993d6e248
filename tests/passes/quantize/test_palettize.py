"""palettize: what it writes, what it declines, that clean-up and a second run leave it alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import graphopt.ir as graph_ir
from graphopt.analysis.cost import layer_costs, total
from graphopt.analysis.samples import probe_samples
from graphopt.errors import ModelError, ModelWarning, UsageError
from graphopt.ir.palettes import palette_of
from graphopt.ir.reading import constant
from graphopt.passes.cleanup.clean_up import CleanUp
from graphopt.passes.cleanup.fold_constants import FoldConstants
from graphopt.passes.quantize import palettize
from graphopt.passes.quantize.palettize import Palettize
from graphopt.passes.quantize.quantize import Quantize
from graphopt.pipeline.base import PassContext
from tests.passes.harness import Outcome, assert_same_outputs, parse, run
from tests.passes.random_graphs import Builder, models, pair, transpose, unary, with_constant

Array = np.ndarray[Any, Any]
Golden = Callable[[str, Outcome], None]

HEAD = '<ir_version: 8, opset_import: ["" : 17]> '
NEWER = '<ir_version: 10, opset_import: ["" : 21]> '


def weight(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def palettized(model: ir.Model, pass_: Palettize | None = None) -> Outcome:
    """Run the pass on a copy, twice: the palettes compute exactly what their numbers say, and stay."""
    pass_ = pass_ or Palettize()
    graph_ir.refresh_shapes(model)
    after = graph_ir.clone(model)
    result = run(pass_, after)
    assert result.changed == (graph_ir.to_text(after) != graph_ir.to_text(model))
    text = graph_ir.to_text(after)
    again = run(pass_, after)
    assert not again.changed and graph_ir.to_text(after) == text
    assert_same_outputs(plain(after), after)  # not to the bit: packed weights are summed in another order
    return Outcome("palettize", model, after, result)


def plain(model: ir.Model) -> ir.Model:
    """A copy with constants for the palettes."""
    model = graph_ir.clone(model)
    for node in model.graph.all_nodes():
        palette = palette_of(node.outputs[0])
        if palette is not None:
            graph = node.graph
            assert isinstance(graph, ir.Graph)
            value = ir.Value(name=f"{node.outputs[0].name}:plain")
            value.const_value = ir.Tensor(palette.array(), name=value.name)
            graph.register_initializer(value)
            node.outputs[0].replace_all_uses_with(value)
    return model


def palettes(model: ir.Model) -> dict[str, Array]:
    """The weights that are palettes, by name."""
    found = {}
    for node in model.graph.all_nodes():
        palette = palette_of(node.outputs[0])
        if palette is not None:
            found[str(node.outputs[0].name)] = palette.array()
    return found


def test_golden_conv(golden: Golden) -> None:
    model = parse(
        HEAD + "g (float[1,8,4,4] x) => (float[1,16,4,4] y) { c = Conv<pads=[1,1,1,1]>(x, w, b) y = Relu(c) }",
        w=np.tile(np.array([-1, -0.5, 0, 2], np.float32), 32 * 9).reshape(16, 8, 3, 3),
        b=np.zeros(16, np.float32),
    )
    golden("conv", palettized(model, Palettize(entries=32)))


def test_golden_groups_of_channels_with_indices_of_four_bits(golden: Golden) -> None:
    numbers = np.repeat(np.array([1, 8], np.float32), 32)[:, None] * np.tile(np.array([1, 2, 3, 4], np.float32), 16)
    model = parse(NEWER + "g (float[1,64] x) => (float[1,64] y) { y = MatMul(x, w) }", w=numbers)
    golden("groups", palettized(model, Palettize(entries=4, channels=20)))


def test_numbers_that_fit_a_codebook_stay_exact() -> None:
    numbers = np.random.default_rng(0).choice(weight(200), (64, 32))
    model = parse(HEAD + "g (float[1,64] x) => (float[1,32] y) { y = MatMul(x, w) }", w=numbers)
    outcome = palettized(model)
    assert np.array_equal(palettes(outcome.after)["w"], numbers)
    assert_same_outputs(model, outcome.after)
    assert outcome.result.statistics["lowest-sqnr-db"] == "exact"


@pytest.mark.parametrize(("entries", "least"), [(256, 42), (64, 30), (16, 19), (2, 4)])
def test_normal_weights_reach_the_error_of_a_good_quantizer(entries: int, least: float) -> None:
    """Max, "Quantizing for minimum distortion", 1960: 4.4, 20.2 and 31.9 dB for 2, 16 and 64 levels."""
    model = parse(HEAD + "g (float[1,128] x) => (float[1,128] y) { y = MatMul(x, w) }", w=weight(128, 128))
    outcome = palettized(model, Palettize(entries=entries))
    assert least < float(outcome.result.statistics["lowest-sqnr-db"]) < least + 4
    assert len(np.unique(palettes(outcome.after)["w"])) == entries


LAYERS = {
    "Conv": ("g (float[1,8,6,6] x) => (float[1,16,4,4] y) { y = Conv(x, w) }", (16, 8, 3, 3)),
    "Conv in groups": ("g (float[1,70,6,6] x) => (float[1,35,4,4] y) { y = Conv<group=7>(x, w) }", (35, 10, 3, 3)),
    "ConvTranspose": ("g (float[1,8,4,4] x) => (float[1,16,6,6] y) { y = ConvTranspose(x, w) }", (8, 16, 3, 3)),
    "Gemm": ("g (float[1,33] x) => (float[1,17] y) { y = Gemm<transB=1>(x, w) }", (17, 33)),
    "Gemm, left": ("g (float[33,5] x) => (float[17,5] y) { y = Gemm(w, x) }", (17, 33)),
    "MatMul, left": ("g (float[33,5] x) => (float[17,5] y) { y = MatMul(w, x) }", (17, 33)),
    "Gather": ("g (int64[3] x) => (float[3,33] y) { y = Gather(w, x) }", (17, 33)),
}


@pytest.mark.parametrize("channels", [0, 1, 3, 7])
@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_with_weights(layer: str, channels: int) -> None:
    text, shape = LAYERS[layer]
    outcome = palettized(parse(HEAD + text, w=weight(*shape)), Palettize(entries=17, channels=channels))
    found = palettes(outcome.after)["w"]
    assert found.shape == shape
    books = [len(np.unique(block)) for block in found.reshape(_books(shape[0], channels), -1)]
    assert max(books) == 17
    assert outcome.result.statistics["weights"] == 1 and outcome.result.declined == ()


def _books(length: int, channels: int) -> int:
    """Groups are equal, and at least as large as asked for."""
    sizes = [size for size in range(1, length + 1) if length % size == 0 and size >= channels]
    return 1 if channels == 0 else length // min(sizes)


def test_recurrent_layers_and_groups_behind_an_axis_of_one() -> None:
    model = parse(
        HEAD + "g (float[4,1,9] x) => (float[4,1,1,16] y) { y = LSTM<hidden_size=16>(x, w, r) }",
        w=weight(1, 64, 9),
        r=weight(1, 64, 16, seed=1),
    )
    outcome = palettized(model, Palettize(entries=17, channels=32))
    assert set(palettes(outcome.after)) == {"w", "r"}
    assert outcome.operators().count("GatherElements") == 2


@pytest.mark.parametrize("opset", [8, 11, 13, 18, 21, 23])
def test_any_opset_serves(opset: int) -> None:
    head = f'<ir_version: 10, opset_import: ["" : {opset}]> '
    model = parse(head + "g (float[1,64] x) => (float[1,64] y) { y = MatMul(x, w) }", w=weight(64, 64))
    for channels in (0, 16):
        outcome = palettized(model, Palettize(entries=32, channels=channels))
        assert "w" in palettes(outcome.after)
        assert outcome.after.opset_imports[""] == (max(opset, 11) if channels else opset)


def test_few_entries_bring_the_model_to_an_opset_with_four_bits() -> None:
    model = parse(HEAD + "g (float[1,64] x) => (float[1,63] y) { y = MatMul(x, w) }", w=weight(64, 63))
    outcome = palettized(model, Palettize(entries=16))
    assert outcome.after.opset_imports[""] == 21
    indices = outcome.after.graph.initializers["w:1"]
    assert indices.dtype == ir.DataType.UINT4 and indices.const_value is not None
    assert indices.const_value.nbytes == 64 * 63 // 2
    assert outcome.result.statistics["bytes-after"] == 64 * 63 // 2 + 16 * 4


def test_eight_bits_serve_where_the_opset_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: ir.Model, version: int) -> bool:
        raise ModelError("no way for Upsample")

    monkeypatch.setattr(palettize, "at_least", fail)
    model = parse(HEAD + "g (float[1,64] x) => (float[1,64] y) { y = MatMul(x, w) }", w=weight(64, 64))
    with pytest.warns(ModelWarning, match=r"8 bits instead of 4: no way for Upsample"):
        result = run(Palettize(entries=16), model)
    assert result.changed and model.graph.initializers["w:1"].dtype == ir.DataType.UINT8


def test_a_model_without_large_weights_keeps_its_opset() -> None:
    model = parse(HEAD + "g (float[1,4] x) => (float[1,4] y) { y = MatMul(x, w) }", w=weight(4, 4))
    outcome = palettized(model, Palettize(entries=16))
    assert not outcome.result.changed and outcome.after.opset_imports[""] == 17


def test_a_weight_that_layers_share_is_one_palette() -> None:
    model = parse(
        HEAD + "g (float[1,48] x) => (float[1,48] y) { a = MatMul(x, w) b = MatMul(a, w) y = Add(b, x) }",
        w=weight(48, 48),
    )
    outcome = palettized(model, Palettize(entries=20))
    assert outcome.operators() == ["Cast", "Gather", "MatMul", "MatMul", "Add"]
    assert outcome.result.statistics["weights"] == 1


def test_a_weight_that_a_branch_reads_is_a_palette() -> None:
    branch = "{ y_%s = MatMul(x, w%s) }"
    model = parse(
        HEAD + "g (bool c, float[1,48] x) => (float[1,48] y) { y = If(c) <"
        f"then_branch = t () => (float[1,48] y_t) {branch % ('t', '')},"
        f" else_branch = e () => (float[1,48] y_e) {branch % ('e', '2')}> }}",
        w=weight(48, 48),
        w2=weight(48, 48, seed=1),
    )
    outcome = palettized(model, Palettize(entries=20))
    assert set(palettes(outcome.after)) == {"w", "w2"}


REASONS: dict[str, tuple[str, dict[str, Array], str]] = {
    "small": (
        "g (float[1,9] x) => (float[1,9] y) { y = MatMul(x, w) }",
        {"w": weight(9, 9)},
        r"'w': its 324 bytes are not more than those of a palette, 1105, and of its nodes",
    ),
    "quantized": (
        "g (float[1,64] x) => (float[1,64] y) { w = DequantizeLinear(q, s) y = MatMul(x, w) }",
        {"q": np.ones((64, 64), np.int8), "s": np.array(1, np.float32)},
        "'w': it is quantized already, and --compress stores integers in fewer bits without loss",
    ),
    "output": (
        "g (float[1,64] x) => (float[1,64] y, float[64,64] w) { y = MatMul(x, w) }",
        {"w": weight(64, 64)},
        "'w': it is an output of the graph",
    ),
    "not finite": (
        "g (float[1,64] x) => (float[1,64] y) { y = MatMul(x, w) }",
        {"w": np.where(np.eye(64) > 0, np.nan, 1).astype(np.float32)},
        "'w': it holds NaN or infinities",
    ),
}


@pytest.mark.filterwarnings("ignore:.*NaN or infinite:graphopt.errors.ModelWarning")
@pytest.mark.parametrize("case", REASONS)
def test_reasons_to_decline(case: str) -> None:
    text, weights, reason = REASONS[case]
    model = parse(HEAD + text, **weights)
    graph_ir.refresh_shapes(model)
    before = graph_ir.to_text(model)
    result = run(Palettize(), model)
    assert [declined.reason for declined in result.declined] == [reason.replace("\\", "")]
    assert not result.changed and graph_ir.to_text(model) == before


def test_a_constant_node_is_declined_until_it_is_lifted() -> None:
    model = parse(HEAD + "g (float[1,64] x) => (float[1,64] y) { y = MatMul(x, w) }", w=weight(64, 64))
    initializer = model.graph.initializers.pop("w")
    node = ir.node("Constant", [], {"value": initializer.const_value}, name="const")
    model.graph.insert_before(model.graph[0], node)
    initializer.replace_all_uses_with(node.outputs[0])
    node.outputs[0].name = "w"
    graph_ir.refresh_shapes(model)
    result = run(Palettize(), model)
    assert result.declined[0].reason == "'w': it is a Constant node, which fold-constants makes an initializer"
    run(FoldConstants(), model)
    assert run(Palettize(), model).changed


def test_excluded_layers_keep_their_weights_also_shared_ones() -> None:
    model = parse(
        HEAD + "g (float[1,48] x) => (float[1,48] y) { a = MatMul(x, w) b = MatMul(a, w) y = MatMul(b, v) }",
        w=weight(48, 48),
        v=weight(48, 48, seed=1),
    )
    outcome = palettized(model, Palettize(entries=20, exclude=("*_1",)))
    assert set(palettes(outcome.after)) == {"v"}
    assert outcome.reasons() == dict.fromkeys(("matmul_0", "matmul_1"), "'w': 'matmul_1' is excluded")
    assert not palettized(model, Palettize(entries=16, exclude=("*",))).result.changed


def test_what_is_a_palette_already_is_declined() -> None:
    model = parse(HEAD + "g (float[1,64] x) => (float[1,64] y) { y = MatMul(x, w) }", w=weight(64, 64))
    outcome = palettized(model)
    again = run(Palettize(entries=64), outcome.after)
    assert not again.changed and [declined.reason for declined in again.declined] == ["'w': it is a palette already"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"entries": 1}, "entries is 1, expected 2 to 256"),
        ({"entries": 257}, "entries is 257, expected 2 to 256"),
        ({"channels": -1}, "channels is -1, expected 0 or more"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, int], message: str) -> None:
    model = parse(HEAD + "g (float[1,64] x) => (float[1,64] y) { y = MatMul(x, w) }", w=weight(64, 64))
    with pytest.raises(UsageError, match=message):
        Palettize(**options).run(model, PassContext())


@pytest.mark.parametrize("channels", [0, 8])
def test_clean_up_leaves_palettes_alone(channels: int) -> None:
    model = parse(
        HEAD + "g (float[1,8,6,6] x) => (float[1,16,4,4] y) { c = Conv(x, w) d = Mul(c, k) y = Identity(d) }",
        w=weight(16, 8, 3, 3),
        k=weight(1, 16, 1, 1),
    )
    run(CleanUp(), model)
    outcome = palettized(model, Palettize(entries=17, channels=channels))
    cleaned = graph_ir.clone(outcome.after)
    run(CleanUp(), cleaned)
    assert palettes(cleaned).keys() == palettes(outcome.after).keys() == {"w"}
    result = run(FoldConstants(), cleaned)
    assert not result.changed
    assert [item.reason for item in result.declined] == ["Cast of a constant is kept for the palette that it indexes"]


def test_other_casts_of_bytes_are_folded_as_before() -> None:
    """The indices of a Gather from something that is not a codebook."""
    model = parse(
        HEAD + "g (float[9] x) => (float[4] y) { i = Cast<to=6>(q) y = Gather(x, i) }", q=np.arange(4, dtype=np.uint8)
    )
    assert run(FoldConstants(), model).changed
    assert [node.op_type for node in model.graph] == ["Gather"]


def test_quantize_leaves_layers_with_palettes_in_float() -> None:
    """Their weights look computed, and would get a scale for the whole tensor, and be quantized in each run."""
    model = parse(
        HEAD + "g (int64[3] t, float[1,8,6,6] x) => (float[1,40] y, float[3,40] z) {"
        " c = Conv(x, w) r = Relu(c) f = Flatten(r) m = MatMul(f, v) y = MatMul(m, u)"
        " e = Gather(k, t) z = MatMul(e, u) }",
        w=weight(16, 8, 3, 3),
        v=weight(256, 40),
        u=weight(40, 40),
        k=weight(50, 40),
    )
    outcome = palettized(model, Palettize(entries=32))
    result = run(Quantize(), outcome.after, PassContext(calibration=probe_samples(model, 0, 10)))
    assert not result.changed
    reasons = {declined.layer: declined.reason for declined in result.declined}
    assert [reasons[f"{name}"] for name in ("conv_0", "matmul_3", "matmul_4")] == ["its weight is a palette"] * 3
    assert reasons["gather_5"] == "an operand is a palette"


def test_a_large_weight_has_the_codebook_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    model = parse(HEAD + "g (float[1,128] x) => (float[1,128] y) { y = MatMul(x, w) }", w=weight(128, 128))
    whole = palettized(model, Palettize(entries=32))
    monkeypatch.setattr(palettize, "_SAMPLE", 4000)
    monkeypatch.setattr(palettize, "_CHUNK", 1000)
    sampled = palettized(model, Palettize(entries=32))
    best, found = (float(each.result.statistics["lowest-sqnr-db"]) for each in (whole, sampled))
    assert best - 0.5 < found <= best
    assert graph_ir.to_text(palettized(model, Palettize(entries=32)).after) == graph_ir.to_text(sampled.after)


def test_costs_count_the_elements_of_the_weight() -> None:
    model = parse(HEAD + "g (float[1,64] x) => (float[1,64] y) { y = MatMul(x, w) }", w=weight(64, 64))
    outcome = palettized(model)
    before, after = (total(layer_costs(m)) for m in (outcome.before, outcome.after))
    assert (before.params, after.params) == (64 * 64, 64 * 64 + 256)
    assert (before.weight_bytes, after.weight_bytes) == (4 * 64 * 64, 64 * 64 + 4 * 256)
    assert before.macs == after.macs


def dense(build: Builder) -> None:
    """A product with a weight, which an earlier product may have as well."""
    value = build.pick(lambda shape: len(shape) > 0 and shape[-1] < 9)
    if value is None:
        return
    shape = build.shapes[value]
    rows = shape[-1]
    known = [w.name for w in build.weights if list(w.dims) == [rows, 150]]
    numbers = np.random.default_rng(len(build.weights)).normal(size=(rows, 150)).astype(np.float32)
    name = build.choose(*known, None) if known else None
    build.add("MatMul", [value, name or build.constant(numbers)], (*shape[:-1], 150))


@settings(max_examples=25, deadline=None)
@given(
    models(dense, dense, unary, pair, transpose, with_constant), st.sampled_from([2, 16, 17]), st.sampled_from([0, 2])
)
def test_random_graphs(model: ir.Model, entries: int, channels: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ModelWarning)
        outcome = palettized(model, Palettize(entries=entries, channels=channels))
    found = palettes(outcome.after)
    assert len(found) == outcome.result.statistics["weights"]
    for name, numbers in found.items():
        original = constant(outcome.before.graph.initializers[name])
        assert original is not None and np.abs(numbers - original).max() <= np.ptp(original)
