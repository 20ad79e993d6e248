"""Samples from pictures, and how a picture becomes an array: the table [preprocess] of a recipe.

    y = (pixel · scale − mean) / std        pixel from 0 to 255, by channel, in float32

Needs Pillow, which is imported when the first picture is read.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.execution import array_type, describe_shape
from graphopt.analysis.sample_arrays import Array, Feeds
from graphopt.errors import DataError, UsageError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})

_ADVICE = """write a table [preprocess] in a recipe, such as this one, and give it with --recipe:
    target = "arm"
    [[pass]]
    name = "clean-up"
    [[pass]]
    name = "quantize"
    [preprocess]
    size = 256                      # the shorter side, in pixels
    crop = 224
    channels = "RGB"
    layout = "NCHW"
    mean = [123.7, 116.3, 103.5]    # (pixel * scale - mean) / std, pixels from 0 to 255
    std = [58.4, 57.1, 57.4]"""
_DEEP_MODES = ("I", "F")  # what begins so has more than 8 bits a channel, which Pillow's conversions cut off


class Channels(enum.Enum):
    """The channels that the model takes, in order."""

    RGB = "RGB"
    BGR = "BGR"
    GRAY = "gray"


class Layout(enum.Enum):
    """Whether channels stand before rows and columns, or after them."""

    NCHW = "NCHW"
    NHWC = "NHWC"


class Resize(enum.Enum):
    """Pillow's filter of the same name; all but nearest average over what they shrink, as torchvision does."""

    NEAREST = "nearest"
    BILINEAR = "bilinear"
    BICUBIC = "bicubic"
    LANCZOS = "lanczos"


@dataclass(frozen=True)
class Preprocess:
    """From a picture to an array, in this order; what is not said is not done.

    size: what it is resized to: one number for the shorter side, keeping proportions, or height and width.
    resize: by which filter.
    crop: what is cut from the middle: one number for a square, or height and width.
    channels: what it is converted to; transparency is dropped.
    scale: what pixels, from 0 to 255, are multiplied by.
    mean, std: what is then subtracted, and divided by: one number, or one for each channel in the order of `channels`.
    layout: of the array.

    Raises UsageError for a value outside its range.
    """

    size: tuple[int, ...] = ()
    resize: Resize = Resize.BILINEAR
    crop: tuple[int, ...] = ()
    channels: Channels = Channels.RGB
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: Layout = Layout.NCHW

    def __post_init__(self) -> None:
        depth = 1 if self.channels is Channels.GRAY else 3
        for key in ("size", "crop"):
            sides = getattr(self, key)
            if len(sides) > 2 or any(side < 1 for side in sides):
                raise UsageError(f"preprocess: {key} is {list(sides)}, expected one or two sizes of 1 or more")
        for key in ("mean", "std"):
            numbers = getattr(self, key)
            if len(numbers) not in (0, 1, depth) or not np.isfinite(numbers).all():
                raise UsageError(f"preprocess: {key} is {list(numbers)}, expected 1 number, or {depth}, one a channel")
        if 0 in self.std or not np.isfinite(self.scale) or not self.scale:
            raise UsageError("preprocess: scale and std are not to be 0, infinite or NaN")

    def array(self, picture: Image.Image) -> Array:
        """float32 of [channels, height, width], or [height, width, channels]. Raises DataError if it cannot be made."""
        from PIL import Image

        if picture.mode.startswith(_DEEP_MODES):
            raise DataError(f"has mode {picture.mode}, expected 8 bits a channel", advice="convert it, or give arrays")
        picture = picture.convert("L" if self.channels is Channels.GRAY else "RGB")
        if self.size:
            width, height = _resized(picture.size, self.size)
            picture = picture.resize((width, height), Image.Resampling[self.resize.name])
        if self.crop:
            height, width = self.crop * 2 if len(self.crop) == 1 else self.crop
            if height > picture.height or width > picture.width:
                raise DataError(f"is {picture.height}x{picture.width}, smaller than the crop of {height}x{width}")
            top, left = (picture.height - height) // 2, (picture.width - width) // 2
            picture = picture.crop((left, top, left + width, top + height))
        pixels: Array = np.asarray(picture, np.float32)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if self.channels is Channels.BGR:
            pixels = pixels[..., ::-1]
        pixels = pixels * np.float32(self.scale) - np.array(self.mean or (0,), np.float32)
        pixels = pixels / np.array(self.std or (1,), np.float32)
        return np.ascontiguousarray(pixels.transpose(2, 0, 1) if self.layout is Layout.NCHW else pixels)


