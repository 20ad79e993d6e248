"""Real inputs for each of the real models, prepared as the models' authors do.

A folder of real models (REAL) has models/*.onnx, data/ and SOURCES.md, which states each model's preprocessing.
Each function takes the folder data/ (or the model, for networks that carry their state from run to run) and a number
of samples, and returns one array for each input with the samples stacked along a new first axis.
"""

from __future__ import annotations

import wave
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Arrays = dict[str, Array]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RATE = 16000  # samples a second, of all recordings


@dataclass(frozen=True)
class Case:
    """How to run one real model: inputs(data folder, model file, number of samples), or None for made-up ones."""

    what: str  # the inputs, in a few words for the table
    samples: int  # fewer where emulation is slow
    inputs: Callable[[Path, Path, int], Arrays] | None
    shapes: Mapping[str, tuple[int, ...]] | None = None  # to bind what the model leaves open


def _picture(file: Path, width: int, height: int) -> Array:
    """RGB bytes, HWC, stretched to the size."""
    from PIL import Image

    with Image.open(file) as image:
        return np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR))


def _centre(file: Path, size: int) -> Array:
    """The central 224x224 of a 256x256 picture, resized: RGB bytes, HWC."""
    from PIL import Image

    with Image.open(file) as image:
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        cut = image.convert("RGB").crop((left, top, left + 224, top + 224))
        return np.asarray(cut.resize((size, size), Image.Resampling.BILINEAR))


