"""Files of two runs in one folder: the stage that reads one of another run names both hashes and writes nothing."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest

from pipeline.config import load_params
from pipeline.errors import DataError, LineageError
from pipeline.lineage import Run
from pipeline.store.documents import DataCard, ExportManifest, NetworkCard
from pipeline.store.paths import (
    BENCHMARK,
    CURVES,
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
from pipeline.store.tables import EnergyLineage, SubsetLineage
from stages import benchmark, build_subset, distill, evaluate, export, report, score_energy
from stages.curves import sign_curves
from stages.prepare import prepare
from tests.conftest import write_chain, write_scores
from tests.e2e.test_repro import set_params, snapshot
from tests.report import conftest as made_up

STAGES = {
    "prepare": prepare,
    "score_energy": score_energy.score_energy,
    "build_subset": build_subset.build_subset,
    "distill": distill.distill,
    "export": export.export,
    "evaluate": evaluate.evaluate,
    "benchmark": benchmark.benchmark,
    "report": report.report,
}
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


def write_measured(sha256: str | None = None) -> None:
    """Measurements of the student's file, and curves, as the stages would leave them."""
    run = Run()
    hashes = {file.name: file.sha256 for file in run.exported.files}
    for path, measured in ((EVALUATION, made_up.evaluation()), (BENCHMARK, made_up.benchmark())):
        rows = [
            made_up.changed(row, sha256=sha256 or hashes[row.name])
            for row in measured.rows
            if row.name == "student_fp32.onnx"
        ]
        made_up.changed(measured, rows=rows, lineage=run.made_from).write(path)
    for role, folder in CURVES.items():
        (folder / "plots/metrics").mkdir(parents=True, exist_ok=True)
        (folder / "plots/metrics/val_top1.tsv").write_text("step\tval_top1\n0\t0.5\n")
        sign_curves(run, getattr(run, role))


@pytest.fixture(scope="module")
def runs(exported_once, tmp_path_factory) -> Path:
    """A whole run, and others that differ from it in one thing and in what is made from it."""
    root = tmp_path_factory.mktemp("runs")
    shutil.copytree(exported_once, root / "one")
    with contextlib.chdir(root / "one"):
        write_measured()
    for name in ("teacher", "data", "energy", "files"):
        shutil.copytree(root / "one", root / name)
        with contextlib.chdir(root / name):
            exported = Run().exported
            if name in ("teacher", "data"):
                if name == "data":
                    set_params(root / name, {"data.seed": 1})
                    prepare(load_params())
                write_chain(Run(), load_params(), seed=1)
                made_up.changed(exported, lineage=Run().made_from).write(EXPORT_MANIFEST)
                write_measured()
            elif name == "energy":
                write_scores(Run(), "test", energy="e" * 64)
            else:
                write_measured("f" * 64)
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


@pytest.mark.parametrize(
    ("document", "link", "path", "reader", "maker"),
    [
        (DataCard, "data", "artifacts/data/data.json", "score_energy", "prepare"),
        (NetworkCard, "teacher", "artifacts/teacher/card.json", "score_energy", "train_teacher"),
        (EnergyLineage, "energy", "artifacts/energy.parquet", "build_subset", "score_energy"),
        (SubsetLineage, "subset", "artifacts/heda_subset.parquet", "distill", "build_subset"),
        (ExportManifest, "exported", "artifacts/export/export.json", "evaluate", "export"),
    ],
)
def test_a_raised_format_refuses_earlier_files_and_names_the_stage_that_writes_them_anew(
    run, monkeypatch, document, link, path, reader, maker
):
    earlier = document.FORMAT
    monkeypatch.setattr(document, "FORMAT", 9)
    before = snapshot(run)
    with pytest.raises(
        DataError, match=rf"^{path} has format {earlier}, but this version reads 9; run `dvc repro -fs {maker}`$"
    ):
        STAGES[reader](load_params())
    assert snapshot(run) == before
    if maker != "train_teacher":  # it would train
        STAGES[maker](load_params())
        assert getattr(Run(), link)


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
