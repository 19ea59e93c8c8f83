"""Stage report: one table of all measurements, one page, and the folder to deploy."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.config import Params
from pipeline.errors import BudgetError
from pipeline.report import OnDevice, budget_sentence, build_report, read_inputs, write_deploy
from pipeline.runtimes import runtime_class
from pipeline.store.atomic import atomic_file
from pipeline.store.paths import DEPLOY, EXPORT, METRICS, PAGE, SUMMARY
from pipeline.store.space import require_space
from pipeline.store.tables import write_json
from stages.common import run


def report(params: Params) -> None:
    inputs = read_inputs(Path(), params.budget, runtime_class("tensorrt").unavailable())
    result = build_report(inputs)
    row = result.recommendation.row
    require_space(PAGE, len(result.html.encode()), "the page and the tables")
    size = 0 if row is None else row["size_bytes"]
    require_space(DEPLOY, size, "the files to deploy", output=size)
    write_json(SUMMARY, result.summary)
    write_json(METRICS, result.metrics)
    with atomic_file(PAGE) as temporary:
        temporary.write_text(result.html, encoding="utf-8")
    for device in result.devices:
        print(f"{device.entry['name']}: {_of_device(device)}")
    if row is None:
        shutil.rmtree(DEPLOY, ignore_errors=True)  # an earlier recommendation must not be taken for this one
        raise BudgetError(budget_sentence(result.recommendation))
    write_deploy(DEPLOY, row, EXPORT, inputs.data)
    print(f"deploy {row['name']} with {row['runtime']}: {DEPLOY}/, see {PAGE}")


def _of_device(device: OnDevice) -> str:
    entry = device.entry
    chosen = entry["recommended"]
    if chosen is None:
        return "; ".join([f"no file is recommended, {entry['not_recommended']}", *entry["notes"]])
    return "; ".join([f"deploy {chosen['name']} with {chosen['runtime']}", *entry["notes"]])


if __name__ == "__main__":
    run(report)