def _resized(size: tuple[int, int], wanted: tuple[int, ...]) -> tuple[int, int]:
    """Width and height; of one wanted number, the longer side is rounded down."""
    if len(wanted) == 2:
        return wanted[1], wanted[0]
    width, height = size
    short = wanted[0]
    return (short, max(1, short * height // width)) if width <= height else (max(1, short * width // height), short)


class Pictures:
    """A source of samples that reads pictures, as many for each sample as the input's fixed batch takes.

    Raises UsageError without a preprocessing, DataError if the input takes no pictures or there are too few.
    """

    def __init__(self, place: str, files: Sequence[Path], value: ir.Value, preprocess: Preprocess | None) -> None:
        if preprocess is None:
            raise UsageError(
                f"{place} holds pictures, and nothing says how they become arrays",
                advice=_ADVICE,
            )
        dims = () if value.shape is None else value.shape.dims
        if len(dims) not in (3, 4) or value.dtype is None or not _is_number(value.dtype):
            shape = "no shape" if value.shape is None else f"the shape {describe_shape(value.shape)}"
            raise DataError(f"{place}: pictures for input '{value.name}', which has {shape}, expected four axes")
        self._files, self._preprocess, self._value = files, preprocess, value
        self._batch = (dims[0] if isinstance(dims[0], int) else 1) if len(dims) == 4 else 0
        if len(files) < self._batch:
            raise DataError(f"{place}: there are {len(files)} pictures, and a sample takes {self._batch}")
        self.left_over = len(files) % (self._batch or 1)

    def __len__(self) -> int:
        return len(self._files) // (self._batch or 1)

    def read(self, indices: Sequence[int]) -> Iterator[Feeds]:
        """The samples of these indices. Raises DataError for a picture that cannot be read or does not fit."""
        size = self._batch or 1
        for index in indices:
            arrays = [self._array(file) for file in self._files[index * size : (index + 1) * size]]
            yield {str(self._value.name): np.stack(arrays) if self._batch else arrays[0]}

    def _array(self, file: Path) -> Array:
        try:
            from PIL import Image
        except ImportError as error:
            raise DataError(
                f"{file} cannot be read: Pillow is not installed", advice="pip install 'graphopt[images]'"
            ) from error
        try:
            with Image.open(file) as picture:
                array = self._preprocess.array(picture)
        except DataError as error:
            raise DataError(f"picture {file} {error.what}", advice=error.advice) from error
        except Exception as error:  # Pillow's decoders raise many kinds on what is damaged
            raise DataError(f"picture {file} cannot be read: {error}") from error
        dims = () if self._value.shape is None else self._value.shape.dims[-3:]
        if any(isinstance(dim, int) and dim != size for dim, size in zip(dims, array.shape, strict=True)):
            raise DataError(
                f"picture {file} becomes {list(array.shape)}, input '{self._value.name}' takes "
                f"{[dim if isinstance(dim, int) else str(dim.value or '?') for dim in dims]}",
                advice="set size, crop, channels or layout in the recipe's table [preprocess]",
            )
        return self._typed(file, array)

    def _typed(self, file: Path, array: Array) -> Array:
        wanted: np.dtype[Any] | None = array_type(self._value)
        if wanted is None or wanted.kind not in "iu":
            return array if wanted is None else np.asarray(array.astype(wanted))
        rounded = np.rint(array)
        if rounded.min() < np.iinfo(wanted).min or rounded.max() > np.iinfo(wanted).max:
            raise DataError(
                f"picture {file} becomes numbers from {array.min():g} to {array.max():g}, which {wanted} does not hold",
                advice="change scale, mean or std in the recipe's table [preprocess]",
            )
        return rounded.astype(wanted)


def _is_number(dtype: ir.DataType) -> bool:
    return dtype.is_floating_point() or dtype.is_integer()
