"""The machine at hand as a target: what its operating system says of it."""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from pathlib import Path

from graphopt.errors import UsageError
from graphopt.targets.arm.cores import CORES
from graphopt.targets.base import Issue, TargetDescription

_SYSFS_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")

# The x86-64 levels of the psABI, best first: LLVM's processor, vector bits, and flags of /proc/cpuinfo that it needs
# beyond the level below. A level rather than the exact processor: libraries for `host` stay usable on its like.
_X86_LEVELS = (
    ("x86-64-v4", 512, {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
    ("x86-64-v3", 256, {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"}),
    ("x86-64-v2", 128, {"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"}),
)

# Linux's name in /proc/cpuinfo -> our feature, LLVM's attribute (Documentation/arch/arm64/elf_hwcaps.rst).
_ARM_FEATURES = {
    "asimd": ("neon", "+neon"),
    "asimddp": ("dotprod", "+dotprod"),
    "asimdhp": ("fp16", "+fullfp16"),
    "bf16": ("bf16", "+bf16"),
    "i8mm": ("i8mm", "+i8mm"),
    "sve": ("sve", "+sve"),
    "sve2": ("sve2", "+sve2"),
}


@dataclass(frozen=True)
class Processor:
    """What code generation needs to know of a processor."""

    mcpu: str
    features: tuple[str, ...]
    llvm_attributes: tuple[str, ...]
    vector_bits: int


def x86_processor(cpuinfo: str) -> Processor:
    """The highest x86-64 level whose flags, and those of the levels below, are all in this text of /proc/cpuinfo."""
    flags = _flags(cpuinfo, "flags")
    for position, (level, bits, _) in enumerate(_X86_LEVELS):
        if flags >= set().union(*(needed for _, _, needed in _X86_LEVELS[position:])):
            known = {"avx2", "fma", "avx512f"} & flags if bits > 128 else set()
            return Processor(level, tuple(sorted(known)), (), bits)
    return Processor("x86-64", (), (), 128)


def arm_processor(cpuinfo: str) -> Processor:
    """A generic 64-bit ARM core with the features that this text of /proc/cpuinfo lists."""
    present = [_ARM_FEATURES[flag] for flag in _ARM_FEATURES if flag in _flags(cpuinfo, "Features")]
    return Processor("generic", tuple(ours for ours, _ in present), tuple(llvm for _, llvm in present), 128)


def cache_bytes(folder: Path, level: int) -> int:
    """The size of a core's data cache of this level, its share if several cores have it; 0 where sysfs does not say."""
    for index in sorted(folder.glob("index[0-9]*")):
        try:
            found = int((index / "level").read_text())
            kind = (index / "type").read_text().strip()
            size = (index / "size").read_text().strip()
            sharing = (index / "shared_cpu_map").read_text()
        except OSError:
            continue  # containers may hide single files: the size stays unknown
        if found == level and kind in ("Data", "Unified"):
            unit = {"K": 1024, "M": 1024**2}.get(size[-1], 1)
            return int(size.rstrip("KM")) * unit // max(1, int(sharing.replace(",", ""), 16).bit_count())
    return 0


def describe_host(system: str, machine: str, cpuinfo: str, caches: Path) -> TargetDescription:
    """The description of a machine from what `platform`, /proc/cpuinfo and sysfs say of it.

    Raises UsageError if there is no code generation for it.
    """
    if (system, machine) == ("Darwin", "arm64"):
        mac = next(core for core in CORES if core.name == "apple-m1")
        return replace(mac, name="host", summary="this machine (Apple silicon)", zig_target="")
    detect = {"x86_64": x86_processor, "aarch64": arm_processor}.get(machine)
    if system != "Linux" or detect is None:
        raise UsageError(
            f"target 'host': this machine is {system} on {machine}, for which there is no code generation",
            advice="name another target; the host may be Linux on x86_64 or aarch64, or macOS on arm64",
        )
    processor = detect(cpuinfo)
    said = ("processor", "/proc/cpuinfo")
    return TargetDescription(
        name="host",
        summary=f"this machine ({machine}, {processor.mcpu})",
        triple=f"{machine}-linux-gnu",
        mcpu=processor.mcpu,
        features=processor.features,
        llvm_attributes=processor.llvm_attributes,
        pointer_bits=64,
        vector_bits=processor.vector_bits,
        l1d_bytes=cache_bytes(caches, 1),
        l2_bytes=cache_bytes(caches, 2),
        issue=Issue(in_order=False, width=4, vectors=2, loads=2, load_bytes=2 * processor.vector_bits // 8, latency=4),
        channel_multiple=max(8, processor.vector_bits // 32),
        quantization=("int8", "int16x8", "dynamic-int8", "weights-int8", "weights-int4", "weights-float16"),
        emulator=(),
        zig_target="",
        sources=(said, ("caches", str(_SYSFS_CACHES))),
    )


def _flags(cpuinfo: str, key: str) -> set[str]:
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    return next((set(value.split()) for name, _, value in lines if name.strip() == key), set())


def _this_machine() -> TargetDescription:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    return describe_host(platform.system(), platform.machine(), text, _SYSFS_CACHES)


HOST = _this_machine()
