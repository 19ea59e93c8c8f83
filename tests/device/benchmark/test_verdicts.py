"""Verdicts on whole rows, from simulated devices whose trouble is known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.device.benchmark.plan import Plan, Variant
from pipeline.device.benchmark.rows import Collected, measured_row
from pipeline.device.benchmark.statistics import drift
from pipeline.device.benchmark.worker import Timed
from pipeline.portable.documents import MeasuredRow, Round
from pipeline.runtimes import Executed

ROUNDS = 5
SAMPLES = 300
VARIANT = Variant("ort", "onnxruntime", "ort.onnx", "fp32", "inputs.npy")
PLAN = Plan((VARIANT,), rounds=ROUNDS)
MACHINE: dict[str, Any] = {
    "affinity": [0, 1, 2, 3],
    "logical_cores": 4,
    "emulated": False,
    "state": {"load_average": [0.1, 0.1, 0.1]},
}
SEEDS = range(20)
Samples = NDArray[np.float64]


def steady(generator: np.random.Generator, count: int = SAMPLES) -> Samples:
    """Milliseconds: a lower bound, a tail, and one inference in a hundred that is interrupted."""
    samples = 10 * (1 + 0.01 * generator.gamma(2.0, 1.0, count))
    return samples * np.where(generator.random(count) < 0.01, generator.uniform(1.5, 4.0, count), 1.0)


def with_neighbour(generator: np.random.Generator, count: int = SAMPLES) -> Samples:
    """Another program that runs a fifth of the time, for 20 to 60 inferences, and takes a third of the speed."""
    samples, position = steady(generator, count), int(generator.integers(0, 100))
    while position < count:
        length = int(generator.integers(20, 61))
        samples[position : position + length] *= 1.5
        position += length + int(generator.integers(100, 220))
    return samples


def row(
    rounds: list[Samples], clocks_khz: list[tuple[int, int]] | None = None, machine: dict[str, Any] = MACHINE
) -> MeasuredRow:
    collected = Collected()
    start: dict[str, Any] = {"warmup_count": 10, "import_ms": 1.0, "load_ms": 1.0, "first_inference_ms": 1.0}
    for number, samples in enumerate(rounds):
        before, after = (clocks_khz or [(2_400_000, 2_400_000)] * len(rounds))[number]
        timed = Round(
            samples=len(samples),
            median_ms=float(np.median(samples)),
            mean_ms=float(samples.mean()),
            min_ms=float(samples.min()),
            drift=drift(samples),
            started_at=1e9 + number,
            cut_short=False,
            peak_rss_kb=1,
            sensors_before={"frequencies_khz": [before] * 4},
            sensors_after={"frequencies_khz": [after] * 4},
            **start,
        )
        nanoseconds = (samples * 1e6).astype(np.int64).tolist()
        collected.rounds.append(Timed(timed, nanoseconds, Executed("fp32", "CPU", "1", 4, {})))
    return measured_row(PLAN, VARIANT, collected, machine)


def share(verdict: str, make: Callable[[np.random.Generator], MeasuredRow]) -> float:
    """Of the seeds, how many give this verdict."""
    return float(np.mean([make(np.random.default_rng(seed)).verdict == verdict for seed in SEEDS]))


def test_a_steady_device_is_stable() -> None:
    assert share("stable", lambda generator: row([steady(generator) for _ in range(ROUNDS)])) == 1.0


def test_a_lone_hiccup_does_not_make_a_device_noisy() -> None:
    def hiccup(generator: np.random.Generator) -> MeasuredRow:
        rounds = [steady(generator) for _ in range(ROUNDS)]
        rounds[2][100:130] *= 5
        return row(rounds)

    assert share("stable", hiccup) == 1.0


def test_a_noisy_neighbour_is_noise_though_the_medians_agree() -> None:
    def make(generator: np.random.Generator) -> MeasuredRow:
        return row([with_neighbour(generator) for _ in range(ROUNDS)])

    assert share("noisy", make) >= 0.95
    found = make(np.random.default_rng(0))
    medians = [part.median_ms for part in found.rounds]
    assert max(medians) / min(medians) < 1.1
    assert any("tenths of rounds are over 10% slower" in reason for reason in found.reasons)


def test_a_neighbour_that_stays_for_whole_rounds_is_noise() -> None:
    def make(generator: np.random.Generator) -> MeasuredRow:
        return row([steady(generator) * (1.4 if number in {1, 2} else 1.0) for number in range(ROUNDS)])

    assert share("noisy", make) == 1.0


def test_a_neighbour_that_takes_turns_with_short_inferences_is_noise_though_the_quartiles_agree() -> None:
    def with_turns(generator: np.random.Generator) -> Samples:
        """Inferences of 0.035 ms of which one in thirty waits for another program's turn of 1 to 4 ms."""
        waits = np.where(generator.random(2000) < 1 / 30, generator.uniform(1.0, 4.0, 2000), 0.0)
        return 0.0035 * steady(generator, 2000) + waits

    def make(generator: np.random.Generator) -> MeasuredRow:
        return row([with_turns(generator) for _ in range(ROUNDS)])

    assert share("noisy", make) == 1.0
    [reason] = make(np.random.default_rng(0)).reasons
    assert reason.endswith("of a round's time is in inferences over twice its median.")


