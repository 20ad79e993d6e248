"""The JSON report: it fits its schema, is deterministic, and says what was done."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, ClassVar

import jsonschema
import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

import graphopt
import graphopt.ir as graph_ir
from graphopt.analysis.accuracy import AccuracyDrop
from graphopt.analysis.comparison import OutputComparison
from graphopt.formatting import change_of, plain, to_json
from graphopt.pipeline.base import Declined, Pass, PassContext, PassResult, option
from graphopt.pipeline.manager import run_passes
from graphopt.pipeline.registry import TARGETS
from graphopt.pipeline.report import SCHEMA_FILE, SCHEMA_VERSION, Snapshot, build_report, tool_versions
from graphopt.pipeline.report_html import to_html
from graphopt.targets.base import Library, TensorSpec

SCHEMA = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))


@dataclasses.dataclass(frozen=True)
class DropIdentity(Pass):
    """Remove the Identity; decline the first MatMul."""

    name: ClassVar[str] = "drop-identity"
    exact: ClassVar[bool] = True
    share: float = option(0.5, "a number")

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        for node in list(model.graph):
            if node.op_type == "Identity":
                ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
                model.graph.remove(node, safe=True)
        return PassResult(True, {"removed": 1, "best": float("inf")}, (Declined("first", "its <weight> is shared"),))


def model() -> ir.Model:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17], producer_name: "tests">
        net (float[1,4] x) => (float[1,4] y) { a = MatMul(x, w) b = Identity(a) y = MatMul(b, w) }"""
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"))
    for node, name in zip(proto.graph.node, ("first", "pass", "second"), strict=True):
        node.name = name
    loaded = graph_ir.load(proto)
    graph_ir.refresh_shapes(loaded)
    return loaded


def full_report(folder: Path, **changes: Any) -> dict[str, Any]:
    """A report with every part."""
    work = model()
    before = Snapshot.of(work, name="net", file_bytes=1000)
    records = run_passes(work, [DropIdentity(share=0.25)], PassContext())
    for suffix in ("so", "a"):
        (folder / f"libnet.{suffix}").write_bytes(b"x" * 10)
    library = Library(
        shared=folder / "libnet.so", static=folder / "libnet.a",
        inputs=(TensorSpec("x", "float32", (1, 4)),), outputs=(TensorSpec("y", "float32", (1, 4)),),
        arena_bytes=64, weight_bytes=64,
        layers=({"name": "first", "kernel": "matmul", "nodes": ["first"]}, {"kernel": "matmul", "nodes": ["second"]}),
        timings={"compile": 12.5},
    )  # fmt: skip
    arguments: dict[str, Any] = {
        "after": Snapshot.of(work, name="net", file_bytes=900),
        "passes": records,
        "comparison": [OutputComparison("y", 0.0, 0.0, float("inf"), 1.0)],
        "accuracy": AccuracyDrop("agreement", "y", 1.0, 0.75, 8),
        "target": TARGETS.find("cortex-a76"),
        "recipe": {"target": "cortex-a76", "seed": 0, "pass": [{"name": "drop-identity", "share": 0.25}]},
        "library": library,
        "library_name": "net",
        "noise": {"first": 31.25, "second": float("inf")},
        "sensitivity": SENSITIVITY,
        "groups": GROUPS,
        "ranks": RANKS,
        "warnings": ["something"],
    }
    return build_report("optimize", before, **(arguments | changes))


GROUPS = [
    {"name": "first", "width": 4, "makers": ["first"], "readers": ["second"], "macs": 32, "least": 0.5, "most": 1.75,
     "protection": []},
    {"name": "second", "width": 4, "makers": ["second"], "readers": [], "macs": 16, "least": 1.0, "most": 1.0,
     "protection": ["they reach the output 'y'"]},
]  # fmt: skip

