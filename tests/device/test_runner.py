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
from pipeline.device.benchmark import process, runner
from pipeline.device.benchmark.plan import Plan, Variant
from pipeline.device.benchmark.process import WorkerError
from pipeline.device.benchmark.runner import run_benchmark
from pipeline.device.benchmark.steps import Step
from pipeline.device.errors import BenchmarkError, PlanError
from tests.device.conftest import TinyModel

NO_METER = "energy per inference not measured: no meter in this test."
NO_ANSWERS = "accuracy not measured here: the plan has no expected answers."
QUICK = {"threads": 1, "warmup_seconds": 0.0, "warmup_count": 2, "min_seconds": 0.0, "min_count": 40}


@pytest.fixture(autouse=True)
def _without_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's meter would add workers."""
    monkeypatch.setattr(runner, "find_meter", lambda gpu: (None, NO_METER))


@pytest.fixture
def plan(tiny_model: TinyModel) -> Plan:
    variants = (
        Variant("ort", "onnxruntime", str(tiny_model.path), "fp32"),
        Variant("ov.batch-3", "openvino", str(tiny_model.path), "fp32", batch=3),
    )
    return Plan(variants, str(tiny_model.inputs), rounds=2, max_seconds=5.0, **QUICK)  # type: ignore[arg-type]


def only(plan: Plan, **changes: Any) -> Plan:
    """The plan's first variant, changed, in one round."""
    return dataclasses.replace(plan, variants=(dataclasses.replace(plan.variants[0], **changes),), rounds=1)


def test_two_variants_in_two_rounds(plan: Plan, tmp_path: Path) -> None:
    steps: list[tuple[int, int, str]] = []
    result = run_benchmark(plan, lambda done, total, label: steps.append((done, total, label)))

    assert [step[:2] for step in steps] == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert steps[0][2].startswith("round 1/2 ")
    assert [sorted(names) for names in result["order"]] == [["ort", "ov.batch-3"]] * 2
    ort, ov = result["variants"]
    assert (ort["provider"], ov["provider"]) == ("CPUExecutionProvider", "CPU")
    for row in (ort, ov):
        assert row["error"] is None
        assert row["samples"] == 80
        assert [part["samples"] for part in row["rounds"]] == [40, 40]
        assert row["precision_executed"] == "fp32"
        assert row["precision_mismatch"] is None
        assert row["threads"] == 1
        assert 0 < row["latency_min_ms"] <= row["latency_p50_ms"] <= row["latency_p90_ms"] <= row["latency_max_ms"]
        assert row["latency_p95_ms"] is None
        assert row["latency_p99_ms"] is None
        assert row["notes"] == [
            "p95 not measured: 80 samples, 130 needed.",
            "p99 not measured: 80 samples, 662 needed.",
            NO_ANSWERS,
            NO_METER,
        ]
        assert row["latency_ci_low_ms"] <= row["latency_median_ms"] <= row["latency_ci_high_ms"]
        assert row["throughput_ips"] == pytest.approx(row["batch"] * 1000 / row["latency_mean_ms"])
        assert row["verdict"] in {"stable", "noisy", "throttled"}
        assert min(row["load_ms"], row["first_inference_ms"], row["peak_rss_kb"]) > 0
    [comparison] = result["comparisons"]
    assert (comparison["name"], comparison["baseline"]) == ("ov.batch-3", "ort")
    assert comparison["verdict"] == "no difference shown"

    samples = result.pop("samples_ns")
    json.dumps(result)
    np.savez_compressed(tmp_path / "samples.npz", **samples)
    kept = np.load(tmp_path / "samples.npz")
    assert sorted(kept) == ["ort/round0", "ort/round1", "ov.batch-3/round0", "ov.batch-3/round1"]
    assert kept["ort/round0"].shape == (40,)
    pooled = np.concatenate([kept["ort/round0"], kept["ort/round1"]])
    assert np.median(pooled) / 1e6 == pytest.approx(ort["latency_p50_ms"])


def test_a_variant_that_cannot_run_keeps_its_row_with_the_reason(plan: Plan) -> None:
    mixed = dataclasses.replace(
        plan, rounds=1, variants=(plan.variants[0], Variant("gone", "onnxruntime", "gone.onnx", "fp32"))
    )
    result = run_benchmark(mixed)
    ort, gone = result["variants"]
    assert ort["error"] is None
    assert gone["error_kind"] == "model_file"
    assert gone["error"].startswith("the benchmark worker of gone in round 1 ended with exit code 4: ")
    assert gone["error"].endswith("gone.onnx does not exist; run the export stage first.")
    assert gone["notes"] == [f"latency not measured: {gone['error']}", NO_ANSWERS, NO_METER]
    assert (gone["latency_p50_ms"], gone["verdict"], gone["samples"]) == (None, None, 0)
    assert set(gone) == set(ort)
    assert result["comparisons"] == []
    assert list(result["samples_ns"]) == ["ort/round0"]


