from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline
from pipeline.device.benchmark import runner, steps
from pipeline.device.benchmark.plan import Plan, Variant
from pipeline.device.benchmark.runner import run_benchmark
from pipeline.device.benchmark.steps import Step, WorkerError
from pipeline.device.benchmark.worker import MEASUREMENTS, Job
from pipeline.device.errors import BenchmarkError, PlanError
from pipeline.portable.documents import Result
from pipeline.remote.build import _CODE
from pipeline.store.documents import parse_as
from tests.device.conftest import TinyModel

NO_METER = "energy per inference not measured: no meter in this test."
NO_ANSWERS = "accuracy not measured here: the plan has no expected answers for this file."
QUICK = {"threads": 1, "warmup_seconds": 0.0, "warmup_count": 2, "min_seconds": 0.0, "min_count": 40}


@pytest.fixture(autouse=True)
def _without_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's meter would add workers."""
    monkeypatch.setattr(runner, "find_meter", lambda gpu: (None, NO_METER))


def in_process(plan: Plan, step: Step, output: Path) -> dict[str, Any]:
    """As ``run_step``, without the time that a process takes to start."""
    job = Job(step.kind, dataclasses.replace(plan, variants=(step.variant,), threads=step.threads), step.idle)
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(MEASUREMENTS[step.kind](job))))
    return values


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "run_step", in_process)


@pytest.fixture
def plan(tiny_model: TinyModel) -> Plan:
    files = (str(tiny_model.path), "fp32", str(tiny_model.inputs))
    variants = (Variant("ort", "onnxruntime", *files), Variant("ov.batch-3", "openvino", *files, batch=3))
    return Plan(variants, rounds=2, max_seconds=5.0, **QUICK)  # type: ignore[arg-type]


def of_all(plan: Plan, **changes: Any) -> Plan:
    """The plan with every variant changed."""
    return dataclasses.replace(
        plan, variants=tuple(dataclasses.replace(variant, **changes) for variant in plan.variants)
    )


def only(plan: Plan, **changes: Any) -> Plan:
    """The plan's first variant, changed, in one round."""
    return dataclasses.replace(plan, variants=(dataclasses.replace(plan.variants[0], **changes),), rounds=1)


