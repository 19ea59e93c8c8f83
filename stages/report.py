"""Stage report: one table of all measurements, one page, and the folder to deploy."""

import csv
import shutil

from pipeline.config import Params
from pipeline.errors import BudgetError
from pipeline.lineage import Run
from pipeline.portable.files import atomic_file
from pipeline.report.build import build_report
from pipeline.report.cascades import CascadeRow
from pipeline.report.deploy import write_deploy
from pipeline.report.inputs import read_inputs
from pipeline.report.page import render_page
from pipeline.report.recommend import budget_sentence
from pipeline.runtimes import runtime_class
from pipeline.store.json_files import write_json
from pipeline.store.paths import CURVES_TABLE, DEPLOY, METRICS, PAGE, SUMMARY
from pipeline.store.space import require_space
from stages.common import run_stage
from stages.students import remove_unlisted_students


def report(params: Params) -> None:
    remove_unlisted_students(params.students)
    run = Run(students=params.students)
    found = build_report(read_inputs(run, params.budget, runtime_class("tensorrt").unavailable()))
    page, row = render_page(found), found.recommendation.row
    require_space(PAGE, len(page.encode()), "the page and the tables")
    size = 0 if row is None else row.size_bytes
    require_space(DEPLOY, size, "the files to deploy", output=size)
    write_json(SUMMARY, found.summary())
    write_json(METRICS, found.metrics())
    with atomic_file(PAGE) as temporary:
        temporary.write_text(page, encoding="utf-8")
    with atomic_file(CURVES_TABLE) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, ["epoch", "student", "val_top1", "train_loss"], lineterminator="\n")
        table.writeheader()
        table.writerows(found.curves())
    for device in found.devices:
        print(f"{device.name}: {device.in_short()}")
    if row is None:
        shutil.rmtree(DEPLOY, ignore_errors=True)  # an earlier recommendation must not be taken for this one
        raise BudgetError(budget_sentence(found.recommendation))
    write_deploy(DEPLOY, row.cascade if isinstance(row, CascadeRow) else row, run)
    print(f"deploy {row.name} with {row.runtime}: {DEPLOY}/, see {PAGE}")


if __name__ == "__main__":
    run_stage(report)
