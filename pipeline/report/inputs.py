"""What the report is made of: the files of all stages, read once and checked to come from one run."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from pipeline.config import BudgetParams, checked
from pipeline.data.store import read_card
from pipeline.errors import DataError, brief
from pipeline.report.device_result import Benchmark
from pipeline.report.devices import SCHEMA, Device, read_devices
from pipeline.report.evaluation_file import Evaluation
from pipeline.store.documents import CARD, read_manifest, read_network_card
from pipeline.store.paths import (
    BENCHMARK,
    CURVES_LINEAGE,
    DATA,
    ENERGY,
    ENERGY_TEST,
    EVALUATION,
    EXPORT_MANIFEST,
    STUDENT,
    STUDENT_CURVES,
    SUBSET,
    TEACHER,
    TEACHER_CURVES,
)
from pipeline.store.tables import (
    THRESHOLDS,
    check_lineage,
    check_members,
    check_scored,
    read_energy,
    read_json,
    read_subset,
    sha256_file,
)

DATA_CARD, TEACHER_CARD, STUDENT_CARD = DATA / "data.json", TEACHER / CARD, STUDENT / CARD
_CURVES = {"teacher": TEACHER_CURVES, "student": STUDENT_CURVES}

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Columns of equal length [N] and the lineage of a Parquet artifact."""

    columns: Mapping[str, NDArray[Any]]
    lineage: Json


@dataclass(frozen=True)
class Curve:
    """One logged number over training: steps [M] and values [M]."""

    steps: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True)
class Inputs:
    """All parsed files. Hashes are hex SHA-256.

    Attributes:
        curves: role ("teacher", "student") -> metric ("train_loss", "val_top1") -> curve; a role that was not trained
            here is absent.
        tensorrt_unavailable: why TensorRT cannot run here, in one sentence; None where it can.
        devices: of targets/, by name.
    """

    data: Json
    teacher: Json
    student: Json
    export: Json
    evaluation: Json
    benchmark: Json
    energy: Table
    energy_test: Table
    subset: Table
    curves: Mapping[str, Mapping[str, Curve]]
    energy_sha256: str
    subset_sha256: str
    tensorrt_unavailable: str | None
    budget: BudgetParams
    devices: Sequence[Device] = ()


def read_inputs(root: Path, budget: BudgetParams, tensorrt_unavailable: str | None) -> Inputs:
    """Read all files under the repository root.

    Raises:
        DataError: a file is missing or damaged.
        LineageError: two files come from different runs.
    """
    inputs = Inputs(
        data=read_card(root / DATA),
        teacher=read_network_card(root / TEACHER),
        student=read_network_card(root / STUDENT),
        export=read_manifest(root / EXPORT_MANIFEST),
        evaluation=read_measured(root / EVALUATION, Evaluation),
        benchmark=read_measured(root / BENCHMARK, Benchmark),
        energy=Table(*read_energy(root / ENERGY, *THRESHOLDS)),
        energy_test=Table(*read_energy(root / ENERGY_TEST)),
        subset=Table(*read_subset(root / SUBSET)),
        curves=read_curves(root),
        energy_sha256=sha256_file(root / ENERGY),
        subset_sha256=sha256_file(root / SUBSET),
        tensorrt_unavailable=tensorrt_unavailable,
        budget=budget,
        devices=read_devices(root),
    )
    check_one_run(inputs)
    for role, card in (("teacher", inputs.teacher), ("student", inputs.student)):
        if role in inputs.curves:
            _check_curves(root / _CURVES[role], {role: card["weights_sha256"]})
    return inputs


def check_one_run(inputs: Inputs) -> None:
    """Follow the hash chain data -> teacher -> energy -> subset -> student -> export -> evaluation and benchmark; the
    summary checks that these measured the very files.

    Raises:
        LineageError: a link does not fit; the message names both hashes.
        DataError: a table has other images than the data.
    """
    data, teacher = inputs.data["fingerprint"], inputs.teacher["weights_sha256"]
    counts = inputs.data["counts"]
    check_lineage(TEACHER_CARD, inputs.teacher["lineage"], {"data": data})
    check_lineage(ENERGY, inputs.energy.lineage, {"split": "train", "data": data, "teacher": teacher})
    check_lineage(SUBSET, inputs.subset.lineage, {"data": data, "energy": inputs.energy_sha256})
    made_from = {"data": data, "teacher": teacher, "energy": inputs.energy_sha256}
    check_lineage(ENERGY_TEST, inputs.energy_test.lineage, {"split": "test"} | made_from)
    check_lineage(STUDENT_CARD, inputs.student["lineage"], made_from | {"subset": inputs.subset_sha256})
    made_from |= {"student": inputs.student["weights_sha256"]}
    check_lineage(EXPORT_MANIFEST, inputs.export["lineage"], made_from)
    check_lineage(EVALUATION, inputs.evaluation["lineage"], made_from)
    check_lineage(BENCHMARK, inputs.benchmark["lineage"], made_from)
    check_scored(ENERGY, inputs.energy.columns, counts["train"])
    check_scored(ENERGY_TEST, inputs.energy_test.columns, counts["test"])
    check_members(SUBSET, inputs.subset.columns, counts["train"])


def read_measured(path: Path, schema: type[BaseModel]) -> dict[str, Any]:
    """A measurement of this machine.

    Raises:
        DataError: it is missing, damaged or of another version.
    """
    measured = read_json(path)
    if isinstance(measured, dict) and measured.get("schema") != SCHEMA:
        raise DataError(f"{path} is not a result that this version reads; run `dvc repro` to make it anew")
    return checked(schema, measured, path, "run `dvc repro` to make it anew")


class _OfCurves(BaseModel):
    lineage: dict[str, str]


def _check_curves(folder: Path, expected: Mapping[str, str]) -> None:
    path = folder / CURVES_LINEAGE
    found = checked(_OfCurves, read_json(path), path, "run `dvc repro` to make it anew")
    check_lineage(folder, found["lineage"], expected)


def read_curves(root: Path) -> dict[str, dict[str, Curve]]:
    """The curves of the networks that were trained here, as in :class:`Inputs`.

    Raises:
        DataError: one is damaged.
    """
    curves: dict[str, dict[str, Curve]] = {}
    for role, folder in _CURVES.items():
        metrics = root / folder / "plots" / "metrics"
        found = {path.stem: _read_curve(path) for path in sorted(metrics.glob("*.tsv"))}
        if found:
            curves[role] = found
    return curves


def _read_curve(path: Path) -> Curve:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        points = np.array([[float(row["step"]), float(row.get("value") or row[path.stem])] for row in rows])
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        reason = brief(repr(error))  # that of bytes which are no text holds all of them
        raise DataError(f"{path} is not a DVCLive curve ({reason}); run `dvc repro` to make it anew") from None
    finite = points[np.isfinite(points).all(axis=1)] if len(points) else points.reshape(0, 2)
    return Curve(tuple(finite[:, 0].tolist()), tuple(finite[:, 1].tolist()))