def test_every_pass_adds_to_the_row(plan: Plan, tiny_model: TinyModel) -> None:
    everything = dataclasses.replace(
        plan,
        expected=str(tiny_model.expected),
        cold_rounds=1,
        memory_pass=True,
        sustained_seconds=0.2,
        throughput=((2, 1), (4, 1)),
    )
    labels: list[str] = []
    result = run_benchmark(everything, lambda done, total, label: labels.append(f"{done}/{total} {label}"))
    assert labels[0] == "0/16 accuracy ort"
    assert labels[-1] == "16/16 done"
    assert result["schema"] == 2
    for row in result["variants"]:
        assert row["error"] is None
        assert row["accuracy"]["images"] == 6
        assert row["accuracy"]["parity_max_abs"] < 1e-3
        assert row["cold"]["rounds"] == 1
        assert row["memory"]["peak_rss_kb"] > row["memory"]["model_rss_kb"] > 0
        assert [(point["batch"], point["threads"]) for point in row["throughput"]] == [(2, 1), (4, 1)]
        assert all(point["images_per_second"] > 0 for point in row["throughput"])
        assert row["sustained"]["ended_by"] == "time limit"
        assert row["sustained"]["cool_start"]["seconds"] < 5
        assert (row["joules_per_inference"], row["meter"]) == (None, None)
        assert NO_METER in row["notes"]
    result.pop("samples_ns")
    json.dumps(result)


def test_a_file_with_other_answers_than_expected_is_not_timed(
    plan: Plan, tiny_model: TinyModel, tmp_path: Path
) -> None:
    arrays = dict(np.load(tiny_model.expected))
    np.savez(tmp_path / "other.npz", **arrays | {"logits": arrays["logits"][:, :2]})
    with pytest.raises(BenchmarkError, match=r"^the accuracy worker of ort ended with exit code 2: .*logits \[6, 4\]"):
        run_benchmark(dataclasses.replace(only(plan), expected=str(tmp_path / "other.npz")))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path, arrays: None, "does not exist; write the expected answers first"),
        (lambda path, arrays: path.write_bytes(b""), "cannot be read"),
        (lambda path, arrays: np.savez(path, **{k: v[:5] for k, v in arrays.items()}), "has answers for 5 images, but"),
    ],
)
def test_expected_answers_that_do_not_fit_are_refused_before_anything_runs(
    plan: Plan, tiny_model: TinyModel, tmp_path: Path, make: Any, words: str
) -> None:
    path = tmp_path / "expected.npz"
    make(path, dict(np.load(tiny_model.expected)))
    with pytest.raises(PlanError, match=words):
        run_benchmark(dataclasses.replace(plan, expected=str(path)))


