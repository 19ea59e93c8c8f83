from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import DataError, LineageError
from pipeline.lineage import Run
from pipeline.portable.files import sha256_file
from pipeline.report.inputs import Inputs, read_inputs
from pipeline.store import paths
from pipeline.store.documents import CurvesCard
from pipeline.store.json_files import write_json
from pipeline.store.tables import Table, write_table
from tests.report.conftest import changed, with_rows


def write_run(run: Run) -> None:
    """The artifacts of a run as they lie in a repository, each made from those before it unless it says otherwise."""

    def relink(document: Any, **hashes: str) -> Any:
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
    run.teacher.write(paths.TEACHER / paths.CARD)
    relink(run.student).write(paths.STUDENT / paths.CARD)
    relink(run.exported).write(paths.EXPORT_MANIFEST)
    relink(run.evaluation).write(paths.EVALUATION)
    relink(run.benchmark).write(paths.BENCHMARK)
    write_json(paths.TARGET_INDEX, {})
    CurvesCard(role="student", weights_sha256=run.student.weights_sha256).write(
        paths.STUDENT_CURVES / paths.CURVES_CARD
    )
    metrics = paths.STUDENT_CURVES / "plots/metrics"
    metrics.mkdir(parents=True, exist_ok=True)
    (metrics / "val_top1.tsv").write_text("step\tval_top1\n0\t0.5\n1\t0.75\n")
    (metrics / "train_loss.tsv").write_text("step\tvalue\n0\t2.5\n1\tnan\n")


@pytest.fixture
def reread(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Inputs]:
    """Writes the run of ``inputs`` as files and reads them again, all of them."""
    monkeypatch.chdir(tmp_path)

    def read() -> Inputs:
        return read_inputs(Run(), inputs.budget, inputs.tensorrt_unavailable)

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
    assert found.run.exported.files == inputs.run.exported.files


def test_missing_and_damaged_files_are_named(reread: Any) -> None:
    reread()
    curve = paths.STUDENT_CURVES / "plots/metrics/val_top1.tsv"
    curve.write_text("step\tval_top1\n0\tmuch\n")
    with pytest.raises(DataError, match=r"val_top1\.tsv is not a DVCLive curve"):
        reread.read()
    curve.unlink()
    paths.BENCHMARK.unlink()
    with pytest.raises(DataError, match=r"benchmark\.json does not exist"):
        reread.read()


@pytest.mark.parametrize("name", ["data", "teacher", "energy", "subset"])
def test_student_of_another_run_is_refused(reread: Callable[[], Inputs], inputs: Inputs, name: str) -> None:
    student = inputs.run.student
    inputs.run.student = changed(student, lineage=changed(student.lineage, **{name: "d" * 64}))
    with pytest.raises(LineageError, match=f"artifacts/student was made from {name} dddddddddddd"):
        reread()


@pytest.mark.parametrize("field", ["energy", "energy_test", "subset"])
def test_table_of_other_data_is_refused(reread: Callable[[], Inputs], inputs: Inputs, field: str) -> None:
    table = getattr(inputs.run, field)
    setattr(inputs.run, field, Table(table.columns, changed(table.lineage, data="c" * 64)))
    with pytest.raises(LineageError, match=r"parquet was made from data cccccccccccc"):
        reread()


@pytest.mark.parametrize("name", ["student", "teacher", "data", "energy"])
@pytest.mark.parametrize(
    ("document", "file"), [("exported", "export"), ("evaluation", "evaluation"), ("benchmark", "benchmark")]
)
def test_files_and_measurements_of_another_run_are_refused_with_both_hashes(
    reread: Callable[[], Inputs], inputs: Inputs, document: str, file: str, name: str
) -> None:
    made = getattr(inputs.run, document)
    setattr(inputs.run, document, changed(made, lineage=changed(made.lineage, **{name: "e" * 64})))
    with pytest.raises(LineageError, match=rf"{file}\.json was made from {name} e{{12}}, but .* is [0-9a-f]{{12}};"):
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
    exported = inputs.run.exported.files[2].sha256
    made = with_rows(getattr(inputs.run, document), lambda row: changed(row, sha256="f" * 64), "student_int8.onnx")
    setattr(inputs.run, document, made)
    with pytest.raises(LineageError, match=f"student_int8.onnx with hash f{{12}}, but .* {exported[:12]}"):
        reread()


def test_measurement_of_an_unknown_file_is_refused(reread: Callable[[], Inputs], inputs: Inputs) -> None:
    inputs.run.benchmark = with_rows(inputs.run.benchmark, lambda row: changed(row, name="other.onnx"))
    with pytest.raises(LineageError, match=r"other\.onnx, which the export manifest does not list"):
        reread()


def test_curves_of_another_network_are_refused(reread: Any) -> None:
    reread()
    CurvesCard(role="student", weights_sha256="a" * 64).write(paths.STUDENT_CURVES / paths.CURVES_CARD)
    with pytest.raises(LineageError, match=r"curves/student was made from student a{12}"):
        reread.read()
