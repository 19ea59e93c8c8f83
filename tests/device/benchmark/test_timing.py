from __future__ import annotations

import gc
import time

import numpy as np
import pytest

from pipeline.device.benchmark.timing import WallClock, make_batches, measure

BATCH = [np.zeros((1, 3, 8, 8), dtype=np.float32)]


def test_measuring_needs_both_the_count_and_the_seconds() -> None:
    slow, cut = measure(lambda batch: time.sleep(0.01), BATCH, min_seconds=0.0, min_count=5, max_seconds=5.0)
    assert (len(slow), cut) == (5, False)
    assert all(sample >= 9_000_000 for sample in slow)
    fast, cut = measure(lambda batch: None, BATCH, min_seconds=0.05, min_count=1, max_seconds=5.0)
    assert (len(fast) > 100, cut) == (True, False)


def test_measuring_stops_at_the_hard_maximum() -> None:
    samples, cut = measure(lambda batch: time.sleep(0.01), BATCH, min_seconds=0.0, min_count=1000, max_seconds=0.05)
    assert cut
    assert 1 <= len(samples) <= 6


def test_the_garbage_collector_rests_and_comes_back() -> None:
    states: list[bool] = []
    measure(lambda batch: states.append(gc.isenabled()), BATCH, min_seconds=0, min_count=2, max_seconds=1)
    assert states == [False, False]
    assert gc.isenabled()


def test_measuring_cycles_through_the_batches() -> None:
    seen: list[int] = []
    batches = [np.full((1, 3, 2, 2), value, dtype=np.float32) for value in range(3)]
    measure(lambda batch: seen.append(int(batch[0, 0, 0, 0])), batches, min_seconds=0, min_count=7, max_seconds=1)
    assert seen == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize(("images", "size", "count"), [(6, 2, 3), (5, 2, 3), (2, 8, 1)])
def test_batches_use_all_images_and_have_the_size_asked_for(images: int, size: int, count: int) -> None:
    values = np.arange(images, dtype=np.float32).reshape(-1, 1, 1, 1) * np.ones((1, 3, 2, 2), dtype=np.float32)
    batches = make_batches(values, size)
    assert [batch.shape for batch in batches] == [(size, 3, 2, 2)] * count
    assert {int(value) for batch in batches for value in batch[:, 0, 0, 0]} == set(range(images))
    assert all(batch.flags.c_contiguous for batch in batches)


@pytest.mark.parametrize("images", [np.zeros((4, 3, 2, 2)), np.zeros((4, 3), np.float32), np.zeros((0, 3, 2, 2), "f4")])
def test_inputs_that_are_no_images_are_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="inputs must be float32"):
        make_batches(images, 1)


def test_durations_do_not_know_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    wall = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(wall)))
    samples, cut = measure(lambda batch: time.time(), BATCH, min_seconds=0.01, min_count=5, max_seconds=5.0)
    assert not cut
    assert all(0 <= sample < 1e9 for sample in samples)


@pytest.mark.parametrize(
    ("wall_seconds", "expected"), [(100.0, None), (100.9, None), (99.2, None), (3700.0, 3600.0), (-3500.0, -3600.0)]
)
def test_a_wall_clock_that_is_set_is_noticed_by_how_much(
    wall_seconds: float, expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = {"time": 1e9, "monotonic": 50.0}
    monkeypatch.setattr(time, "time", lambda: now["time"])
    monkeypatch.setattr(time, "monotonic", lambda: now["monotonic"])
    clock = WallClock()
    now["time"] += wall_seconds
    now["monotonic"] += 100.0
    found = clock.jump()
    assert found == (None if expected is None else pytest.approx(expected))
    assert clock.jump() is None
