"""Recommend a file within the budget, of any student, and tell what the next better and the next cheaper one cost."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.config import BudgetParams
from pipeline.portable.accuracy import Difference
from pipeline.report.formatting import milliseconds, runtime, significant
from pipeline.report.rows import Row

# Tolerance for rounding errors of accuracies; far below the share of one image in any test split.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Step:
    """What another file would change, compared with the recommended one.

    Attributes:
        size_bytes, latency_ms: of the other file minus those of the recommended one.
        difference: of their top-1 on the same images; None if they were not measured on the same.
        broken: the limits that it breaks, one clause each.
        behind: it is as accurate on the test images or more, but not more on the validation images, by which the budget
            chooses.
    """

    row: Row
    size_bytes: int
    latency_ms: float
    difference: Difference | None
    broken: Sequence[str]
    behind: bool

    def entry(self) -> dict[str, Any]:
        """The step in reports/summary.json."""
        return identity(self.row) | {
            "size_bytes_difference": self.size_bytes,
            "latency_p50_ms_difference": self.latency_ms,
            "top1_difference": None if self.difference is None else asdict(self.difference),
            "broken": list(self.broken),
        }


@dataclass(frozen=True)
class Recommendation:
    """The recommended file, and the reasons against the others.

    Attributes:
        row: recommended row; None if no file is within the budget.
        broken: file outside the budget -> one clause per broken limit.
        slower_than_fp32: file -> one clause per runtime with a higher latency than the fp32 file.
        cheaper: the most accurate file that costs less, in what the budget chooses by: size, or else latency.
        better: the file with a higher top-1 that costs least.
    """

    row: Row | None
    broken: Mapping[str, Sequence[str]]
    slower_than_fp32: Mapping[str, Sequence[str]]
    cheaper: Step | None = None
    better: Step | None = None

    def entry(self) -> dict[str, Any] | None:
        """The chosen row in reports/summary.json, and the steps from there."""
        if self.row is None:
            return None
        steps = {"cheaper": self.cheaper, "better": self.better}
        return identity(self.row) | {name: step.entry() if step else None for name, step in steps.items()}


def identity(row: Row) -> dict[str, Any]:
    """Facts that identify a row, as in reports/summary.json."""
    keys = ("name", "student", "format", "precision", "runtime", "device", "size_bytes", "sha256")
    return {key: getattr(row, key) for key in keys}


def deployable_formats(rows: Iterable[Row]) -> list[Row]:
    """Rows of students in a format that a device can run without torch."""
    return [row for row in rows if row.role == "student" and row.format != "torch"]


def recommend(rows: Sequence[Row], budget: BudgetParams) -> Recommendation:
    """Choose the smallest, fastest or most accurate student file within all limits of the budget, as it asks for.

    A cascade among the rows is a candidate too, with its mean latency in place of the median. A file of lower
    precision is skipped if it is slower than fp32 in the same runtime and the fp32 file is within the limits. Teachers
    are not candidates, and neither are torch programs, because they need torch on the device. A limit counts as broken
    if its quantity was not measured; the accuracy must always be measured.
    """
    candidates = deployable_formats(rows)
    deployable: list[Row] = []
    broken: dict[str, list[str]] = {}
    for name in dict.fromkeys(row.name for row in candidates):
        of_file = [row for row in candidates if row.name == name]
        of_file = [row for row in of_file if row.is_measured] or of_file[:1]
        limits = [broken_limits(row, budget) for row in of_file]
        within_budget = [row for row, row_limits in zip(of_file, limits, strict=True) if not row_limits]
        deployable += within_budget
        if not within_budget:
            broken[name] = _limits_of_file(of_file, limits)
    slower: dict[str, list[str]] = {}
    for row in deployable:
        if clause := _slower_than_fp32(row, deployable):
            slower.setdefault(row.name, []).append(clause)
    chosen = min(
        (row for row in deployable if not _slower_than_fp32(row, deployable)),
        key=lambda row: (*_cost(row, budget), *row.key),
        default=None,
    )
    if chosen is None:
        return Recommendation(None, broken, slower)
    return Recommendation(chosen, broken, slower, *_steps(chosen, candidates, budget))


def _steps(chosen: Row, candidates: Sequence[Row], budget: BudgetParams) -> tuple[Step | None, Step | None]:
    """The next cheaper and the next better file; None where there is none."""

    def cost(row: Row) -> float:
        return row.size_bytes if budget.choose == "smallest" else _or_infinity(row.latency_p50_ms)

    def top1(row: Row) -> float:
        return -1.0 if row.top1 is None else row.top1

    def step(row: Row | None) -> Step | None:
        if row is None:
            return None
        latency = (row.latency_p50_ms or 0.0) - (chosen.latency_p50_ms or 0.0)
        size = row.size_bytes - chosen.size_bytes
        behind = budget.choose == "most_accurate" and top1(row) >= top1(chosen)
        return Step(row, size, latency, row.difference_to(chosen), broken_limits(row, budget), behind)

    others = [
        row
        for row in candidates
        if row.top1 is not None and row.latency_p50_ms is not None and not _slower_than_fp32(row, candidates)
    ]
    cheaper = [row for row in others if cost(row) < cost(chosen)]
    better = [row for row in others if top1(row) > top1(chosen)]
    return (
        step(max(cheaper, key=lambda row: (top1(row), -cost(row)), default=None)),
        step(min(better, key=lambda row: (cost(row), -top1(row)), default=None)),
    )


def _cost(row: Row, budget: BudgetParams) -> tuple[float, ...]:
    """What the budget wants least of, first."""
    size, latency = float(row.size_bytes), _or_infinity(row.latency_p50_ms)
    match budget.choose:
        case "smallest":
            return size, latency
        case "fastest":
            return latency, size
        case "most_accurate":  # by the validation split: the test split only checks the limits
            return -(row.val_top1 or 0.0), size, latency


def broken_limits(row: Row, budget: BudgetParams) -> list[str]:
    """List the broken limits of a row, one clause each."""
    broken = ["its accuracy was not measured"] if row.top1 is None else _accuracy_limits(row, row.top1, budget)
    for name, latency, most in (
        ("p50", row.latency_p50_ms, budget.max_latency_p50_ms),
        ("p90", row.latency_p90_ms, budget.max_latency_p90_ms),
        ("p99", row.latency_p99_ms, budget.max_latency_p99_ms),
    ):
        key = f"max_latency_{name}_ms"
        if most is not None and latency is None:
            broken.append(f"its {name} latency was not measured ({key})")
        elif most is not None and latency is not None and latency > most:
            broken.append(f"its {name} is {milliseconds(latency)} ms, {milliseconds(most)} allowed ({key})")
    megabytes = row.size_bytes / 1e6
    if budget.max_size_mb is not None and megabytes > budget.max_size_mb:
        broken.append(f"it has {significant(megabytes)} MB, {significant(budget.max_size_mb)} allowed (max_size_mb)")
    if row.top1 is not None and row.precision_executed is None:
        broken.append("accuracy and latency were measured in different precisions")
    return broken


def _accuracy_limits(row: Row, top1: float, budget: BudgetParams) -> list[str]:
    broken = []
    required = budget.minimum_top1
    if required is not None and top1 < required - _ROUNDING:
        broken.append(f"its top-1 accuracy is {100 * top1:.2f} %, {100 * required:g} required (minimum_top1)")
    for quantity, delta, limit, key in (
        ("top-1 accuracy", row.delta_reference, budget.max_top1_drop, "max_top1_drop"),
        ("high-energy accuracy", row.delta_reference_high_energy, budget.max_high_energy_drop, "max_high_energy_drop"),
    ):
        if limit is not None and delta is None:
            broken.append(f"its loss of {quantity} was not measured ({key})")
        elif limit is not None and delta is not None and -delta > limit + _ROUNDING:
            broken.append(f"it loses {-100 * delta:.2f} points of {quantity}, {100 * limit:g} allowed ({key})")
    return broken


def budget_sentence(recommendation: Recommendation) -> str:
    """Sentence for BudgetError: the broken limits of each file, and the remedy."""
    if not recommendation.broken:
        return (
            "no ONNX or OpenVINO file of a student was measured, so no file can be recommended; add onnxruntime or "
            "openvino to evaluate.runtimes and benchmark.runtimes in params.yaml"
        )
    files = "; ".join(f"{name}: {', '.join(limits)}" for name, limits in recommendation.broken.items())
    return f"no file is within the budget ({files}); relax the block budget in params.yaml or train a better student"


def _limits_of_file(rows: Sequence[Row], limits: Sequence[Sequence[str]]) -> list[str]:
    """Merge the broken limits of the rows of one file; a limit not broken in all runtimes names the runtime."""
    common = [limit for limit in limits[0] if all(limit in row_limits for row_limits in limits)]
    return common + [
        f"in {runtime(row.runtime)} {limit}"
        for row, row_limits in zip(rows, limits, strict=True)
        for limit in row_limits
        if limit not in common
    ]


def _slower_than_fp32(row: Row, rows: Iterable[Row]) -> str | None:
    """Clause if a row is slower than the fp32 file in the same runtime, with disjoint latency intervals; else None."""
    for other in rows:
        if other.precision != "fp32" or row.precision in ("fp32", "cascade"):
            continue
        if other.student != row.student or (other.format, other.runtime) != (row.format, row.runtime):
            continue
        if _or_infinity(other.latency_ci_high_ms) < (row.latency_ci_low_ms or 0):
            return (
                f"in {runtime(row.runtime)} it takes {milliseconds(row.latency_p50_ms)} ms, the fp32 file "
                f"{milliseconds(other.latency_p50_ms)}"
            )
    return None


def _or_infinity(latency: float | None) -> float:
    return math.inf if latency is None else latency
