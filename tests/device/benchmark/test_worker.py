"""Measurements in a worker's process, and how it reports them."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.device.benchmark import worker
from pipeline.device.benchmark.timing import measure
from pipeline.device.benchmark.worker import (
    EXIT_FAILED,
    EXIT_MODEL_FILE,
    EXIT_UNAVAILABLE,
    MEASUREMENTS,
    Job,
    Scored,
    Timed,
)
from pipeline.device.machine.power import Consumption, EnergyCounter, MeterError
from pipeline.portable.accuracy import Outputs
from tests.device.conftest import TinyModel, changed
from tests.device.fake_system import write


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Actions of a measurement, in order: read sensors, or time inferences."""
    happened: list[str] = []

    def sensors(**options: bool) -> dict[str, Any]:
        happened.append("sensors")
        return {}

    def timed(*arguments: Any, **options: Any) -> Any:
        happened.append("begin")
        found = measure(*arguments, **options)
        happened.append("end")
        return found

    monkeypatch.setattr(worker, "sensors", sensors)
    monkeypatch.setattr(worker, "measure", timed)
    return happened


def test_every_measurement_survives_json(job: Job) -> None:
    for kind in ("accuracy", "round", "cold", "memory", "throughput"):
        found = MEASUREMENTS[kind](job)
        values = json.loads(json.dumps(dataclasses.asdict(found)))
        read = {"accuracy": Scored.read, "round": Timed.read, "throughput": Timed.read}
        assert read.get(kind, lambda values, found=found: type(found)(**values))(values) == found, kind


def test_sensors_are_read_before_and_after_the_timed_region_and_never_within(job: Job, events: list[str]) -> None:
    worker.measure_latency(job)
    assert events == ["begin", "end", "sensors", "begin", "end", "sensors"]


