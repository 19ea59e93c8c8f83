from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.data import augmentation
from pipeline.data.augmentation import KeyedDraws, view_keys
from pipeline.data.loader import Images
from pipeline.data.normalisation import Normalisation
from pipeline.data.pixels import ResidentPixels
from pipeline.data.views import View, numbered_views
from tests.conftest import augmented

CPU = torch.device("cpu")
SEED = 2**62 + 12345


def images(count: int = 60, size: int = 12, padding: int = 2, **changes) -> Images:
    """Noise, so that no two views are alike."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    views = augmented(padding, **{"horizontal_flip": True} | changes)
    return Images(ResidentPixels(pixels, CPU, padding), torch.arange(count), Normalisation([0.5] * 3, [0.5] * 3), views)


def colours(count: int = 200, size: int = 16) -> Images:
    """Each image has one colour: its index over the number of images."""
    pixels = np.broadcast_to(np.arange(count)[:, None, None, None], (count, size, size, 3)).astype(np.uint8)
    plain = Normalisation([0.0] * 3, [count / 255] * 3)
    return Images(ResidentPixels(pixels, CPU, 0), torch.arange(count), plain, augmented())


def view(made: Images, index: list[int], number: int = 0, *, seed: int = SEED, mixed: bool = False) -> View:
    positions = torch.tensor(index)
    [found] = numbered_views(made, [(positions, torch.full_like(positions, number))], seed, mixed=mixed)
    return found


def test_numbers_drawn_from_keys_are_uniform_and_independent():
    keys = view_keys(SEED, torch.arange(20_000), torch.zeros(20_000, dtype=torch.int64))
    draws = KeyedDraws(keys)
    first, second = draws.uniform(count=2)[..., 0].double()
    for values in (first, second):
        assert 0 <= values.min() < 1e-3
        assert 1 - 1e-3 < values.max() < 1
        counts = torch.histc(values, bins=20, min=0, max=1)
        assert ((counts - 1000).abs() < 150).all(), "five standard deviations of a count"
    for other in (second, first.roll(1), draws.uniform()[0, :, 0].double()):
        assert torch.corrcoef(torch.stack([first, other]))[0, 1].abs() < 0.03
    assert torch.bincount(draws.integers(9)[0, :, 0]).tolist() == pytest.approx([20_000 / 9] * 9, rel=0.1)


def test_a_number_has_the_published_value():
    # the first outputs of SplitMix64 seeded with 0, which adds its constant before each
    zero = torch.zeros(1, dtype=torch.int64)
    assert int(augmentation._mixed_bits(zero)) % 2**64 == 0xE220A8397B1DCDAF


@pytest.mark.parametrize(
    "crop", [{"name": "pad", "padding": 2}, {"name": "resized", "scale": [0.3, 1], "ratio": [1, 1]}]
)
@pytest.mark.parametrize("mixed", [False, True])
def test_a_view_depends_on_image_number_and_seed_alone(crop, mixed):
    made = images(crop=crop, padding=2 if crop["name"] == "pad" else 0, erasing=0.3)
    whole = view(made, [5, 17, 3, 59], 4, mixed=mixed)
    alone = view(made, [3], 4, mixed=mixed)
    torch.testing.assert_close(alone.images[0], whole.images[2], rtol=0, atol=0)
    if mixed:
        assert (alone.mixture.partner[0], alone.mixture.share[0]) == (whole.mixture.partner[2], whole.mixture.share[2])
    for other in (view(made, [3], 5, mixed=mixed), view(made, [3], 4, seed=SEED + 1, mixed=mixed)):
        assert not torch.equal(other.images, alone.images)


def test_the_views_of_a_batch_may_have_different_numbers():
    made, index = images(), torch.tensor([7, 7, 8])
    [found] = numbered_views(made, [(index, torch.tensor([0, 3, 3]))], SEED, mixed=False)
    expected = [view(made, [7], 0), view(made, [7], 3), view(made, [8], 3)]
    assert torch.equal(found.images, torch.cat([each.images for each in expected]))


def test_views_that_are_not_mixed_are_the_crops_and_flips_of_their_image():
    made = images(count=2, padding=1)
    bordered = torch.nn.functional.pad(made.centre(torch.tensor([1]))[0], (1, 1, 1, 1), value=-1.0)
    crops = [bordered[:, y : y + 12, x : x + 12] for y in range(3) for x in range(3)]
    possible = [each for crop in crops for each in (crop, crop.flip(2))]
    seen = set()
    for number in range(200):
        drawn = view(made, [1], number)
        assert drawn.mixture is None
        [match] = [i for i, candidate in enumerate(possible) if torch.allclose(drawn.images[0], candidate, atol=1e-6)]
        seen.add(match)
    assert len(seen) == 18


def test_half_of_the_mixed_views_are_mixup_and_half_cutmix_and_their_shares_are_those_of_the_pixels():
    made = colours()
    found = view(made, list(range(200)), mixed=True)
    index, (partner, share) = torch.arange(200), found.mixture
    own, other = ((values / 200).view(-1, 1, 1, 1) for values in (index, partner))
    differ = index != partner
    is_own = torch.isclose(found.images, own, atol=1e-5)
    cut = ((is_own | torch.isclose(found.images, other, atol=1e-5)).flatten(1).all(dim=1)) & differ
    assert 70 <= int(cut[differ].sum()) <= 130
    torch.testing.assert_close(is_own.flatten(1).double().mean(dim=1)[cut].float(), share[cut])
    mixtures = share.view(-1, 1, 1, 1) * own + (1 - share.view(-1, 1, 1, 1)) * other
    torch.testing.assert_close(found.images[~cut], mixtures.expand_as(found.images)[~cut], rtol=0, atol=1e-5)
    assert share.min() < 0.1
    assert share.max() > 0.9
    assert len(partner.unique()) > 100, "partners come from the whole split"


def test_mixed_views_are_channels_last_like_all_others():
    assert view(images(), [0, 1, 2], mixed=True).images.is_contiguous(memory_format=torch.channels_last)