def _spread(files: list[Path], count: int) -> list[Path]:
    """`count` files at even distances over the whole list."""
    return [files[index * len(files) // count] for index in range(count)]


def _normalized(pictures: list[Array], mean: Any, std: Any, *, bgr: bool = False) -> Array:
    """(x - mean) / std by channel, as [count, 1, channels, height, width]."""
    stacked = np.stack(pictures).astype(np.float32)
    stacked = stacked[..., ::-1] if bgr else stacked
    scaled = (stacked - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)[:, None])


def _imagenet(name: str, size: int, mean: Any, std: Any, *, bgr: bool = False) -> Callable[[Path, Path, int], Arrays]:
    def prepare(data: Path, _: Path, count: int) -> Arrays:
        files = _spread(sorted((data / "imagenet").glob("*.jpg")), count)
        return {name: _normalized([_centre(file, size) for file in files], mean, std, bgr=bgr)}

    return prepare


def _photos(
    folder: str, name: str, width: int, height: int, mean: Any, std: Any, *, bgr: bool = False
) -> Callable[[Path, Path, int], Arrays]:
    def prepare(data: Path, _: Path, count: int) -> Arrays:
        files = _spread(sorted(file for file in (data / folder).iterdir() if file.suffix in {".jpg", ".jpeg"}), count)
        return {name: _normalized([_picture(file, width, height) for file in files], mean, std, bgr=bgr)}

    return prepare


def _luma(data: Path, _: Path, count: int) -> Arrays:
    """The Y channel of photographs, in 0 to 1."""
    pictures = [_picture(file, 224, 224) for file in _spread(sorted((data / "coco" / "images").glob("*.jpg")), count)]
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    return {"y": (np.stack(pictures).astype(np.float32) @ weights / 255)[:, None, None]}


def _cifar(data: Path, _: Path, count: int) -> Arrays:
    mean, std = 255 * np.array(IMAGENET_MEAN), 255 * np.array(IMAGENET_STD)
    return {"input": _normalized(list(np.load(data / "cifar10_test_u8.npz")["x"][:count]), mean, std)}


def _cifar_bytes(data: Path, _: Path, count: int) -> Arrays:
    return {"input_1": np.load(data / "cifar10_test_u8.npz")["x"][:count, None].astype(np.float32)}


def _words(data: Path, _: Path, count: int) -> Arrays:
    words = np.load(data / "words_tts_mfcc12.npz")
    known = np.flatnonzero(words["label35"] >= 0)
    return {"mfcc": words["mfcc"][known[np.linspace(0, len(known) - 1, count).astype(int)], None]}


def _tokens(data: Path, _: Path, count: int) -> Arrays:
    return {"tokens": np.load(data / "stories_tokens.npz")["sampled"][:count, None, :128].astype(np.int64)}


def _recording(file: Path) -> Array:
    """Samples of a 16-bit recording, from -1 to 1."""
    with wave.open(str(file), "rb") as sound:
        if (sound.getframerate(), sound.getnchannels(), sound.getsampwidth()) != (RATE, 1, 2):
            raise ValueError(f"{file}: expected one channel of 16 bits at {RATE} Hz")
        return np.frombuffer(sound.readframes(sound.getnframes()), "<i2").astype(np.float32) / 32768


def _mel_filters(bands: int, bins: int, low: float, high: float) -> Array:
    """Triangles evenly spaced on HTK's mel scale, as [bins, bands]."""

    def mel(hertz: Any) -> Any:
        return 1127 * np.log1p(np.asarray(hertz) / 700)

    edges = np.linspace(mel(low), mel(high), bands + 2)
    place = mel(np.linspace(0, RATE / 2, bins))[:, None]
    up = (place - edges[:-2]) / (edges[1:-1] - edges[:-2])
    down = (edges[2:] - place) / (edges[2:] - edges[1:-1])
    filters: Array = np.maximum(0, np.minimum(up, down))
    return filters


def _spectra(sound: Array, window: int, hop: int, length: int) -> Array:
    """Magnitudes of the short-time spectra with a Hann window, as [frames, length / 2 + 1]."""
    frames = np.lib.stride_tricks.sliding_window_view(sound, window)[::hop]
    return np.abs(np.fft.rfft(frames * np.hanning(window + 1)[:-1], length))


def _mfcc_of_speech(data: Path, _: Path, count: int) -> Arrays:
    """49 frames of 30 ms every 20 ms, 40 mel bands from 20 to 4000 Hz, the first 10 cosine coefficients."""
    sound = _recording(data / "silero_test.wav")
    basis = np.cos(np.pi / 40 * (np.arange(40) + 0.5)[:, None] * np.arange(10)) * 2 / np.sqrt(80)
    samples = []
    for second in np.linspace(0, len(sound) - RATE, count).astype(int):
        mel = _spectra(sound[second : second + RATE], 480, 320, 512) @ _mel_filters(40, 257, 20, 4000)
        samples.append((np.log(mel + 1e-6) @ basis)[None, :49, :, None])
    return {"input_1": np.stack(samples).astype(np.float32)}


def _log_mel_of_speech(data: Path, _: Path, count: int) -> Arrays:
    """5 frames of 64 ms every 32 ms, 128 mel bands, in decibels."""
    mel = np.square(_spectra(_recording(data / "silero_test.wav"), 1024, 512, 1024)) @ _mel_filters(128, 513, 0, 8000)
    decibels = 10 * np.log10(mel + np.finfo(np.float64).eps)
    starts = np.linspace(0, len(decibels) - 5, count).astype(int)
    return {"input_1": np.stack([decibels[start : start + 5].reshape(1, 640) for start in starts]).astype(np.float32)}


def _file_bytes(data: Path, _: Path, count: int) -> Arrays:
    """The first and last 512 bytes of files of several kinds, without white space at the ends, padded with 256."""
    kinds = (".wav", ".csv", ".npz", ".txt", ".png", ".jpg", ".jpeg", ".md", ".onnx")
    found = [file for folder in (data, data.parent) for file in sorted(folder.rglob("*")) if file.is_file()]
    by_kind = [[file for file in found if file.suffix == kind] for kind in kinds]
    files = [kind[turn] for turn in range(count) for kind in by_kind if turn < len(kind)][:count]
    rows = []
    for file in files:
        content = file.read_bytes()
        head, tail = content.lstrip()[:512], content.rstrip()[-512:]
        rows.append([*head, *[256] * (512 - len(head)), *[256] * (512 - len(tail)), *tail])
    return {"bytes": np.array(rows, np.int32)[:, None]}


def _speech_windows(data: Path, model: Path, count: int) -> Arrays:
    """576 samples: 64 of the window before and 512 new ones; the state is the one that the windows before leave."""
    sound = _recording(data / "silero_test.wav")
    windows = [np.concatenate([np.zeros(64, np.float32), sound])[i : i + 576][None] for i in range(0, 512 * count, 512)]
    steps = [{"input": window, "sr": np.array(RATE, np.int64)} for window in windows]
    return _stream(model, steps, {"state": ("stateN", np.zeros((2, 1, 128), np.float32))})


def _noisy_frames(data: Path, model: Path, count: int) -> Arrays:
    """Spectra of 512 samples every 256, square root of a Hann window; the caches are what the frames before leave."""
    sound = np.pad(_recording(data / "gtcrn_mix.wav"), 256, mode="reflect")
    window = np.sqrt(np.hanning(513)[:-1])
    frames = np.lib.stride_tricks.sliding_window_view(sound, 512)[::256][:count]
    spectra = np.fft.rfft(frames * window)
    parts = np.stack([spectra.real, spectra.imag], axis=-1).astype(np.float32)
    caches = {"conv_cache": (2, 1, 16, 16, 33), "tra_cache": (2, 3, 1, 1, 16), "inter_cache": (2, 1, 33, 16)}
    zeros = {name: (f"{name}_out", np.zeros(shape, np.float32)) for name, shape in caches.items()}
    return _stream(model, [{"mix": part[None, :, None]} for part in parts], zeros)


def _stream(model: Path, steps: list[Arrays], state: dict[str, tuple[str, Array]]) -> Arrays:
    """Feeds of each step, with the state that ONNX Runtime computes: by input, the output it comes from and a start."""
    from graphopt.analysis.execution import Session
    from graphopt.ir import load

    carried = {name: start for name, (_, start) in state.items()}
    feeds = []
    with Session(load(model)) as session:
        for step in steps:
            feeds.append({**step, **carried})
            outputs = session.run(feeds[-1])
            carried = {name: outputs[source] for name, (source, _) in state.items()}
    return {name: np.stack([feed[name] for feed in feeds]) for name in feeds[0]}


_CENTRED = ((128, 128, 128), (128, 128, 128))
_SILERO = {"input": (1, 576), "state": (2, 1, 128), "sr": ()}

CASES = {
    "mobilenet_v2_1.0_224": Case("ImageNet pictures", 4, _imagenet("input", 224, *_CENTRED)),
    "mobilenet_v1_0.25_128": Case("ImageNet pictures", 8, _imagenet("input", 128, *_CENTRED)),
    "mobilenet_v1_0.75_192": Case("ImageNet pictures", 4, _imagenet("input", 192, *_CENTRED)),
    "squeezenet_v1.1_224": Case("ImageNet pictures", 4, _imagenet("data_0", 224, (104, 117, 123), (1, 1, 1), bgr=True)),
    "cifar10_resnet20": Case("CIFAR-10 pictures", 16, _cifar),
    "cifar10_resnet32": Case("CIFAR-10 pictures", 16, _cifar),
    "cifar10_resnet32_bn": Case("CIFAR-10 pictures", 16, _cifar),
    "mlperftiny_resnet8_cifar10": Case("CIFAR-10 pictures", 16, _cifar_bytes),
    "mlperftiny_kws_dscnn": Case("MFCC of continuous speech", 16, _mfcc_of_speech),
    "mlperftiny_ad01_autoencoder": Case("log-mel of speech, no machine sounds", 16, _log_mel_of_speech),
    "kws_lstm3_mfcc12": Case("MFCC of spoken words", 16, _words),
    "stories260k_lm_t128": Case("tokens of stories", 4, _tokens),
    "deeplabv3_mnv2_dm05_voc513": Case("COCO photographs", 2, _photos("coco/images", "input", 513, 513, *_CENTRED)),
    "superres_espcn_x3_224": Case("COCO photographs", 2, _luma),
    "fastestdet": Case(
        "COCO photographs", 4, _photos("coco/images", "input.1", 352, 352, (0, 0, 0), (255, 255, 255), bgr=True)
    ),
    "nanodet_m": Case(
        "COCO photographs",
        4,
        _photos("coco/images", "input.1", 416, 416, (103.53, 116.28, 123.675), (57.375, 57.12, 58.395), bgr=True),
    ),
    "ultraface_rfb320": Case(
        "photographs of faces", 4, _photos("faces", "input", 320, 240, (127, 127, 127), (128, 128, 128))
    ),
    "gtcrn_stream_simple": Case("spectra of noisy speech, streamed", 16, _noisy_frames),
    "gtcrn_stream": Case("spectra of noisy speech, streamed", 16, _noisy_frames),
    "silero_vad_16k_op15": Case("speech, streamed", 16, _speech_windows, _SILERO),
    "silero_vad_op18_ifless": Case("speech, streamed", 16, _speech_windows, _SILERO),
    "magika_fast_v2_1": Case("bytes of files", 16, _file_bytes),
    "styletransfer_candy": Case(
        "COCO photographs", 1, _photos("coco/images", "inputImage", 720, 720, (0, 0, 0), (1, 1, 1))
    ),
    "mnist_cntk": Case("made up", 16, None),
}
