"""What a pass is, and how passes are named, found and run.

A plug-in needs the names below; the rest of the package is for the API.
"""

from __future__ import annotations

from graphopt.pipeline.base import Declined, Pass, PassContext, PassResult, option

__all__ = ["Declined", "Pass", "PassContext", "PassResult", "option"]
