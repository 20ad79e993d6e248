"""The bundle: header, CMake package and example around a compiled model, and running it to check and time it."""

from __future__ import annotations

from graphopt.deploy.bundle import Bundle, open_bundle, write_bundle

__all__ = ["Bundle", "open_bundle", "write_bundle"]
