"""Weights whose channels differ in range, for the tests of passes that rescale them."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


def uneven(*shape: int, axis: int = 0, seed: int = 0) -> Array:
    """Random weights whose channels along `axis` differ in range several times."""
    rng = np.random.default_rng(seed)
    spread = 2.0 ** rng.uniform(-1.3, 1.3, shape[axis])
    return (rng.normal(size=shape) * spread.reshape([-1 if n == axis else 1 for n in range(len(shape))])).astype("f")