def test_every_measurement_of_two_variants_in_two_rounds(
    plan: Plan, tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_process_but_one(plan: Plan, step: Step, output: Path) -> dict[str, Any]:
        return (steps.run_step if step.variant.name == "ort" else in_process)(plan, step, output)

    monkeypatch.setattr(runner, "run_step", in_process_but_one)
    more = {"cold_rounds": 1, "memory_pass": True, "sustained_seconds": 0.2, "throughput": ((2, 1), (4, 1))}
    everything = dataclasses.replace(of_all(plan, expected=str(tiny_model.expected)), **more)  # type: ignore[arg-type]
    reported: list[tuple[int, int, str]] = []
    result, samples = run_benchmark(everything, lambda *step: reported.append(step))

    assert [done for done, total, _ in reported if total == 16] == list(range(17))
    assert (reported[0][2], reported[-1][2]) == ("accuracy ort", "done")
    assert reported[2][2].startswith("round 1/2 ")
    ort, ov = result.rows
    assert (ort.provider, ov.provider) == ("CPUExecutionProvider", "CPU")
    for row in (ort, ov):
        assert row.error is None
        assert row.samples == 80
        assert [part.samples for part in row.rounds] == [40, 40]
        assert row.precision_executed == "fp32"
        assert row.precision_mismatch is None
        assert row.threads == 1
        assert 0 < row.latency_min_ms <= row.latency_p50_ms <= row.latency_p90_ms <= row.latency_max_ms
        assert row.latency_p95_ms is None
        assert row.latency_p99_ms is None
        assert row.notes[:3] == [
            "p95 not measured: 80 samples, 130 needed.",
            "p99 not measured: 80 samples, 662 needed.",
            NO_METER,
        ]
        assert row.latency_ci_low_ms <= row.latency_median_ms <= row.latency_ci_high_ms
        assert row.throughput_ips == pytest.approx(row.batch * 1000 / row.latency_mean_ms)
        assert row.verdict in {"stable", "noisy", "throttled"}
        assert min(row.load_ms, row.first_inference_ms, row.peak_rss_kb) > 0
        assert row.accuracy.images == 6
        assert row.accuracy.parity_max_abs < 1e-3
        assert row.cold.rounds == 1
        assert [(point.batch, point.threads) for point in row.throughput] == [(2, 1), (4, 1)]
        assert all(point.images_per_second > 0 for point in row.throughput)
        assert row.sustained.ended_by == "time limit"
        assert row.sustained.cool_start["seconds"] < 5
        assert (row.joules_per_inference, row.power) == (None, None)

    assert ort.memory.peak_rss_kb > ort.memory.model_rss_kb > 0
    np.savez_compressed(tmp_path / "samples.npz", **samples)
    kept = np.load(tmp_path / "samples.npz")
    assert sorted(kept) == ["ort/round0", "ort/round1", "ov.batch-3/round0", "ov.batch-3/round1"]
    assert kept["ort/round0"].shape == (40,)
    pooled = np.concatenate([kept["ort/round0"], kept["ort/round1"]])
    assert np.median(pooled) / 1e6 == pytest.approx(ort.latency_p50_ms)


@pytest.mark.usefixtures("quick")
def test_a_result_survives_json(plan: Plan, tiny_model: TinyModel) -> None:
    more = {"cold_rounds": 1, "memory_pass": True, "sustained_seconds": 0.1, "throughput": ((2, 1),)}
    every = dataclasses.replace(only(plan, expected=str(tiny_model.expected)), **more)
    result, _ = run_benchmark(every)
    again = parse_as(Result, json.dumps({"format": 1, **dataclasses.asdict(result)}).encode())
    assert dataclasses.replace(again, plan=result.plan) == result


def test_a_variant_that_cannot_run_keeps_its_row_with_the_reason(plan: Plan) -> None:
    ort = plan.variants[0]
    mixed = dataclasses.replace(plan, rounds=1, variants=(ort, dataclasses.replace(ort, name="gone", path="gone.onnx")))
    result, samples = run_benchmark(mixed)
    measured, gone = result.rows
    assert measured.error is None
    assert gone.error is not None
    assert gone.error_kind == "model_file"
    assert gone.error.startswith("the benchmark worker of gone in round 1 ended with exit code 4: ")
    assert gone.error.endswith("gone.onnx does not exist; run the export stage first.")
    assert gone.notes == [f"latency not measured: {gone.error}", NO_ANSWERS, NO_METER]
    assert (gone.latency_p50_ms, gone.verdict, gone.samples) == (None, None, 0)
    assert list(samples) == ["ort/round0"]


def test_a_file_with_other_answers_than_expected_is_not_timed(
    plan: Plan, tiny_model: TinyModel, tmp_path: Path
) -> None:
    arrays = dict(np.load(tiny_model.expected))
    np.savez(tmp_path / "other.npz", **arrays | {"logits": arrays["logits"][:, :2]})
    with pytest.raises(
        BenchmarkError, match=r"^the accuracy worker of ort ended with exit code 2: .*logits are \[6, 4\]"
    ):
        run_benchmark(only(plan, expected=str(tmp_path / "other.npz")))


def test_each_variant_is_judged_by_its_own_images_and_answers(
    plan: Plan, tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_process_but_accuracy(plan: Plan, step: Step, output: Path) -> dict[str, Any]:
        return (steps.run_step if step.kind == "accuracy" else in_process)(plan, step, output)

    monkeypatch.setattr(runner, "run_step", in_process_but_accuracy)
    first, second = tiny_model, TinyModel(tiny_model.path, tmp_path / "second.npy", tmp_path / "second.npz")
    np.save(second.inputs, -np.load(first.inputs)[:5])
    arrays = {name: array[:5] for name, array in np.load(first.expected).items()}
    labels = arrays["logits"].argmin(axis=1)
    labels[0] = (labels[0] + 1) % 4
    np.savez(second.expected, **arrays | {"logits": -arrays["logits"], "labels": labels})
    ort, openvino = plan.variants
    variants = [
        dataclasses.replace(variant, name=f"{variant.name}{number}", inputs=str(files.inputs), expected=expected)
        for variant in (ort, openvino)
        for number, (files, expected) in enumerate(
            ((first, str(first.expected)), (second, str(second.expected)), (second, None))
        )
    ]
    rows = run_benchmark(dataclasses.replace(plan, rounds=1, variants=tuple(variants)))[0].rows
    for of_first, of_second, unlabelled in (rows[:3], rows[3:]):
        accuracies = of_first.accuracy, of_second.accuracy
        assert [(accuracy.images, accuracy.correct) for accuracy in accuracies] == [(6, "f0"), (5, "78")]
        assert [accuracy.top1 for accuracy in accuracies] == pytest.approx([4 / 6, 4 / 5])
        assert all(accuracy.parity_max_abs < 1e-3 for accuracy in accuracies)
        assert (unlabelled.accuracy, unlabelled.error) == (None, None)
        assert NO_ANSWERS in unlabelled.notes
        assert NO_ANSWERS not in of_second.notes


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path, arrays: None, "does not exist; write the expected answers first"),
        (lambda path, arrays: path.write_bytes(b""), r"tiny.*/inputs\.npy or .*/expected\.npz cannot be read"),
        (lambda path, arrays: np.savez(path, **{k: v[:5] for k, v in arrays.items()}), "has answers for 5 images, but"),
    ],
)
def test_expected_answers_that_do_not_fit_are_refused_before_anything_runs(
    plan: Plan, tiny_model: TinyModel, tmp_path: Path, make: Any, words: str
) -> None:
    path = tmp_path / "expected.npz"
    make(path, dict(np.load(tiny_model.expected)))
    fits, does_not = (
        dataclasses.replace(variant, expected=str(expected))
        for variant, expected in zip(plan.variants, (tiny_model.expected, path), strict=True)
    )
    with pytest.raises(PlanError, match=words):
        run_benchmark(dataclasses.replace(plan, variants=(fits, does_not)))


