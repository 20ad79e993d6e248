"""Target descriptions against those who know: the LLVM inside TVM, and the emulator's processors."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import tvm

from graphopt.errors import InternalError, UsageError
from graphopt.pipeline.registry import TARGETS
from graphopt.targets.arm.cores import CORES, read_cores
from graphopt.targets.base import TargetDescription
from graphopt.targets.host import HOST, arm_processor, cache_bytes, describe_host, x86_processor

PROMISED = {
    *("arm", "armv7", "host", "apple-m1", "cortex-a53", "cortex-a55", "cortex-a72", "cortex-a76", "cortex-a78"),
    *("cortex-a510", "cortex-a710", "cortex-x2", "neoverse-n1", "neoverse-v1", "neoverse-n2"),
}
LLVM_NAMES = {  # our feature -> LLVM's
    "neon": "neon",
    "dotprod": "dotprod",
    "fp16": "fullfp16",
    "bf16": "bf16",
    "i8mm": "i8mm",
    "sve": "sve",
    "sve2": "sve2",
}
EMULATED_64 = [core for core in CORES if core.emulator and core.pointer_bits == 64]

# Prints the features of AT_HWCAP and AT_HWCAP2 by our names, and the length of an SVE vector in bits.
PROBE = r"""
#include <stdio.h>
#include <sys/auxv.h>
int main(void) {
  unsigned long a = getauxval(AT_HWCAP), b = getauxval(AT_HWCAP2), length = 0;
  if (a >> 1 & 1) puts("neon");
  if (a >> 20 & 1) puts("dotprod");
  if (a >> 10 & 1) puts("fp16");
  if (a >> 22 & 1) puts("sve");
  if (b >> 1 & 1) puts("sve2");
  if (b >> 13 & 1) puts("i8mm");
  if (b >> 14 & 1) puts("bf16");
  if (a >> 22 & 1) __asm__(".arch_extension sve\n\trdvl %0, #8" : "=r"(length));
  if (length) printf("%lu\n", length);
  return 0;
}
"""


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    (folder / "probe.c").write_text(PROBE)
    subprocess.run(["aarch64-linux-gnu-gcc", "-static", "-o", "probe", "probe.c"], cwd=folder, check=True)
    return folder / "probe"


def llvm_has(core: TargetDescription, feature: str) -> bool:
    attributes = list(core.llvm_attributes)
    target = tvm.target.Target({"kind": "llvm", "mtriple": core.triple, "mcpu": core.mcpu, "mattr": attributes})
    return bool(tvm.get_global_func("target.target_has_feature")(feature, target))


def test_registry_has_every_promised_target_and_nothing_is_broken() -> None:
    assert set(TARGETS.names()) >= PROMISED
    assert TARGETS.broken() == ()


def test_unknown_target_lists_the_nearest() -> None:
    with pytest.raises(UsageError, match="cortex-a72") as caught:
        TARGETS.find("cortex-a73")
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("core", CORES, ids=lambda core: core.name)
def test_features_are_exactly_those_that_llvm_gives_the_processor(core: TargetDescription) -> None:
    found = {ours for ours, llvm in LLVM_NAMES.items() if llvm_has(core, llvm)}
    assert set(core.features) == found


@pytest.mark.parametrize("core", CORES, ids=lambda core: core.name)
def test_llvm_knows_the_processor_by_name(core: TargetDescription) -> None:
    target = tvm.target.Target({"kind": "llvm", "mtriple": core.triple, "mcpu": core.mcpu})
    listed = {"apple-m1": "apple-a14"}.get(core.mcpu, core.mcpu)  # LLVM's list leaves out its own aliases
    assert listed in tvm.target.codegen.llvm_get_cpu_archlist(target)


@pytest.mark.parametrize("core", CORES, ids=lambda core: core.name)
def test_caches_grow_with_distance_and_every_fact_names_its_source(core: TargetDescription) -> None:
    assert 0 < core.l1d_bytes < core.l2_bytes
    assert {fact for fact, _ in core.sources} >= {"features", "caches"}
    assert core.channel_multiple * 32 % core.vector_bits == 0


@pytest.mark.emulation
@pytest.mark.parametrize("core", EMULATED_64, ids=lambda core: core.name)
def test_emulator_has_every_feature_of_the_core(core: TargetDescription, probe: Path) -> None:
    run = subprocess.run([*core.emulator, str(probe)], check=True, capture_output=True, text=True)
    found = run.stdout.split()
    assert set(core.features) <= set(found)
    if "sve" not in core.features:  # so that instructions of later cores stop the program there
        assert set(found) <= {"neon", "dotprod", "fp16"}
    if "dotprod" not in core.features:
        assert "dotprod" not in found
    if "sve" in core.features:
        assert found[-1] == ("256" if core.name == "neoverse-v1" else "128")


@pytest.mark.parametrize("key", ["l1d_byte", "colour"])
def test_misspelt_key_of_a_core_is_named(key: str) -> None:
    with pytest.raises(InternalError, match=rf"core 'odd' lacks .* unknown keys \['{key}'\]"):
        read_cores(f"[odd]\n{key} = 1\n")


def test_host_is_this_machine_and_llvm_agrees_with_its_features() -> None:
    assert HOST.name == "host"
    assert HOST.emulator == ()
    assert HOST.zig_target == ""
    for feature in HOST.features:
        assert llvm_has(HOST, LLVM_NAMES.get(feature, feature)), feature


V2 = "flags : cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3"
V3 = f"{V2} avx avx2 bmi1 bmi2 f16c fma abm movbe"
V4 = f"{V3} avx512f avx512bw avx512cd avx512dq avx512vl"


@pytest.mark.parametrize(
    ("flags", "level", "bits"),
    [
        ("flags : fpu sse2", "x86-64", 128),
        (V2, "x86-64-v2", 128),
        (V3, "x86-64-v3", 256),
        (V4, "x86-64-v4", 512),
        (V3.replace(" fma", ""), "x86-64-v2", 128),
        (V4.replace(" movbe", ""), "x86-64-v2", 128),
        ("", "x86-64", 128),
    ],
)
def test_x86_level_is_the_highest_whose_flags_are_all_present(flags: str, level: str, bits: int) -> None:
    processor = x86_processor(f"processor : 0\n{flags}\n")
    assert (processor.mcpu, processor.vector_bits) == (level, bits)


def test_arm_host_has_the_features_that_linux_lists() -> None:
    processor = arm_processor("processor\t: 0\nFeatures\t: fp asimd evtstrm aes asimdhp asimddp i8mm\n")
    assert processor.features == ("neon", "dotprod", "fp16", "i8mm")
    assert processor.llvm_attributes == ("+neon", "+dotprod", "+fullfp16", "+i8mm")


def test_cache_size_is_the_share_of_one_core(tmp_path: Path) -> None:
    index = tmp_path / "index2"
    index.mkdir()
    for name, text in (("level", "2\n"), ("type", "Unified\n"), ("size", "1024K\n"), ("shared_cpu_map", "0000000f\n")):
        (index / name).write_text(text)
    assert cache_bytes(tmp_path, 2) == 262_144
    assert cache_bytes(tmp_path, 1) == 0


def test_mac_is_described_as_apple_m1_that_runs_here(tmp_path: Path) -> None:
    mac = describe_host("Darwin", "arm64", "", tmp_path)
    assert (mac.name, mac.mcpu, mac.zig_target) == ("host", "apple-m1", "")


def test_machine_without_code_generation_is_refused_as_host(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Linux on riscv64"):
        describe_host("Linux", "riscv64", "", tmp_path)
