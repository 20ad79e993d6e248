"""`python -m graphopt` is `graphopt`."""

from __future__ import annotations

from graphopt.cli import run_process

if __name__ == "__main__":
    run_process()
