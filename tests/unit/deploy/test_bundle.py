"""A bundle's folder: what is written, that it is the same each time, and how a broken one is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx.parser
import pytest

from graphopt.deploy import Bundle, open_bundle
from graphopt.deploy.bundle import write_bundle
from graphopt.errors import DataError, ShapeError
from graphopt.ir import load
from tests.targets.toy import INPUTS, OUTPUTS, TARGETS
from tests.unit.deploy.toy_bundle import ToyBackend, make_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("bundle") / "toy.host")


def test_it_holds_what_a_c_programmer_needs(bundle: Bundle) -> None:
    files = {str(file.relative_to(bundle.folder)) for file in bundle.folder.rglob("*") if file.is_file()}
    assert {
        "include/toy.h",
        "lib/libtoy.a",
        "lib/libtoy.so",
        "lib/cmake/toy/toyConfig.cmake",
        "lib/cmake/toy/toyConfigVersion.cmake",
        "example.c",
    } <= files


def test_it_is_found_again(bundle: Bundle) -> None:
    assert (bundle.name, bundle.target, bundle.inputs, bundle.outputs) == ("toy", "host", INPUTS, OUTPUTS)
    assert all(path.is_file() for path in (bundle.model, bundle.header, bundle.static, bundle.example))


def test_the_macs_of_a_node_that_takes_several_kernels_count_once(bundle: Bundle, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle.folder, tmp_path / "copy")
    report = json.loads((copy / "report.json").read_text())
    report["layers"] = [{"name": name, "macs": macs} for name, macs in (("a", 5), ("b", 7), ("c", None))]
    report["library"]["calls"] = [{"kernel": "k", "nodes": nodes} for nodes in (["a"], ["a", "b"], ["c"])]
    (copy / "report.json").write_text(json.dumps(report))
    assert open_bundle(copy).macs == (0, 12, 0)


def test_no_file_tells_where_it_was_made(bundle: Bundle) -> None:
    for file in (bundle.header, bundle.example, bundle.static, *bundle.folder.glob("lib/cmake/toy/*")):
        assert str(bundle.folder.parent).encode() not in file.read_bytes(), file


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "report.json cannot be read"),
        ("{", "report.json cannot be read"),
        ("[]", "report.json cannot be read"),
        ('{"schema_version": 2, "kind": "optimize"}', "schema version 2 and kind 'optimize', expected version 1"),
        ('{"schema_version": 1, "kind": "inspect"}', "kind 'inspect', expected version 1 and a library"),
    ],
)
def test_a_folder_that_is_no_bundle_is_refused(text: str | None, said: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "report.json").write_text(text)
    with pytest.raises(DataError, match=said):
        open_bundle(tmp_path)


def test_a_report_that_lacks_a_field_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    report = json.loads((bundle.folder / "report.json").read_text())
    del report["library"]["inputs"]
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(DataError, match=r"report.json lacks 'inputs'"):
        open_bundle(tmp_path)


def test_missing_files_are_named(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes((bundle.folder / "report.json").read_bytes())
    with pytest.raises(DataError, match=r"not a whole bundle: model.onnx is missing"):
        open_bundle(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        open_bundle(tmp_path / "nothing")


def test_an_interface_with_open_shapes_is_refused(tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["": 17]> g (float[N,2] x) => (float[N,2] y) { y = Relu(x) }'
    model = load(onnx.parser.parse_model(text))
    with pytest.raises(ShapeError, match=r"'x' has .* expected a static shape"):
        write_bundle(
            model,
            TARGETS["host"],
            name="toy",
            folder=tmp_path,
            jobs=1,
            progress=lambda *_: None,
            backend=ToyBackend(),
        )
