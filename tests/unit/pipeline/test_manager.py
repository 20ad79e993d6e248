"""The manager: what it records, what it catches, and how it says so."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

import graphopt.ir as graph_ir
from graphopt.analysis.samples import Samples
from graphopt.errors import DataError, PassError, ToleranceError, UsageError
from graphopt.pipeline.base import Declined, Pass, PassContext, PassResult, option
from graphopt.pipeline.manager import run_passes
from graphopt.pipeline.registry import Registry, check_pass, load_plugin
from graphopt.pipeline.spec import parse_spec

ROOT = Path(__file__).resolve().parents[3]


def parse(text: str, **weights: np.ndarray[Any, Any]) -> ir.Model:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 18, "my.own" : 1]> {text}')
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    return graph_ir.load(proto)


def small() -> ir.Model:
    """y = (x + w) * w, with an Identity between."""
    return parse(
        "g (float[1,4] x) => (float[1,4] y) { [add] a = Add(x, w) [id] b = Identity(a) [mul] y = Mul(b, w) }",
        w=np.array([[1, 2, 3, 4]], np.float32),
    )


def make(edit: Callable[[ir.Model], object], *, changed: bool = True, exact: bool = True) -> Pass:
    """A pass that does `edit` and says that it `changed` the model."""

    def run(self: Pass, model: ir.Model, context: PassContext) -> PassResult:
        edit(model)
        return PassResult(changed, {"edits": 1}, (Declined("mul", "it is a product"),))

    body = {"name": "made", "exact": exact, "run": run, "size": option(1, "x"), "__annotations__": {"size": "int"}}
    made: Pass = dataclasses.dataclass(frozen=True)(type("Made", (Pass,), body))(size=2)  # type: ignore[call-arg]
    return made


def node(model: ir.Model, name: str) -> ir.Node:
    return next(node for node in model.graph if node.name == name)


def remove_identity(model: ir.Model) -> None:
    found = node(model, "id")
    ir.convenience.replace_all_uses_with(found.outputs[0], found.inputs[0])
    model.graph.remove(found, safe=True)


def scale_weight(factor: float) -> Callable[[ir.Model], None]:
    def edit(model: ir.Model) -> None:
        weight = model.graph.initializers["w"]
        assert weight.const_value is not None
        weight.const_value = ir.tensor((weight.const_value.numpy() * factor).astype(np.float32), name="w")

    return edit


def test_a_record_says_what_was_done_and_what_it_did_to_the_outputs() -> None:
    model = small()
    (record,) = run_passes(model, [make(remove_identity)], PassContext())
    assert (record.spec, record.exact, record.changed) == ("made{size=2}", True, True)
    assert record.statistics == {"edits": 1}
    assert record.declined == (Declined("mul", "it is a product"),)
    assert (record.nodes_before, record.nodes_after) == (3, 2)
    assert (record.params_before, record.params_after) == (4, 4)
    assert record.seconds >= 0
    assert [(output.name, output.relative) for output in record.comparison] == [("y", 0.0)]
    assert (record.comparison_skipped, record.samples, record.tolerance) == ("", 4, 1e-5)
    assert [node.op_type for node in model.graph] == ["Add", "Mul"]


def test_the_calibration_data_are_compared_on_if_there_are_any() -> None:
    x = np.arange(40, dtype=np.float32).reshape(10, 4)
    context = PassContext(calibration=Samples({"x": x}, {"x": 1}))
    exact, lossy = run_passes(
        small(), [make(remove_identity), make(scale_weight(1.01), exact=False)], context, tolerance=0.1
    )
    assert (exact.samples, lossy.samples) == (4, 10)
    assert lossy.comparison[0].relative == pytest.approx(0.0102, abs=2e-3)
    assert lossy.comparison[0].top1_agreement == 1.0


def test_data_that_the_model_cannot_take_are_an_error() -> None:
    context = PassContext(calibration=Samples({"x": np.zeros((2, 3), np.float32)}, {"x": 1}))
    with pytest.raises(DataError, match="found shape \\[1, 3\\]"):
        run_passes(small(), [], context)


def test_an_exact_pass_that_changes_the_outputs_is_a_fault_of_the_pass() -> None:
    with pytest.raises(PassError) as caught:
        run_passes(small(), [make(scale_weight(1.001))], PassContext())
    text = str(caught.value)
    assert "after exact pass 'made{size=2}': output 'y' differs by 0.001" in text
    assert "expected at most 1e-05" in text
    assert "rerun with --dump-ir DIR to keep the graph before and after" in text


def test_a_lossy_pass_is_measured_and_held_to_the_tolerance_that_is_given() -> None:
    lossy = make(scale_weight(1.01), exact=False)
    (record,) = run_passes(small(), [lossy], PassContext())
    assert record.tolerance is None and 0.005 < record.comparison[0].relative < 0.03
    with pytest.raises(ToleranceError, match=r"after lossy pass 'made\{size=2\}': output 'y' differs by 0.01"):
        run_passes(small(), [lossy], PassContext(), tolerance=1e-3)


def test_exact_passes_after_a_lossy_one_are_held_to_what_it_left() -> None:
    lossy, exact, wrong = make(scale_weight(1.01), exact=False), make(remove_identity), make(scale_weight(1.001))
    records = run_passes(small(), [lossy, exact], PassContext())
    assert records[1].comparison[0].relative > 1e-3  # the record compares with the original all the same
    with pytest.raises(PassError, match="after exact pass"):
        run_passes(small(), [lossy, wrong], PassContext())


def test_a_model_that_amplifies_rounding_is_held_to_its_own_noise() -> None:
    """(x + 3e5) - 3e5 is coarse: another order of sums moves it by far more than 1e-5 of its range."""
    model = parse(
        """g (float[1,64] x) => (float[1,64] y) {
            [add] a = Add(x, big) [sub] b = Sub(a, big) [one] c = Mul(b, w) [two] y = Mul(c, w) }""",
        big=np.array([3e5], np.float32),
        w=np.array([0.7], np.float32),
    )

    def reorder(model: ir.Model) -> None:
        half = ir.Value(name="half", const_value=ir.tensor(np.array([2e5], np.float32), name="half"))
        rest = ir.Value(name="rest", const_value=ir.tensor(np.array([1e5], np.float32), name="rest"))
        for value in (half, rest):
            model.graph.register_initializer(value)
        add = node(model, "add")
        first = ir.node("Add", [add.inputs[0], half], name="first")
        first.outputs[0].name = "first_sum"
        model.graph.insert_before(add, first)
        add.replace_input_with(0, first.outputs[0])
        add.replace_input_with(1, rest)

    (record,) = run_passes(model, [make(reorder)], PassContext())
    assert record.comparison[0].relative > 1e-5
    assert record.tolerance is not None and 1e-5 < record.tolerance < 1
    with pytest.raises(PassError, match="after exact pass"):
        run_passes(model, [make(scale_weight(1.5))], PassContext())


def rename_output(model: ir.Model) -> None:
    model.graph.outputs[0].name = "z"


def drop_producer(model: ir.Model) -> None:
    model.graph.remove(node(model, "add"))


def wrong_type(model: ir.Model) -> None:
    weight = model.graph.initializers["w"]
    weight.const_value = ir.tensor(np.ones((1, 3), np.float32), name="w")
    weight.shape = ir.Shape([1, 3])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (rename_output, "the public interface changed"),
        (drop_producer, "uses %a"),
        (wrong_type, "add"),
    ],
)
def test_a_broken_graph_is_a_fault_of_the_pass_with_the_lines_around_it(
    edit: Callable[[ir.Model], None], message: str
) -> None:
    with pytest.raises(PassError) as caught:
        run_passes(small(), [make(edit)], PassContext())
    assert "pass 'made{size=2}': " in caught.value.what
    assert message in str(caught.value)
    assert "--dump-ir DIR" in caught.value.advice


def test_a_pass_that_raises_is_named_with_the_node_that_it_looked_at() -> None:
    def fail(model: ir.Model) -> None:
        for found in model.graph:
            if found.op_type == "Identity":
                found.attributes["axis"].as_int()

    with pytest.raises(PassError) as caught:
        run_passes(small(), [make(fail)], PassContext())
    assert caught.value.what == "in pass 'made{size=2}': KeyError: 'axis'"
    lines = caught.value.where.splitlines()
    assert len(lines) == 3 and lines[1].startswith("> ") and "Identity" in lines[1]
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_mistake_of_the_user_that_a_pass_finds_stays_what_it_is() -> None:
    def complain(model: ir.Model) -> None:
        raise UsageError("ratio is 2", advice="give 0.5")

    with pytest.raises(UsageError) as caught:
        run_passes(small(), [make(complain)], PassContext())
    assert str(caught.value) == "in pass 'made{size=2}': ratio is 2\n  give 0.5"


def test_an_interrupt_passes_through() -> None:
    def interrupt(model: ir.Model) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_passes(small(), [make(interrupt)], PassContext())


def do_nothing(model: ir.Model) -> None:
    pass


def same_tensor_again(model: ir.Model) -> None:
    scale_weight(1.0)(model)


def test_a_pass_must_be_honest_about_what_it_changed() -> None:
    with pytest.raises(PassError, match="it says that it changed the model, and did not"):
        run_passes(small(), [make(do_nothing)], PassContext())
    with pytest.raises(PassError, match="it says that it changed nothing, and changed the model") as caught:
        run_passes(small(), [make(remove_identity, changed=False)], PassContext())
    assert "- " in caught.value.where and "Identity" in caught.value.where
    with pytest.raises(PassError, match="and changed the model"):
        run_passes(small(), [make(scale_weight(2), changed=False)], PassContext())


def test_a_pass_that_changed_nothing_is_not_compared_again() -> None:
    for edit in (do_nothing, same_tensor_again):
        (record,) = run_passes(small(), [make(edit, changed=False)], PassContext())
        assert (record.changed, record.comparison, record.comparison_skipped) == (False, (), "the pass changed nothing")


def test_what_is_no_result_is_a_fault_of_the_pass() -> None:
    def run(self: Pass, model: ir.Model, context: PassContext) -> None:
        return None

    body = {"name": "made", "exact": True, "run": run}
    item = dataclasses.dataclass(frozen=True)(type("Made", (Pass,), body))()
    with pytest.raises(PassError, match="pass 'made' returned NoneType, expected a PassResult"):
        run_passes(small(), [item], PassContext())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "g (float[1] x) => (float[1] y) { [id] a = Identity(x) y = my.own.Foo(a) }",
            "the original cannot be computed",
        ),
        (
            "g (float[1] x) => (float[1] y) { [id] a = Identity(x) r = RandomNormalLike(a) y = Add(a, r) }",
            "the model draws random numbers (RandomNormalLike",
        ),
        (
            "g (seq(float[1]) x) => (int64 y) { [id] a = Identity(x) y = SequenceLength(a) }",
            "the original cannot be computed: input 'x' is not a tensor",
        ),
    ],
)
def test_a_model_that_cannot_be_compared_is_rewritten_and_the_reason_is_recorded(text: str, reason: str) -> None:
    (record,) = run_passes(parse(text), [make(remove_identity)], PassContext())
    assert record.comparison == () and record.samples == 0
    assert record.comparison_skipped.startswith(reason)


def test_a_result_that_cannot_be_computed_is_a_fault_of_the_pass() -> None:
    def use_own(model: ir.Model) -> None:
        node(model, "id").domain = "my.own"

    with pytest.raises(PassError, match=r"the original could be computed, the result cannot: .*Identity"):
        run_passes(small(), [make(use_own)], PassContext())


def test_nan_at_the_same_places_is_equal() -> None:
    model = parse("g (float[1,64] x) => (float[1,64] y) { [id] a = Identity(x) y = Log(a) }")
    (record,) = run_passes(model, [make(remove_identity)], PassContext())
    assert record.comparison[0].relative == 0.0


def test_the_graphs_before_and_after_can_be_kept(tmp_path: Path) -> None:
    folder = tmp_path / "dump"
    passes = [make(remove_identity), make(do_nothing, changed=False), make(scale_weight(2), exact=False)]
    run_passes(small(), passes, PassContext(), dump_ir=folder)
    names = ["00-original", "01-made", "03-made"]
    assert sorted(file.name for file in folder.iterdir()) == sorted(f"{n}.{s}" for n in names for s in ("onnx", "txt"))
    assert "Identity" in (folder / "00-original.txt").read_text()
    assert "Identity" not in (folder / "01-made.txt").read_text()
    assert len(graph_ir.load(folder / "01-made.onnx").graph) == 2


def test_a_graph_that_a_pass_broke_is_kept_too(tmp_path: Path) -> None:
    with pytest.raises(PassError) as caught:
        run_passes(small(), [make(drop_producer)], PassContext(), dump_ir=tmp_path)
    assert f"are in {tmp_path}, see 01-made.failed.txt" in caught.value.advice
    assert (tmp_path / "00-original.onnx").exists()
    assert "Mul" in (tmp_path / "01-made.failed.txt").read_text()


def test_progress_names_each_pass() -> None:
    heard: list[tuple[int, int, str]] = []
    context = PassContext(progress=lambda done, total, what: heard.append((done, total, what)))
    run_passes(small(), [make(remove_identity)], context)
    assert heard == [(0, 1, "made{size=2}"), (1, 1, "")]


@dataclasses.dataclass(frozen=True)
class Noise(Pass):
    """Draws numbers from the context's generator."""

    name: ClassVar[str] = "noise"
    exact: ClassVar[bool] = False

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        scale_weight(1 + context.rng().uniform(0, 0.01))(model)
        return PassResult(True)


