from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pipeline
from pipeline.device import BenchmarkError, Plan, PlanError, Variant, run_benchmark, runner
from tests.device.conftest import TinyModel

QUICK = {"threads": 1, "warmup_seconds": 0.0, "warmup_count": 2, "min_seconds": 0.0, "min_count": 40}


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


def test_the_order_within_rounds_is_shuffled_by_the_seed(plan: Plan) -> None:
    many = dataclasses.replace(
        plan, rounds=20, variants=tuple(dataclasses.replace(plan.variants[0], name=name) for name in "abcd")
    )
    orders = [["".join(v.name for v in row) for row in runner._shuffled_rounds(many)] for _ in range(2)]
    assert orders[0] == orders[1]
    assert len(set(orders[0])) > 5
    assert {"".join(sorted(row)) for row in orders[0]} == {"abcd"}
    other = runner._shuffled_rounds(dataclasses.replace(many, seed=1))
    assert ["".join(v.name for v in row) for row in other] != orders[0]


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
    assert gone["notes"] == [f"latency not measured: {gone['error']}"]
    assert (gone["latency_p50_ms"], gone["verdict"], gone["samples"]) == (None, None, 0)
    assert set(gone) == set(ort)
    assert result["comparisons"] == []
    assert list(result["samples_ns"]) == ["ort/round0"]


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
    genuine = runner._run_worker

    def fail_in_second_round(plan: Plan, variant: Variant, index: int, output: Path) -> dict[str, Any]:
        if index == 1:
            raise runner._WorkerError("out of memory.", "failed")
        return genuine(plan, variant, index, output)

    monkeypatch.setattr(runner, "_run_worker", fail_in_second_round)
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
        for path in [source / "__init__.py", *source.glob("runtimes/*.py"), *source.glob("device/*.py")]:
            bundle.write(path, path.relative_to(source.parent))
    program = (
        "import sys, json\n"
        "from pipeline.device import Plan, run_benchmark\n"
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

    monkeypatch.setattr(runner.subprocess, "run", run)
