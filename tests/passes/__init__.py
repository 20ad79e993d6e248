"""Tests of the built-in passes; `harness` is what they share."""
