"""Which file to deploy: the smallest student file within the budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config import BudgetParams
from pipeline.report.formatting import milliseconds, runtime, significant

Row = Mapping[str, Any]

# A difference of accuracies is a quotient of small integers; this is far below one image of any test split.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Recommendation:
    """Which file to deploy, and why not the others.

    Attributes:
        row: the chosen one, or None.
        broken: file that is not deployable -> the limits it broke, one clause each.
        unprofitable: file -> clauses on the runtimes in which its precision does not pay.
    """

    row: Row | None
    broken: Mapping[str, Sequence[str]]
    unprofitable: Mapping[str, Sequence[str]]


def recommend(rows: Sequence[Row], budget: BudgetParams) -> Recommendation:
    """The smallest student file that keeps all limits of the budget; of equal sizes the one of the lowest latency.

    A lower precision that is slower than fp32 in the same runtime does not pay and is passed over, as long as the fp32
    file keeps the limits. Teachers are no candidates, nor are torch programs, because they need torch on the device. A
    limit whose number was not measured counts as broken, and so does a file without a measured accuracy.
    """
    candidates = _measured(row for row in rows if row["role"] == "student" and row["format"] != "torch")
    deployable = [row for row in candidates if not broken_limits(row, budget)]
    unprofitable: dict[str, list[str]] = {}
    paying = []
    for row in deployable:
        slower = _slower_than_fp32(row, deployable)
        if slower is None:
            paying.append(row)
        else:
            unprofitable.setdefault(row["name"], []).append(slower)
    if paying:
        chosen = min(paying, key=lambda row: (row["size_bytes"], _latency(row), row["name"], row["runtime"]))
    else:
        chosen = None
    kept = {row["name"] for row in deployable}
    broken: dict[str, list[str]] = {}
    for row in candidates:
        if row["name"] not in kept and row["name"] not in broken:
            same_file = [other for other in candidates if other["name"] == row["name"]]
            broken[row["name"]] = _broken_in_all(same_file, budget)
    return Recommendation(chosen, broken, unprofitable)


def _slower_than_fp32(row: Row, rows: Iterable[Row]) -> str | None:
    """A clause if the row's latency is above that of the fp32 file in the same runtime, with intervals apart."""
    for other in rows:
        same = all(row[key] == other[key] for key in ("role", "format", "runtime", "device"))
        if not same or other["precision"] != "fp32" or row["precision"] == "fp32":
            continue
        low, high = row["latency_ci_low_ms"], other["latency_ci_high_ms"]
        if low is not None and high is not None and low > high:
            return (
                f"in {runtime(row['runtime'])} it takes {milliseconds(row['latency_p50_ms'])} ms, the fp32 file "
                f"{milliseconds(other['latency_p50_ms'])}"
            )
    return None


def broken_limits(row: Row, budget: BudgetParams) -> list[str]:
    """The limits that a row breaks, one clause each; empty if it keeps all."""
    broken = []
    if row["top1"] is None:
        broken.append("its accuracy was not measured")
    else:
        wanted = budget.minimum_top1
        if wanted is not None and row["top1"] < wanted - _ROUNDING:
            broken.append(f"its top-1 accuracy is {100 * row['top1']:.2f} %, {100 * wanted:g} wanted (minimum_top1)")
        broken += _broken_drop("top-1 accuracy", row["delta_top1"], budget.max_top1_drop, "max_top1_drop")
        broken += _broken_drop(
            "high-energy accuracy", row["delta_top1_high_energy"], budget.max_high_energy_drop, "max_high_energy_drop"
        )
    for name, most in _latency_limits(budget).items():
        latency = row[f"latency_{name}_ms"]
        if latency is None:
            broken.append(f"its {name} latency was not measured (max_latency_{name}_ms)")
        elif latency > most:
            broken.append(f"its {name} is {milliseconds(latency)} ms of {milliseconds(most)} (max_latency_{name}_ms)")
    megabytes, limit = row["size_bytes"] / 1e6, budget.max_size_mb
    if limit is not None and megabytes > limit:
        broken.append(f"it has {significant(megabytes)} MB of {significant(limit)} (max_size_mb)")
    if row["top1"] is not None and row["precision_executed"] is None:
        broken.append("accuracy and latency were measured in different precisions")
    return broken


def budget_sentence(recommendation: Recommendation) -> str:
    """One sentence for BudgetError: which limit each file broke and what to do."""
    if not recommendation.broken:
        return (
            "no ONNX or OpenVINO file of the student was measured, so none can be recommended; add onnxruntime or "
            "openvino to evaluate.runtimes and benchmark.runtimes in params.yaml"
        )
    files = "; ".join(f"{name}: {', '.join(limits)}" for name, limits in recommendation.broken.items())
    return f"no file is within the budget ({files}); relax the block budget in params.yaml or train a better student"


def _broken_in_all(rows: Sequence[Row], budget: BudgetParams) -> list[str]:
    """The limits that the rows of one file break; those not broken alike in all runtimes with the runtime."""
    per_row = [broken_limits(row, budget) for row in rows]
    common = [limit for limit in per_row[0] if all(limit in limits for limits in per_row)]
    return common + [
        f"in {runtime(row['runtime'])} {limit}"
        for row, limits in zip(rows, per_row, strict=True)
        for limit in limits
        if limit not in common
    ]


def _measured(rows: Iterable[Row]) -> list[Row]:
    """Rows with a measurement; of a file without any, its first row, so that it is still named."""
    rows = list(rows)
    measured = [row for row in rows if row["top1"] is not None or row["latency_p50_ms"] is not None]
    named = {row["name"] for row in measured}
    for row in rows:
        if row["name"] not in named:
            measured.append(row)
            named.add(row["name"])
    return measured


def _broken_drop(what: str, delta: float | None, limit: float | None, key: str) -> list[str]:
    if limit is None:
        return []
    if delta is None:
        return [f"its loss of {what} was not measured ({key})"]
    if -delta > limit + _ROUNDING:
        return [f"it loses {-100 * delta:.2f} points of {what}, {100 * limit:g} allowed ({key})"]
    return []


def _latency_limits(budget: BudgetParams) -> dict[str, float]:
    limits = {
        "p50": budget.max_latency_p50_ms,
        "p90": budget.max_latency_p90_ms,
        "p99": budget.max_latency_p99_ms,
    }
    return {name: limit for name, limit in limits.items() if limit is not None}


def _latency(row: Row) -> float:
    latency = row["latency_p50_ms"]
    return math.inf if latency is None else float(latency)
