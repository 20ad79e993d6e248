"""Networks that no kernel was written for, with random weights, in float32 and in int8 by ONNX Runtime's quantizer.

    python -m tests.benchmarks.other_networks FOLDER [NAME...]

writes FOLDER/NAME.onnx and FOLDER/NAME.s8.onnx, to be built and counted as docs/benchmarks.md says. Needs torch,
torchvision and onnxscript. For speed only: random weights prove nothing of accuracy.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

SEED = 0
SAMPLES = 3


def _classifier(name: str, size: int, **given: Any) -> Callable[[], tuple[Any, tuple[int, ...]]]:
    def made() -> tuple[Any, tuple[int, ...]]:
        import torchvision

        return getattr(torchvision.models, name)(**given), (1, 3, size, size)

    return made


def _layer(inputs: int, outputs: int, kernel: int, stride: int, activation: str) -> Any:
    from torch import nn

    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), getattr(nn, activation)())


def _detector(activation: str) -> Callable[[], tuple[Any, tuple[int, ...]]]:
    """A detector of three scales after YOLOv8's nano size: split stages, pooled context, upsampling, two heads."""

    def made() -> tuple[Any, tuple[int, ...]]:
        import torch
        from torch import nn

        class Stage(nn.Module):
            def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
                super().__init__()
                half = outputs // 2
                self.first = _layer(inputs, outputs, 1, 1, activation)
                pairs = [
                    nn.Sequential(*[_layer(half, half, 3, 1, activation) for _ in range(2)]) for _ in range(blocks)
                ]
                self.blocks = nn.ModuleList(pairs)
                self.last = _layer((2 + blocks) * half, outputs, 1, 1, activation)

            def forward(self, x: Any) -> Any:
                parts = list(self.first(x).chunk(2, 1))
                for block in self.blocks:
                    parts.append(parts[-1] + block(parts[-1]))
                return self.last(torch.cat(parts, 1))

        class Detector(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                stem = [_layer(3, 16, 3, 2, activation), _layer(16, 32, 3, 2, activation), Stage(32, 32, 1)]
                self.fine = nn.Sequential(*stem, _layer(32, 64, 3, 2, activation), Stage(64, 64, 2))
                self.middle = nn.Sequential(_layer(64, 128, 3, 2, activation), Stage(128, 128, 2))
                self.coarse = nn.Sequential(_layer(128, 256, 3, 2, activation), Stage(256, 256, 1))
                self.narrow, self.joined = _layer(256, 128, 1, 1, activation), _layer(512, 256, 1, 1, activation)
                self.down_to_middle, self.down_to_fine = Stage(384, 128, 1), Stage(192, 64, 1)
                self.heads = nn.ModuleList(
                    nn.Sequential(
                        _layer(c, 64, 3, 1, activation), _layer(64, 64, 3, 1, activation), nn.Conv2d(64, 144, 1)
                    )
                    for c in (64, 128, 256)
                )

            def forward(self, x: Any) -> Any:
                fine = self.fine(x)
                middle = self.middle(fine)
                coarse = self.coarse(middle)
                pooled = [self.narrow(coarse)]
                for _ in range(3):
                    pooled.append(nn.functional.max_pool2d(pooled[-1], 5, 1, 2))
                coarse = self.joined(torch.cat(pooled, 1))
                up = nn.functional.interpolate
                middle = self.down_to_middle(torch.cat([up(coarse, scale_factor=2.0), middle], 1))
                fine = self.down_to_fine(torch.cat([up(middle, scale_factor=2.0), fine], 1))
                scales = zip(self.heads, (fine, middle, coarse), strict=True)
                boxes, classes = torch.cat([head(scale).flatten(2) for head, scale in scales], 2).split((64, 80), 1)
                places = boxes.view(1, 4, 16, -1).transpose(2, 1).softmax(1) * torch.arange(16.0).view(1, 16, 1, 1)
                return torch.cat([places.sum(1), classes.sigmoid()], 1)

        return Detector(), (1, 3, 256, 256)

    return made


def _temporal() -> tuple[Any, tuple[int, ...]]:
    """Eight dilated depthwise blocks after Conv-TasNet: PReLU and a normalization of its own behind each layer."""
    from torch import nn

    class Block(nn.Module):
        def __init__(self, dilation: int) -> None:
            super().__init__()
            depthwise = nn.Conv1d(128, 128, 3, padding=dilation, dilation=dilation, groups=128)
            layers = [nn.Conv1d(64, 128, 1), nn.PReLU(), nn.BatchNorm1d(128)]
            layers += [depthwise, nn.PReLU(), nn.BatchNorm1d(128), nn.Conv1d(128, 64, 1)]
            self.layers = nn.Sequential(*layers)

        def forward(self, x: Any) -> Any:
            return x + self.layers(x)

    blocks = [Block(2 ** (i % 4)) for i in range(8)]
    return nn.Sequential(nn.Conv1d(40, 64, 1), *blocks, nn.Conv1d(64, 12, 1)), (1, 40, 100)


NETWORKS: dict[str, Callable[[], tuple[Any, tuple[int, ...]]]] = {
    "mobilenet_v3_small": _classifier("mobilenet_v3_small", 224),
    "efficientnet_b0": _classifier("efficientnet_b0", 160),
    "shufflenet_v2_x1_0": _classifier("shufflenet_v2_x1_0", 224),
    "regnet_y_400mf": _classifier("regnet_y_400mf", 160),
    "mnasnet0_5": _classifier("mnasnet0_5", 224),
    "googlenet": _classifier("googlenet", 128, aux_logits=False, init_weights=False),
    "densenet": _classifier("DenseNet", 128, growth_rate=16, block_config=(4, 4, 4, 4), num_init_features=32),
    "detector_silu": _detector("SiLU"),
    "detector_leaky": _detector("LeakyReLU"),
    "temporal": _temporal,
}


class RandomInputs:
    """Calibration inputs, as ONNX Runtime's quantizer reads them."""

    def __init__(self, path: Path) -> None:
        (given,) = onnxruntime.InferenceSession(path).get_inputs()
        random = np.random.default_rng(SEED)
        self.feeds: Iterator[dict[str, np.ndarray]] = iter(
            [{given.name: random.standard_normal(given.shape).astype(np.float32)} for _ in range(SAMPLES)]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.feeds, None)


def export(name: str, folder: Path) -> Path:
    """FOLDER/NAME.onnx, by torch's exporter."""
    import torch

    torch.manual_seed(SEED)
    network, shape = NETWORKS[name]()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    path = folder / f"{name}.onnx"
    inputs = (torch.randn(*shape),)
    torch.onnx.export(network.eval(), inputs, path, input_names=["x"], dynamo=True, opset_version=18)
    return path


def quantize(path: Path) -> Path:
    """FOLDER/NAME.s8.onnx: QDQ, int8, weights per channel."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    made = path.with_suffix(".s8.onnx")
    with tempfile.TemporaryDirectory() as scratch:
        prepared = Path(scratch) / path.name
        quant_pre_process(str(path), str(prepared))
        quantize_static(
            prepared, made, RandomInputs(path), quant_format=QuantFormat.QDQ, per_channel=True,
            weight_type=QuantType.QInt8, activation_type=QuantType.QInt8,
        )  # fmt: skip
    return made


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for each in sys.argv[2:] or NETWORKS:
        print(quantize(export(each, target)))
