"""The model that a user hands over: what it is called, how large it is, and what it makes us warn of."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from graphopt.errors import ModelWarning

Source = str | os.PathLike[str] | bytes | onnx.ModelProto | ir.Model


def title(source: Source) -> str:
    """What a model is called: its file's stem, or its graph's name, or "model"."""
    if isinstance(source, str | os.PathLike):
        return Path(source).stem
    if isinstance(source, onnx.ModelProto | ir.Model):
        return str(source.graph.name or "model")
    return "model"


def file_bytes(source: Source, loaded: ir.Model) -> int | None:
    """The size of a model's file and of its external data; None for a model of onnx_ir."""
    if isinstance(source, bytes):
        return len(source)
    if isinstance(source, onnx.ModelProto):
        return int(source.ByteSize())
    if isinstance(source, ir.Model):
        return None
    tensors = (value.const_value for graph in loaded.graphs() for value in graph.initializers.values())
    files = {Path(source), *(Path(tensor.path) for tensor in tensors if isinstance(tensor, ir.ExternalTensor))}
    return sum(file.stat().st_size for file in files)


@contextmanager
def collected_warnings(*sources: Source) -> Iterator[list[str]]:
    """A list that receives the text of each ModelWarning in the block; other warnings go where they always go.

    The folders of the models are cut from the texts: reports are for others to read.
    """
    notices: list[str] = []
    folders = [f"{Path(source).parent}{os.sep}" for source in sources if isinstance(source, str | os.PathLike)]

    def collect(message: Warning | str, category: type[Warning], *rest: Any, **named: Any) -> None:
        if not issubclass(category, ModelWarning):
            show(message, category, *rest, **named)
            return
        text = str(message)
        for folder in folders:
            text = text.replace(folder, "")
        notices.append(text)

    with warnings.catch_warnings():
        show = warnings.showwarning
        warnings.simplefilter("always", ModelWarning)
        warnings.showwarning = collect
        yield notices
