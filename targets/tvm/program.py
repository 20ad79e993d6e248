"""What the lowering hands to the C driver: kernels called in order, and where each of their arguments lies."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from graphopt.targets.base import TensorSpec

ALIGNMENT = 64  # bytes; of the arena, the weights and every buffer in them: a cache line


class Place(StrEnum):
    """Where a buffer lies during a run."""

    INPUT = "input"  # the caller's input number `index`
    OUTPUT = "output"  # the caller's output number `index`
    WEIGHTS = "weights"  # read-only, shared by all contexts
    DECODED = "decoded"  # weights made of stored ones at load time; read-only, shared by all contexts of a process
    ARENA = "arena"  # one arena a context


@dataclass(frozen=True)
class Buffer:
    """An argument of a kernel: `bytes` bytes at `offset` of its place."""

    place: Place
    index: int  # of the input or output; 0 for the other places
    offset: int  # bytes; 0 for inputs and outputs
    bytes: int


@dataclass(frozen=True)
class KernelCall:
    """`int32_t symbol(void *arg0, void *arg1, …)`, 0 on success; all pointers are distinct (noalias)."""

    symbol: str
    arguments: tuple[Buffer, ...]
    layer: str  # names of the ONNX nodes that it computes, joined by " + "


@dataclass(frozen=True)
class Copy:
    """A plain copy: an input, constant or intermediate that is an output as well."""

    source: Buffer
    destination: Buffer


@dataclass(frozen=True)
class Stream:
    """`source_bytes` at `source` of the weights, which decode to `bytes` at `offset` of the decoded memory."""

    source: int
    source_bytes: int
    offset: int
    bytes: int
    width: int  # bytes of an element
    entries: int  # of the palette that the source begins with; 0: there is none, but a plane for each byte


@dataclass(frozen=True)
class VariantCalls:
    """What runs instead of a program's own calls where the processor has `features`: the same layers, the same bits."""

    name: str
    features: tuple[str, ...]
    calls: tuple[KernelCall | Copy, ...]


@dataclass(frozen=True)
class WinogradWeights:
    """float32 weights [filters, channels, 3, 3] that are transformed to `bytes` at `offset` of the decoded memory."""

    source: Buffer
    offset: int
    bytes: int
    filters: int
    channels: int
    panel: int  # filters that lie side by side


@dataclass(frozen=True)
class Program:
    """A whole model: `calls` run in order, with weights of their own and an arena of `arena_bytes`.

    Of the `variants`, the last whose features the processor has runs instead; they share weights and arena.

    `streams`, and then `transforms`, fill the `decoded_bytes` of decoded memory, once, before the first call.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    calls: tuple[KernelCall | Copy, ...]
    weights: bytes
    arena_bytes: int
    objects: tuple[Path, ...]  # relocatable objects that define every `symbol`
    decoded_bytes: int = 0
    streams: tuple[Stream, ...] = ()
    transforms: tuple[WinogradWeights, ...] = ()
    variants: tuple[VariantCalls, ...] = ()

    @property
    def all_calls(self) -> tuple[KernelCall | Copy, ...]:
        """The calls of the program and of its variants."""
        return (*self.calls, *(call for variant in self.variants for call in variant.calls))
