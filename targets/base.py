"""What a target is: the facts about a core that passes and backends read, and the interface of a backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import onnx_ir as ir


@dataclass(frozen=True)
class Variant:
    """Kernels that a library carries beside the target's own, for processors with more features than it asks for."""

    name: str  # as the library reports it; what the C driver looks for is in targets/tvm/runtime/processor.h
    features: tuple[str, ...]  # beyond those of the target
    llvm_attributes: tuple[str, ...]


@dataclass(frozen=True)
class Issue:
    """What a core starts in a cycle: what tiles are chosen by."""

    in_order: bool  # arithmetic then waits for the loads before it
    width: int  # instructions of any kind
    vectors: int  # arithmetic instructions on vectors of 128 bits
    loads: int
    load_bytes: int  # that these bring
    latency: int  # cycles from one vector multiply-add in float32 to the next that adds to its result


@dataclass(frozen=True)
class TargetDescription:
    """A core (or family) that code is made for. Passes read its facts, never its name.

    Sizes are bytes, for one core; 0 where the fact is unknown or the cache does not exist.
    """

    name: str  # as given to --target
    summary: str  # one line for `graphopt targets`
    triple: str  # LLVM target triple
    mcpu: str  # LLVM's name of the processor
    features: tuple[str, ...]  # ONNX-independent names: neon, dotprod, i8mm, fp16, bf16, sve, sve2
    llvm_attributes: tuple[str, ...]  # LLVM's -mattr, such as "+dotprod"
    pointer_bits: int
    vector_bits: int  # width of the vector unit that kernels are written for
    l1d_bytes: int
    l2_bytes: int
    issue: Issue
    channel_multiple: int  # channel counts that are multiples of this fill the kernels' vectors
    quantization: tuple[str, ...]  # schemes that the instructions of the core serve, such as "int8"
    emulator: tuple[str, ...]  # command that runs a program for it on another machine; empty: runs natively
    zig_target: str  # target given to `zig cc`; empty: the machine at hand
    sources: tuple[tuple[str, str], ...] = ()  # (fact, where it is documented)
    variants: tuple[Variant, ...] = ()  # chosen among when the library is loaded: each has what those before it have

    def variant(self, chosen: Variant) -> TargetDescription:
        """The target with the features of one of its variants."""
        return replace(
            self,
            features=(*self.features, *chosen.features),
            llvm_attributes=(*self.llvm_attributes, *chosen.llvm_attributes),
            variants=(),
        )


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a compiled model: its ONNX name, its numpy dtype's name, and its static shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class CoderUse:
    """What one way of storing weights was used for: `bytes` of them take `stored_bytes`."""

    coder: str  # raw, palette, or planes (of bytes)
    bytes: int
    stored_bytes: int


@dataclass(frozen=True)
class Storage:
    """How the weights of a library are stored, where they are compressed."""

    bytes: int  # of the weights as kernels read them
    stored_bytes: int  # that they take in the library
    decoded_bytes: int  # of memory that all contexts of a process share
    coders: tuple[CoderUse, ...]


@dataclass(frozen=True)
class Tiling:
    """Which of the tiles that fit a kernel is computed in: its place in the order of the backend's model, best first.

    places: by `content` of the kernel (`Library.layers`). others: of kernels that are not named there.
    """

    places: Mapping[str, int] = field(default_factory=dict)
    others: int = 0

    def of(self, content: str) -> int:
        return self.places.get(content, self.others)


@dataclass(frozen=True)
class Library:
    """What a backend made: the linked files and what the report says about them."""

    shared: Path
    static: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    arena_bytes: int
    weight_bytes: int
    # One a kernel call, in order: kernel, nodes it came from, in_float: why quantized ones of them stay in float,
    # content: equal for kernels that are compiled alike, tiles: among how many a `Tiling` chooses.
    layers: tuple[dict[str, Any], ...] = ()
    timings: dict[str, float] = field(default_factory=dict)  # seconds by stage; never written to a bundle
    storage: Storage | None = None  # None: the weights are stored as they are


MODELLED = Tiling()  # all as the model chooses


class Backend(Protocol):
    """Turns a model into a library for a target."""

    def unsupported(self, model: ir.Model) -> list[tuple[str, str, str]]:
        """(operator, node name, reason and what to do) of each node that `build` would refuse."""

    def build(
        self,
        model: ir.Model,
        target: TargetDescription,
        *,
        name: str,
        header: Path,
        folder: Path,
        jobs: int,
        progress: Callable[[int, int, str], None],
        compress: bool = False,
        tiling: Tiling = MODELLED,
    ) -> Library:
        """Write `folder`/lib{name}.so and .a that implement `header`; all shapes of `model` are static.

        compress: store the weights entropy coded, and decode them when the first context is made.
        tiling: the tiles of kernels, where they are not the model's choice.

        Raises UnsupportedError with every operator that has no lowering.
        """
