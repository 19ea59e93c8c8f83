from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.data.loader import Images, cycled_indices, shuffled_batches, steps_per_epoch
from pipeline.data.normalisation import Normalisation
from pipeline.data.pixels import ResidentPixels
from tests.conftest import augmented

CPU = torch.device("cpu")
MEAN, STD = [0.1, 0.2, 0.3], [0.5, 0.4, 0.3]


def make(count=10, size=8, padding=0, **changes) -> Images:
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    views = augmented(padding, **changes)
    resident = ResidentPixels(pixels, CPU, padding)
    return Images(resident, torch.arange(count) % 3, Normalisation(MEAN, STD), views)


def plain(images: Images) -> torch.Tensor:
    return torch.cat([batch.images for batch in images.batches(4)])


def generator(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_plain_batches_are_the_normalised_images_in_order():
    images = make(padding=2)
    pixels = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
    expected = ((pixels / 255 - MEAN) / STD).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(plain(images), expected, rtol=1e-4, atol=1e-5)
    assert [len(batch.labels) for batch in images.batches(4)] == [4, 4, 2]
    assert torch.cat([batch.index for batch in images.batches(4)]).tolist() == list(range(10))


def test_batches_of_ranges_of_rows_stay_within_a_range():
    images = make()
    batches = list(images.batches(2, [range(7, 10), range(0, 3)]))
    assert [batch.index.tolist() for batch in batches] == [[7, 8], [9], [0, 1], [2]]
    assert torch.equal(torch.cat([batch.images for batch in batches]), plain(images)[[7, 8, 9, 0, 1, 2]])
    assert torch.cat([batch.labels for batch in batches]).tolist() == [1, 2, 0, 0, 1, 2]


def test_batches_are_channels_last():
    batch = next(make().batches(4))
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


def test_views_are_crops_of_the_black_bordered_image_mirrored_or_not():
    images = make(count=1, padding=1, horizontal_flip=True)
    black = torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)]).view(3, 1, 1)
    bordered = black.expand(3, 10, 10).clone()
    bordered[:, 1:9, 1:9] = plain(images)[0]
    crops = [bordered[:, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    possible = [view for crop in crops for view in (crop, crop.flip(2))]
    seen = set()
    for view in next(images.views([torch.zeros(400, dtype=torch.int64)], generator())):
        [match] = [i for i, candidate in enumerate(possible) if torch.allclose(view, candidate, atol=1e-6)]
        seen.add(match)
    assert len(seen) == 18, "every one of the 9 crops x 2 flips occurs"


def test_strong_views_are_normalised_images_that_both_seeds_decide():
    images, index = make(count=20, size=16, padding=2), torch.arange(20)

    def strong(global_seed, seed):
        torch.manual_seed(global_seed)
        return next(images.strong_views([index], generator(seed)))

    first = strong(0, 0)
    assert first.shape == (20, 3, 16, 16)
    assert first.is_contiguous(memory_format=torch.channels_last)
    low, high = ([(bound - m) / s for m, s in zip(MEAN, STD, strict=True)] for bound in (0, 1))
    for channel in range(3):
        assert first[:, channel].min() >= low[channel] - 1e-5
        assert first[:, channel].max() <= high[channel] + 1e-5
    assert torch.equal(first, strong(0, 0))
    assert not torch.equal(first, strong(1, 0))
    assert not torch.equal(first, strong(0, 1))
    torch.manual_seed(0)
    assert not torch.equal(first, next(images.views([index], generator(0))))


def test_without_augmentation_a_view_is_the_image():
    images = make()
    index = torch.tensor([3, 3, 7])
    assert torch.equal(next(images.views([index], generator())), images.centre(index))


def test_an_epoch_shows_each_image_at_most_once_and_the_seed_decides():
    images = make(count=11, padding=1)
    epochs = [list(shuffled_batches(images, 4, generator(seed))) for seed in (0, 0, 1)]
    order = [torch.cat([batch.index for batch in epoch]).tolist() for epoch in epochs]
    assert len(order[0]) == 8 == len(set(order[0]))
    assert order[0] == order[1] != order[2]
    assert torch.equal(epochs[0][0].images, epochs[1][0].images)


def test_a_split_smaller_than_a_batch_is_one_batch():
    assert [len(batch.index) for batch in shuffled_batches(make(count=3), 8, generator())] == [3]
    assert steps_per_epoch(3, 8) == 1


@pytest.mark.parametrize("count", [2, 5, 40])
def test_companions_come_in_fixed_size_and_evenly(count):
    members = torch.arange(100, 100 + count)
    batches = list(cycled_indices(members, 6, 5, generator()))
    assert [len(batch) for batch in batches] == [6] * 5
    drawn = torch.bincount(torch.cat(batches) - 100, minlength=count)
    assert drawn.max() - drawn.min() <= 1