def test_a_pass_can_run_the_model_as_it_was_before_the_first_pass() -> None:
    seen: list[list[str]] = []

    @dataclasses.dataclass(frozen=True)
    class Look(Pass):
        """Looks at the original."""

        name: ClassVar[str] = "look"
        exact: ClassVar[bool] = True

        def run(self, model: ir.Model, context: PassContext) -> PassResult:
            for each in (context.original, model):
                assert each is not None
                seen.append([node.op_type for node in each.graph])
            return PassResult(False)

    run_passes(small(), [make(remove_identity), Look()], PassContext())
    before, after = seen
    assert "Identity" in before and "Identity" not in after


def test_the_same_seed_gives_the_same_bytes() -> None:
    prints = []
    for seed in (1, 1, 2):
        model = small()
        run_passes(model, [Noise()], PassContext(seed=seed))
        prints.append(graph_ir.fingerprint(model))
    assert prints[0] == prints[1] != prints[2]


def test_a_users_pass_from_a_file_runs_like_any_other() -> None:
    passes: Registry[type[Pass]] = Registry("pass", "", check_pass)
    file = ROOT / "samples" / "custom_pass.py"
    assert load_plugin(file, passes) == ("hard-sigmoid",)
    model = parse("g (float[1,64] x) => (float[1,64] y) { y = Sigmoid(x) }")
    (record,) = run_passes(model, [parse_spec("hard-sigmoid{slope=0.25}", passes)], PassContext())
    assert record.statistics == {"rewritten": 1}
    assert [found.op_type for found in model.graph] == ["HardSigmoid"]
    assert 0 < record.comparison[0].relative < 0.15
    (again,) = run_passes(model, [parse_spec("hard-sigmoid", passes)], PassContext())
    assert not again.changed


def test_the_sample_pass_stays_under_twenty_lines() -> None:
    source = (ROOT / "samples" / "custom_pass.py").read_text()
    code = [line for line in source.splitlines() if line.strip() and not line.startswith(('"""', "from", "import"))]
    assert len(code) < 20
