from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.device.benchmark import passes
from pipeline.device.benchmark.passes import PASSES
from pipeline.device.benchmark.timing import measure
from pipeline.device.machine.power import Consumption, EnergyCounter, MeterError
from tests.device.conftest import TinyModel
from tests.device.fake_system import write

Job = dict[str, Any]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a pass did, in order: read sensors, or time inferences."""
    happened: list[str] = []

    def sensors(**options: bool) -> Job:
        happened.append("sensors")
        return {}

    def timed(*arguments: Any, **options: Any) -> Any:
        happened.append("begin")
        found = measure(*arguments, **options)
        happened.append("end")
        return found

    monkeypatch.setattr(passes, "sensors", sensors)
    monkeypatch.setattr(passes, "measure", timed)
    return happened


def test_every_pass_is_ready_for_json(job: Job) -> None:
    for name in ("accuracy", "round", "cold", "memory", "throughput"):
        assert json.loads(json.dumps(PASSES[name](job))), name


def test_sensors_are_read_before_and_after_the_timed_region_and_never_within(job: Job, events: list[str]) -> None:
    passes.time_round(job)
    assert events == ["begin", "end", "sensors", "begin", "end", "sensors"]


def test_only_the_first_images_are_timed(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def record(run: Any, batches: list[np.ndarray], **limits: Any) -> tuple[list[int], bool]:
        seen.append(np.concatenate(batches))
        return [1], False

    monkeypatch.setattr(passes, "measure", record)
    passes.time_round({**job, "timing_images": 4})
    np.testing.assert_array_equal(seen[-1], np.load(job["inputs"])[:4])


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("batch", [1, 4])
def test_the_accuracy_is_of_all_images_whatever_is_timed(job: Job, runtime: str, batch: int) -> None:
    found = passes.answer({**job, "runtime": runtime, "batch": batch, "timing_images": 1})
    accuracy = found["accuracy"]
    assert (accuracy["images"], accuracy["top1"]) == (6, pytest.approx(4 / 6))
    assert [accuracy[f"top1_{group}_energy"] for group in ("low", "mid", "high")] == [1.0, 1.0, 0.0]
    assert accuracy["parity_max_abs"] < 1e-3
    assert accuracy["parity_top1_agreement"] == 1.0
    assert found["executed"]["precision"] == "fp32"


@pytest.mark.parametrize(("cached", "dropped"), [(False, True), (True, False), (None, None)])
def test_a_cold_start_says_whether_the_file_was_out_of_the_cache(
    job: Job, cached: bool | None, dropped: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "is_cached", lambda path: cached)
    found = passes.start_cold(job)
    assert min(found["import_ms"], found["load_ms"], found["first_inference_ms"]) >= 0
    assert found["dropped_cache"] is dropped


def test_the_memory_pass_times_nothing(job: Job, events: list[str]) -> None:
    found = passes.fill_memory(job)
    assert events == []
    assert found["peak_rss_kb"] > 0
    assert 0 <= found["model_rss_kb"] < found["peak_rss_kb"]


def test_a_peak_that_cannot_be_reset_says_nothing_of_a_small_model(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "reset_peak", lambda: False)
    monkeypatch.setattr(passes, "peak_memory_kb", lambda: 500_000)
    assert passes.fill_memory(job) == {"peak_rss_kb": 500_000, "model_rss_kb": None}


def test_a_system_that_tells_no_memory_is_an_error(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "peak_memory_kb", lambda: None)
    with pytest.raises(ValueError, match="does not tell how much memory"):
        passes.fill_memory(job)


def test_idle_power_is_measured_before_the_model_is_loaded(
    job: Job, tmp_path: Path, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "zone/energy_uj", "0")
    write(tmp_path, "zone/max_energy_range_uj", "1000000000")
    order: list[str] = []

    class Counter(EnergyCounter):
        def measure(self, work: Any) -> tuple[Consumption, Any]:
            order.append("measure")
            return super().measure(work)

    meter = Counter("RAPL package-0", (tmp_path / "zone",))
    monkeypatch.setattr(passes, "find_meter", lambda gpu: (meter, ""))
    monkeypatch.setattr(passes, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(passes, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(passes, "_start", lambda *given, start=passes._start: order.append("load") or start(*given))
    found = passes.consume(job)
    assert order == ["measure", "load", "measure"]
    assert events == ["begin", "end", "begin", "end"]
    assert (found["meter"], found["inferences"], found["watts"]) == ("RAPL package-0", 20, 0.0)


def test_without_a_meter_there_is_no_energy(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        passes, "find_meter", lambda gpu: (None, "energy per inference not measured: RAPL is not here.")
    )
    with pytest.raises(MeterError, match="RAPL is not here"):
        passes.consume(job)


def test_sustained_load_reads_sensors_between_its_minutes(job: Job, events: list[str]) -> None:
    sustained = {"idle": {}, "cool_limit_seconds": 0.0, "sustained_seconds": 0.1}
    found = passes.run_on({**job, **sustained})
    assert found["cool_start"]["ended_by"] == "time limit"
    assert (found["ended_by"], found["plateau_ms"]) == ("time limit", None)
    assert sum(minute["samples"] for minute in found["minutes"]) > 0
    assert events[:5] == ["sensors", "sensors", "begin", "end", "sensors"]


def test_a_missing_answer_file_is_one_sentence(job: Job, tiny_model: TinyModel) -> None:
    with pytest.raises(OSError, match=r"absent\.npz"):
        passes.answer({**job, "expected": str(tiny_model.path.parent / "absent.npz")})
