from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.energy import EnergyGroups
from pipeline.heda import companion_size, cutmix, mixup, select_subset


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
    mixed, partner, share = cutmix(images, generator(seed))
    own = mixed == images
    theirs = mixed == images[partner]
    assert (own | theirs).all()
    moved = partner != torch.arange(batch)
    assert torch.allclose(own[moved].float().mean(dim=(1, 2, 3)), torch.tensor(share))
    assert (own[:, :1] == own).all(), "all channels are cut alike"


@given(st.integers(0, 500))
@settings(max_examples=50, deadline=None)
def test_mixup_is_the_stated_convex_combination(seed):
    images = torch.randn(4, 3, 6, 6, generator=generator(seed))
    mixed, partner, share = mixup(images, generator(seed))
    assert 0 <= share <= 1
    torch.testing.assert_close(mixed, share * images + (1 - share) * images[partner])


@pytest.mark.parametrize("mix", [cutmix, mixup])
def test_the_seed_decides_and_the_input_is_kept(mix):
    images = torch.randn(4, 3, 8, 8)
    before = images.clone()
    first, second, other = mix(images, generator(1)), mix(images, generator(1)), mix(images, generator(2))
    assert torch.equal(first.images, second.images)
    assert not torch.equal(first.images, other.images)
    assert torch.equal(images, before)


def test_cutmix_shares_are_uniform_before_clipping_and_mixup_shares_sit_at_the_ends():
    images = torch.zeros(2, 1, 64, 64)
    stream = generator(3)
    cut = torch.tensor([cutmix(images, stream).share for _ in range(2000)])
    mixed = torch.tensor([mixup(images, stream).share for _ in range(2000)])
    # clipping at the border can only enlarge the kept share
    assert 0.5 < cut.mean() < 0.75
    assert abs(mixed.mean() - 0.5) < 0.04
    # variance of Beta(0.2, 0.2) is 0.04 / (0.16 * 1.4)
    assert abs(mixed.var() - 0.1786) < 0.015
