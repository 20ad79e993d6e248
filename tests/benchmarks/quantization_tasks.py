"""What each real model is for: its data, the score of its task, and what agreement with the float model means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks import quantization_data as data
from tests.benchmarks import quantization_detection as detection
from tests.benchmarks import quantization_metrics as metrics
from tests.benchmarks.inputs import CASES


@dataclass(frozen=True)
class Task:
    """load: all samples, from the folder REAL.

    metric, score: of the task; None where nothing is known to compare with. agreement: with the float model.
    outputs: those that SQNR is of, the worst counts; all if empty. numbers: False where they are class indices, which
    have none. shapes: for what the model leaves open.
    """

    load: Callable[[Path], data.Data]
    metric: str = ""
    score: Callable[[metrics.Runs, Sequence[Any]], float] | None = None
    agreement: Callable[[metrics.Runs, metrics.Runs], float] | None = None
    outputs: tuple[str, ...] = ()
    numbers: bool = True
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def _classifier(load: Callable[[Path], data.Data]) -> Task:
    return Task(load, "top-1", metrics.top1, metrics.same_class)


def _detector(load: Callable[[Path], data.Data], decode: Callable[[Mapping[str, data.Array]], data.Array]) -> Task:
    return Task(load, "AP50", metrics.precision_by(decode), metrics.common_by(decode))


def _streamed(load: Callable[..., data.Data], name: str, **options: Any) -> Task:
    return Task(partial(load, name=name), shapes=CASES[name].shapes or {}, **options)


_NANODET = ((103.53, 116.28, 123.675), (57.375, 57.12, 58.395))
_ENHANCED: dict[str, Any] = {"metric": "SNR dB", "score": metrics.sound_snr, "outputs": ("enh",)}
_VOICED: dict[str, Any] = {"agreement": metrics.same_side, "outputs": ("output",)}

TASKS: dict[str, Task] = {
    "mobilenet_v2_1.0_224": _classifier(partial(data.imagenet, entry="input", size=224)),
    "mobilenet_v1_0.75_192": _classifier(partial(data.imagenet, entry="input", size=192)),
    "mobilenet_v1_0.25_128": _classifier(partial(data.imagenet, entry="input", size=128)),
    "squeezenet_v1.1_224": _classifier(partial(data.imagenet, entry="data_0", size=224, bgr=True, background=0)),
    "cifar10_resnet20": _classifier(data.cifar),
    "cifar10_resnet32": _classifier(data.cifar),
    "cifar10_resnet32_bn": _classifier(data.cifar),
    "mlperftiny_resnet8_cifar10": _classifier(data.cifar_bytes),
    "mlperftiny_kws_dscnn": Task(
        partial(data.unlabelled, name="mlperftiny_kws_dscnn", count=300), agreement=metrics.same_class
    ),
    "mlperftiny_ad01_autoencoder": Task(partial(data.unlabelled, name="mlperftiny_ad01_autoencoder", count=600)),
    "kws_lstm3_mfcc12": _classifier(data.words),
    "stories260k_lm_t128": Task(data.stories, "nats", metrics.cross_entropy, metrics.same_token),
    "deeplabv3_mnv2_dm05_voc513": Task(data.masks, "mIoU", metrics.mean_overlap, metrics.same_pixel, numbers=False),
    "superres_espcn_x3_224": Task(data.luma, "PSNR dB", metrics.psnr),
    "fastestdet": _detector(partial(data.boxes, size=352, mean=(0, 0, 0), std=(255, 255, 255)), detection.fastestdet),
    "nanodet_m": _detector(partial(data.boxes, size=416, mean=_NANODET[0], std=_NANODET[1]), detection.nanodet),
    "ultraface_rfb320": Task(
        partial(data.unlabelled, name="ultraface_rfb320", count=15), agreement=metrics.common_by(detection.ultraface)
    ),
    "gtcrn_stream_simple": _streamed(data.noisy_speech, "gtcrn_stream_simple", **_ENHANCED),
    "gtcrn_stream": _streamed(data.noisy_speech, "gtcrn_stream", **_ENHANCED),
    "silero_vad_16k_op15": _streamed(data.voices, "silero_vad_16k_op15", **_VOICED),
    "silero_vad_op18_ifless": _streamed(data.voices, "silero_vad_op18_ifless", **_VOICED),
    "magika_fast_v2_1": Task(data.files, agreement=metrics.same_class, shapes={"bytes": (1, 1024)}),
}
