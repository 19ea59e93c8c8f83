"""Files of two runs in one folder: the stage that reads one of another run names both hashes and writes nothing."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest

from pipeline.config import load_params
from pipeline.errors import LineageError
from pipeline.store.paths import (
    BENCHMARK,
    CURVES_LINEAGE,
    DATA,
    ENERGY,
    ENERGY_TEST,
    EVALUATION,
    EXPORT,
    EXPORT_MANIFEST,
    STUDENT,
    STUDENT_CURVES,
    SUBSET,
    TEACHER,
    TEACHER_CURVES,
)
from pipeline.store.tables import read_json, write_json
from stages import benchmark, build_subset, distill, evaluate, export, report, score_energy
from stages.prepare import prepare
from tests.e2e.test_repro import set_params, snapshot
from tests.report.conftest import benchmark as measured_benchmark
from tests.report.conftest import evaluation as measured_evaluation
from tests.stages.conftest import write_chain, write_scores

STAGES = {
    "score_energy": score_energy.score_energy,
    "build_subset": build_subset.build_subset,
    "distill": distill.distill,
    "export": export.export,
    "evaluate": evaluate.evaluate,
    "benchmark": benchmark.benchmark,
    "report": report.report,
}
CURVES = {"teacher": TEACHER_CURVES, "student": STUDENT_CURVES}
# stage, what is different in the other run, what is taken from there
MIXES = [
    ("score_energy", "data", TEACHER),
    ("build_subset", "data", ENERGY),
    ("build_subset", "teacher", ENERGY),
    ("build_subset", "teacher", TEACHER),
    ("distill", "data", DATA),
    ("distill", "teacher", TEACHER),
    ("distill", "teacher", ENERGY),
    ("distill", "teacher", SUBSET),
    ("distill", "data", SUBSET),
    ("export", "data", DATA),
    ("export", "teacher", TEACHER),
    ("export", "teacher", ENERGY),
    ("export", "teacher", STUDENT),
    *((stage, "data", DATA) for stage in ("evaluate", "benchmark", "report")),
    *((stage, "teacher", path) for stage in ("evaluate", "benchmark") for path in (ENERGY_TEST, STUDENT, EXPORT)),
    *((stage, "energy", ENERGY_TEST) for stage in ("evaluate", "benchmark", "report")),
    *(("report", "teacher", path) for path in (TEACHER, ENERGY, ENERGY_TEST, SUBSET, STUDENT, EXPORT_MANIFEST)),
    *(("report", "teacher", path) for path in (EVALUATION, BENCHMARK, TEACHER_CURVES, STUDENT_CURVES)),
    *(("report", "files", path) for path in (EVALUATION, BENCHMARK)),
]


def write_measured(lineage: dict[str, str], sha256: str | None = None) -> None:
    """Measurements of the student's file, and curves, as the stages would leave them."""
    exported = {file["name"]: file["sha256"] for file in read_json(EXPORT_MANIFEST)["files"]}
    for path, measured in ((EVALUATION, measured_evaluation()), (BENCHMARK, measured_benchmark())):
        (row,) = [row for row in measured["rows"] if row["name"] == "student_fp32.onnx"]
        row["sha256"] = sha256 or exported[row["name"]]
        write_json(path, measured | {"rows": [row], "lineage": lineage})
    for role, folder in CURVES.items():
        (folder / "plots/metrics").mkdir(parents=True, exist_ok=True)
        (folder / "plots/metrics/val_top1.tsv").write_text("step\tval_top1\n0\t0.5\n")
        write_json(folder / CURVES_LINEAGE, {"lineage": {role: lineage[role]}})


@pytest.fixture(scope="module")
def runs(exported_once, tmp_path_factory) -> Path:
    """A whole run, and others that differ from it in one thing and in what is made from it."""
    root = tmp_path_factory.mktemp("runs")
    shutil.copytree(exported_once, root / "one")
    with contextlib.chdir(root / "one"):
        write_measured(read_json(EXPORT_MANIFEST)["lineage"])
    for name in ("teacher", "data", "energy", "files"):
        shutil.copytree(root / "one", root / name)
        with contextlib.chdir(root / name):
            manifest = read_json(EXPORT_MANIFEST)
            if name in ("teacher", "data"):
                if name == "data":
                    set_params(root / name, {"data.seed": 1})
                    prepare(load_params())
                manifest["lineage"] = write_chain(load_params(), seed=1)
                write_json(EXPORT_MANIFEST, manifest)
                write_measured(manifest["lineage"])
            elif name == "energy":
                made_from = {key: manifest["lineage"][key] for key in ("data", "teacher")}
                write_scores(ENERGY_TEST, "test", made_from | {"energy": "e" * 64})
            else:
                write_measured(manifest["lineage"], "f" * 64)
    return root


@pytest.fixture
def run(runs, tmp_path, monkeypatch) -> Path:
    folder = shutil.copytree(runs / "one", tmp_path / "run")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(folder)
    return folder


def replace(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.rmtree(target)
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)


@pytest.mark.parametrize(("stage", "other", "path"), MIXES, ids=str)
def test_a_file_of_another_run_is_refused_with_both_hashes(runs, run, stage, other, path):
    replace(runs / other / path, run / path)
    before = snapshot(run)
    with pytest.raises(LineageError, match=r"[0-9a-f]{12}\b.*\b[0-9a-f]{12}\b.*; run `dvc repro"):
        STAGES[stage](load_params())
    assert snapshot(run) == before


@pytest.mark.parametrize(
    ("stage", "source", "target"),
    [
        ("build_subset", ENERGY_TEST, ENERGY),
        ("distill", ENERGY_TEST, ENERGY),
        ("export", ENERGY_TEST, ENERGY),
        ("evaluate", ENERGY, ENERGY_TEST),
        ("benchmark", ENERGY, ENERGY_TEST),
    ],
)
def test_energies_of_the_other_split_are_refused(run, stage, source, target):
    replace(run / source, run / target)
    before = snapshot(run)
    with pytest.raises(LineageError, match="was made from split"):
        STAGES[stage](load_params())
    assert snapshot(run) == before


def test_files_of_one_run_are_not_refused(run):
    """Otherwise the above would prove nothing."""
    params = load_params()
    for stage in ("score_energy", "build_subset", "export"):
        shutil.copytree(run, run.parent / stage, ignore=shutil.ignore_patterns(".checkpoints"))
        with contextlib.chdir(run.parent / stage):
            STAGES[stage](params)
    STAGES["evaluate"](params)
    params = params.model_copy(update={"budget": params.budget.model_copy(update={"max_top1_drop": 1.0})})
    STAGES["report"](params)
