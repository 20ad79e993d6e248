"""Quantize a model with NNCF's post-training quantization; run by the interpreter of an environment that has NNCF.

    PYTHON quantization_nncf.py MODEL.onnx SAMPLES.npz RESULT.onnx PRESET

SAMPLES has one array for each input, samples along a new first axis. PRESET is performance (symmetric activations) or
mixed (asymmetric ones); everything else is NNCF's default, its fast bias correction included.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(model: str, samples: str, result: str, preset: str) -> None:
    """Read, quantize, write."""
    import nncf  # type: ignore[import-not-found, unused-ignore]
    import numpy as np
    import onnx

    with np.load(samples) as archive:
        arrays = {name: archive[name] for name in archive.files}
    count = min(len(array) for array in arrays.values())
    feeds = [{name: np.asarray(array[index]) for name, array in arrays.items()} for index in range(count)]
    chosen = nncf.QuantizationPreset(preset)
    made = nncf.quantize(onnx.load(model), nncf.Dataset(feeds), subset_size=count, preset=chosen)
    Path(result).write_bytes(made.SerializeToString())


if __name__ == "__main__":
    main(*sys.argv[1:])
