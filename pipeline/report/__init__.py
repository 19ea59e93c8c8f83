"""The report: one table of all measurements, which file to deploy, one page, and the folder to deploy.

inputs = read_inputs(root, params.budget, tensorrt_unavailable)
report = build_report(inputs)
write_json(.., report.summary); write_text(.., report.html); write_json(.., report.metrics)
if report.recommendation.row is None: raise BudgetError(budget_sentence(report.recommendation))
write_deploy(folder, report.recommendation.row, export_folder, inputs.data)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.report.compare import compare, round_medians
from pipeline.report.deploy import write_deploy
from pipeline.report.devices import Device, OnDevice, on_device
from pipeline.report.inputs import Curve, Inputs, Table, check_one_run, read_inputs
from pipeline.report.metrics import build_metrics
from pipeline.report.page import render_page
from pipeline.report.recommend import Recommendation, budget_sentence, recommend
from pipeline.report.summary import build_summary

__all__ = [
    "Curve",
    "Device",
    "Inputs",
    "OnDevice",
    "Recommendation",
    "Report",
    "Table",
    "budget_sentence",
    "build_metrics",
    "build_report",
    "build_summary",
    "check_one_run",
    "compare",
    "on_device",
    "read_inputs",
    "recommend",
    "render_page",
    "round_medians",
    "write_deploy",
]


@dataclass(frozen=True)
class Report:
    """All outputs of the report but the folder to deploy.

    Attributes:
        summary: content of reports/summary.json.
        metrics: content of reports/metrics.json; numbers only.
        html: content of reports/report.html.
        recommendation: its row is None if no file is within the budget; the page then says which limit each file broke.
        devices: of targets/, each with a recommendation of its own.
    """

    summary: dict[str, Any]
    metrics: dict[str, float]
    html: str
    recommendation: Recommendation
    devices: Sequence[OnDevice]


def build_report(inputs: Inputs) -> Report:
    """Put the measurements together.

    Raises:
        LineageError: a measurement is of another file than the exported one.
    """
    devices = [on_device(device, inputs.export["files"]) for device in inputs.devices]
    summary, recommendation = build_summary(
        teacher=inputs.teacher,
        student=inputs.student,
        export=inputs.export,
        evaluation=inputs.evaluation,
        benchmark=inputs.benchmark,
        budget=inputs.budget,
        tensorrt_unavailable=inputs.tensorrt_unavailable,
        devices=devices,
    )
    row = recommendation.row
    comparison = None
    if row is not None:
        images, rounds = inputs.evaluation["test_images"], round_medians(inputs.benchmark)
        own = [other for other in summary["rows"] if other["target"] is None]
        comparison = compare(row, own, images=images, rounds=rounds)
    return Report(
        summary=summary,
        metrics=build_metrics(summary, row, comparison),
        html=render_page(inputs, summary, recommendation, comparison, devices),
        devices=devices,
        recommendation=recommendation,
    )
