"""What cannot be loaded ends in one clear ModelError."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt import ir
from graphopt.errors import GraphoptError, ModelError
from tests.unit.ir.models import BRANCHES, CONV, parse, with_external_data


def refusal(source: str | Path | bytes | onnx.ModelProto | onnx_ir.Model) -> str:
    with pytest.raises(GraphoptError) as caught:
        ir.load(source)
    assert caught.value.exit_status == 1
    assert "\n" not in caught.value.what
    return str(caught.value)


def edited(edit: Callable[[onnx.ModelProto], object], text: str = CONV) -> onnx.ModelProto:
    model = parse(text)
    edit(model)
    return model


def test_a_missing_file(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "absent.onnx")


def test_a_directory(tmp_path: Path) -> None:
    assert "is a directory" in refusal(tmp_path)


def test_a_device() -> None:
    assert "not a regular file" in refusal("/dev/null")


def test_a_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(parse(CONV).SerializeToString())
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    assert "Permission denied" in refusal(path)


@pytest.mark.parametrize("path", ["x" * 5000, "null\0byte"])
def test_a_path_that_no_file_can_have(path: str) -> None:
    assert re.search("cannot read|no such file", refusal(path))


@pytest.mark.parametrize("text", ["<html>404</html>", str(parse(CONV)), "ir_version: 8\n"])
def test_a_text_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_text(text)
    assert "is a text file" in refusal(path)


def test_a_git_lfs_pointer(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    assert "git lfs pull" in refusal(path)


def test_an_empty_file() -> None:
    assert "empty" in refusal(b"")


def test_every_truncation_of_a_file() -> None:
    data = edited(lambda m: m.ClearField("metadata_props")).SerializeToString()
    for size in range(len(data)):
        refusal(data[:size])


def test_bytes_that_are_no_protobuf() -> None:
    assert "not an ONNX model" in refusal(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR")


def test_text_in_the_model_that_is_not_utf8() -> None:
    data = parse(CONV).SerializeToString().replace(b"someone", b"some\xffne")
    assert "not UTF-8" in refusal(data)


def test_something_that_is_no_model() -> None:
    with pytest.raises(ModelError, match="from int"):
        ir.load(3)  # type: ignore[arg-type]


def test_a_missing_external_file(tmp_path: Path) -> None:
    path = with_external_data(tmp_path)
    (tmp_path / "weights.bin").unlink()
    message = refusal(path)
    assert "initializer 'w'" in message
    assert "'weights.bin', which cannot be read: No such file" in message


def test_an_external_file_that_is_too_short(tmp_path: Path) -> None:
    path = with_external_data(tmp_path)
    with (tmp_path / "weights.bin").open("r+b") as file:
        file.truncate(100)
    assert "needs bytes 16 to 448 of external file 'weights.bin', which has only 100" in refusal(path)


def test_an_external_length_that_differs_from_the_dimensions(tmp_path: Path) -> None:
    assert "needs 432 bytes, but its external data is declared to have 4" in refusal(
        with_external_data(tmp_path, length=4)
    )


@pytest.mark.parametrize("offset", [-1, "x", 10**30])
def test_an_external_offset_that_is_no_offset(tmp_path: Path, offset: str | int) -> None:
    assert "expected a non-negative number" in refusal(with_external_data(tmp_path, offset=offset))


def test_an_external_path_that_is_absolute(tmp_path: Path) -> None:
    outside = tmp_path / "weights.bin"
    (tmp_path / "model").mkdir()
    assert "absolute external data path" in refusal(with_external_data(tmp_path / "model", location=str(outside)))


@pytest.mark.parametrize("location", ["../secret", "below/../../secret", "..\\secret"])
def test_an_external_path_that_climbs_out(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    (folder / "below").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(bytes(1000))
    assert "outside the model's folder" in refusal(with_external_data(folder, location=location))


def test_an_external_path_that_leaves_through_a_symlink(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(1000))
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "up").symlink_to(tmp_path)
    assert "symbolic link" in refusal(with_external_data(folder, location="link"))
    assert "symbolic link" in refusal(with_external_data(folder, location="up/secret"))


def test_an_external_path_in_a_loop_of_symlinks(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "cannot be read" in refusal(with_external_data(tmp_path, location="loop"))


def test_an_external_file_with_a_second_hard_link(tmp_path: Path) -> None:
    path = with_external_data(tmp_path)
    (tmp_path / "other").hardlink_to(tmp_path / "weights.bin")
    assert "2 hard links" in refusal(path)


def test_external_data_without_a_path_to_look_beside(tmp_path: Path) -> None:
    data = with_external_data(tmp_path).read_bytes()
    assert "load the model by its path" in refusal(data)


def test_an_operator_that_no_standard_domain_knows() -> None:
    message = refusal(edited(lambda m: setattr(m.graph.node[1], "op_type", "Rellu")))
    assert "Rellu, did you mean Relu? (node 'act')" in message


def test_an_operator_of_a_later_opset() -> None:
    model = edited(lambda m: setattr(m.graph.node[1], "op_type", "Gelu"))
    assert "Gelu, which first came with opset 20; the model uses 17" in refusal(model)


def test_an_operator_of_a_standard_domain_that_is_not_imported() -> None:
    model = edited(lambda m: setattr(m.graph.node[1], "domain", "ai.onnx.ml"))
    model.graph.node[1].op_type = "Scaler"
    assert "'ai.onnx.ml' is not imported" in refusal(model)


def test_an_unknown_operator_inside_a_subgraph() -> None:
    model = edited(lambda m: setattr(m.graph.node[1].attribute[0].g.node[0], "op_type", "Nonsense"), BRANCHES)
    assert "Nonsense" in refusal(model)


def test_a_model_whose_checker_fails() -> None:
    model = edited(lambda m: m.graph.node[0].attribute.append(helper.make_attribute("pads", [0])))
    assert "is not valid ONNX" in refusal(model)


def test_nodes_that_are_not_in_order() -> None:
    def swap(model: onnx.ModelProto) -> None:
        first, second = helper.make_node("Relu", ["b"], ["y"]), helper.make_node("Relu", ["x"], ["b"])
        del model.graph.node[:]
        model.graph.node.extend([first, second])

    assert "topologically sorted" in refusal(edited(swap))


def test_two_producers_of_one_value() -> None:
    assert "not valid ONNX" in refusal(edited(lambda m: m.graph.node.append(m.graph.node[0])))


def test_an_output_that_nothing_makes() -> None:
    assert "no node makes the graph output 'z'" in refusal(edited(lambda m: setattr(m.graph.output[0], "name", "z")))


@pytest.mark.parametrize(("version", "words"), [(6, "uses opset 6, expected 7 to"), (999, "upgrade the onnx package")])
def test_an_opset_that_is_too_old_or_too_new(version: int, words: str) -> None:
    assert words in refusal(edited(lambda m: setattr(m.opset_import[0], "version", version)))


def test_an_opset_that_is_imported_twice() -> None:
    model = edited(lambda m: m.opset_import.append(helper.make_opsetid("ai.onnx", 13)))
    assert "imports operator set 'ai.onnx' twice: 17 and 13" in refusal(model)


@pytest.mark.parametrize("dims", [[2**40, 3, 3, 3], [2**62, 2**62], [4, 3, 3], [-1], [1] * 65, [0, 2**62]])
def test_dimensions_that_lie_about_the_data(dims: list[int]) -> None:
    def lie(model: onnx.ModelProto) -> None:
        weight = next(tensor for tensor in model.graph.initializer if tensor.name == "w")
        weight.dims[:] = dims

    assert "initializer 'w'" in refusal(edited(lie))


@pytest.mark.parametrize("field", ["float_data", "int32_data", "raw_data"])
def test_dimensions_without_data(field: str) -> None:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2**35])
    if field == "raw_data":
        weight.raw_data = b""
    elif field == "int32_data":
        weight.int32_data.extend([1])  # the field of another type

    def replace(model: onnx.ModelProto) -> None:
        del model.graph.initializer[:]
        model.graph.initializer.append(weight)

    assert "needs" in refusal(edited(replace))


def test_an_unknown_element_type() -> None:
    assert "unknown element type 99" in refusal(edited(lambda m: setattr(m.graph.initializer[0], "data_type", 99)))


def test_a_constant_whose_data_is_short() -> None:
    def shorten(model: onnx.ModelProto) -> None:
        tensor = numpy_helper.from_array(np.zeros(4, np.float32))
        tensor.dims[:] = [5]
        model.graph.node.insert(0, helper.make_node("Constant", [], ["k"], name="k", value=tensor))

    assert "attribute 'value' of Constant 'k'" in refusal(edited(shorten))


def test_a_sparse_initializer() -> None:
    sparse = onnx.SparseTensorProto(dims=[4])
    sparse.values.name = "s"
    assert "sparse tensor" in refusal(edited(lambda m: m.graph.sparse_initializer.append(sparse)))


def test_functions_that_call_each_other_in_a_circle() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
    net (float[2] x) => (float[2] y) { y = f.A (x) }
    <domain: "f", opset_import: ["f" : 1]> A (a) => (b) { b = f.B (a) }
    <domain: "f", opset_import: ["f" : 1]> B (a) => (b) { b = f.A (a) }"""
    assert "in a circle" in refusal(parse(text))


