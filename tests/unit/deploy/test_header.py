"""The C header: it compiles everywhere without a warning, and says what the model takes and gives."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.deploy.header import DTYPES, check_name, identifier, in_comment, render_header, tensor_bytes
from graphopt.deploy.toolchain import zig
from graphopt.errors import UnsupportedError, UsageError
from graphopt.targets.base import TensorSpec
from tests.targets.toy import INPUTS, OUTPUTS, output_of

AWKWARD = (TensorSpec("*/ #error ??/\n\\", "float16", (0, 2)), TensorSpec("Größe", "bool", ()))
PEDANTIC = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wundef", "-Werror", "-c", "-o")


@pytest.mark.parametrize("dialect", ["c99", "c11", "c2x", "c++11", "c++20"])
@pytest.mark.parametrize(
    "interface", [(INPUTS, OUTPUTS), (AWKWARD, AWKWARD), ((), ())], ids=["toy", "awkward", "empty"]
)
def test_it_compiles_without_a_warning(
    dialect: str, interface: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]], tmp_path: Path
) -> None:
    (tmp_path / "net.h").write_text(render_header("net", *interface), encoding="utf-8")
    source = tmp_path / ("use.cpp" if "++" in dialect else "use.c")
    source.write_text('#include "net.h"\n#include "net.h"\nint use(void);\nint use(void) { return NET_INPUT_COUNT; }\n')
    output_of(
        *zig("c++" if "++" in dialect else "cc"),
        f"-std={dialect}",
        *PEDANTIC,
        tmp_path / "use.o",
        "-I",
        tmp_path,
        source,
    )
    if gcc := shutil.which("g++" if "++" in dialect else "gcc"):
        output_of(gcc, f"-std={dialect}", *PEDANTIC, tmp_path / "use.o", "-I", tmp_path, source)


def test_it_lists_inputs_and_outputs() -> None:
    text = render_header("net", INPUTS, OUTPUTS)
    assert " *   0  x  float32[3, 8], 96 bytes\n *   1  y  float32[24], 96 bytes\n *   2  n  int64[], 8 bytes\n" in text
    assert '*   0  sum "of" * / both  float32[3, 8], 96 bytes\n' in text
    assert "#define NET_INPUT_2_BYTES 8u\n#define NET_OUTPUT_COUNT 4\n" in text


def test_a_type_that_c_lacks_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="output 'y' has type float8_e4m3fn; the C interface has float32, uint8"):
        render_header("net", (), (TensorSpec("y", "float8_e4m3fn", (1,)),))


@pytest.mark.parametrize("name", ["", "1net", "a-b", "été", "a b", "_x", "pthread", "timer", "Sem"])
def test_a_name_that_cannot_prefix_c_symbols_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot name a library"):
        check_name(name)


@given(st.text())
def test_any_file_name_gives_a_usable_name(stem: str) -> None:
    check_name(identifier(stem))


def test_names_stay_recognizable() -> None:
    assert identifier("mobilenet_v2-1.0") == "mobilenet_v2_1_0"
    assert identifier("3d-net") == "model_3d_net"
    assert identifier("timer") == "timer_model"


@given(st.text())
def test_no_text_leaves_a_comment(text: str) -> None:
    shown = in_comment(text)
    assert "*/" not in shown and "/*" not in shown and "\n" not in shown and not shown.endswith("\\")


@given(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 9), max_size=4))
def test_sizes_are_those_of_dense_tensors(dtype: str, shape: list[int]) -> None:
    width = {"float64": 8, "int64": 8, "uint64": 8, "float32": 4, "int32": 4, "uint32": 4}.get(dtype)
    width = width or (2 if "16" in dtype else 1)
    assert tensor_bytes(TensorSpec("x", dtype, tuple(shape))) == width * math.prod(shape)
