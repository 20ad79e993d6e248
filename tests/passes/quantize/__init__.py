"""Tests of the quantization passes."""

from __future__ import annotations
