from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.energy.groups import EnergyGroups, energy_score, fit_groups
from pipeline.errors import DataError

energies = st.lists(st.sampled_from([-9.0, -8.5, -8.0, -3.0, 0.0, 2.0]), min_size=1, max_size=40).map(torch.tensor)
fractions = st.tuples(st.floats(0, 0.5), st.floats(0, 0.5))


@pytest.mark.parametrize("temperature", [1, 4])
def test_energy_equals_the_reference(golden, temperature):
    energy = energy_score(torch.from_numpy(golden["teacher_logits"]), temperature)
    np.testing.assert_allclose(energy, golden[f"energy_T{temperature}"], rtol=1e-5)


def test_energy_is_finite_at_large_logits_in_half_precision():
    logits = torch.tensor([[6e4, 0.0, -6e4], [50.0, 49.0, 48.0]], dtype=torch.float16)
    energy = energy_score(logits, 4.0)
    assert energy.dtype == torch.float32
    assert torch.isfinite(energy).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_energy_of_any_type_is_that_of_the_same_values_in_double_precision(dtype):
    logits = (3 * torch.randn(20, 5, generator=torch.Generator().manual_seed(0))).to(dtype)
    energy = energy_score(logits, 4.0)
    assert energy.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = -4 * (logits.double() / 4).exp().sum(dim=1).log()
    torch.testing.assert_close(energy.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_energy_is_exact_at_logits_of_ten_thousand(dtype, temperature):
    large = torch.tensor(1e4, dtype=dtype)
    logits = torch.stack([large, -large, -large, -large, large, large]).view(3, 2)
    expected = [-float(large), float(large) - temperature * np.log(2), -float(large) - temperature * np.log(2)]
    np.testing.assert_allclose(energy_score(logits, temperature), expected, rtol=3e-7)


def test_confident_rows_have_lower_energy():
    energy = energy_score(torch.tensor([[20.0, 0.0, 0.0], [1.0, 0.5, 0.2]]), 1.0)
    assert energy[0] < energy[1]


def test_temperature_must_be_positive():
    with pytest.raises(ValueError, match="positive"):
        energy_score(torch.zeros(1, 2), 0.0)


@pytest.mark.parametrize("key", ["0.2_0.2", "0.3_0.3", "0.1_0.1", "0.0_0.5", "0.0_0.4"])
def test_thresholds_equal_the_reference(golden, key):
    low, high = (float(part) for part in key.split("_"))
    groups = EnergyGroups.fit(torch.from_numpy(golden["energy_T4"]), low, high)
    expected = json.loads(str(golden["thresholds_json"]))[key]
    np.testing.assert_allclose([groups.low_threshold, groups.high_threshold], expected, rtol=1e-6)


@given(energies, fractions)
def test_group_sizes_are_exact_whatever_the_ties(energy, fractions):
    low, high = fractions
    codes = EnergyGroups.fit(energy, low, high).codes
    assert codes.dtype == torch.int8
    assert (codes == 0).sum() == int(len(energy) * low)
    assert (codes == 2).sum() == int(len(energy) * high)


@given(energies, fractions)
def test_groups_are_ordered_by_energy(energy, fractions):
    codes = EnergyGroups.fit(energy, *fractions).codes
    for lower, upper in [(0, 1), (1, 2), (0, 2)]:
        if (codes == lower).any() and (codes == upper).any():
            assert energy[codes == lower].max() <= energy[codes == upper].min()


def test_ties_are_ranked_by_index():
    codes = EnergyGroups.fit(torch.zeros(10), 0.3, 0.2).codes
    assert codes.tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 2, 2]


@given(fractions)
def test_assign_agrees_with_the_fit_where_energies_differ(fractions):
    energy = torch.randperm(37, generator=torch.Generator().manual_seed(0)).float()
    groups = EnergyGroups.fit(energy, *fractions)
    assert torch.equal(groups.assign(energy), groups.codes)


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_one_group_may_hold_everything(low, high):
    energy = torch.arange(5.0)
    groups = EnergyGroups.fit(energy, low, high)
    assert len(groups.codes.unique()) == 1
    assert torch.equal(groups.assign(energy), groups.codes)


def test_energies_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="index 1"):
        EnergyGroups.fit(torch.tensor([0.0, float("nan")]), 0.2, 0.2)


def test_groups_of_more_images_than_float32_counts_have_exact_sizes():
    # 1.3 million images with many ties; shares whose counts are not whole in float32
    energy = torch.randint(0, 1000, (1_300_003,), generator=torch.Generator().manual_seed(0)).float()
    groups = EnergyGroups.fit(energy, 0.33, 0.1)
    assert groups.codes.bincount().tolist() == [429_000, 741_003, 130_000]
    assert energy[groups.codes == 0].max() <= energy[groups.codes == 1].min()
    assert energy[groups.codes == 1].max() <= energy[groups.codes == 2].min()
    for border in (groups.low_threshold, groups.high_threshold):
        tied = groups.codes[energy == border]
        assert len(tied.unique()) == 2, "the border lies within a tie"
        assert torch.equal(tied, tied.sort().values), "ties are ranked by index"


def test_groups_that_tell_images_apart_are_the_fitted_ones():
    energy = torch.tensor([-4.0, -1.0, -3.0, -2.0, -2.0])
    assert torch.equal(fit_groups(energy, 0.2, 0.4).codes, EnergyGroups.fit(energy, 0.2, 0.4).codes)
    assert (fit_groups(torch.ones(5), 0.0, 0.0).codes == 1).all(), "no groups are what was asked for"


@pytest.mark.parametrize(
    ("energy", "fractions", "message"),
    [
        ([-4.0] * 6, (0.0, 0.4), r"all 6 images .* have the energy -4"),
        (
            [-9.0, -4.0, -4.0, -4.0, -4.0, 1.0],
            (0.4, 0.4),
            r"meet at the energy -4, which images 1, 2, 3, 4,",
        ),
        ([-4.0, -3.0, -2.0], (0.2, 0.3), r"low_fraction 0.2 and high_fraction 0.3 of 3 images are less than one"),
    ],
)
def test_groups_that_say_nothing_are_refused(energy, fractions, message):
    with pytest.raises(DataError, match=message):
        fit_groups(torch.tensor(energy), *fractions)
