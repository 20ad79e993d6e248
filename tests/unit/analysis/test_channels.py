"""Which channels go together, on graphs small enough to say so by hand."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

import graphopt.ir as graph_ir
from graphopt.analysis.channels import Channels, Group, Role, channels, connections

HEAD = '<ir_version: 8, opset_import: ["" : 18]> '


def graph(text: str, **weights: tuple[int, ...] | np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> ir.Graph:
    """Weights are given by their shape, other constants as arrays."""
    proto = onnx.parser.parse_model(HEAD + text)
    for name, given in weights.items():
        array = np.ones(given, np.float32) if isinstance(given, tuple) else given
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    for node in proto.graph.node:
        node.name = node.output[0]
    model = graph_ir.load(proto)
    graph_ir.refresh_shapes(model)
    return model.graph


def numbers(*values: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.array(values, np.int64)


def free(found: Channels) -> dict[str, list[Group]]:
    """The groups that may lose units, by the layer that makes them."""
    names: dict[str, list[Group]] = {}
    for group in found.groups:
        if not group.protection:
            names.setdefault(group.name, []).append(group)
    return names


def places(group: Group, role: Role) -> set[tuple[str, int]]:
    return {(slot.node.name or "", slot.axis) for slot in group.weights(role)}


def test_a_residual_sum_couples_both_sides() -> None:
    found = channels(
        graph(
            """g (float[1,3,4,4] x) => (float[1,2,4,4] y) {
                a = Conv(x, w0, b0) b = Conv(a, w1) s = Add(a, b) y = Conv(s, w2) }""",
            w0=(6, 3, 1, 1), b0=(6,), w1=(6, 6, 1, 1), w2=(2, 6, 1, 1),
        )
    )  # fmt: skip
    ((group,),) = free(found).values()
    assert group.width == 6
    assert places(group, Role.OUT) == {("a", 0), ("b", 0)}
    assert places(group, Role.IN) == {("b", 1), ("y", 1)}
    assert places(group, Role.ALONG) == {("a", 0)}


def test_joined_channels_are_groups_of_their_own_at_their_offsets() -> None:
    g = graph(
        """g (float[1,3,4,4] x) => (float[1,2,4,4] y) {
            a = Conv(x, w0) b = Conv(x, w1) c = Concat <axis = 1> (a, b) y = Conv(c, w2) }""",
        w0=(2, 3, 1, 1), w1=(3, 3, 1, 1), w2=(2, 5, 1, 1),
    )  # fmt: skip
    found = channels(g)
    (a,), (b,) = free(found)["a"], free(found)["b"]
    units = found.units_of(g.initializers["w2"], 1)
    assert units is not None and units.tolist() == [*a.units, *b.units]


def test_a_depthwise_layer_goes_with_its_input() -> None:
    found = channels(
        graph(
            """g (float[1,3,4,4] x) => (float[1,2,4,4] y) {
                a = Conv(x, w0) d = Conv <group = 4> (a, w1) y = Conv(d, w2) }""",
            w0=(4, 3, 1, 1), w1=(8, 1, 1, 1), w2=(2, 8, 1, 1),
        )
    )  # fmt: skip
    ((group,),) = free(found).values()
    assert group.width == 4 and places(group, Role.OUT) == {("a", 0), ("d", 0)}


def test_groups_of_a_convolution_lose_the_same_number() -> None:
    g = graph(
        """g (float[1,4,4,4] x) => (float[1,2,4,4] y) {
            a = Conv(x, w0) c = Conv <group = 2> (a, w1) y = Conv(c, w2) }""",
        w0=(6, 4, 1, 1), w1=(8, 3, 1, 1), w2=(2, 8, 1, 1),
    )  # fmt: skip
    found = channels(g)
    entering, leaving = found.units_of(g.initializers["w0"], 0), found.units_of(g.initializers["w1"], 0)
    assert entering is not None and entering[:3].tolist() == entering[3:].tolist()
    assert leaving is not None and leaving[:4].tolist() == leaving[4:].tolist()


def test_flattened_places_of_a_channel_go_with_it() -> None:
    g = graph(
        """g (float[1,3,2,2] x) => (float[1,5] y) { a = Conv(x, w0) f = Flatten(a) y = MatMul(f, w1) }""",
        w0=(3, 3, 1, 1), w1=(12, 5),
    )  # fmt: skip
    found = channels(g)
    rows, made = found.units_of(g.initializers["w1"], 0), found.units_of(g.initializers["w0"], 0)
    assert rows is not None and made is not None and rows.tolist() == made.repeat(4).tolist()


def test_squeeze_and_excite_is_coupled_to_what_it_gates() -> None:
    found = channels(
        graph(
            """g (float[1,3,4,4] x) => (float[1,2,4,4] y) {
                a = Conv(x, w0) p = GlobalAveragePool(a) h = Conv(p, w1) r = Relu(h) e = Conv(r, w2)
                s = Sigmoid(e) m = Mul(a, s) y = Conv(m, w3) }""",
            w0=(6, 3, 1, 1), w1=(2, 6, 1, 1), w2=(6, 2, 1, 1), w3=(2, 6, 1, 1),
        )
    )  # fmt: skip
    groups = free(found)
    assert places(groups["a"][0], Role.OUT) == {("a", 0), ("e", 0)}
    assert groups["h"][0].width == 2


ATTENTION = """g (float[1,5,4] x) => (float[1,5,4] y) {
    q0 = MatMul(x, wq) k0 = MatMul(x, wk) v0 = MatMul(x, wv)
    q1 = Reshape(q0, qs) k1 = Reshape(k0, ks) v1 = Reshape(v0, ks)
    q = Transpose <perm = [0, 2, 1, 3]> (q1) k2 = Transpose <perm = [0, 2, 3, 1]> (k1)
    v2 = Transpose <perm = [0, 2, 1, 3]> (v1)
    ku = Unsqueeze(k2, two) kx = Expand(ku, kxs) k = Reshape(kx, kxr)
    vu = Unsqueeze(v2, two) vx = Expand(vu, vxs) v = Reshape(vx, vxr)
    s = MatMul(q, k) t = Softmax(s) o0 = MatMul(t, v) o1 = Transpose <perm = [0, 2, 1, 3]> (o0)
    o = Reshape(o1, os) y = MatMul(o, wo) }"""


def test_heads_leave_whole_and_those_that_share_keys_together() -> None:
    """Four heads of width 3 for queries, two for keys and values."""
    g = graph(
        ATTENTION, wq=(4, 12), wk=(4, 6), wv=(4, 6), wo=(12, 4), qs=numbers(1, 5, 4, 3), ks=numbers(1, 5, 2, 3),
        two=numbers(2), kxs=numbers(1, 2, 2, 3, 5), kxr=numbers(1, 4, 3, 5), vxs=numbers(1, 2, 2, 5, 3),
        vxr=numbers(1, 4, 5, 3), os=numbers(1, 5, 12),
    )  # fmt: skip
    found = channels(g)
    ((group,),) = free(found).values()
    assert group.width == 2
    assert places(group, Role.OUT) == {("q0", 1), ("k0", 1), ("v0", 1)} and places(group, Role.IN) == {("y", 0)}
    one, other = group.units
    units = found.units_of(g.initializers["wo"], 0)
    assert units is not None and units.tolist() == [one] * 6 + [other] * 6


def test_hidden_units_of_a_recurrent_layer_are_rows_of_every_gate() -> None:
    g = graph(
        """g (float[4,1,3] x) => (float[4,1,1,2] y) {
            h, last = GRU <hidden_size = 2> (x, w, r, b) y = MatMul(h, m) }""",
        w=(1, 6, 3), r=(1, 6, 2), b=(1, 12), m=(2, 2),
    )  # fmt: skip
    found = channels(g)
    ((group,),) = free(found).values()
    one, other = group.units
    units = found.units_of(g.initializers["b"], 1)
    assert units is not None and units.tolist() == [one, other] * 6


def test_a_layer_norm_protects_the_width_unless_it_may_lose_some() -> None:
    g = graph(
        """g (int64[1,5] i) => (float[1,5,2] y) {
            e = Gather(table, i) n = LayerNormalization(e, s) y = MatMul(n, w) }""",
        table=(9, 4), s=(4,), w=(4, 2),
    )  # fmt: skip
    (reason,) = next(group for group in channels(g).groups if group.name == "e").protection
    assert reason == "LayerNormalization 'n' computes across axis 2"
    ((group,),) = free(channels(g, hidden_width=True)).values()
    assert group.width == 4 and places(group, Role.ALONG) == {("n", 0)}


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        ("m = LRN <size = 3> (a)", "LRN 'm' computes across axis 1"),
        ("t = Softmax <axis = 1> (a) m = Identity(t)", "Softmax 't' computes across axis 1"),
        ("t = ReduceMean <keepdims = 1> (a, one) m = Mul(a, t)", "ReduceMean 't' computes across axis 1"),
        ("m = Add(a, x)", "Add 'm' joins them with 'x', which stays whole"),
    ],
)
def test_channels_that_are_mixed_stay(middle: str, reason: str) -> None:
    found = channels(
        graph(
            f"g (float[1,3,4,4] x) => (float[1,2,4,4] y) {{ a = Conv(x, w0) {middle} y = Conv(m, w1) }}",
            w0=(3, 3, 1, 1), w1=(2, 3, 1, 1), one=numbers(1),
        )
    )  # fmt: skip
    assert reason in next(group for group in found.groups if group.name == "a").protection


def test_what_a_subgraph_reads_stays() -> None:
    g = graph(
        """g (float[1,3,4,4] x, bool c) => (float[1,2,4,4] y) {
            a = Conv(x, w0) m = If (c) <
                then_branch = one () => (float[1,3,4,4] p) { p = Neg(a) },
                else_branch = two () => (float[1,3,4,4] q) { q = Identity(a) } >
            s = Relu(a) y = Conv(s, w1) }""",
        w0=(3, 3, 1, 1), w1=(2, 3, 1, 1),
    )  # fmt: skip
    assert next(group for group in channels(g).groups if group.name == "a").protection


def test_a_shared_weight_ties_what_its_readers_see() -> None:
    found = channels(
        graph(
            """g (float[1,4,4,4] x) => (float[1,2,4,4] y) {
                a = Conv(x, w0) b = Conv(a, w1) c = Conv(b, w1) y = Conv(c, w2) }""",
            w0=(4, 4, 1, 1), w1=(4, 4, 1, 1), w2=(2, 4, 1, 1),
        )
    )  # fmt: skip
    ((group,),) = free(found).values()
    assert places(group, Role.OUT) == {("a", 0), ("b", 0), ("c", 0)}


def test_groups_that_meet_in_a_layer_are_connected() -> None:
    found = channels(
        graph(
            "g (float[1,3,4,4] x) => (float[1,2,4,4] y) { a = Conv(x, w0) b = Conv(a, w1) y = Conv(b, w2) }",
            w0=(4, 3, 1, 1), w1=(5, 4, 1, 1), w2=(2, 5, 1, 1),
        )
    )  # fmt: skip
    names = [group.name for group in found.groups]
    edges = {frozenset((names[a], names[b])): data["layers"] for a, b, data in connections(found).edges(data=True)}
    assert edges == {frozenset("ab"): ["b"], frozenset("by"): ["y"]}


def test_ten_thousand_nodes_in_one_group() -> None:
    text = "\n".join(
        f"c{i} = Conv({'x' if i == 0 else f's{i - 1}'}, w0) r{i} = Relu(c{i}) d{i} = Conv(r{i}, w1) e{i} = Relu(d{i})"
        + (f" s{i} = Relu(e{i})" if i == 0 else f" s{i} = Add(e{i}, s{i - 1})")
        for i in range(2000)
    )
    g = graph(
        f"g (float[1,4,4,4] x) => (float[1,2,4,4] y) {{ {text} y = Conv(s1999, w2) }}",
        w0=(4, 4, 1, 1), w1=(4, 4, 1, 1), w2=(2, 4, 1, 1),
    )  # fmt: skip
    assert len(g) > 10_000
    found = channels(g)
    assert sum(not group.protection for group in found.groups) == 1


def test_a_single_channel_whose_axis_disappears_stays() -> None:
    found = channels(
        graph(
            "g (float[1,3] x) => (float[5] y) { a = MatMul(x, w0) f = Reshape(a, s) y = Mul(f, w1) }",
            w0=(3, 1), w1=(5,), s=numbers(1),
        )
    )  # fmt: skip
    (group,) = found.groups
    assert group.protection == ("Reshape 'f' computes across axis 1",)
