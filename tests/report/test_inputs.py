from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import DataError, LineageError
from pipeline.lineage import Run
from pipeline.portable.files import sha256_file
from pipeline.report.build import build_report
from pipeline.report.inputs import Inputs, read_inputs, read_spread
from pipeline.store import paths
from pipeline.store.documents import CurvesCard, SeedDifference, StudentSpread, StudentsSpread
from pipeline.store.json_files import write_json
from pipeline.store.tables import Table, write_table
from tests.report.conftest import TEACHER, build_inputs, changed, sha, with_rows

STUDENTS = ("student", "wide")


def write_run(run: Run) -> None:
    """The artifacts of a run as they lie in a repository, each made from those before it unless it says otherwise."""

    def relink(document: Any) -> Any:
        values = document.lineage.model_dump()
        known = {name: new for name, (old, new) in renamed.items() if values.get(name) == old}
        return changed(document, lineage=changed(document.lineage, **known))

    def write(table: Table, path: Path) -> None:
        write_table(path, [table.columns], table.lineage)

    renamed: dict[str, tuple[str, str]] = {}
    write(run.energy, paths.ENERGY)
    renamed["energy"] = run.energy_sha256, sha256_file(paths.ENERGY)
    write(relink(run.energy_test), paths.ENERGY_TEST)
    write(relink(run.subset), paths.SUBSET)
    renamed["subset"] = run.subset_sha256, sha256_file(paths.SUBSET)
    run.data.write(paths.DATA / paths.DATA_CARD)
    for network in run.networks:
        places = network.places
        relink(network.card).write(places.weights / paths.CARD)
        relink(network.exported).write(places.export / paths.MANIFEST)
        places.evaluation.parent.mkdir(parents=True, exist_ok=True)
        network.answers.write(places.answers)
        evaluation = relink(network.evaluation)
        if evaluation.answers_sha256 == sha(f"answers of {network.name}"):
            evaluation = changed(evaluation, answers_sha256=sha256_file(places.answers))
        evaluation.write(places.evaluation)
    relink(run.benchmark).write(paths.BENCHMARK)
    write_json(paths.TARGET_INDEX, {})
    student = run.network("student")
    CurvesCard(role="student", weights_sha256=student.card.weights_sha256).write(
        student.places.curves / paths.CURVES_CARD
    )
    metrics = student.places.curves / "plots/metrics"
    metrics.mkdir(parents=True, exist_ok=True)
    (metrics / "val_top1.tsv").write_text("step\tval_top1\n0\t0.5\n1\t0.75\n")
    (metrics / "train_loss.tsv").write_text("step\tvalue\n0\t2.5\n1\tnan\n")


@pytest.fixture
def inputs() -> Inputs:
    return build_inputs(*STUDENTS)


@pytest.fixture
def reread(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Inputs]:
    """Writes the run of ``inputs`` as files and reads them again, all of them."""
    monkeypatch.chdir(tmp_path)

    def read() -> Inputs:
        return read_inputs(Run(students=STUDENTS), inputs.budget, inputs.tensorrt_unavailable)

    def again() -> Inputs:
        write_run(inputs.run)
        return read()

    again.read = read  # type: ignore[attr-defined]
    return again


def test_files_of_one_run_are_read(reread: Callable[[], Inputs], inputs: Inputs) -> None:
    found = reread()
    assert found.curves.keys() == {"student"}
    assert found.curves["student"]["val_top1"].values == (0.5, 0.75)
    assert found.curves["student"]["train_loss"].values == (2.5,)
    assert found.run.energy.columns["energy"].shape == (1293,)
    assert found.run.files == inputs.run.files
    assert build_report(found).summary() == build_report(changed(inputs, curves=found.curves)).summary()


