"""That it runs: every objective in bf16, a student in fp32 and in bf16, and the tests that need a GPU."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from bench.gpu.call import Call
from bench.gpu.studies import load, results_of
from bench.measure import table
from bench.setting import ROOT
from pipeline.ablation.statistics import mean_and_deviation
from pipeline.errors import EnergyKDError


class TestsFailedError(EnergyKDError):
    """Tests that need a GPU failed; ``summary`` is pytest's last line."""

    def __init__(self, summary: str) -> None:
        super().__init__(f"tests that need a GPU failed ({summary}); what they printed is above")
        self.summary = summary


def run(call: Call) -> str:
    """Two tables and the outcome of the tests in one page.

    Raises:
        TestsFailedError: at the end, when the page is written and printed.
    """
    objectives, losses = _objectives(call)
    precision, students = _precision(call)
    failure: TestsFailedError | None = None
    try:
        tests = call.part("the tests that need a GPU", _tests)
    except TestsFailedError as error:  # what was measured is worth its page, and a failure is not kept as a part
        tests, failure = error.summary, error
    body = f"{objectives}\n\n{precision}\n\nTests that need a GPU: {tests}."
    page = call.report("It runs", body, {"objectives": losses, "precision": students, "tests": tests})
    if failure is not None:
        print(page)
        raise failure
    return page


def _objectives(call: Call) -> tuple[str, list[dict[str, Any]]]:
    study = load("gpu_objectives", call)
    rows = [{"arm": each.arm, **result} for each, result in results_of(study, call) if each.seed == study.seeds[0]]
    head = ("objective", "loss, first epoch", "last", "falls", "test top-1, %", "s an epoch")
    lines = (
        (
            row["arm"],
            f"{first:.4f}",
            f"{last:.4f}",
            "yes" if last < first else "no",
            f"{100 * row['last']['top1']:.2f}",
            f"{row['seconds_per_epoch']:.2f}",
        )
        for row in rows
        for first, last in [(row["train_loss"][0], row["train_loss"][-1])]
    )
    return f"{study.note}\n\n{table(head, lines)}", rows


def _precision(call: Call) -> tuple[str, dict[str, list[float]]]:
    study = load("gpu_precision", call)
    found: dict[str, list[float]] = {arm: [] for arm in study.arms}
    for each, result in results_of(study, call):
        found[each.arm].append(100 * result["last"]["top1"])
    exact, rounded = found["fp32"], found["bf16"]
    apart = [second - first for first, second in zip(exact, rounded, strict=True)]
    (_, spread), (difference, _) = mean_and_deviation(exact), mean_and_deviation(apart)
    head = ("seed", "test top-1 in fp32, %", "in bf16", "difference")
    lines = (
        (str(seed), f"{first:.2f}", f"{second:.2f}", f"{second - first:+.2f}")
        for seed, first, second in zip(study.seeds, exact, rounded, strict=True)
    )
    known = "not known from one" if spread is None else f"{spread:.2f} points"
    outcome = f"Mean difference {difference:+.2f} points; standard deviation over the seeds in fp32: {known}."
    return f"{study.note}\n\n{table(head, lines)}\n\n{outcome}", found


def _tests() -> str:
    """Run the marked tests and return pytest's summary.

    Only files that have such a test: others import packages that a machine lent for this may lack.
    """
    files = [
        str(path)
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if "pytest.mark.gpu" in path.read_text(encoding="utf-8")
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", *files]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    summary = done.stdout.strip().splitlines()[-1].strip("= ")
    if done.returncode:
        print(done.stdout)
        raise TestsFailedError(summary)
    return summary