def test_only_the_first_images_are_timed(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def record(run: Any, batches: list[np.ndarray], **limits: Any) -> tuple[list[int], bool]:
        seen.append(np.concatenate(batches))
        return [1], False

    monkeypatch.setattr(worker, "measure", record)
    worker.measure_latency(changed(job, timing_images=4))
    np.testing.assert_array_equal(seen[-1], np.load(job.variant.inputs)[:4])


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("batch", [1, 4])
def test_the_accuracy_is_of_all_images_whatever_is_timed(job: Job, runtime: str, batch: int) -> None:
    found = worker.measure_accuracy(changed(job, {"runtime": runtime, "batch": batch}, timing_images=1))
    accuracy = found.accuracy
    assert (accuracy.images, accuracy.top1, accuracy.correct) == (6, pytest.approx(4 / 6), "f0")
    assert (accuracy.top1_low_energy, accuracy.top1_mid_energy, accuracy.top1_high_energy) == (1.0, 1.0, 0.0)
    assert accuracy.parity_max_abs is not None
    assert accuracy.parity_max_abs < 1e-3
    assert accuracy.parity_top1_agreement == 1.0
    assert found.executed.precision == "fp32"


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_all_images_are_answered_once_in_batches_of_the_size_that_is_timed(
    job: Job, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Summing:
        def run(self, images: np.ndarray) -> Outputs:
            assert len(images) == batch
            return Outputs(images.sum(axis=(2, 3)), None)

        def executed(self) -> None: ...

    seen: list[Outputs] = []
    monkeypatch.setattr(Job, "load", lambda job: Summing())
    monkeypatch.setattr(worker, "score", lambda outputs, expected: seen.append(outputs))
    worker.measure_accuracy(changed(job, {"batch": batch}))
    np.testing.assert_array_equal(seen[0].logits, np.load(job.variant.inputs).sum(axis=(2, 3)))


@pytest.mark.parametrize(("cached", "dropped"), [(False, True), (True, False), (None, None)])
def test_a_cold_start_says_whether_the_file_was_out_of_the_cache(
    job: Job, cached: bool | None, dropped: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker.memory, "is_cached", lambda path: cached)
    found = worker.measure_cold_start(job)
    assert min(found.import_ms, found.load_ms, found.first_inference_ms) >= 0
    assert found.dropped_cache is dropped


def test_the_memory_is_of_a_process_that_times_nothing(job: Job, events: list[str]) -> None:
    found = worker.measure_memory(job)
    assert events == []
    assert found.model_rss_kb is not None
    assert 0 <= found.model_rss_kb < found.peak_rss_kb


def test_a_peak_that_cannot_be_reset_says_nothing_of_a_small_model(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.memory, "reset_peak", lambda: False)
    monkeypatch.setattr(worker.memory, "peak_memory_kb", lambda: 500_000)
    assert worker.measure_memory(job) == worker.Memory(500_000, None)


def test_a_system_that_tells_no_memory_is_an_error(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.memory, "peak_memory_kb", lambda: None)
    with pytest.raises(ValueError, match="does not report the memory"):
        worker.measure_memory(job)


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
    monkeypatch.setattr(worker, "find_meter", lambda gpu: (meter, ""))
    monkeypatch.setattr(worker, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(worker, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(Job, "load", lambda job, load=Job.load: order.append("load") or load(job))
    found = worker.measure_power(job)
    assert order == ["measure", "load", "measure"]
    assert events == ["begin", "end", "begin", "end"]
    assert (found.meter, found.inferences, found.watts) == ("RAPL package-0", 20, 0.0)


def test_without_a_meter_there_is_no_energy(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "energy per inference not measured: RAPL is not available."
    monkeypatch.setattr(worker, "find_meter", lambda gpu: (None, reason))
    with pytest.raises(MeterError, match="RAPL is not available"):
        worker.measure_power(job)


def test_sustained_load_reads_sensors_between_its_minutes(job: Job, events: list[str]) -> None:
    found = worker.measure_sustained(changed(job, sustained_seconds=0.1))
    assert found.cool_start is not None
    assert found.cool_start["ended_by"] == "no sensor"
    assert (found.ended_by, found.plateau_ms) == ("time limit", None)
    assert sum(minute.samples for minute in found.minutes) > 0
    assert events[:5] == ["sensors", "sensors", "begin", "end", "sensors"]


def test_a_missing_file_of_expected_outputs_is_one_sentence(job: Job, tiny_model: TinyModel) -> None:
    with pytest.raises(OSError, match=r"absent\.npz"):
        worker.measure_accuracy(changed(job, {"expected": str(tiny_model.path.parent / "absent.npz")}))


def run_main(job: Job, output: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    values = {"kind": job.kind, "plan": job.plan.to_json(), "idle": job.idle, "output": str(output)}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(values)))
    return worker.main()


def test_a_round_is_written_whole(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_main(job, tmp_path / "result.json", monkeypatch) == 0
    found = Timed.read(json.loads((tmp_path / "result.json").read_text(encoding="utf-8")))
    assert len(found.samples_ns) == found.round.samples == 20
    assert all(isinstance(sample, int) and sample > 0 for sample in found.samples_ns)
    assert (found.round.warmup_count, found.round.cut_short) == (3, False)
    assert (found.executed.precision, found.executed.threads) == ("fp32", 1)
    assert found.round.peak_rss_kb is not None
    assert min(found.round.load_ms, found.round.first_inference_ms, found.round.peak_rss_kb) > 0
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize(
    ("of_variant", "code", "words"),
    [
        ({"runtime": "tflite"}, EXIT_UNAVAILABLE, "'tflite' is unknown"),
        ({"path": "absent.onnx"}, EXIT_MODEL_FILE, "absent.onnx does not exist"),
        ({"precision": "int3"}, EXIT_MODEL_FILE, "'int3' is unknown"),
        ({"inputs": "absent.npy"}, EXIT_FAILED, "absent.npy"),
    ],
)
def test_what_goes_wrong_is_one_line_and_an_exit_code(
    job: Job,
    of_variant: dict[str, str],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run_main(changed(job, of_variant), tmp_path / "result.json", monkeypatch) == code
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
    assert not (tmp_path / "result.json").exists()
