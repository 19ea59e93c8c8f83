from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.device.benchmark.plan import Plan, Variant
from pipeline.device.benchmark.steps import Step, limit_seconds, run_step, shuffled_rounds, steps
from pipeline.device.benchmark.worker import MEASUREMENTS

ORT = Variant("ort", "onnxruntime", "ort.onnx", "fp32", "ort.npy", "ort.npz")
FIXED = Variant("fixed", "openvino", "fixed.xml", "int8", "fixed.npy", "fixed.npz", batch=2, fixed_batch=True)
ALL: dict[str, Any] = {
    "rounds": 2,
    "cold_rounds": 2,
    "memory_pass": True,
    "sustained_seconds": 120.0,
    "throughput": ((1, 1), (2, 1), (2, 2)),
}
PLAN = Plan((ORT, FIXED), **ALL)
SPIN_COUNT = "GOMP_SPINCOUNT"


def planned(plan: Plan, *metered: str) -> list[Step]:
    found = steps(plan, frozenset(metered), {})
    assert {step.kind for step in found} <= set(MEASUREMENTS)
    return found


def test_the_order_within_rounds_is_shuffled_by_the_seed() -> None:
    variants = tuple(dataclasses.replace(ORT, name=name, expected=None) for name in "abcd")
    many = Plan(variants, rounds=20)
    orders = [["".join(v.name for v in row) for row in shuffled_rounds(many)] for _ in range(2)]
    assert orders[0] == orders[1]
    assert len(set(orders[0])) > 5
    assert {"".join(sorted(row)) for row in orders[0]} == {"abcd"}
    other = shuffled_rounds(dataclasses.replace(many, seed=1))
    assert ["".join(v.name for v in row) for row in other] != orders[0]
    assert "".join(step.variant.name for step in planned(many)) == "".join(orders[0])


def test_only_rounds_are_run_unless_more_is_asked_for() -> None:
    unlabelled = tuple(dataclasses.replace(variant, expected=None) for variant in (ORT, FIXED))
    assert [step.kind for step in planned(Plan(unlabelled, rounds=3))] == ["round"] * 6


def test_accuracy_is_measured_of_the_variants_that_have_expected_answers() -> None:
    plan = Plan((dataclasses.replace(ORT, expected=None), FIXED), rounds=1)
    assert [step.variant.name for step in planned(plan) if step.kind == "accuracy"] == ["fixed"]


def test_accuracy_comes_before_timing_and_sustained_load_after_all_else() -> None:
    wanted = ["accuracy"] * 2 + ["round"] * 4 + ["cold"] * 4 + ["memory"] * 2 + ["throughput"] * 5 + ["power"]
    assert [step.kind for step in planned(PLAN, "ort")] == [*wanted, "sustained", "sustained"]


def test_a_file_of_a_fixed_batch_is_asked_for_no_other() -> None:
    found = [step for step in planned(PLAN) if step.kind == "throughput"]
    points = {(step.variant.name, step.variant.batch, step.threads) for step in found}
    assert points == {("ort", 1, 1), ("ort", 2, 1), ("ort", 2, 2), ("fixed", 2, 1), ("fixed", 2, 2)}


def test_a_worker_gets_time_for_all_that_it_waits_for() -> None:
    plan = dataclasses.replace(PLAN, timeout_seconds=10, max_seconds=5, min_seconds=1, sustained_seconds=20)
    assert {step.kind: limit_seconds(plan, step.kind) for step in planned(plan, "ort")} == {
        "accuracy": 10,
        "round": 20,
        "cold": 10,
        "memory": 10,
        "throughput": 20,
        "power": 28,
        "sustained": 50,
    }


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Step], dict[str, Any]]:
    """Starts a worker that only records how it was started; returns that."""

    def start(step: Step) -> dict[str, Any]:
        seen: dict[str, Any] = {}

        def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
            seen.update(options)
            (tmp_path / "result.json").write_text("{}")
            return subprocess.CompletedProcess(command, 0, "", "")

        monkeypatch.setattr(subprocess, "run", run)
        run_step(PLAN, step, tmp_path / "result.json")
        return seen

    return start


def test_a_job_is_of_one_variant_and_names_files_by_absolute_paths(
    run: Callable[[Step], dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    step = Step("throughput", dataclasses.replace(ORT, batch=8), 3, "", "the worker", {"time": 1.0})
    job = json.loads(run(step)["input"])
    assert (job["kind"], job["idle"], job["output"]) == ("throughput", {"time": 1.0}, str(tmp_path / "result.json"))
    plan = Plan.from_json(job["plan"])
    paths = {"path": "ort.onnx", "inputs": "ort.npy", "expected": "ort.npz"}
    absolute = {key: str(tmp_path / name) for key, name in paths.items()}
    assert plan.variants == (dataclasses.replace(ORT, batch=8, **absolute),)
    assert plan == dataclasses.replace(PLAN, variants=plan.variants, threads=3)


@pytest.mark.parametrize("kind", ["accuracy", "memory"])
def test_threads_of_a_measurement_that_times_nothing_do_not_spin_for_long(run, monkeypatch, kind):
    monkeypatch.delenv(SPIN_COUNT, raising=False)
    assert int(run(Step(kind, ORT, 1, "", ""))["env"][SPIN_COUNT]) < 10_000


@pytest.mark.parametrize("kind", ["round", "cold", "throughput", "sustained", "power"])
def test_what_is_timed_runs_as_it_is_delivered(run, monkeypatch, kind):
    monkeypatch.delenv(SPIN_COUNT, raising=False)
    assert SPIN_COUNT not in run(Step(kind, ORT, 1, "", ""))["env"]


def test_what_the_user_has_set_stays(run, monkeypatch):
    monkeypatch.setenv(SPIN_COUNT, "123456")
    assert run(Step("accuracy", ORT, 1, "", ""))["env"][SPIN_COUNT] == "123456"