RANKS = [
    {"layer": "first", "op": "MatMul", "outputs": 4, "features": 4, "full_rank": 4, "break_even": 1,
     "profile": [1.0, 0.25, 0.0], "savings": [{"energy": 0.9, "rank": 2, "macs": -0.5, "params": 0.25}]},
    {"layer": "second", "op": "MatMul", "outputs": 4, "features": 4, "full_rank": 4, "break_even": 0,
     "profile": [1.0, 0.75, 0.0], "savings": [{"energy": 0.9, "rank": 2, "macs": -0.5, "params": 0.25}]},
]  # fmt: skip

SENSITIVITY = {
    "measure": "agreement",
    "samples": 7,
    "layers": [
        {"layer": "first", "op": "MatMul", "sqnr_db": 20.5, "drop": 0.125, "macs": 16, "macs_share": 0.5},
        {"layer": "second", "op": "MatMul", "sqnr_db": float("inf"), "drop": 0.0, "macs": None, "macs_share": None},
    ],
}


def quantized_report() -> dict[str, Any]:
    """On a model with one product on integers, one with small weights, and one that a pass left alone."""
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17], producer_name: "tests">
        net (float[1,4] x) => (float[1,4] y) {
            q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) v = DequantizeLinear(wq, s)
            a = MatMul(d, v) b = MatMul(a, v) y = MatMul(b, w) }"""
    )
    constants = {
        "s": np.float32(0.1),
        "z": np.int8(1),
        "wq": np.eye(4, dtype=np.int8),
        "w": np.eye(4, dtype=np.float32),
    }
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in constants.items())
    for node, name in zip(proto.graph.node, ("q", "d", "v", "integer", "weights", "first"), strict=True):
        node.name = name
    loaded = graph_ir.load(proto)
    graph_ir.refresh_shapes(loaded)
    snapshot = Snapshot.of(loaded, name="net", file_bytes=None)
    records = run_passes(model(), [DropIdentity()], PassContext())
    return build_report("optimize", snapshot, after=snapshot, passes=records, noise={"integer": 31.25})


def test_a_quantized_model_says_how_and_each_layer_what_it_computes_in() -> None:
    report = quantized_report()
    jsonschema.validate(report, SCHEMA)
    found = report["quantization"]
    assert found["form"] == "QDQ + weights" and found["integer_macs"] == 16
    assert found["operators"] == {"MatMul": {"integer": 1, "small_weights": 1, "float": 1}}
    assert found["activations"]["text"] == "int8, asymmetric, per tensor"
    layers = {layer["name"]: (layer["precision"], layer["sqnr_db"]) for layer in report["layers"]}
    assert layers == {
        "q": (None, None),
        "d": (None, None),
        "v": (None, None),
        "integer": ("int8", 31.25),
        "weights": ("float32, weights int8", None),
        "first": ("float32", None),
    }


def test_a_model_in_floats_has_no_quantization(tmp_path: Path) -> None:
    report = full_report(tmp_path)
    assert report["quantization"] is None and report["layers"][0]["precision"] == "float32"
    assert [layer["sqnr_db"] for layer in report["layers"]] == [31.25, "inf"]
    assert report["sensitivity"]["layers"][1]["sqnr_db"] == "inf" and report["sensitivity"]["samples"] == 7


def test_the_schema_is_valid_and_of_this_version() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["schema_version"] == {"const": SCHEMA_VERSION}


def test_a_full_report_fits_the_schema(tmp_path: Path) -> None:
    report = full_report(tmp_path)
    jsonschema.validate(report, SCHEMA)
    assert json.loads(to_json(report)) == report


def test_a_report_on_a_model_in_memory_fits_the_schema() -> None:
    jsonschema.validate(build_report("inspect", Snapshot.of(model(), name="net", file_bytes=None)), SCHEMA)


@pytest.mark.parametrize("part", ["totals", "layers", "library", "warnings", "tools"])
def test_the_schema_refuses_a_report_without_a_part(part: str, tmp_path: Path) -> None:
    report = full_report(tmp_path)
    del report[part]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(report, SCHEMA)


def test_the_schema_describes_every_key(tmp_path: Path) -> None:
    report = full_report(tmp_path)
    report["layers"][0]["surprise"] = 1
    with pytest.raises(jsonschema.ValidationError, match="surprise"):
        jsonschema.validate(report, SCHEMA)


def test_it_says_what_each_pass_did_and_declined(tmp_path: Path) -> None:
    report = full_report(tmp_path)
    (record,) = report["passes"]
    assert record["spec"] == "drop-identity{share=0.25}" and record["exact"] and record["changed"]
    assert record["nodes"] == {"before": 3, "after": 2} and record["macs"] == {"before": 32, "after": 32}
    assert record["statistics"] == {"removed": 1, "best": "inf"}
    assert record["declined"] == [{"layer": "first", "reason": "its <weight> is shared"}]
    assert record["comparison"][0]["name"] == "y" and record["comparison_skipped"] == ""


def test_layers_carry_costs_kernels_and_reasons(tmp_path: Path) -> None:
    first, second = full_report(tmp_path)["layers"]
    assert (first["name"], first["op"], first["macs"], first["params"]) == ("first", "MatMul", 16, 16)
    assert first["inputs"] == [[1, 4], [4, 4]] and first["outputs"] == [[1, 4]]
    assert first["declined"] == [{"pass": "drop-identity{share=0.25}", "reason": "its <weight> is shared"}]
    assert second["kernels"] == ["matmul"] and second["declined"] == []


def test_a_layer_without_a_name_gets_its_reasons_too(tmp_path: Path) -> None:
    nameless = model()
    for node in nameless.graph:
        node.name = None
    snapshot = Snapshot.of(nameless, name="net", file_bytes=None)
    record = dataclasses.replace(
        run_passes(model(), [DropIdentity()], PassContext())[0], declined=(Declined("MatMul of 'y'", "too small"),)
    )
    layers = build_report("optimize", snapshot, after=snapshot, passes=[record])["layers"]
    assert {layer["name"]: [item["reason"] for item in layer["declined"]] for layer in layers} == {
        "MatMul_0": [],
        "Identity_1": [],
        "MatMul_2": ["too small"],
    }


def test_totals_count_a_shared_weight_once(tmp_path: Path) -> None:
    totals = full_report(tmp_path)["totals"]
    assert totals["before"] == totals["after"] | {"nodes": 3, "layers": 3, "activation_bytes": 48, "file_bytes": 1000}
    assert totals["after"]["params"] == 16 and totals["after"]["file_bytes"] == 900


def test_it_holds_neither_seconds_nor_the_folder(tmp_path: Path) -> None:
    text = to_json(full_report(tmp_path))
    assert str(tmp_path) not in text and "12.5" not in text and "seconds" not in text
    assert not re.search(r"\b20\d\d-\d\d-\d\d", text)


def test_the_same_work_gives_the_same_text(tmp_path: Path) -> None:
    assert to_json(full_report(tmp_path)) == to_json(full_report(tmp_path))


def test_numbers_that_json_lacks_become_words() -> None:
    assert plain({"a": (1, float("nan")), "b": -float("inf")}) == {"a": [1, "nan"], "b": "-inf"}
    with pytest.raises(ValueError):
        to_json({"a": float("nan")})


def test_tools_are_named_with_versions_and_without_importing_them() -> None:
    versions = tool_versions()
    assert versions["graphopt"] == graphopt.__version__ and versions["onnx"] == onnx.__version__
    assert all(versions.values())


def test_every_field_of_the_schema_is_in_the_documentation() -> None:
    text = (Path(graphopt.__file__).resolve().parent.parent / "docs" / "report.md").read_text(encoding="utf-8")
    fields = set(SCHEMA["properties"]) | {
        name for part in SCHEMA["$defs"].values() for name in part.get("properties", ())
    }
    missing = sorted(name for name in fields if f"`{name}`" not in text)
    assert not missing


def test_a_total_without_some_layers_is_a_lower_bound_and_has_no_change(tmp_path: Path) -> None:
    report = full_report(tmp_path)
    report["totals"]["before"] |= {"macs": 20, "uncounted": 3}
    page = to_html(report)
    assert "≥ 20" in page and "without layers of unknown shape" in page
    before, after = report["totals"]["before"], report["totals"]["after"]
    assert change_of(before, after, "macs") == "–" != change_of(before, after, "nodes")