def test_a_busy_device_is_named_as_a_circumstance() -> None:
    busy = MACHINE | {"state": {"load_average": [3.5, 2.0, 1.0]}}
    found = row([with_neighbour(np.random.default_rng(0)) for _ in range(ROUNDS)], machine=busy)
    assert found.reasons[-1] == "the load average was 3.5 on 4 cores before measuring."


def slowing(generator: np.random.Generator, clocks_khz: list[tuple[int, int]]) -> list[Samples]:
    """Latency that goes with the clock, which falls within each round from one value to the other."""
    return [steady(generator) * (2_400_000 / np.linspace(before, after, SAMPLES)) for before, after in clocks_khz]


@pytest.mark.parametrize(
    "clocks_khz",
    [
        [(2_400_000, 1_500_000)] * ROUNDS,  # cools down between rounds
        [(2_400_000, 2_400_000)] * 2 + [(2_400_000, 1_500_000)] + [(1_500_000, 1_500_000)] * 2,  # stays slow
    ],
)
def test_a_clock_that_falls_while_latency_rises_is_throttling(clocks_khz: list[tuple[int, int]]) -> None:
    assert share("throttled", lambda generator: row(slowing(generator, clocks_khz), clocks_khz)) == 1.0
    found = row(slowing(np.random.default_rng(0), clocks_khz), clocks_khz)
    assert found.reasons[0] == "the CPU clock fell from 2400 to 1500 MHz."


def test_the_same_slowing_without_a_reading_of_the_clock_is_noise() -> None:
    clocks = [(2_400_000, 1_500_000)] * ROUNDS
    assert share("noisy", lambda generator: row(slowing(generator, clocks))) == 1.0


def test_few_samples_are_too_few_however_steady() -> None:
    assert share("too_few_samples", lambda generator: row([steady(generator, 12) for _ in range(ROUNDS)])) == 1.0
    found = row([steady(np.random.default_rng(0), 12) for _ in range(ROUNDS)])
    assert found.reasons == ["60 samples, 64 needed for p90."]
    assert found.latency_p90_ms is None


@pytest.mark.parametrize("make", [steady, with_neighbour])
def test_an_emulated_processor_is_said_with_every_verdict(make: Callable[[np.random.Generator], Samples]) -> None:
    sentence = "the processor is emulated, so this latency is not that of a real device."
    rounds = [make(np.random.default_rng(seed)) for seed in range(ROUNDS)]
    real, emulated = row(rounds), row(rounds, machine=MACHINE | {"emulated": True})
    assert emulated.verdict == real.verdict
    assert emulated.reasons == [*real.reasons, sentence]
    assert row(rounds, machine=MACHINE | {"emulated": None}).reasons == real.reasons
