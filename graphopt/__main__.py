"""`python -m graphopt` is `graphopt`."""

from __future__ import annotations

from graphopt.cli import main

if __name__ == "__main__":
    main()
