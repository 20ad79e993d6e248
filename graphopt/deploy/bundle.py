"""The folder that a build leaves: what lies where in it, writing its C side, and finding one's way in it again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt.deploy.cmake import render_cmake
from graphopt.deploy.example import render_example
from graphopt.deploy.header import render_header
from graphopt.errors import DataError, ShapeError
from graphopt.targets.base import MODELLED, Backend, Library, TargetDescription, TensorSpec, Tiling


@dataclass(frozen=True)
class Bundle:
    """A finished bundle: its folder, and what its report says that programs around it need."""

    folder: Path
    name: str
    target: str  # name of the target
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    fingerprint: str  # of the model that it was made from
    macs: tuple[int, ...] = ()  # of each kernel call, in order; a node's that takes several are at the last of them

    @property
    def model(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def include(self) -> Path:
        return self.folder / "include"

    @property
    def header(self) -> Path:
        return self.include / f"{self.name}.h"

    @property
    def static(self) -> Path:
        return self.folder / "lib" / f"lib{self.name}.a"

    @property
    def example(self) -> Path:
        return self.folder / "example.c"


def write_bundle(
    model: ir.Model,
    target: TargetDescription,
    *,
    name: str,
    folder: Path,
    jobs: int,
    progress: Callable[[int, int, str], None],
    backend: Backend,
    compress: bool = False,
    tiling: Tiling = MODELLED,
) -> Library:
    """Fill `folder` with the header, the libraries, example.c and the CMake package of `model`.

    All shapes of `model` are static. `compress` stores the weights entropy coded; `tiling` says which tiles kernels
    are computed in.
    Raises UsageError for a name that is no C identifier, ShapeError for an interface without static shapes,
    UnsupportedError for what the target cannot compute.
    """
    inputs = [_spec(value) for value in model.graph.inputs if value.name not in model.graph.initializers]
    outputs = [_spec(value) for value in model.graph.outputs]
    header = folder / "include" / f"{name}.h"
    header.parent.mkdir(parents=True, exist_ok=True)
    header.write_text(render_header(name, inputs, outputs), encoding="utf-8")
    library = backend.build(
        model,
        target,
        name=name,
        header=header,
        folder=folder / "lib",
        jobs=jobs,
        progress=progress,
        compress=compress,
        tiling=tiling,
    )
    (folder / "example.c").write_text(render_example(name, library.inputs, library.outputs), encoding="utf-8")
    package = folder / "lib" / "cmake" / name
    package.mkdir(parents=True, exist_ok=True)
    for file, text in render_cmake(name, library, target).items():
        (package / file).write_text(text, encoding="utf-8")
    return library


def open_bundle(folder: str | Path) -> Bundle:
    """The bundle in `folder`. Raises DataError if it is none, or files of it are missing."""
    root = Path(folder)
    report = _read_report(root)
    try:
        library = report["library"]
        bundle = Bundle(
            folder=root,
            name=library["name"],
            target=report["target"]["name"],
            inputs=_specs(library["inputs"]),
            outputs=_specs(library["outputs"]),
            fingerprint=report["model"]["fingerprint"],
            macs=_macs(report),
        )
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{root / 'report.json'} lacks {error}", advice="it was changed; run `graphopt optimize` again"
        ) from error
    for file in (bundle.model, bundle.header, bundle.static, bundle.example):
        if not file.is_file():
            raise DataError(
                f"{root} is not a whole bundle: {file.relative_to(root)} is missing",
                advice="run `graphopt optimize` again",
            )
    return bundle


def _macs(report: Mapping[str, Any]) -> tuple[int, ...]:
    macs = {layer["name"]: int(layer["macs"] or 0) for layer in report.get("layers", ())}  # null: unknown
    backwards = reversed(report["library"].get("calls", ()))
    return tuple([sum(macs.pop(node, 0) for node in call["nodes"]) for call in backwards][::-1])


def _read_report(root: Path) -> dict[str, Any]:
    path = root / "report.json"
    advice = "expected the folder that `graphopt optimize` wrote"
    if not root.is_dir():
        raise DataError(f"{root} is not a folder", advice=advice)
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = report["schema_version"]
        kind = report["kind"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{root} is not a bundle: report.json cannot be read: {error}", advice=advice) from error
    if (version, kind) != (1, "optimize") or report.get("library") is None:
        raise DataError(
            f"{path} has schema version {version} and kind '{kind}', expected version 1 and a library", advice=advice
        )
    return report


def _spec(value: ir.Value) -> TensorSpec:
    if value.dtype is None or value.shape is None or not all(isinstance(size, int) for size in value.shape):
        raise ShapeError(
            f"'{value.name}' has the type {value.dtype} and the shape {value.shape}, expected a static shape",
            advice=f"bind it with --shape {value.name}=...",
        )
    return TensorSpec(value.name or "", value.dtype.numpy().name, tuple(value.shape.numpy()))


def _specs(entries: list[dict[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(entry["name"], entry["type"], tuple(entry["shape"])) for entry in entries)
