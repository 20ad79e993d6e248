"""Each form of a window: exact at full rank whatever the geometry, the nearest of its rank, and what it costs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import graphopt.ir as graph_ir
from graphopt.analysis.cost import layer_costs, total
from graphopt.analysis.samples import Samples
from graphopt.passes.factorize import cp
from graphopt.passes.factorize.costs import Saving, cost_of
from graphopt.passes.factorize.factorize import Factorize
from graphopt.passes.factorize.form import Form, Method
from graphopt.passes.factorize.forms import forms_of
from graphopt.passes.factorize.kernel_time import Kernels
from graphopt.passes.factorize.layers import layers
from graphopt.passes.factorize.low_rank import directions
from graphopt.passes.factorize.window_forms import folded, unfolded
from graphopt.pipeline.base import PassContext
from graphopt.pipeline.registry import TARGETS
from tests.passes.harness import assert_same_outputs, outputs, parse, run

HEAD = '<ir_version: 8, opset_import: ["" : 17]> '
RNG = np.random.default_rng(0)
WINDOWS = [Method.SPATIAL, Method.TUCKER2, Method.DECOUPLED, Method.CP]


def convolution(weight: np.ndarray, image: tuple[int, int], attributes: str = "") -> ir.Model:
    filters, channels = weight.shape[:2]
    shapes = f"g (float[2,{channels},{image[0]},{image[1]}] x) => (float[2,{filters},n,m] y)"
    model = parse(
        f"{HEAD}{shapes} {{ c = Conv{attributes}(x, w, b) y = Neg(c) }}",
        w=weight.astype(np.float32),
        b=RNG.normal(size=filters).astype(np.float32),
    )
    graph_ir.refresh_shapes(model)
    return model


def form_of(model: ir.Model, method: Method, covariance: np.ndarray | None = None) -> Form:
    (layer,), _ = layers(model.graph, ())
    (form,) = forms_of(layer, method, covariance, directions(layer.matrix, covariance))
    return form


@st.composite
def geometries(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[int, int], str]:
    """Image, window, and attributes of a Conv that fits."""
    image = draw(st.tuples(st.integers(3, 9), st.integers(3, 9)))
    window = draw(st.tuples(st.sampled_from([2, 3, 5]), st.sampled_from([2, 3, 5])))
    pads = draw(st.tuples(*[st.integers(0, 2)] * 4))
    dilations = draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    strides = draw(st.tuples(st.integers(1, 3), st.integers(1, 2)))
    for axis in range(2):
        assume(image[axis] + pads[axis] + pads[axis + 2] > dilations[axis] * (window[axis] - 1))
    texts = {"pads": pads, "dilations": dilations, "strides": strides}
    return image, window, "<" + ", ".join(f"{name} = {list(values)}" for name, values in texts.items()) + ">"


@settings(max_examples=25, deadline=None)
@given(geometry=geometries(), method=st.sampled_from(WINDOWS), channels=st.sampled_from([2, 3, 7]))
def test_at_full_rank_a_form_is_the_convolution(
    geometry: tuple[tuple[int, int], tuple[int, int], str], method: Method, channels: int
) -> None:
    image, window, attributes = geometry
    model = convolution(RNG.normal(size=(5, channels, *window)), image, attributes)
    before = graph_ir.clone(model)
    form = form_of(model, method)
    form.split(model.graph, next(iter(model.graph)), form.full_rank)
    graph_ir.refresh_shapes(model)
    graph_ir.verify(model, interface=graph_ir.Interface.of(before))
    assert_same_outputs(before, model, relative=1e-4)


@pytest.mark.parametrize("method", WINDOWS)
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_the_graph_computes_what_the_form_projects_to(method: Method, rank: int) -> None:
    weight = RNG.normal(size=(6, 5, 3, 3))
    model = convolution(weight, (7, 6), "<pads = [1, 0, 2, 1], strides = [2, 1]>")
    form = form_of(model, method)
    lowered = form.projected(weight.reshape(6, -1), rank).reshape(weight.shape)
    expected = convolution(lowered, (7, 6), "<pads = [1, 0, 2, 1], strides = [2, 1]>")
    node = next(iter(model.graph))
    expected.graph.initializers["b"].const_value = model.graph.initializers["b"].const_value
    model.graph.initializers["w"].const_value = expected.graph.initializers["w"].const_value
    products = form.products(rank, form.layer)
    form.split(model.graph, node, rank)
    x = RNG.normal(size=(2, 5, 7, 6)).astype(np.float32)
    np.testing.assert_allclose(outputs(model, {"x": x})["y"], outputs(expected, {"x": x})["y"], atol=1e-4)
    graph_ir.refresh_shapes(model)
    costs = total(layer_costs(model))
    assert cost_of(products, Kernels(), Saving.MACS) == costs.macs
    assert cost_of(products, Kernels(), Saving.BYTES) == costs.weight_bytes - 4 * 6  # but for the bias


def test_spatial_of_a_separable_window_has_rank_one() -> None:
    column, row = RNG.normal(size=(3, 1)), RNG.normal(size=(1, 3))
    weight = RNG.normal(size=(2, 1, 1, 1)) * RNG.normal(size=(1, 4, 1, 1)) * (column @ row)
    form = form_of(convolution(weight, (6, 6)), Method.SPATIAL)
    assert form.lost(1) < 1e-12
    np.testing.assert_allclose(form.projected(weight.reshape(2, -1), 1), weight.reshape(2, -1), atol=1e-12)


@pytest.mark.parametrize("method", [Method.SVD, Method.SPATIAL, Method.TUCKER2, Method.DECOUPLED])
def test_a_form_of_higher_rank_loses_less(method: Method) -> None:
    weight = RNG.normal(size=(8, 6, 3, 3))
    form = form_of(convolution(weight, (6, 6)), method)
    lost = [form.lost(rank) for rank in range(1, form.full_rank + 1)]
    assert lost == sorted(lost, reverse=True)


@pytest.mark.parametrize("method", list(Method)[1:])
def test_a_form_loses_what_it_says_and_projecting_twice_changes_nothing(method: Method) -> None:
    weight = RNG.normal(size=(8, 6, 3, 3))
    spread = RNG.normal(size=(54, 54))
    spread = spread @ spread.T
    form = form_of(convolution(weight, (6, 6)), method, spread)
    matrix = weight.reshape(8, -1)
    once = form.projected(matrix, 3)
    outside = np.trace((matrix - once) @ spread @ (matrix - once).T) / np.trace(matrix @ spread @ matrix.T)
    assert form.lost(3) == pytest.approx(outside) and form.lost(form.full_rank) < 1e-9
    np.testing.assert_allclose(form.projected(once, 3), once, atol=1e-9)
    np.testing.assert_allclose(form.nearest(once, spread, 3), once, atol=1e-6)


def test_cp_finds_the_terms_of_which_a_window_is_made() -> None:
    random = np.random.default_rng(0)  # of its own: one draw of 40 ends in a local minimum
    parts = [random.normal(size=(size, 3)) for size in (8, 6, 3, 3)]
    weight = np.einsum("or,cr,ur,vr->ocuv", *parts)
    form = form_of(convolution(weight, (6, 6)), Method.CP)
    assert form.lost(3) < 1e-4 < form.lost(2)


def test_a_ridge_keeps_terms_of_cp_from_growing_while_they_cancel(monkeypatch: pytest.MonkeyPatch) -> None:
    """a ⊗ a ⊗ b + a ⊗ b ⊗ a + b ⊗ a ⊗ a is of rank 3, and two terms come as near as they are large."""
    a, b = np.eye(3)[:2]
    tensor = sum(np.einsum("o,c,u,v->ocuv", x, y, z, a) for x, y, z in ((a, a, b), (a, b, a), (b, a, a)))
    monkeypatch.setattr(cp, "_ROUNDS", 2000)
    monkeypatch.setattr(cp, "_SETTLED", 0.0)
    norms = []
    for ridge in (cp._RIDGE, 1e-15):
        monkeypatch.setattr(cp, "_RIDGE", ridge)
        factors = cp.alternate(np.asarray(tensor), 2, np.random.default_rng(0))
        terms = np.einsum("cr,ur,vr->rcuv", *factors).reshape(2, -1)
        norms.append(np.linalg.norm(np.asarray(tensor).reshape(3, -1) @ np.linalg.pinv(terms, rcond=1e-10)))
    assert norms[0] < 0.6 * norms[1]


def test_folding_is_undone() -> None:
    matrix = RNG.normal(size=(4, 3 * 2 * 5))
    np.testing.assert_array_equal(unfolded(folded(matrix, (2, 5)), (2, 5)), matrix)


def separable(noise: float) -> ir.Model:
    """A 5×5 convolution that 5×1 and 1×5 over 4 channels compute, but for noise."""
    down, along = RNG.normal(size=(4, 24, 5)), RNG.normal(size=(32, 4, 5))
    weight = np.einsum("okv,kcu->ocuv", along, down) / 20
    return convolution(weight + noise * RNG.normal(size=weight.shape), (16, 16), "<pads = [2, 2, 2, 2]>")


def factored(model: ir.Model, method: Method) -> tuple[list[str], str]:
    images = RNG.normal(size=(40, 2, 24, 16, 16)).astype(np.float32)
    context = PassContext(calibration=Samples({"x": images}, {"x": 0}), target=TARGETS.find("cortex-a76"))
    result = run(Factorize(ratio=0.94, method=method, multiple=1), model, context)
    again = graph_ir.to_text(model)
    assert not run(Factorize(ratio=0.94, method=method, multiple=1), model, context).changed
    assert graph_ir.to_text(model) == again
    shapes = [str(list(n.inputs[1].shape)) for n in model.graph if n.op_type == "Conv"]
    return shapes, str(result.statistics.get("ranks", ""))


def test_auto_takes_the_form_that_the_weight_has() -> None:
    model = separable(0.001)
    before = graph_ir.clone(model)
    shapes, said = factored(model, Method.AUTO)
    assert shapes == ["[4, 24, 5, 1]", "[32, 4, 1, 5]"] and "spatial 4 of" in said
    assert_same_outputs(before, model, relative=0.05)


def test_a_method_that_serves_no_layer_says_so() -> None:
    model = parse(HEAD + "g (float[4,64] x) => (float[4,64] y) { y = MatMul(x, w) }", w=np.eye(64, dtype=np.float32))
    graph_ir.refresh_shapes(model)
    result = run(Factorize(method=Method.SPATIAL), model)
    assert [each.reason for each in result.declined] == ["the method has no form for such a layer"]


@pytest.mark.parametrize("method", list(Method)[1:])
def test_layers_without_names_become_nodes_of_different_names(method: Method) -> None:
    model = convolution(RNG.normal(size=(6, 6, 3, 3)), (7, 7), "<pads = [1, 1, 1, 1]>")
    negated = list(model.graph)[-1]
    twin = ir.node("Conv", [negated.inputs[0], model.graph.initializers["w"]], attributes={"pads": [1, 1, 1, 1]})
    twin.outputs[0].name, twin.outputs[0].type, twin.outputs[0].shape = (
        "twin",
        negated.inputs[0].type,
        negated.inputs[0].shape,
    )
    weight = ir.Value(name="w2", type=model.graph.initializers["w"].type, shape=model.graph.initializers["w"].shape)
    weight.const_value = ir.Tensor(model.graph.initializers["w"].const_value.numpy(), name="w2")
    model.graph.register_initializer(weight)
    twin.replace_input_with(1, weight)
    model.graph.insert_before(negated, twin)
    negated.replace_input_with(0, twin.outputs[0])
    for node in model.graph:
        node.name = ""
    found, _ = layers(model.graph, ())
    for layer in found:
        (form,) = forms_of(layer, method, None, directions(layer.matrix, None))
        form.split(model.graph, layer.node, 2)
    outputs(model, {"x": RNG.normal(size=(2, 6, 7, 7)).astype(np.float32)})
