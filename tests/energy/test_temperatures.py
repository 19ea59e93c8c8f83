from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.distillation.losses.kd import kd
from pipeline.energy.groups import EnergyGroups, energy_score
from pipeline.energy.temperatures import (
    certainty,
    certainty_temperatures,
    continuous_temperatures,
    group_temperatures,
    max_logit,
    sample_temperatures,
)
from pipeline.errors import ParamsError

kinds = pytest.mark.parametrize("of", ["energy", "max_logit"])
values = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=30).map(torch.tensor)
limits = st.tuples(st.floats(0.5, 4), st.floats(4, 12))


def chosen(params, **changes):
    return params.distill.temperatures.model_copy(update={"mode": "continuous"} | changes)


def logits(seed: int, batch: int = 8, classes: int = 5) -> torch.Tensor:
    return 4 + 3 * torch.randn(batch, classes, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("direction", "tau"), [("paper", (6, 4, 2)), ("code", (2, 4, 6))])
@pytest.mark.parametrize("fraction", ["0.2", "0.3"])
def test_temperatures_equal_the_reference_in_both_directions(golden, direction, tau, fraction):
    groups = EnergyGroups.fit(torch.from_numpy(golden["energy_T4"]), float(fraction), float(fraction))
    np.testing.assert_array_equal(sample_temperatures(groups.codes, *tau), golden[f"temp_{direction}_r{fraction}"])


def test_by_groups_logits_have_the_temperature_of_the_group_of_their_energy(params):
    known, others = logits(0, 40), logits(1, 40)
    groups = EnergyGroups.fit(energy_score(known, 4.0), 0.25, 0.25)
    temperatures = group_temperatures(groups, 4.0, params.distill.temperatures)
    assert temperatures.stored.unique(return_counts=True)[1].tolist() == [10, 20, 10]
    assert torch.equal(temperatures.of_logits(known), temperatures.stored)
    expected = sample_temperatures(groups.assign(energy_score(others, 4.0)), 6, 4, 2)
    assert torch.equal(temperatures.of_logits(others), expected)
    assert len(expected.unique()) == 3


@kinds
def test_continuous_temperatures_of_other_logits_follow_the_mean_of_the_stored_ones(params, of):
    known, others = logits(0, 40), logits(1, 40)
    stored = certainty(known, of, 4.0)
    temperatures = certainty_temperatures(stored, 4.0, chosen(params, of=of, low_energy=40.0, high_energy=0.01))
    torch.testing.assert_close(temperatures.stored, 4 * stored / stored.mean())
    torch.testing.assert_close(temperatures.of_logits(known), temperatures.stored)
    torch.testing.assert_close(temperatures.of_logits(others), 4 * certainty(others, of, 4.0) / stored.mean())


@pytest.mark.parametrize(("low_energy", "high_energy"), [(5.0, 3.0), (3.0, 5.0)])
def test_the_limits_are_low_energy_and_high_energy_in_either_order(params, low_energy, high_energy):
    stored = torch.tensor([-9.0, 1.0, 2.0, 20.0])
    given = chosen(params, low_energy=low_energy, high_energy=high_energy)
    assert certainty_temperatures(stored, 4.0, given).stored.tolist() == [3.0, 3.0, 3.0, 5.0]


@given(values, st.floats(0.1, 50), limits)
def test_continuous_temperatures_lie_within_the_limits_and_rise_with_the_certainty(certainties, mean, limits):
    tau = continuous_temperatures(certainties, mean, 4.0, *limits)
    assert tau.dtype == torch.float32
    lowest, highest = torch.tensor(limits)
    assert ((tau >= lowest) & (tau <= highest)).all()
    order = certainties.argsort()
    assert (tau[order].diff() >= 0).all()


@given(st.lists(st.floats(0.5, 50, width=32), min_size=1, max_size=30).map(torch.tensor), st.floats(0.5, 12))
def test_where_no_limit_is_reached_the_mean_temperature_is_mid(certainties, mid):
    tau = continuous_temperatures(certainties, float(certainties.double().mean()), mid, 1e-3, 1e4)
    assert float(tau.double().mean()) == pytest.approx(mid, rel=1e-5)


@given(st.floats(0.125, 1000, width=32), st.integers(1, 50))
def test_images_of_equal_certainty_have_exactly_the_middle_temperature(params, one, count):
    temperatures = certainty_temperatures(torch.full((count,), one), 4.0, chosen(params))
    assert temperatures.stored.tolist() == [4.0] * count


def test_logits_of_equal_certainty_are_distilled_as_by_plain_kd(params):
    student, teacher = logits(1), torch.stack([logits(0)[0].roll(shift) for shift in range(8)])
    temperatures = certainty_temperatures(certainty(teacher, "energy", 4.0), 4.0, chosen(params))
    torch.testing.assert_close(kd(student, teacher, temperatures.of_logits(teacher)), kd(student, teacher, 4.0))


@given(st.integers(0, 999), st.floats(-100, 100))
def test_a_shift_of_all_logits_changes_no_temperature_by_the_largest_logit(params, seed, shift):
    stored = max_logit(logits(seed).double())
    temperatures = certainty_temperatures(stored, 4.0, chosen(params, of="max_logit"))
    torch.testing.assert_close(temperatures.of_logits(logits(seed).double() + shift), temperatures.stored)


def test_the_largest_logit_is_taken_against_the_mean_of_all():
    given = torch.tensor([[3.0, 0.0, -3.0, 4.0], [2.0, 2.0, 2.0, 2.0]])
    assert max_logit(given).tolist() == [3.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_largest_logit_is_exact_in_any_type(dtype):
    given = torch.tensor([[6e4, 0.0, -6e4, 0.0], [256.0, 255.0, 254.0, 255.0]], dtype=dtype)
    found = max_logit(given)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.tolist() == [float(given[0, 0]), 1.0]


def test_shuffled_temperatures_are_the_same_ones_in_another_order(params):
    by_groups = group_temperatures(EnergyGroups.fit(torch.arange(100.0), 0.2, 0.3), 4.0, params.distill.temperatures)
    continuous = certainty_temperatures(1 + torch.arange(100.0), 4.0, chosen(params))
    for temperatures in (by_groups, continuous):
        dealt, again, other = (temperatures.shuffled(seed) for seed in (0, 0, 1))
        assert torch.equal(dealt.stored, again.stored)
        assert not torch.equal(dealt.stored, other.stored)
        assert not torch.equal(dealt.stored, temperatures.stored)
        assert torch.equal(dealt.stored.sort().values, temperatures.stored.sort().values)
        assert dealt == replace(temperatures, stored=dealt.stored)


@pytest.mark.parametrize(
    ("of", "stored", "words"),
    [
        ("energy", [-3.0, -1.0], "is energy, .* mean certainty of -2 by it.*; set it to max_logit, or mode to groups"),
        ("energy", [-1.0, 1.0], "is energy, .* mean certainty of 0 by it"),
        ("max_logit", [0.0, 0.0], "is max_logit, .* mean certainty of 0 by it.*; use another teacher, or mode to"),
    ],
)
def test_a_mean_certainty_that_is_not_positive_is_one_sentence(params, of, stored, words):
    with pytest.raises(ParamsError, match=f"^temperatures.of {words}"):
        certainty_temperatures(torch.tensor(stored), 4.0, chosen(params, of=of))
