"""Inputs of the report: the artifacts of one run, learning curves, and results of devices."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.config import BudgetParams
from pipeline.errors import DataError
from pipeline.lineage import Run
from pipeline.portable.text import brief
from pipeline.report.devices import Device, read_devices
from pipeline.store.documents import check_lineage


@dataclass(frozen=True)
class Curve:
    """One metric during training: steps [M] and values [M]."""

    steps: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True)
class Inputs:
    """All inputs of the report.

    Attributes:
        tensorrt_unavailable: reason why TensorRT cannot run here, in one sentence; None if it can.
        curves: role ("teacher", "student") -> metric ("train_loss", "val_top1") -> curve; roles that were not
            trained in this run are absent.
        devices: devices of targets/.
    """

    run: Run
    budget: BudgetParams
    tensorrt_unavailable: str | None
    curves: Mapping[str, Mapping[str, Curve]]
    devices: Sequence[Device] = ()


def read_inputs(run: Run, budget: BudgetParams, tensorrt_unavailable: str | None) -> Inputs:
    """Read and check all inputs before the report is written.

    Raises:
        DataError: a file is missing or damaged.
        LineageError: two files come from different runs.
    """
    _ = run.energy, run.energy_test, run.subset, run.evaluation, run.benchmark
    # the stages after distill do not read the subset, so Run does not check this link
    check_lineage(run.places.student, run.student.lineage.model_dump(), {"subset": run.subset_sha256})
    return Inputs(run, budget, tensorrt_unavailable, read_curves(run), read_devices())


def read_curves(run: Run) -> dict[str, dict[str, Curve]]:
    """Read the learning curves of the networks trained in this run, as in :class:`Inputs`.

    Raises:
        DataError: a curve is damaged.
        LineageError: the curves are from another network.
    """
    curves: dict[str, dict[str, Curve]] = {}
    for role, folder in run.places.curves.items():
        role_curves = {path.stem: _read_curve(path) for path in sorted((folder / "plots/metrics").glob("*.tsv"))}
        if role_curves:
            run.check_curves(role, getattr(run, role))
            curves[role] = role_curves
    return curves


def _read_curve(path: Path) -> Curve:
    """Read a DVCLive curve; the column of the values is named ``value`` or like the file."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        points = np.array([[float(row["step"]), float(row.get("value") or row[path.stem])] for row in rows])
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        reason = brief(repr(error))  # shortened, because the error for invalid UTF-8 contains all bytes
        raise DataError(f"{path} is not a DVCLive curve ({reason}); run `dvc repro` to write it again") from None
    finite = points[np.isfinite(points).all(axis=1)] if len(points) else points.reshape(0, 2)
    return Curve(tuple(finite[:, 0].tolist()), tuple(finite[:, 1].tolist()))