def test_missing_and_damaged_files_are_named(reread: Any) -> None:
    reread()
    curve = paths.STUDENT_REPORTS / "student" / paths.CURVES / "plots/metrics/val_top1.tsv"
    curve.write_text("step\tval_top1\n0\tmuch\n")
    with pytest.raises(DataError, match=r"val_top1\.tsv is not a DVCLive curve"):
        reread.read()
    curve.unlink()
    paths.BENCHMARK.unlink()
    with pytest.raises(DataError, match=r"benchmark\.json does not exist"):
        reread.read()


@pytest.mark.parametrize("name", ["data", "teacher", "energy", "subset"])
def test_student_of_another_run_is_refused(reread: Callable[[], Inputs], inputs: Inputs, name: str) -> None:
    wide = inputs.run.network("wide")
    wide.card = changed(wide.card, lineage=changed(wide.card.lineage, **{name: "d" * 64}))
    with pytest.raises(LineageError, match=f"artifacts/students/wide/network was made from {name} dddddddddddd"):
        reread()


@pytest.mark.parametrize("field", ["energy", "energy_test", "subset"])
def test_table_of_other_data_is_refused(reread: Callable[[], Inputs], inputs: Inputs, field: str) -> None:
    table = getattr(inputs.run, field)
    setattr(inputs.run, field, Table(table.columns, changed(table.lineage, data="c" * 64)))
    with pytest.raises(LineageError, match=r"parquet was made from data cccccccccccc"):
        reread()


@pytest.mark.parametrize("name", ["network", "teacher", "data", "energy"])
@pytest.mark.parametrize(("document", "file"), [("exported", "export"), ("evaluation", "evaluation")])
@pytest.mark.parametrize("network", ["wide", TEACHER])
def test_files_of_another_run_are_refused_with_both_hashes(
    reread: Callable[[], Inputs], inputs: Inputs, network: str, document: str, file: str, name: str
) -> None:
    of_network = inputs.run.network(network)
    made = getattr(of_network, document)
    setattr(of_network, document, changed(made, lineage=changed(made.lineage, **{name: "e" * 64})))
    with pytest.raises(LineageError, match=rf"{file}\.json was made from {name} e{{12}}, but .* is [0-9a-f]{{12}};"):
        reread()


@pytest.mark.parametrize("name", ["student", "wide", TEACHER, "data", "energy"])
def test_a_benchmark_of_another_run_is_refused_with_both_hashes(
    reread: Callable[[], Inputs], inputs: Inputs, name: str
) -> None:
    lineage = inputs.run.benchmark.lineage
    if name in lineage.networks:
        lineage = changed(lineage, networks={**lineage.networks, name: "e" * 64})
    else:
        lineage = changed(lineage, **{name: "e" * 64})
    inputs.run.benchmark = changed(inputs.run.benchmark, lineage=lineage)
    with pytest.raises(LineageError, match=rf"benchmark\.json was made from {name} e{{12}}, but .* [0-9a-f]{{12}};"):
        reread()


def test_answers_of_another_evaluation_are_refused(reread: Callable[[], Inputs], inputs: Inputs) -> None:
    wide = inputs.run.network("wide")
    wide.evaluation = changed(wide.evaluation, answers_sha256="9" * 64)
    with pytest.raises(LineageError, match=r"wide/evaluation\.json was made from answers 9{12}"):
        reread()


def test_subset_of_another_energy_table_is_refused(reread: Callable[[], Inputs], inputs: Inputs) -> None:
    table = inputs.run.subset
    inputs.run.subset = Table(table.columns, changed(table.lineage, energy="b" * 64))
    with pytest.raises(LineageError, match=r"heda_subset\.parquet was made from energy b{12}"):
        reread()


@pytest.mark.parametrize("document", ["evaluation", "benchmark"])
def test_measurement_of_another_file_is_refused_with_both_hashes(
    reread: Callable[[], Inputs], inputs: Inputs, document: str
) -> None:
    owner: Any = inputs.run if document == "benchmark" else inputs.run.network("student")
    exported = inputs.run.network("student").exported.files[2].sha256
    other = with_rows(getattr(owner, document), lambda row: changed(row, sha256="f" * 64), "student_int8.onnx")
    setattr(owner, document, other)
    with pytest.raises(LineageError, match=f"student_int8.onnx with hash f{{12}}, but .* {exported[:12]}"):
        reread()


