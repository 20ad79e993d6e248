"""Pictures: the preprocessing against its formula, and what is said of pictures that do not fit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from graphopt.analysis.sample_images import Channels, Layout, Preprocess, Resize
from graphopt.analysis.samples import load_samples
from graphopt.errors import DataError, ModelWarning, UsageError

from .test_execution import parse

MODEL = "g (float[N,3,4,6] image) => (float[N,3,4,6] y) { y = Neg(image) }"
RNG = np.random.default_rng(0)


def picture(file: Path, height: int = 4, width: int = 6, mode: str = "RGB") -> Any:
    file.parent.mkdir(parents=True, exist_ok=True)
    depth = {"RGB": (3,), "RGBA": (4,), "L": ()}[mode]
    pixels = RNG.integers(0, 256, (height, width, *depth), np.uint8)
    Image.fromarray(pixels).save(file)
    return pixels


def test_pixels_are_scaled_centred_divided_and_laid_out(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png").astype(np.float32)
    mean, std = np.array([100, 110, 120], np.float32), np.array([50, 60, 70], np.float32)
    spec = Preprocess(scale=0.5, mean=(100, 110, 120), std=(50, 60, 70))
    found = load_samples(tmp_path, parse(MODEL), preprocess=spec)[0]["image"]
    np.testing.assert_array_equal(found, ((pixels * np.float32(0.5) - mean) / std).transpose(2, 0, 1)[None])
    assert found.dtype == np.float32 and found.flags.c_contiguous


def test_mean_and_std_are_in_the_models_order_of_channels(tmp_path: Path) -> None:
    pixels = picture(tmp_path / "a.png").astype(np.float32)
    spec = Preprocess(channels=Channels.BGR, mean=(104, 117, 123), layout=Layout.NHWC)
    model = parse(MODEL.replace("3,4,6", "4,6,3"))
    found = load_samples(tmp_path, model, preprocess=spec)[0]["image"]
    np.testing.assert_array_equal(found[0], pixels[..., ::-1] - np.array([104, 117, 123], np.float32))


@pytest.mark.parametrize("resize", Resize)
def test_resizing_is_pillows_and_the_middle_is_cut_out(tmp_path: Path, resize: Resize) -> None:
    picture(tmp_path / "a.png", 20, 31)
    spec = Preprocess(size=(10,), crop=(4, 6), resize=resize)
    found = load_samples(tmp_path, parse(MODEL), preprocess=spec)[0]["image"][0].transpose(1, 2, 0)
    with Image.open(tmp_path / "a.png") as image:
        small = np.asarray(image.resize((15, 10), Image.Resampling[resize.name]))  # 10 * 31 // 20 = 15
    np.testing.assert_array_equal(found, small[3:7, 4:10])


@pytest.mark.parametrize(
    ("size", "before", "after"),
    [((8,), (20, 31), (8, 12)), ((8,), (31, 20), (12, 8)), ((8, 5), (20, 31), (8, 5)), ((9,), (4, 4), (9, 9))],
)
def test_one_size_is_the_shorter_side(
    tmp_path: Path, size: tuple[int, ...], before: tuple[int, int], after: tuple[int, int]
) -> None:
    picture(tmp_path / "a.png", *before)
    model = parse(MODEL.replace("4,6", "H,W"))
    found = load_samples(tmp_path, model, preprocess=Preprocess(size=size))[0]["image"]
    assert found.shape == (1, 3, *after)


@pytest.mark.parametrize(("channels", "depth"), [(Channels.RGB, 3), (Channels.GRAY, 1)])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_channels_are_converted(tmp_path: Path, channels: Channels, depth: int, mode: str) -> None:
    pixels = picture(tmp_path / "a.png", mode=mode)
    model = parse(MODEL.replace("3,4,6", f"{depth},4,6"))
    found = load_samples(tmp_path, model, preprocess=Preprocess(channels=channels))[0]["image"]
    assert found.shape == (1, depth, 4, 6)
    if depth == 3:
        expected = np.stack([pixels] * 3) if mode == "L" else pixels[..., :3].transpose(2, 0, 1)
        np.testing.assert_array_equal(found[0], expected)


@pytest.mark.parametrize("dtype", ["uint8", "float16", "int8"])
def test_the_array_has_the_inputs_type(tmp_path: Path, dtype: str) -> None:
    pixels = picture(tmp_path / "a.png").transpose(2, 0, 1)
    model = parse(MODEL.replace("float[", f"{dtype}["))
    mean = 128.0 if dtype == "int8" else 0.0
    found = load_samples(tmp_path, model, preprocess=Preprocess(mean=(mean,)))[0]["image"]
    assert found.dtype == dtype
    np.testing.assert_array_equal(found[0], pixels - mean)


def test_numbers_that_an_integer_input_does_not_hold_are_an_error(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png becomes numbers from .*, which int8 does not hold"):
        load_samples(tmp_path, parse(MODEL.replace("float[", "int8[")), preprocess=Preprocess())[0]


def test_pictures_come_in_the_order_of_their_paths_and_one_may_be_given_alone(tmp_path: Path) -> None:
    names = ["dog/1.png", "cat/2.JPG", "cat/10.bmp", "z.ppm"]
    for name in names:
        picture(tmp_path / name)
    model = parse(MODEL)
    samples = load_samples(tmp_path, model, preprocess=Preprocess())
    assert len(samples) == 4
    for feeds, name in zip(samples, ["cat/10.bmp", "cat/2.JPG", "dog/1.png", "z.ppm"], strict=True):
        (alone,) = load_samples(tmp_path / name, model, preprocess=Preprocess())
        np.testing.assert_array_equal(feeds["image"], alone["image"])


def test_a_fixed_batch_takes_several_pictures_and_a_missing_one_none(tmp_path: Path) -> None:
    for index in range(5):
        picture(tmp_path / f"{index}.png")
    with pytest.warns(ModelWarning, match="the last 1 of 5 pictures do not fill a batch"):
        samples = load_samples(tmp_path, parse(MODEL.replace("N,", "2,")), preprocess=Preprocess())
    single = load_samples(tmp_path, parse(MODEL.replace("N,", "")), preprocess=Preprocess())
    assert (len(samples), len(single)) == (2, 5)
    for index, feeds in enumerate(single):
        assert feeds["image"].shape == (3, 4, 6)
        if index < 4:
            np.testing.assert_array_equal(samples[index // 2]["image"][index % 2], feeds["image"])
    with pytest.raises(DataError, match="there are 5 pictures, and a sample takes 8"):
        load_samples(tmp_path, parse(MODEL.replace("N,", "8,")), preprocess=Preprocess())


def test_another_input_may_have_a_folder_of_arrays(tmp_path: Path) -> None:
    model = parse("g (float[1,3,4,6] image, float[1] t) => (float[1,3,4,6] y) { y = Add(image, t) }")
    for index in range(3):
        picture(tmp_path / "image" / f"{index}.png")
    with pytest.raises(DataError, match="has folders for the inputs 'image', and none for 't'"):
        load_samples(tmp_path, model, preprocess=Preprocess())
    (tmp_path / "t").mkdir()
    np.save(tmp_path / "t" / "all.npy", np.arange(3, dtype=np.float32))
    samples = load_samples(tmp_path, model, preprocess=Preprocess())
    assert [float(feeds["t"][0]) for feeds in samples] == [0, 1, 2]
    assert all(feeds["image"].shape == (1, 3, 4, 6) for feeds in samples)
    with pytest.raises(DataError, match="holds pictures, and the model has 2 inputs\n  make a folder for each"):
        load_samples(tmp_path / "image", model, preprocess=Preprocess())


def test_without_a_preprocessing_the_error_shows_the_table_to_write(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    with pytest.raises(UsageError, match="holds pictures, and nothing says how they become arrays") as caught:
        load_samples(tmp_path, parse(MODEL))
    from graphopt.pipeline.recipe import read_recipe

    start = caught.value.advice.index("target")
    recipe = read_recipe(caught.value.advice[start:])
    assert recipe.preprocess is not None and recipe.preprocess.crop == (224,)
    assert [item.name for item in recipe.passes] == ["clean-up", "quantize"]


def cut_short(file: Path) -> None:
    picture(file, 40, 60)
    file.write_bytes(file.read_bytes()[:900])


def deep(file: Path) -> None:
    Image.fromarray(RNG.integers(0, 65536, (4, 6)).astype(np.uint16)).save(file)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda file: file.write_bytes(b""), "cannot be read: cannot identify image file"),
        (cut_short, "cannot be read: .*truncated"),
        (lambda file: picture(file, 5, 6), r"becomes \[3, 5, 6\], input 'image' takes \[3, 4, 6\]\n  set size, crop"),
        (lambda file: picture(file, 3, 60), "is 3x60, smaller than the crop of 4x6"),
        (deep, "has mode I;16, expected 8 bits a channel"),
    ],
)
def test_a_picture_that_cannot_be_used_is_named(tmp_path: Path, write: Any, message: str) -> None:
    picture(tmp_path / "a.png")
    write(tmp_path / "b.png")
    spec = Preprocess(crop=(4, 6)) if "crop of" in message else Preprocess()
    with pytest.raises(DataError, match=rf"picture .*b\.png {message}"):
        list(load_samples(tmp_path, parse(MODEL), preprocess=spec))


@pytest.mark.parametrize("shape", ["float[1,3]", "float", "string[1,3,4,6]"])
def test_an_input_that_takes_no_pictures_is_an_error(tmp_path: Path, shape: str) -> None:
    picture(tmp_path / "a.png")
    model = parse(f"g ({shape} image) => ({shape} y) {{ y = Identity(image) }}")
    with pytest.raises(DataError, match="pictures for input 'image', which has"):
        load_samples(tmp_path, model, preprocess=Preprocess())


def test_pillow_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DataError, match=r"Pillow is not installed\n  pip install 'graphopt\[images\]'"):
        load_samples(tmp_path, parse(MODEL), preprocess=Preprocess())[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (0,)}, r"size is \[0\], expected one or two sizes"),
        ({"crop": (1, 2, 3)}, r"crop is \[1, 2, 3\], expected one or two sizes"),
        ({"mean": (1.0, 2.0)}, r"mean is \[1.0, 2.0\], expected 1 number, or 3, one a channel"),
        ({"std": (1.0, 2.0, 3.0), "channels": Channels.GRAY}, "expected 1 number, or 1, one a channel"),
        ({"mean": (float("nan"),)}, "mean is"),
        ({"std": (0.0,)}, "scale and std are not to be 0"),
        ({"scale": 0.0}, "scale and std are not to be 0"),
    ],
)
def test_a_preprocessing_outside_its_range_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Preprocess(**options)
