"""Train the four sample models on scikit-learn's digits and export them to ONNX, with their data.

    pip install .[train]
    python samples/train.py [MODEL ...] [--out FOLDER]

1,797 grey images of 8x8 pixels are scaled to 16x16 and split once: a fifth for the test, the rest for training, of
which 256 also serve as calibration data. The same seed on the same machine gives the same bytes. Each model is exported
as its users would: batch norm kept as nodes (`digits_resnet`, `digits_mobilenet`), the newer exporter
(`digits_transformer`), a batch that stays symbolic (all). The printed accuracy is that of the ONNX file in ONNX Runtime
on the test split.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
import torch.nn.functional as F  # noqa: N812
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

SEED = 0
SIDE = 16  # pixels of an image's side
CALIBRATION = 256  # samples
OPSET = 18


class Residual(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut (1x1 where the shape changes)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def resnet() -> nn.Module:
    """A residual CNN: 16, 32 and 64 channels, two blocks each."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        Residual(16, 16, 1),
        Residual(16, 16, 1),
        Residual(16, 32, 2),
        Residual(32, 32, 1),
        Residual(32, 64, 2),
        Residual(64, 64, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


class SqueezeExcite(nn.Module):
    """Scale channels by a gate computed from their means."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // 4, 1),
            nn.ReLU(),
            nn.Conv2d(channels // 4, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter each channel by 3x3, gate, project by 1x1; added to the input where the shape allows."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, activation: Callable[[], nn.Module], gated: bool
    ) -> None:
        super().__init__()
        hidden = 4 * inputs
        self.body = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            activation(),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            activation(),
            SqueezeExcite(hidden) if gated else nn.Identity(),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x + y if self.adds else y


def mobilenet() -> nn.Module:
    """A depthwise-separable CNN: ReLU6 in its first half, hard-swish and squeeze-excite in its second."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU6(),
        InvertedResidual(16, 16, 1, nn.ReLU6, gated=False),
        InvertedResidual(16, 24, 2, nn.ReLU6, gated=False),
        InvertedResidual(24, 24, 1, nn.Hardswish, gated=True),
        InvertedResidual(24, 40, 2, nn.Hardswish, gated=True),
        InvertedResidual(40, 40, 1, nn.Hardswish, gated=True),
        nn.Conv2d(40, 160, 1, bias=False),
        nn.BatchNorm2d(160),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(160, 10),
    )


class Transformer(nn.Module):
    """An encoder of three layers (64 wide, 4 heads, GELU) over 4x4 patches; the mean of the tokens is classified."""

    def __init__(self) -> None:
        super().__init__()
        width, patch = 64, 4
        self.embed = nn.Conv2d(1, width, patch, patch)
        self.position = nn.Parameter(torch.randn(1, (SIDE // patch) ** 2, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.1, F.gelu, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.encoder(tokens).mean(1))


class Recurrent(nn.Module):
    """A GRU of two layers reads the rows of the image from top to bottom; its last state is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(SIDE, 96, num_layers=2, batch_first=True, dropout=0.2)
        self.head = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.gru(x.squeeze(1))
        return self.head(states[:, -1])


MODELS: dict[str, Callable[[], nn.Module]] = {
    "digits_resnet": resnet,
    "digits_mobilenet": mobilenet,
    "digits_transformer": Transformer,
    "digits_gru": Recurrent,
}


def digits() -> tuple[Tensor, Tensor]:
    """Images (1797, 1, 16, 16) in [0, 1], and their classes 0 to 9."""
    bunch = load_digits()
    images = torch.from_numpy(bunch.images.astype(np.float32) / 16)[:, None]
    return F.interpolate(images, (SIDE, SIDE), mode="bilinear"), torch.from_numpy(bunch.target.astype(np.int64))


def augmented(images: Tensor) -> Tensor:
    """Each image turned by up to 12 degrees, scaled by up to 12 % and shifted by up to 2 pixels."""
    count = len(images)
    angle = (torch.rand(count) - 0.5) * 2 * np.deg2rad(12)
    scale = 1 + (torch.rand(count) - 0.5) * 2 * 0.12
    shift = (torch.rand(count, 2) - 0.5) * 2 * (2 * 2 / SIDE)
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    rows = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    grid = F.affine_grid(rows, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """AdamW with one cycle of the learning rate, on augmented images."""
    batch = 64
    steps = -(-len(images) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, epochs * steps)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(images)).split(batch):
            loss = F.cross_entropy(model(augmented(images[chosen])), labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    model.eval()


def export(name: str, model: nn.Module, example: Tensor, path: Path) -> None:
    """Write the model with a symbolic batch.

    The transformer goes through the exporter built on torch.export, the others through the one built on TorchScript:
    asked to preserve the mode, that one leaves BatchNormalization as a node, and it keeps GRU whole.
    """
    names = {"input_names": ["image"], "output_names": ["logits"], "opset_version": OPSET}
    if name == "digits_transformer":
        batch = {0: torch.export.Dim("batch")}
        torch.onnx.export(model, (example,), path, dynamo=True, external_data=False, dynamic_shapes=(batch,), **names)
    else:
        axes = {"image": {0: "batch"}, "logits": {0: "batch"}}
        mode = torch.onnx.TrainingMode.PRESERVE
        torch.onnx.export(model, (example,), path, dynamo=False, training=mode, dynamic_axes=axes, **names)
    exported = onnx.load(path)
    for node in exported.graph.node:
        del node.metadata_props[:]  # the newer exporter quotes source lines, with the paths of the machine
    for value in (
        *exported.graph.value_info,
        *exported.graph.input,
        *exported.graph.output,
        *exported.graph.initializer,
    ):
        del value.metadata_props[:]
    onnx.checker.check_model(exported, full_check=True)
    path.write_bytes(exported.SerializeToString(deterministic=True))


def accuracy(path: Path, images: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """The fraction of images whose largest logit is the label's, in ONNX Runtime."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": images})
    return float(np.mean(np.argmax(logits, axis=1) == labels))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"some of {', '.join(MODELS)}; all without")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to")
    parser.add_argument("--epochs", type=int, default=80)
    arguments = parser.parse_args()
    if unknown := set(arguments.models) - set(MODELS):
        parser.error(f"no model {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}")
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)  # sums in one order

    images, labels = digits()
    everything = np.arange(len(labels))
    training, test = train_test_split(everything, test_size=0.2, random_state=SEED, stratify=labels)
    calibration = training[:CALIBRATION]
    for split, chosen in (("calib", calibration), ("test", test)):
        np.savez_compressed(arguments.out / f"digits_{split}.npz", image=images[chosen].numpy())
        np.save(arguments.out / f"digits_{split}_labels.npy", labels[chosen].numpy())

    for name in arguments.models or MODELS:
        torch.manual_seed(SEED)
        model = MODELS[name]()
        train(model, images[training], labels[training], arguments.epochs)
        path = arguments.out / f"{name}.onnx"
        export(name, model, images[test][:2], path)
        parameters = sum(p.numel() for p in model.parameters())
        score = accuracy(path, images[test].numpy(), labels[test].numpy())
        print(f"{name}: {100 * score:.2f} %, {parameters} parameters, {path.stat().st_size} bytes", flush=True)


if __name__ == "__main__":
    main()
