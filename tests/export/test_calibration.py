"""Which images are chosen to set the int8 ranges."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.export.calibration import select


@st.composite
def _splits(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Labels, energies and a count of at most their number."""
    labels = np.array(draw(st.lists(st.integers(0, 5), min_size=1, max_size=80)), dtype=np.int64)
    energy = np.random.default_rng(draw(st.integers(0, 99))).standard_normal(len(labels)).astype(np.float32)
    return labels, energy.round(draw(st.integers(0, 3))), draw(st.integers(1, len(labels)))


SELECTIONS = ("stratified", "random", "low_energy", "high_energy")


@given(_splits(), st.sampled_from(SELECTIONS), st.sampled_from([0, 1, 7]))
def test_exactly_the_asked_number_of_different_images(split: tuple, selection: str, seed: int) -> None:
    labels, energy, count = split
    chosen = select(labels, energy, count, selection, seed)
    assert chosen.dtype == np.int64
    assert len(chosen) == count
    assert (np.diff(chosen) > 0).all()
    assert chosen[0] >= 0
    assert chosen[-1] < len(labels)
    np.testing.assert_array_equal(chosen, select(labels, energy, count, selection, seed))


@given(_splits())
def test_every_class_has_its_share_and_at_least_one_image(split: tuple) -> None:
    labels, energy, count = split
    classes, sizes = np.unique(labels, return_counts=True)
    if count < len(classes):
        return
    chosen = labels[select(labels, energy, count, "stratified", 0)]
    for label, size in zip(classes, sizes, strict=True):
        share = (chosen == label).sum()
        exact = 1 + (size - 1) * (count - len(classes)) / max(len(labels) - len(classes), 1)
        assert 1 <= share <= size
        assert abs(share - exact) < 1


def test_energies_of_a_class_are_evenly_spread() -> None:
    labels = np.repeat([0, 1], [200, 600])
    energy = np.random.default_rng(1).permutation(800).astype(np.float32)
    chosen = select(labels, energy, 80, "stratified", 0)
    assert np.bincount(labels[chosen]).tolist() == [20, 60]
    for label, size in ((0, 200), (1, 600)):
        ranks = np.argsort(np.argsort(energy[labels == label]))
        taken = np.sort(ranks[np.isin(np.flatnonzero(labels == label), chosen)])
        gaps = np.diff(np.concatenate([[0], taken, [size - 1]]))
        assert gaps.max() <= size / len(taken) + 1


def test_fewer_images_than_classes_spread_over_the_classes() -> None:
    labels = np.repeat(np.arange(10), 5)
    chosen = select(labels, np.zeros(50, np.float32), 5, "stratified", 0)
    assert len(set(labels[chosen])) == 5


@pytest.mark.parametrize("selection", SELECTIONS)
def test_another_seed_is_another_draw(selection: str) -> None:
    labels, energy = np.arange(600) % 3, np.linspace(0, 1, 600, dtype=np.float32)
    first, second = (select(labels, energy, 9, selection, seed) for seed in (0, 1))
    assert (first != second).any()


def test_low_and_high_energy_are_drawn_from_their_fifth_or_as_many_as_are_wanted() -> None:
    labels, energy = np.zeros(100, np.int64), np.random.default_rng(0).permutation(100).astype(np.float32)
    for seed in range(5):
        assert energy[select(labels, energy, 8, "low_energy", seed)].max() < 20
        assert energy[select(labels, energy, 8, "high_energy", seed)].min() >= 80
    assert sorted(energy[select(labels, energy, 40, "high_energy", 0)]) == list(range(60, 100))


@pytest.mark.parametrize("selection", SELECTIONS)
def test_all_images_are_taken_if_more_are_wanted(selection: str) -> None:
    assert select(np.arange(3), np.zeros(3, np.float32), 4, selection, 0).tolist() == [0, 1, 2]
