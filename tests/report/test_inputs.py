from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pipeline.errors import DataError, LineageError
from pipeline.report import Inputs, Table, check_one_run, read_inputs
from pipeline.store.tables import sha256_file, write_json, write_table


def write_run(root: Path, inputs: Inputs) -> None:
    """The files of all stages as they would lie in a repository."""
    write_table(root / "artifacts/energy.parquet", inputs.energy.columns, inputs.energy.lineage)
    energy = sha256_file(root / "artifacts/energy.parquet")
    write_table(
        root / "artifacts/energy_test.parquet",
        inputs.energy_test.columns,
        dict(inputs.energy_test.lineage) | {"energy": energy},
    )
    write_table(
        root / "artifacts/heda_subset.parquet", inputs.subset.columns, dict(inputs.subset.lineage) | {"energy": energy}
    )
    subset = sha256_file(root / "artifacts/heda_subset.parquet")
    inputs.student["lineage"].update(energy=energy, subset=subset)
    for made in (inputs.export, inputs.evaluation, inputs.benchmark):
        made["lineage"]["energy"] = energy
    write_json(root / "artifacts/data/data.json", inputs.data)
    write_json(root / "artifacts/teacher/card.json", inputs.teacher)
    write_json(root / "artifacts/student/card.json", inputs.student)
    write_json(root / "artifacts/export/export.json", inputs.export)
    write_json(root / "reports/evaluation.json", inputs.evaluation)
    write_json(root / "reports/benchmark.json", inputs.benchmark)
    write_json(root / "targets/results.json", {})
    weights = inputs.student["weights_sha256"]
    write_json(root / "reports/curves/student/lineage.json", {"lineage": {"student": weights}})
    metrics = root / "reports/curves/student/plots/metrics"
    metrics.mkdir(parents=True, exist_ok=True)
    (metrics / "val_top1.tsv").write_text("step\tval_top1\n0\t0.5\n1\t0.75\n")
    (metrics / "train_loss.tsv").write_text("step\tvalue\n0\t2.5\n1\tnan\n")


def test_files_of_one_run_are_read(tmp_path: Path, inputs: Inputs) -> None:
    write_run(tmp_path, inputs)
    found = read_inputs(tmp_path, inputs.budget, inputs.tensorrt_unavailable)
    assert found.curves.keys() == {"student"}
    assert found.curves["student"]["val_top1"].values == (0.5, 0.75)
    assert found.curves["student"]["train_loss"].values == (2.5,)
    assert found.energy.columns["energy"].shape == (1293,)
    assert found.export == inputs.export


def test_missing_and_damaged_files_are_named(tmp_path: Path, inputs: Inputs) -> None:
    write_run(tmp_path, inputs)
    curve = tmp_path / "reports/curves/student/plots/metrics/val_top1.tsv"
    curve.write_text("step\tval_top1\n0\tmuch\n")
    with pytest.raises(DataError, match=r"val_top1\.tsv is not a DVCLive curve"):
        read_inputs(tmp_path, inputs.budget, None)
    (tmp_path / "reports/benchmark.json").unlink()
    with pytest.raises(DataError, match=r"benchmark\.json does not exist"):
        read_inputs(tmp_path, inputs.budget, None)


@pytest.mark.parametrize("name", ["data", "teacher", "energy", "subset"])
def test_student_of_another_run_is_refused(inputs: Inputs, name: str) -> None:
    inputs.student["lineage"][name] = "d" * 64
    with pytest.raises(LineageError, match=f"student/card.json was made from {name} dddddddddddd"):
        check_one_run(inputs)


@pytest.mark.parametrize("field", ["energy", "energy_test", "subset"])
def test_table_of_other_data_is_refused(inputs: Inputs, field: str) -> None:
    table = getattr(inputs, field)
    other = Table(table.columns, dict(table.lineage) | {"data": "c" * 64})
    with pytest.raises(LineageError, match=r"parquet was made from data cccccccccccc"):
        check_one_run(dataclasses.replace(inputs, **{field: other}))


@pytest.mark.parametrize("name", ["student", "teacher", "data", "energy"])
@pytest.mark.parametrize("document", ["export", "evaluation", "benchmark"])
def test_files_and_measurements_of_another_run_are_refused_with_both_hashes(
    inputs: Inputs, document: str, name: str
) -> None:
    lineage = getattr(inputs, document)["lineage"]
    recorded, lineage[name] = lineage[name], "e" * 64
    with pytest.raises(LineageError, match=f"{document}.json was made from {name} e{{12}}, but .* is {recorded[:12]};"):
        check_one_run(inputs)


def test_subset_of_another_energy_table_is_refused(inputs: Inputs) -> None:
    with pytest.raises(LineageError, match=r"heda_subset\.parquet was made from energy"):
        check_one_run(dataclasses.replace(inputs, energy_sha256="b" * 64))
