"""Saving is whole or nothing, and the same bytes every time; external weights are never read into memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest

from graphopt import ir
from graphopt.errors import ModelError, UsageError
from graphopt.ir import saving
from tests.unit.ir.models import BRANCHES, CONV, LOOP, SCAN, parse, with_external_data


def weight(model: onnx_ir.Model, name: str = "w") -> np.ndarray:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


@pytest.mark.parametrize("text", [CONV, BRANCHES, LOOP, SCAN])
def test_the_same_model_gives_the_same_bytes(text: str, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        ir.save(ir.load(parse(text)), tmp_path / name)
    ir.save(ir.clone(ir.load(tmp_path / "a")), tmp_path / "c")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


def test_saving_does_not_change_the_model(tmp_path: Path) -> None:
    model = ir.load(with_external_data(tmp_path))
    before, tensor = ir.to_text(model), model.graph.initializers["w"].const_value
    (tmp_path / "out").mkdir()
    ir.save(model, tmp_path / "out" / "model.onnx", external_data="data.bin")
    assert ir.to_text(model) == before
    assert model.graph.initializers["w"].const_value is tensor


def test_small_external_weights_move_into_the_file(tmp_path: Path) -> None:
    model = ir.load(with_external_data(tmp_path))
    (tmp_path / "out").mkdir()
    ir.save(model, tmp_path / "out" / "model.onnx")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.onnx"]
    np.testing.assert_array_equal(weight(ir.load(tmp_path / "out" / "model.onnx")), weight(model))


def test_external_data_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "_INLINE_BYTES", 64)
    model = ir.load(parse(CONV))
    ir.save(model, tmp_path / "model.onnx", external_data="weights.bin")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "weights.bin"]
    external = {tensor.name for tensor in proto_of(tmp_path).graph.initializer if tensor.data_location == 1}
    assert external == {"w"}  # the small shape stays where shape inference reads it
    loaded = ir.load(tmp_path / "model.onnx")
    assert ir.fingerprint(loaded) == ir.fingerprint(model)
    onnx.checker.check_model(str(tmp_path / "model.onnx"))


def proto_of(folder: Path) -> onnx.ModelProto:
    return onnx.load(folder / "model.onnx", load_external_data=False)


def test_weights_beyond_two_gigabytes_become_external_by_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "_INLINE_BYTES", 64)
    monkeypatch.setattr(saving, "MAX_PROTO_BYTES", saving.GRAPH_ROOM + 400)
    ir.save(ir.load(parse(CONV)), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx.data").stat().st_size == 432


def test_a_model_may_be_saved_over_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "_INLINE_BYTES", 64)
    path = with_external_data(tmp_path)  # whose weight begins at offset 16; the new file's at 0
    model = ir.load(path)
    other = ir.clone(model)
    ir.save(model, path, external_data="weights.bin")
    np.testing.assert_array_equal(weight(model).reshape(-1), np.arange(108))
    np.testing.assert_array_equal(weight(ir.load(path)).reshape(-1), np.arange(108))
    with pytest.raises(ValueError, match="invalidated"):  # rather than bytes from the wrong place
        weight(other)
    ir.save(model, path, external_data="weights.bin")
    np.testing.assert_array_equal(weight(ir.load(path)).reshape(-1), np.arange(108))


@pytest.mark.parametrize("name", ["../weights.bin", "below/weights.bin", "/weights.bin", "", "model.onnx"])
def test_external_data_must_lie_beside_the_model(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="name of another file"):
        ir.save(ir.load(parse(CONV)), tmp_path / "model.onnx", external_data=name)


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")

    def fail(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(ModelError, match="No space left on device"):
        ir.save(ir.load(parse(CONV)), path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="No such file or directory"):
        ir.save(ir.load(parse(CONV)), tmp_path / "absent" / "model.onnx")


_EDIT_ONE_WEIGHT = """
import re, sys, time
from pathlib import Path
import numpy as np, onnx_ir
from graphopt import ir
folder = Path(sys.argv[1])
began = time.monotonic()
model = ir.load(folder / "model.onnx")
value = model.graph.initializers["w3"]
edited = value.const_value.numpy().copy()
edited[5, 7] = 1.5
value.const_value = onnx_ir.tensor(edited, name="w3")
ir.refresh_shapes(model)
ir.verify(model)
ir.save(model, folder / "out" / "model.onnx")
# Not ru_maxrss: that of a child starts at its parent's.
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(time.monotonic() - began, int(peak.group(1)) * 1024)
"""


def test_one_weight_of_a_3_gb_model_is_edited_in_little_memory_and_time(tmp_path: Path) -> None:
    count, rows, columns = 12, 1024, 1 << 16
    size = 4 * rows * columns
    names = ", ".join(f"float[{rows},{columns}] w{i}" for i in range(count))
    nodes = "\n".join(f"y{i} = MatMul (x, w{i})" for i in range(count))
    sum_ = f"y = Sum ({', '.join(f'y{i}' for i in range(count))})"
    proto = parse(f"""<ir_version: 8, opset_import: ["" : 17]>
        net (float[N,{rows}] x, {names}) => (float[N,{columns}] y) {{ {nodes}\n{sum_} }}""")
    del proto.graph.input[1:]
    for i in range(count):
        tensor = proto.graph.initializer.add(name=f"w{i}", data_type=1, dims=[rows, columns], data_location=1)
        for key, value in {"location": "weights.bin", "offset": i * size, "length": size}.items():
            tensor.external_data.add(key=key, value=str(value))
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate(count * size)
        file.seek(11 * size)
        file.write(np.float32(2.5).tobytes())
    if (tmp_path / "weights.bin").stat().st_blocks * 512 > size:
        pytest.skip("this file system keeps no sparse files")
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _EDIT_ONE_WEIGHT, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(ir.__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, memory = map(float, done.stdout.split())
    assert seconds < 10
    assert memory < 1.2 * count * size
    saved = ir.load(tmp_path / "out" / "model.onnx")
    assert weight(saved, "w3")[5, 7] == 1.5
    assert weight(saved, "w11")[0, 0] == 2.5
    assert (tmp_path / "out" / "model.onnx.data").stat().st_size == count * size