def test_measurement_of_an_unknown_file_is_refused(reread: Callable[[], Inputs], inputs: Inputs) -> None:
    inputs.run.benchmark = with_rows(inputs.run.benchmark, lambda row: changed(row, name="other.onnx"))
    with pytest.raises(LineageError, match=r"other\.onnx, which the export manifest does not list"):
        reread()


def test_curves_of_another_network_are_refused(reread: Any) -> None:
    reread()
    CurvesCard(role="student", weights_sha256="a" * 64).write(
        paths.STUDENT_REPORTS / "student" / paths.CURVES / paths.CURVES_CARD
    )
    with pytest.raises(LineageError, match=r"student/curves was made from student a{12}"):
        reread.read()


def write_spread(run: Run, path: Path, **changes: Any) -> None:
    """The spread of the students of a run, the first of them the reference; ``changes`` are of the file or of wide."""
    own = {key: changes.pop(key) for key in ("distill", "initial_weights", "soft_labels") if key in changes}
    trained = {"initial_weights": None, "soft_labels": None}
    difference = SeedDifference(reference="student", value=0.01, half_width=0.004)
    students = {
        name: StudentSpread(
            seeds=3,
            mean=0.9,
            deviation=0.01,
            difference=difference if name == "wide" else None,
            **({"distill": run.network(name).card.distill} | trained | (own if name == "wide" else {})),
        )
        for name in STUDENTS
    }
    shared = {"data": run.data.fingerprint, "teacher": run.teacher.weights_sha256, "energy": run.energy_sha256}
    shared |= {"heda": run.network("wide").card.heda, "augmentation": run.soft_labels.augmentation}
    StudentsSpread(**(shared | {"students": students} | changes)).write(path)


@pytest.mark.parametrize(
    ("changes", "known"),
    [
        ({}, ["student", "wide"]),
        *(({name: "f" * 64}, []) for name in ("data", "teacher", "energy")),
        ({"augmentation": {"horizontal_flip": True}}, []),
        ({"heda": {"fraction": 0.2, "mix": "cutmix", "kd_weight": 0.9, "mixed_label_weight": 0.0}}, []),
        ({"distill": {"network": "other"}}, ["student"]),
        ({"soft_labels": "f" * 64}, ["student"]),
        ({"initial_weights": "f" * 64}, ["student"]),
    ],
)
def test_the_spread_over_seeds_is_of_students_that_differ_in_the_seed_alone(
    tmp_path: Path, inputs: Inputs, changes: dict[str, Any], known: list[str]
) -> None:
    write_spread(inputs.run, tmp_path / "spread.json", **changes)
    assert list(read_spread(inputs.run, tmp_path / "spread.json")) == known
    assert read_spread(inputs.run, tmp_path / "none.json") == {}


def test_heda_settings_that_no_companion_batch_uses_leave_the_spread_as_it_is(tmp_path: Path, inputs: Inputs) -> None:
    wide = inputs.run.network("wide")
    write_spread(inputs.run, tmp_path / "spread.json", heda={**(wide.card.heda or {}), "mix": "none"})
    wide.card = changed(wide.card, heda={"mix": "none"})
    assert list(read_spread(inputs.run, tmp_path / "spread.json")) == ["wide"]


def test_a_difference_over_seeds_is_to_a_student_whose_spread_is_read_too(tmp_path: Path, inputs: Inputs) -> None:
    write_spread(inputs.run, tmp_path / "spread.json")
    difference = read_spread(inputs.run, tmp_path / "spread.json")["wide"].difference
    assert difference is not None
    assert difference.reference == "student"
    reference = inputs.run.network("student")
    reference.card = changed(reference.card, distill={"network": "other"})
    found = read_spread(inputs.run, tmp_path / "spread.json")
    assert list(found) == ["wide"]
    assert found["wide"].difference is None
