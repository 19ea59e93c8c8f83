"""Random views: what they show, and who decides them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.data.loader import Images
from pipeline.data.normalisation import Normalisation
from pipeline.data.pixels import ResidentPixels
from tests.conftest import augmented

CPU = torch.device("cpu")
HEIGHT, WIDTH = 12, 16
RESIZED = {"name": "resized", "scale": (0.35, 1.0), "ratio": (0.75, 4 / 3)}
EVERYTHING = {
    "crop": RESIZED,
    "horizontal_flip": True,
    "vertical_flip": True,
    "policy": "trivialaugment",
    "color_jitter": 0.4,
    "erasing": 0.5,
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(count: int = 40, height: int = HEIGHT, width: int = WIDTH, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def images(pixels: np.ndarray, **changes: object) -> Images:
    """With views in [0, 255]."""
    views, channels = augmented(**changes), pixels.shape[3]
    resident = ResidentPixels(pixels, CPU, views.padding)
    normalisation = Normalisation([0.0] * channels, [1 / 255] * channels)
    return Images(resident, torch.zeros(len(pixels), dtype=torch.int64), normalisation, views)


def drawn(pixels: np.ndarray, seed: int = 0, parts: list | None = None, **changes: object) -> np.ndarray:
    """Views [M, H, W, C] of all images once."""
    torch.manual_seed(seed)
    index = torch.arange(len(pixels))
    return next(images(pixels, **changes).views([index], generator(seed), parts)).permute(0, 2, 3, 1).numpy()


def test_pad_crops_and_flips_of_images_that_are_not_square_are_cut_out_of_the_bordered_image():
    pixels = noise()
    bordered = np.pad(pixels, ((0, 0), (2, 2), (2, 2), (0, 0)))
    seen = set()
    for image, view in zip(bordered, drawn(pixels, padding=2, horizontal_flip=True), strict=True):
        crops = {(y, x): image[y : y + HEIGHT, x : x + WIDTH] for y in range(5) for x in range(5)}
        found = [
            (*place, mirrored)
            for place, crop in crops.items()
            for mirrored in (False, True)
            if np.allclose(crop[:, ::-1] if mirrored else crop, view, atol=1e-3)
        ]
        assert len(found) == 1
        seen |= set(found)
    assert len(seen) > 15


def test_crops_and_flips_are_drawn_in_an_order_that_does_not_change():
    """The order of the draws: two offsets for each image of the batch, then whether it is mirrored."""
    pixels, made = noise(), generator(3)
    offsets = torch.randint(5, (2, len(pixels), 1), generator=made)[:, :, 0].tolist()
    mirrored = (torch.rand((len(pixels), 1), generator=made) < 0.5)[:, 0].tolist()
    bordered = np.pad(pixels, ((0, 0), (2, 2), (2, 2), (0, 0)))
    views = drawn(pixels, 3, padding=2, horizontal_flip=True)
    for image, view, y, x, flip in zip(bordered, views, *offsets, mirrored, strict=True):
        crop = image[y : y + HEIGHT, x : x + WIDTH]
        np.testing.assert_allclose(view, crop[:, ::-1] if flip else crop, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"horizontal_flip": True}, [lambda a: a, np.fliplr]),
        ({"vertical_flip": True}, [lambda a: a, np.flipud]),
        ({"quarter_turns": True}, [lambda a: a, np.rot90, lambda a: np.rot90(a, 2), lambda a: np.rot90(a, 3)]),
        (
            {"quarter_turns": True, "horizontal_flip": True, "vertical_flip": True},
            [lambda a, k=k, f=f: np.rot90(f(a), k) for k in range(4) for f in (np.asarray, np.fliplr)],
        ),
    ],
)
@pytest.mark.parametrize("crop", [{"name": "none"}, RESIZED | {"scale": (1.0, 1.0), "ratio": (1.0, 1.0)}])
def test_flips_and_turns_show_all_their_views_about_equally_often_and_no_other(changes, shown, crop):
    pixels = noise(200, 8, 8)
    counts = [0] * len(shown)
    for image, view in zip(pixels, drawn(pixels, crop=crop, **changes), strict=True):
        (found,) = [place for place, turned in enumerate(shown) if np.allclose(turned(image), view, atol=1)]
        counts[found] += 1
    assert min(counts) > 200 / len(shown) / 2


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.2, 0.2), (0.35, 1.0)])
def test_a_resized_crop_shows_a_part_of_the_wanted_area_and_ratio(scale):
    """In images whose colours are the coordinates, a view shows which part of the image it is."""
    size = 128
    ramp = np.arange(size)
    pixels = np.zeros((300, size, size, 3), np.uint8)
    pixels[..., 0], pixels[..., 1] = ramp[:, None], ramp[None, :]
    views = drawn(pixels, crop=RESIZED | {"scale": scale}).astype(float)
    rows, columns = views[:, :, 64, 0], views[:, 64, :, 1]
    # from the rows of view 20 to 107: the border rows of an image continue outwards
    height, width = (part[:, 107] - part[:, 20] for part in (rows, columns))
    height, width = height / 87, width / 87
    area, ratio = height * width, width / height
    assert area.min() > min(scale[0], 0.75**0.5) - 0.04, "where a part is wider or higher than the image, it is clipped"
    assert area.max() < scale[1] + 0.03
    if scale[0] < 1:
        assert ratio.min() > 0.72
        assert ratio.max() < 1.37
        assert 0.9 < np.exp(np.log(ratio).mean()) < 1.1
        assert area.mean() == pytest.approx(sum(scale) / 2, abs=0.05)
        assert rows[:, 0].std() > 5
    else:
        np.testing.assert_allclose(area, 1, atol=0.3)
    assert views[..., 2].max() == 0


def test_the_whole_image_as_resized_crop_is_the_image():
    pixels = noise()
    whole = drawn(pixels, crop={"name": "resized", "scale": (1.0, 1.0), "ratio": (1.0, 1.0)})
    np.testing.assert_allclose(whole, pixels, atol=1)


@pytest.mark.parametrize("channels", [1, 3])
def test_everything_together_gives_normalised_views_in_channels_last(channels):
    pixels = noise(channels=channels)
    torch.manual_seed(0)
    made = images(pixels, **EVERYTHING)
    view = next(made.views([torch.arange(40)], generator()))
    assert view.shape == (40, channels, HEIGHT, WIDTH)
    assert view.is_contiguous(memory_format=torch.channels_last)
    assert 0 <= view.min() <= view.max() <= 255.001
    strong = next(made.strong_views([torch.arange(40)], generator()))
    assert strong.shape == view.shape


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment"])
def test_a_policy_changes_images_and_the_global_seed_decides_how(policy):
    pixels = noise()
    first, same, other = (drawn(pixels, seed, policy=policy) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
    assert (first != drawn(pixels)).any()


def test_color_jitter_changes_brightness_contrast_and_saturation_but_no_place():
    pixels = np.zeros((80, 8, 8, 3), np.uint8)
    pixels[:, :4] = (200, 100, 50)
    views = drawn(pixels, color_jitter=0.5)
    top, bottom = views[:, :4], views[:, 4:]
    for part in (top, bottom):
        np.testing.assert_array_equal(part, np.broadcast_to(part[:, :1, :1], part.shape))
    assert len(np.unique(top[:, 0, 0], axis=0)) > 5
    assert (top[:, 0, 0, 0] >= top[:, 0, 0, 2]).all(), "red stays the strongest colour"


def test_erasing_fills_one_rectangle_of_a_share_of_the_views_with_the_mean():
    pixels = np.full((400, 32, 48, 3), 200, np.uint8)
    made = images(pixels, erasing=0.5)
    views = next(made.views([torch.arange(400)], generator()))
    erased = (views == 0).all(dim=1)
    share = erased.float().mean(dim=(1, 2))
    assert 0.4 < (share > 0).float().mean() < 0.6
    assert share.max() < 0.36
    assert ((views == 0).all(dim=1) == (views == 0).any(dim=1)).all()
    for mask in erased[share > 0]:
        rows, columns = mask.any(dim=1), mask.any(dim=0)
        assert mask.sum() == rows.sum() * columns.sum(), "a rectangle"


@pytest.mark.parametrize("part", [slice(7, 20), torch.tensor([3, 39, 3])])
def test_a_part_of_a_batch_gets_the_views_that_it_has_in_the_whole(part):
    changes = {key: value for key, value in EVERYTHING.items() if key not in ("policy", "color_jitter")}
    pixels = noise()
    np.testing.assert_array_equal(drawn(pixels, parts=[part], **changes), drawn(pixels, **changes)[part])


def test_views_come_again_but_for_those_of_torchvision():
    assert augmented(2, horizontal_flip=True, erasing=0.1).come_again
    assert augmented(crop=RESIZED, quarter_turns=True).come_again
    for changes in ({"policy": "randaugment"}, {"color_jitter": 0.1}):
        assert not augmented(**changes).come_again
