from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pipeline.device.benchmark.passes import PASSES
from pipeline.device.benchmark.plan import Plan, Variant
from pipeline.device.benchmark.steps import job_of, limit_seconds, shuffled_rounds, steps

ORT = Variant("ort", "onnxruntime", "ort.onnx", "fp32")
FIXED = Variant("fixed", "openvino", "fixed.xml", "int8", batch=2, fixed_batch=True)
ALL: dict[str, Any] = {
    "expected": "expected.npz",
    "rounds": 2,
    "cold_rounds": 2,
    "memory_pass": True,
    "sustained_seconds": 120.0,
    "throughput": ((1, 1), (2, 1), (2, 2)),
}
PLAN = Plan((ORT, FIXED), "inputs.npy", **ALL)


def kinds(plan: Plan, metered: frozenset[str] = frozenset()) -> list[str]:
    found = steps(plan, shuffled_rounds(plan), metered, {})
    assert {step.kind for step in found} <= set(PASSES)
    return [step.kind for step in found]


def test_the_order_within_rounds_is_shuffled_by_the_seed() -> None:
    variants = tuple(dataclasses.replace(ORT, name=name) for name in "abcd")
    many = Plan(variants, "x.npy", rounds=20)
    orders = [["".join(v.name for v in row) for row in shuffled_rounds(many)] for _ in range(2)]
    assert orders[0] == orders[1]
    assert len(set(orders[0])) > 5
    assert {"".join(sorted(row)) for row in orders[0]} == {"abcd"}
    other = shuffled_rounds(dataclasses.replace(many, seed=1))
    assert ["".join(v.name for v in row) for row in other] != orders[0]


def test_only_rounds_are_run_unless_more_is_asked_for() -> None:
    assert kinds(Plan((ORT, FIXED), "x.npy", rounds=3)) == ["round"] * 6


def test_accuracy_comes_before_timing_and_sustained_load_after_all_else() -> None:
    wanted = ["accuracy"] * 2 + ["round"] * 4 + ["cold"] * 4 + ["memory"] * 2 + ["throughput"] * 5 + ["power"]
    assert kinds(PLAN, frozenset({"ort"})) == [*wanted, "sustained", "sustained"]


def test_a_file_of_a_fixed_batch_is_asked_for_no_other() -> None:
    found = [step for step in steps(PLAN, [], frozenset(), {}) if step.kind == "throughput"]
    points = {(step.variant.name, step.changes["batch"], step.changes["threads"]) for step in found}
    assert points == {("ort", 1, 1), ("ort", 2, 1), ("ort", 2, 2), ("fixed", 2, 1), ("fixed", 2, 2)}
    job = job_of(PLAN, found[0], Path("out.json"))
    assert (job["batch"], job["threads"]) == (found[0].changes["batch"], found[0].changes["threads"])


def test_a_worker_gets_time_for_all_that_it_waits_for() -> None:
    plan = dataclasses.replace(PLAN, timeout_seconds=10, max_seconds=5, min_seconds=1, sustained_seconds=20)
    limits = {
        step.kind: limit_seconds(plan, step) for step in steps(plan, shuffled_rounds(plan), frozenset({"ort"}), {})
    }
    assert limits == {
        "accuracy": 10,
        "round": 20,
        "cold": 10,
        "memory": 10,
        "throughput": 20,
        "power": 28,
        "sustained": 50,
    }


def test_a_job_names_files_by_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job = job_of(PLAN, steps(PLAN, [], frozenset(), {})[0], Path("out.json"))
    assert (job["pass"], job["path"]) == ("accuracy", str(tmp_path / "ort.onnx"))
    assert (job["inputs"], job["expected"]) == (str(tmp_path / "inputs.npy"), str(tmp_path / "expected.npz"))