def test_a_measurement_that_fails_leaves_its_number_out_and_the_rest_in(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def fail_beside(plan: Plan, step: Step, output: Path) -> dict[str, Any]:
        ran.append(step.kind)
        if step.kind != "round":
            raise WorkerError(f"the {step.kind} worker ended.", "failed")
        return in_process(plan, step, output)

    monkeypatch.setattr(runner, "run_step", fail_beside)
    more = dataclasses.replace(only(plan), cold_rounds=3, memory_pass=True, throughput=((1, 1), (2, 1)))
    [row] = run_benchmark(more)[0].rows
    assert ran == ["round", "cold", "memory", "throughput", "throughput"]
    assert (row.error, row.samples, row.cold, row.memory) == (None, 40, None, None)
    assert "cold start not measured: the cold worker ended." in row.notes
    assert [point.note for point in row.throughput] == [
        f"at batch {batch} with 1 threads not measured: the throughput worker ended." for batch in (1, 2)
    ]


def test_a_wall_clock_that_is_set_back_is_named_and_changes_no_duration(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine_time = time.time
    offset = [0.0]
    monkeypatch.setattr(time, "time", lambda: genuine_time() + offset[0])

    def set_back(plan: Plan, step: Step, output: Path) -> dict[str, Any]:
        offset[0] -= 3600.0
        return in_process(plan, step, output)

    monkeypatch.setattr(runner, "run_step", set_back)
    result, _ = run_benchmark(only(plan))
    sentence = "the wall clock was set back by 3600 s during round 1/1 ort; durations are not affected."
    assert result.notes == [sentence]
    [row] = result.rows
    assert sentence in row.notes
    assert 0 < result.seconds < 60
    assert 0 < row.latency_min_ms <= row.latency_max_ms < 5000


@pytest.mark.usefixtures("quick")
def test_nothing_is_tuned_unless_it_is_allowed(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    @contextlib.contextmanager
    def tuned(allowed: bool) -> Iterator[dict[str, Any]]:
        asked.append(allowed)
        yield {"allowed": allowed, "changed": {}, "notes": ["it shows no governor."]}

    monkeypatch.setattr(runner, "tuned", tuned)
    results = [run_benchmark(dataclasses.replace(only(plan), allow_device_tuning=value))[0] for value in (False, True)]
    assert asked == [False, True]
    assert results[1].tuning["allowed"] is True
    assert results[1].notes == ["it shows no governor."]

    def fail(plan: Plan, step: Step, output: Path) -> dict[str, Any]:
        raise WorkerError("gone.onnx does not exist.", "model_file")

    monkeypatch.setattr(runner, "run_step", fail)
    with pytest.raises(BenchmarkError, match=r"gone\.onnx does not exist\. it shows no governor\.$"):
        run_benchmark(only(plan, path="gone.onnx"))


@pytest.mark.usefixtures("quick")
def test_one_round_has_no_interval_and_too_few_samples_and_a_claimed_precision_is_checked(plan: Plan) -> None:
    [row] = run_benchmark(only(plan, precision="int8"))[0].rows
    assert row.verdict == "too_few_samples"
    assert (row.latency_ci_low_ms, row.latency_ci_high_ms) == (None, None)
    assert "interval of the latency not measured: 1 round, 2 needed." in row.notes
    assert row.precision_executed == "fp32"
    assert row.precision_mismatch == "int8 was asked for but CPUExecutionProvider executed fp32."


def test_nothing_measured_at_all_is_an_error(plan: Plan) -> None:
    with pytest.raises(BenchmarkError) as caught:
        run_benchmark(only(plan, runtime="tflite"))
    assert str(caught.value).startswith("the benchmark worker of ort in round 1 ended with exit code 3: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        (
            "import os; os.kill(os.getpid(), 9)",
            "the benchmark worker of ort in round 1 ended by signal 9 (Killed): it wrote nothing to standard error.",
        ),
        (
            r"import sys; sys.stderr.write('first\nlast \x1b[2Jwords\n'); sys.exit(1)",
            r"the benchmark worker of ort in round 1 ended with exit code 1: last \x1b[2Jwords",
        ),
        ("", "the benchmark worker of ort in round 1 wrote no result "),
    ],
)
def test_a_worker_that_dies_gives_one_sentence(
    plan: Plan, program: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_worker(monkeypatch, program)
    with pytest.raises(BenchmarkError) as caught:
        run_benchmark(only(plan))
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_a_worker_that_hangs_is_ended(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_worker(monkeypatch, "import time; time.sleep(60)")
    hanging = dataclasses.replace(only(plan), timeout_seconds=0.3, max_seconds=0.1)
    with pytest.raises(BenchmarkError, match=r"did not end within 0\.5 s"):
        run_benchmark(hanging)


def test_a_variant_that_fails_later_keeps_its_earlier_rounds(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_in_second_round(plan: Plan, step: Step, output: Path) -> dict[str, Any]:
        if step.label.startswith("round 2"):
            raise WorkerError("out of memory.", "failed")
        return in_process(plan, step, output)

    monkeypatch.setattr(runner, "run_step", fail_in_second_round)
    [row] = run_benchmark(dataclasses.replace(only(plan), rounds=3))[0].rows
    assert row.samples == 40
    assert row.error == "out of memory."
    assert "only 1 of 3 rounds measured: out of memory." in row.notes
    assert row.verdict == "too_few_samples"


def test_missing_inputs_are_refused_before_anything_runs(plan: Plan) -> None:
    with pytest.raises(PlanError, match=r"absent\.npy does not exist"):
        run_benchmark(
            dataclasses.replace(plan, variants=(plan.variants[0], *of_all(plan, inputs="absent.npy").variants[1:]))
        )


def test_what_travels_runs_from_an_archive_without_the_rest(plan: Plan, tmp_path: Path) -> None:
    source = Path(pipeline.__file__).parent
    archive = tmp_path / "bundle.zip"
    with zipfile.ZipFile(archive, "w") as bundle:
        for path in (path for pattern in _CODE for path in source.glob(pattern)):
            bundle.write(path, path.relative_to(source.parent))
    program = (
        "import sys, json\n"
        "from pipeline.device.benchmark.plan import Plan\n"
        "from pipeline.device.benchmark.runner import run_benchmark\n"
        "from pipeline.device.service import main\n"
        "result, _ = run_benchmark(Plan.from_json(sys.stdin.read()))\n"
        "print(result.rows[0].samples, sorted({m.split('.')[1] for m in sys.modules if m.startswith('pipeline.')}))\n"
        "print([m for m in ('torch', 'onnxruntime', 'openvino', 'pydantic') if m in sys.modules])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        input=only(plan).to_json(),
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(archive)},
    )
    assert ended.stdout.splitlines() == ["40 ['device', 'portable', 'runtimes']", "[]"]


def replace_worker(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    genuine = subprocess.run

    def run(command: list[str], **options: Any) -> Any:
        return genuine([command[0], "-c", program], **options)

    monkeypatch.setattr(steps.subprocess, "run", run)
