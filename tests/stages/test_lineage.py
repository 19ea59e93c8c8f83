"""Files of two runs in one folder: the stage that reads one of another run names both hashes and writes nothing."""

from __future__ import annotations

import contextlib
import shutil
from operator import attrgetter
from pathlib import Path

import pytest

from pipeline.config import TEACHER, load_params
from pipeline.errors import DataError, LineageError
from pipeline.lineage import Places, Run
from pipeline.store.documents import DataCard, Evaluation, ExportManifest, NetworkCard
from pipeline.store.paths import BENCHMARK, CARD, DATA, DATA_CARD, ENERGY, ENERGY_TEST, MANIFEST, SUBSET
from pipeline.store.tables import EnergyLineage, SubsetLineage
from stages import benchmark, build_subset, distill, evaluate, export, report, score_energy
from stages.curves import sign_curves
from stages.prepare import prepare
from tests.conftest import STUDENT, write_chain, write_scores
from tests.e2e.repository import set_params, snapshot
from tests.report import conftest as made_up

STAGES = {
    "prepare": prepare,
    "score_energy": score_energy.score_energy,
    "build_subset": build_subset.build_subset,
    "distill": lambda params: distill.distill(params, STUDENT),
    "export": lambda params: export.export(params, STUDENT),
    "export_teacher": lambda params: export.export(params, TEACHER),
    "evaluate": lambda params: evaluate.evaluate(params, STUDENT),
    "evaluate_teacher": lambda params: evaluate.evaluate(params, TEACHER),
    "benchmark": benchmark.benchmark,
    "report": report.report,
}
THE_STUDENTS, THE_TEACHERS = (Places().network(name) for name in (STUDENT, TEACHER))
WEIGHTS = THE_TEACHERS.weights
# stage, what is different in the other run, what is taken from there
MIXES = [
    ("score_energy", "data", WEIGHTS),
    ("build_subset", "data", ENERGY),
    ("build_subset", "teacher", ENERGY),
    ("build_subset", "teacher", WEIGHTS),
    ("distill", "data", DATA),
    ("distill", "teacher", WEIGHTS),
    ("distill", "teacher", ENERGY),
    ("distill", "teacher", SUBSET),
    ("distill", "data", SUBSET),
    ("export", "teacher", THE_STUDENTS.weights),
    *(("evaluate", "teacher", path) for path in (THE_STUDENTS.weights, THE_STUDENTS.export)),
    ("evaluate_teacher", "teacher", THE_TEACHERS.export),
    *((stage, "data", DATA) for stage in ("export", "export_teacher", "evaluate", "evaluate_teacher")),
    *((stage, "teacher", path) for stage in ("export", "export_teacher") for path in (WEIGHTS, ENERGY)),
    *((stage, "energy", ENERGY_TEST) for stage in ("evaluate", "evaluate_teacher", "benchmark", "report")),
    *((stage, "data", DATA) for stage in ("benchmark", "report")),
    *(
        (stage, "teacher", path)
        for stage in ("benchmark", "report")
        for network in (THE_STUDENTS, THE_TEACHERS)
        for path in (ENERGY_TEST, network.weights, network.export)
    ),
    *(("report", "teacher", path) for path in (ENERGY, SUBSET, BENCHMARK)),
    *(
        ("report", "teacher", path)
        for network in (THE_STUDENTS, THE_TEACHERS)
        for path in (network.curves, network.evaluation, network.answers)
    ),
    *(("report", "files", path) for path in (THE_STUDENTS.evaluation, THE_TEACHERS.evaluation, BENCHMARK)),
]


def write_measured(sha256: str | None = None) -> None:
    """Measurements of all files, and curves, as the stages would leave them.

    Args:
        sha256: recorded of every file; None: its own.
    """
    params = load_params()
    for name in (STUDENT, TEACHER):
        evaluate.evaluate(params, name)
    run = Run(students=params.students)
    hashes = {file.name: file.sha256 for file in run.files}
    measured = made_up.benchmark()
    rows = [made_up.changed(row, sha256=sha256 or hashes[row.name]) for row in measured.rows if row.name in hashes]
    made_up.changed(measured, rows=rows, lineage=run.measured_from(run.networks)).write(BENCHMARK)
    for network in run.networks:
        if sha256 is not None:
            rows = [made_up.changed(row, sha256=sha256) for row in network.evaluation.rows]
            made_up.changed(network.evaluation, rows=rows).write(network.places.evaluation)
        (network.places.curves / "plots/metrics").mkdir(parents=True, exist_ok=True)
        (network.places.curves / "plots/metrics/val_top1.tsv").write_text("step\tval_top1\n0\t0.5\n")
        sign_curves(network, network.card)


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
            exported = {network: network.exported for network in Run(students=[STUDENT]).networks}
            if name in ("teacher", "data"):
                if name == "data":
                    set_params(root / name, {"data.seed": 1})
                    prepare(load_params())
                write_chain(Run(), load_params(), seed=1)
                for network, manifest in exported.items():
                    made_from = Run().network(network.name).made_from
                    made_up.changed(manifest, lineage=made_from).write(network.places.export / MANIFEST)
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
        ("export_teacher", ENERGY_TEST, ENERGY),
        ("evaluate", ENERGY, ENERGY_TEST),
        ("evaluate_teacher", ENERGY, ENERGY_TEST),
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
        (DataCard, attrgetter("data"), DATA / DATA_CARD, "score_energy", "prepare"),
        (NetworkCard, attrgetter("teacher"), WEIGHTS / CARD, "score_energy", "train_teacher"),
        (EnergyLineage, attrgetter("energy"), ENERGY, "build_subset", "score_energy"),
        (SubsetLineage, attrgetter("subset"), SUBSET, "distill", "build_subset"),
        (
            ExportManifest,
            lambda run: run.network(STUDENT).exported,
            THE_STUDENTS.export / MANIFEST,
            "evaluate",
            "export",
        ),
        (Evaluation, lambda run: run.network(STUDENT).evaluation, THE_STUDENTS.evaluation, "report", "evaluate"),
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
        assert link(Run())


def test_files_of_one_run_are_not_refused(run):
    """Otherwise the above would prove nothing."""
    params = load_params()
    for stage in ("score_energy", "build_subset", "export", "export_teacher"):
        shutil.copytree(run, run.parent / stage, ignore=shutil.ignore_patterns(".checkpoints"))
        with contextlib.chdir(run.parent / stage):
            STAGES[stage](params)
    for stage in ("evaluate", "evaluate_teacher"):
        STAGES[stage](params)
    params = params.model_copy(update={"budget": params.budget.model_copy(update={"max_top1_drop": 1.0})})
    STAGES["report"](params)
