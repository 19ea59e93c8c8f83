"""From a file to the pixels that networks see."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline.data.decoding import decode, pixels_of
from pipeline.data.image_files import decode_at
from pipeline.data.store import preprocessing
from pipeline.store.documents import ImageFormat
from tests.conftest import squashed
from tests.report.conftest import data_card


def form(height=24, width=16, channels=3, resize="squash", interpolation="bilinear") -> ImageFormat:
    return ImageFormat(height=height, width=width, channels=channels, resize=resize, interpolation=interpolation)


def pixels_at(image: Image.Image, form: ImageFormat) -> np.ndarray:
    return pixels_of(image, **form.of_decoding)


def photograph(width: int, height: int) -> Image.Image:
    """Smooth colours with edges and grain."""
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    smooth[height // 3 : height // 2, width // 4 :: 97] //= 2
    return Image.fromarray((smooth + generator.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def camera(tmp_path_factory):
    """A JPEG file of 3 megapixels, and the same one held sideways by EXIF orientation."""
    folder, image, exif = tmp_path_factory.mktemp("camera"), photograph(2048, 1536), Image.Exif()
    image.save(folder / "upright.jpg", quality=90)
    exif[0x0112] = 6
    image.save(folder / "sideways.jpg", quality=90, exif=exif)
    return folder


@pytest.mark.parametrize("name", ["upright.jpg", "sideways.jpg"])
@pytest.mark.parametrize("resize", ["squash", "crop", "letterbox"])
def test_a_large_jpeg_decoded_at_reduced_size_gives_the_pixels_of_its_full_size_but_for_rounding(camera, name, resize):
    wanted = form(height=64, width=96, resize=resize)
    small, full = decode_at(camera / name, wanted), pixels_at(decode(camera / name), wanted)
    assert decode(camera / name, (192, 128)).width < decode(camera / name).width / 3
    assert np.abs(small.astype(int) - full).mean() < 0.5


def test_a_jpeg_is_not_decoded_below_the_size_that_is_needed(camera):
    assert decode(camera / "upright.jpg").size == (2048, 1536)
    assert decode(camera / "upright.jpg", (1025, 10)).size == (2048, 1536)
    assert decode(camera / "upright.jpg", (1024, 768)).size == (1024, 768)
    assert decode(camera / "upright.jpg", (100, 192)).size == (256, 192)
    assert decode(camera / "sideways.jpg", (192, 100)).size == (192, 256)
    assert decode(camera / "sideways.jpg", (193, 100)).size == (384, 512)


def test_other_formats_are_decoded_whole(tmp_path):
    photograph(512, 256).save(tmp_path / "image.png")
    assert decode(tmp_path / "image.png", (16, 16)).size == (512, 256)


def columns(width: int = 60, height: int = 20) -> Image.Image:
    """Red on the left third, green in the middle, blue on the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for channel in range(3):
        pixels[:, channel * width // 3 : (channel + 1) * width // 3, channel] = 255
    return Image.fromarray(pixels)


def test_squash_shows_the_whole_image_on_the_whole_area():
    pixels = pixels_at(columns(), form(height=12, width=12))
    assert pixels.shape == (12, 12, 3)
    assert [pixels[6, place].argmax() for place in (1, 6, 10)] == [0, 1, 2]
    assert pixels[[0, -1]].max(axis=2).min() > 100


def test_crop_keeps_the_aspect_ratio_and_the_centre():
    pixels = pixels_at(columns(), form(height=20, width=20, resize="crop"))
    np.testing.assert_array_equal(pixels, np.asarray(columns())[:, 20:40])
    tall = pixels_at(columns().transpose(Image.Transpose.TRANSPOSE), form(height=10, width=20, resize="crop"))
    assert (tall.argmax(axis=2) == 1).all()


def test_letterbox_keeps_the_aspect_ratio_and_all_of_the_image_on_black():
    pixels = pixels_at(columns(), form(height=60, width=60, resize="letterbox"))
    np.testing.assert_array_equal(pixels[20:40], np.asarray(columns()))
    assert not pixels[:20].any()
    assert not pixels[40:].any()
    tall = pixels_at(columns().transpose(Image.Transpose.TRANSPOSE), form(height=30, width=30, resize="letterbox"))
    assert not tall[:, :10].any()
    assert tall[:, 10:20].max(axis=2).min() > 100


def test_a_line_of_one_pixel_becomes_an_image(tmp_path):
    for size in ((3000, 1), (1, 3000)):
        Image.new("RGB", size, "white").save(tmp_path / "line.png")
        for resize in ("squash", "crop", "letterbox"):
            assert decode_at(tmp_path / "line.png", form(resize=resize)).shape == (24, 16, 3)


def test_grey_is_pillows_and_that_of_a_grey_file_is_kept(tmp_path):
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(decode_at(tmp_path / "grey.png", form(16, 16, channels=1))[..., 0], ramp)
    colour = photograph(16, 16)
    grey = pixels_at(colour, form(16, 16, channels=1))
    assert grey.shape == (16, 16, 1)
    np.testing.assert_array_equal(grey[..., 0], np.asarray(colour.convert("L")))


def test_bicubic_is_sharper_than_bilinear():
    edges = [pixels_at(columns(), form(7, 31, interpolation=name))[3, :, 0] for name in ("bilinear", "bicubic")]
    slopes = [np.abs(np.diff(edge.astype(int))).max() for edge in edges]
    assert slopes[1] > slopes[0]


def test_the_description_names_the_size_the_channels_and_the_way_there():
    for resize, words in (("squash", "without keeping"), ("crop", "centre part"), ("letterbox", "on black")):
        image = form(24, 16, channels=1, resize=resize, interpolation="bicubic")
        card = data_card().model_copy(update={"image": image, "mean": [0.5], "std": [0.25]})
        spec = preprocessing(card)
        assert (spec["image_size"], spec["channels"], spec["mean"]) == ([24, 16], 1, [0.5])
        assert (spec["resize"], spec["interpolation"]) == (resize, "bicubic")
        text = " ".join(spec["steps"])
        assert words in text
        assert "bicubic" in text
        assert "grey" in text
        assert "[N, 1, 24, 16]" in text
    assert "grey" not in " ".join(preprocessing(data_card().model_copy(update={"image": squashed(8)}))["steps"])
