from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.compute.seeds import CLEAN, stream_seed
from pipeline.data.loader import shuffled_indices
from pipeline.distillation.mixing import MIXES, companion_size, draw_cutmix, draw_mixup
from pipeline.energy.groups import EnergyGroups
from pipeline.energy.subset import select_subset


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def mixed_within(draw, images: torch.Tensor, stream: torch.Generator):
    """The images, each mixed with its partner in the batch, and how."""
    mixing = draw(len(images), *images.shape[2:], stream)
    return mixing.apply(images, images, mixing.partner), mixing


@given(st.integers(5, 60), st.floats(0.2, 1))
@settings(deadline=None)
def test_subset_is_the_high_energy_share(count, fraction):
    energy = torch.randint(0, 7, (count,), generator=generator(count)).float()
    chosen = select_subset(energy, fraction)
    assert chosen.dtype == torch.int64
    assert len(chosen) == int(count * fraction)
    rest = torch.ones(count, dtype=torch.bool)
    rest[chosen] = False
    assert not rest.any() or energy[chosen].min() >= energy[rest].max()


def test_controls_are_as_large_as_the_subset_and_come_from_elsewhere():
    energy = torch.randn(50, generator=generator())
    high, low, drawn = (select_subset(energy, 0.4, kind) for kind in ("high_energy", "low_energy", "random"))
    assert len(high) == len(low) == len(drawn) == 20
    assert energy[low].max() < energy[high].min()
    assert torch.equal(drawn, drawn.sort().values)
    assert len(set(drawn.tolist())) == 20
    assert torch.equal(drawn, select_subset(energy.flip(0), 0.4, "random")), "the energy has no part in it"
    assert not torch.equal(drawn, select_subset(energy, 0.4, "random", seed=1))


@pytest.mark.parametrize("kind", ["high_energy", "low_energy", "random"])
def test_the_whole_split_is_the_subset_of_everything(kind):
    assert torch.equal(select_subset(torch.randn(9), 1.0, kind), torch.arange(9))


def test_subset_and_high_group_rank_ties_alike():
    energy = torch.zeros(10)
    high = (EnergyGroups.fit(energy, 0.0, 0.3).codes == 2).nonzero().flatten()
    assert torch.equal(select_subset(energy, 0.3), high)


def test_the_subset_of_more_images_than_float32_counts_is_exact_whatever_the_ties():
    # 1.3 million images with many ties; a share whose count is not whole in float32
    energy = torch.randint(0, 1000, (1_300_003,), generator=generator()).float()
    for kind in ("high_energy", "low_energy"):
        chosen = torch.zeros(len(energy), dtype=torch.bool)
        chosen[select_subset(energy, 0.331, kind)] = True
        assert chosen.sum() == 430_300
        lower, upper = (~chosen, chosen) if kind == "high_energy" else (chosen, ~chosen)
        border = energy[lower].max()
        assert border == energy[upper].min(), "the border lies within a tie"
        tied = (energy == border).nonzero().flatten()
        assert torch.equal(upper[tied], upper[tied].sort().values), "ties are ranked by index"


@pytest.mark.parametrize("seed", [0, 7])
def test_the_random_subset_is_not_what_the_first_epoch_begins_with(seed):
    subset = select_subset(torch.arange(200.0), 0.4, "random", seed)
    batches = shuffled_indices(200, 16, generator(stream_seed(seed, CLEAN, 0)))
    first = torch.cat(batches[:5])
    shared = len(set(subset.tolist()) & set(first.tolist()))
    # 32 of the 80 are expected by chance, with a deviation of 3.4
    assert 15 < shared < 50


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, float("nan")])
def test_fraction_outside_its_range_is_refused(fraction):
    with pytest.raises(ValueError, match="fraction"):
        select_subset(torch.arange(10.0), fraction)


def test_fraction_that_selects_nothing_is_refused():
    with pytest.raises(ValueError, match="selects none"):
        select_subset(torch.arange(3.0), 0.2)


def test_companion_batch_has_a_fixed_rounded_size():
    assert companion_size(64, 0.4) == 26
    assert companion_size(2, 0.2) == 2


@given(st.integers(0, 500))
@settings(max_examples=50, deadline=None)
def test_cutmix_pixels_come_from_the_image_or_its_partner_in_the_stated_share(seed):
    batch = 5
    images = torch.arange(1.0, batch + 1).view(-1, 1, 1, 1).expand(batch, 3, 8, 8).contiguous()
    mixed, mixing = mixed_within(draw_cutmix, images, generator(seed))
    own = mixed == images
    theirs = mixed == images[mixing.partner]
    assert (own | theirs).all()
    moved = mixing.partner != torch.arange(batch)
    assert torch.allclose(own[moved].float().mean(dim=(1, 2, 3)), torch.tensor(mixing.lam))
    assert (own[:, :1] == own).all(), "all channels are cut alike"


@given(st.integers(0, 500))
@settings(max_examples=50, deadline=None)
def test_mixup_is_the_stated_convex_combination(seed):
    images = torch.randn(4, 3, 6, 6, generator=generator(seed))
    mixed, mixing = mixed_within(draw_mixup, images, generator(seed))
    assert 0 <= mixing.lam <= 1
    torch.testing.assert_close(mixed, mixing.lam * images + (1 - mixing.lam) * images[mixing.partner])


@pytest.mark.parametrize("mix", ["cutmix", "mixup"])
def test_the_seed_decides_and_the_input_is_kept(mix):
    images = torch.randn(4, 3, 8, 8)
    before = images.clone()
    first, second, other = (mixed_within(MIXES[mix], images, generator(seed))[0] for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(images, before)


def test_cutmix_shares_are_uniform_before_clipping_and_mixup_shares_sit_at_the_ends():
    stream = generator(3)
    cut = torch.tensor([draw_cutmix(2, 64, 64, stream).lam for _ in range(2000)])
    mixed = torch.tensor([draw_mixup(2, 64, 64, stream).lam for _ in range(2000)])
    # clipping at the border can only enlarge the kept share
    assert 0.5 < cut.mean() < 0.75
    assert abs(mixed.mean() - 0.5) < 0.04
    # variance of Beta(0.2, 0.2) is 0.04 / (0.16 * 1.4)
    assert abs(mixed.var() - 0.1786) < 0.015


def test_cutmix_boxes_are_centred_uniformly_in_both_directions():
    height, width, stream = 64, 48, generator(5)
    rows, columns = zip(*(draw_cutmix(2, height, width, stream).box for _ in range(3000)), strict=True)
    top, bottom = (torch.tensor([getattr(box, end) for box in rows]) for end in ("start", "stop"))
    left, right = (torch.tensor([getattr(box, end) for box in columns]) for end in ("start", "stop"))
    borders = {"top": top == 0, "bottom": bottom == height, "left": left == 0, "right": right == width}
    # half a side is sqrt(1 - lambda) / 2, on average 1/3: as often does a uniform centre lie that near to a border
    for name, reached in borders.items():
        assert abs(reached.double().mean() - 1 / 3) < 0.04, name
    # the two centres are independent, given lambda: the mean of (1 - lambda) / 4
    for vertical in ("top", "bottom"):
        for horizontal in ("left", "right"):
            corner = borders[vertical] & borders[horizontal]
            assert abs(corner.double().mean() - 1 / 8) < 0.03, (vertical, horizontal)