def test_a_pass_that_fails_leaves_its_number_out_and_the_rest_in(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = runner._run_step
    ran: list[str] = []

    def fail_beside(plan: Plan, step: Step, output: Path) -> dict[str, Any]:
        ran.append(step.kind)
        if step.kind != "round":
            raise WorkerError(f"the {step.kind} worker ended.", "failed")
        return genuine(plan, step, output)

    monkeypatch.setattr(runner, "_run_step", fail_beside)
    more = dataclasses.replace(only(plan), cold_rounds=3, memory_pass=True, throughput=((1, 1), (2, 1)))
    [row] = run_benchmark(more)["variants"]
    assert ran == ["round", "cold", "memory", "throughput", "throughput"]
    assert (row["error"], row["samples"], row["cold"], row["memory"]) == (None, 40, None, None)
    assert "cold start not measured: the cold worker ended." in row["notes"]
    assert [point["note"] for point in row["throughput"]] == [
        f"at batch {batch} with 1 threads not measured: the throughput worker ended." for batch in (1, 2)
    ]


def test_a_wall_clock_that_is_set_back_is_named_and_changes_no_duration(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine, genuine_time = runner._run_step, time.time
    offset = [0.0]
    monkeypatch.setattr(time, "time", lambda: genuine_time() + offset[0])

    def set_back(plan: Plan, step: Step, output: Path) -> dict[str, Any]:
        offset[0] -= 3600.0
        return genuine(plan, step, output)

    monkeypatch.setattr(runner, "_run_step", set_back)
    result = run_benchmark(only(plan))
    sentence = (
        "the wall clock was set back by 3600 s during round 1/1 ort; durations are of a clock that cannot be set."
    )
    assert result["notes"] == [sentence]
    [row] = result["variants"]
    assert sentence in row["notes"]
    assert 0 < result["seconds"] < 60
    assert 0 < row["latency_min_ms"] <= row["latency_max_ms"] < 5000


def test_the_users_home_is_in_no_text(plan: Plan, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny_model.path.parent))
    result = run_benchmark(only(plan))
    samples = result.pop("samples_ns")
    assert str(tiny_model.path.parent) not in json.dumps(result)
    assert result["variants"][0]["path"] == "~/tiny.onnx"
    assert len(samples["ort/round0"]) == 40


def test_a_folder_whose_name_only_begins_like_home_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/pi")
    assert runner._without_home({"a": ["/home/pi/x", "/home/pi2/x", "at /home/pi: no", 3, None, True]}) == {
        "a": ["~/x", "/home/pi2/x", "at ~: no", 3, None, True]
    }
    monkeypatch.setenv("HOME", "/")
    assert runner._without_home("/x") == "/x"


def test_nothing_is_tuned_unless_it_is_allowed(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    @contextlib.contextmanager
    def tuned(allowed: bool) -> Iterator[dict[str, Any]]:
        asked.append(allowed)
        yield {"allowed": allowed, "changed": {}, "notes": ["it shows no governor."]}

    monkeypatch.setattr(runner, "tuned", tuned)
    results = [run_benchmark(dataclasses.replace(only(plan), allow_device_tuning=value)) for value in (False, True)]
    assert asked == [False, True]
    assert results[1]["tuning"]["allowed"] is True
    assert results[1]["notes"] == ["it shows no governor."]
    with pytest.raises(BenchmarkError, match=r"gone\.onnx does not exist.* it shows no governor\.$"):
        run_benchmark(only(plan, path="gone.onnx"))


def test_one_round_has_no_interval_and_too_few_samples(plan: Plan) -> None:
    [row] = run_benchmark(only(plan))["variants"]
    assert row["verdict"] == "too_few_samples"
    assert (row["latency_ci_low_ms"], row["latency_ci_high_ms"]) == (None, None)
    assert "interval of the latency not measured: 1 round, 2 needed." in row["notes"]


def test_a_claimed_precision_that_was_not_executed_is_in_the_row(plan: Plan) -> None:
    [row] = run_benchmark(only(plan, precision="int8"))["variants"]
    assert row["precision_executed"] == "fp32"
    assert row["precision_mismatch"] == "int8 was asked for but CPUExecutionProvider executed fp32."


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
            "import sys; sys.stderr.write('first\\nlast words\\n'); sys.exit(1)",
            "the benchmark worker of ort in round 1 ended with exit code 1: last words",
        ),
        ("", "the benchmark worker of ort in round 1 left no result "),
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
    genuine = runner._run_step

    def fail_in_second_round(plan: Plan, step: Step, output: Path) -> dict[str, Any]:
        if step.label.startswith("round 2"):
            raise WorkerError("out of memory.", "failed")
        return genuine(plan, step, output)

    monkeypatch.setattr(runner, "_run_step", fail_in_second_round)
    [row] = run_benchmark(dataclasses.replace(only(plan), rounds=3))["variants"]
    assert row["samples"] == 40
    assert row["error"] == "out of memory."
    assert "only 1 of 3 rounds measured: out of memory." in row["notes"]
    assert row["verdict"] == "too_few_samples"


def test_missing_inputs_are_refused_before_anything_runs(plan: Plan) -> None:
    with pytest.raises(PlanError, match=r"absent\.npy does not exist"):
        run_benchmark(dataclasses.replace(plan, inputs="absent.npy"))


def test_the_two_packages_run_from_an_archive_without_the_rest(plan: Plan, tmp_path: Path) -> None:
    source = Path(pipeline.__file__).parent
    archive = tmp_path / "bundle.zip"
    with zipfile.ZipFile(archive, "w") as bundle:
        for path in [source / "__init__.py", *source.glob("runtimes/*.py"), *source.rglob("device/**/*.py")]:
            bundle.write(path, path.relative_to(source.parent))
    program = (
        "import sys, json\n"
        "from pipeline.device.benchmark.plan import Plan\n"
        "from pipeline.device.benchmark.runner import run_benchmark\n"
        "result = run_benchmark(Plan.from_json(sys.stdin.read()))\n"
        "print(result['variants'][0]['samples'], sorted(m for m in sys.modules if m.startswith('pipeline.')))\n"
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
    samples, runtimes_loaded = ended.stdout.splitlines()
    assert samples.startswith("40 ")
    assert "pipeline.errors" not in samples
    assert runtimes_loaded == "[]"


def replace_worker(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    genuine = subprocess.run

    def run(command: list[str], **options: Any) -> Any:
        return genuine([command[0], "-c", program], **options)

    monkeypatch.setattr(process.subprocess, "run", run)