def test_functions_that_expand_without_bound() -> None:
    links = "".join(
        f'<domain: "f", opset_import: ["f" : 1]> F{i} (a) => (c) {{ b = f.F{i + 1} (a)  c = f.F{i + 1} (b) }}\n'
        for i in range(60)
    )
    text = f"""<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
    net (float[2] x) => (float[2] y) {{ y = f.F0 (x) }}
    {links}<domain: "f", opset_import: ["" : 17]> F60 (a) => (b) {{ b = Neg (a) }}"""
    assert "expected at most 1000000" in refusal(parse(text))


def test_a_call_that_does_not_fit_its_function() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
    net (float[2] x) => (float[2] y) { y, z = f.A (x) }
    <domain: "f", opset_import: ["" : 17]> A (a) => (b) { b = Neg (a) }"""
    assert "calls a function in a way that does not fit it" in refusal(parse(text))


def test_a_function_that_is_wrong_only_for_the_operands_of_a_call() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
    net (float[2] x) => (float[2] y) { y = f.A (, x) }
    <domain: "f", opset_import: ["" : 17]> A (a, b) => (c) { c = Neg (a) }"""
    assert "is not valid ONNX" in refusal(parse(text))


def test_subgraphs_within_subgraphs_without_end() -> None:
    graph = b""
    for _ in range(200):
        attribute = field(1, b"then_branch") + field(6, graph) + b"\xa0\x01\x05"  # name, g, type = GRAPH
        node = field(1, b"c") + field(2, b"o") + field(4, b"If") + field(5, attribute)
        graph = field(1, node) + field(2, b"g")
    assert "protobuf cannot parse" in refusal(b"\x08\x08" + field(7, graph) + field(8, b"\x0a\x00\x10\x11"))


def field(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field."""
    size, length = len(content), b""
    while True:
        length += bytes([size & 0x7F | (0x80 if size > 0x7F else 0)])
        size >>= 7
        if not size:
            return bytes([number << 3 | 2]) + length + content


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(parse(CONV).SerializeToString()[:-5])
    refusal(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_model_of_onnx_ir_is_checked_too() -> None:
    model = onnx_ir.from_proto(parse(CONV))
    model.graph.node("act").op_type = "Rellu"
    assert "Rellu, did you mean Relu?" in refusal(model)
    model = onnx_ir.from_proto(parse(CONV))
    conv = model.graph.node("conv")
    model.graph.remove(conv)
    model.graph.append(conv)
    assert "not a valid ONNX model" in refusal(model)
