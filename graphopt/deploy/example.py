"""example.c of a bundle: a complete program that a user starts from, and that `graphopt verify` runs."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.deploy.header import environment, interface_fields
from graphopt.targets.base import TensorSpec


def render_example(name: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str:
    """The text of example.c. The program's options are described at its top."""
    return environment().get_template("example.c.jinja").render(interface_fields(name, inputs, outputs))
