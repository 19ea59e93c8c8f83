"""Inputs of the report: the artifacts of one run, learning curves, and results of devices."""

import csv
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import BudgetParams
from pipeline.errors import DataError
from pipeline.lineage import NetworkRun, Run
from pipeline.portable.text import brief
from pipeline.report.devices import Device, read_devices
from pipeline.store.documents import NetworkLineage, StudentSpread, StudentsSpread, check_lineage
from pipeline.store.paths import SPREAD

_STUDY = "run `make ablation STUDY=ablations/students.yaml`"


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
        curves: "teacher" or name of a student -> metric ("train_loss", "val_top1") -> curve; networks that were not
            trained in this run are absent.
        devices: devices of targets/.
        spread: of the students over several seeds, by name; those without a study of all that the student in use was
            made from are absent.
    """

    run: Run
    budget: BudgetParams
    tensorrt_unavailable: str | None
    curves: Mapping[str, Mapping[str, Curve]]
    devices: Sequence[Device] = ()
    spread: Mapping[str, StudentSpread] = field(default_factory=dict)


def read_inputs(run: Run, budget: BudgetParams, tensorrt_unavailable: str | None) -> Inputs:
    """Read and check all inputs before the report is written.

    Raises:
        DataError: a file is missing or damaged.
        LineageError: two files come from different runs.
    """
    _ = run.energy, run.energy_test, run.subset, run.benchmark
    for network in run.networks:
        _ = network.answers
    for student in run.students:  # the stages after distill do not read the subset, so Run does not check this link
        check_lineage(student.places.weights, student.card.lineage.model_dump(), {"subset": run.subset_sha256})
    return Inputs(run, budget, tensorrt_unavailable, read_curves(run), read_devices(), read_spread(run))


def read_spread(run: Run, path: Path = SPREAD) -> dict[str, StudentSpread]:
    """Read the spread of the students that were made as the ones in use, but for the seed.

    The difference to a student that is left out is left out too.

    Raises:
        DataError: the file, or the card of the soft labels, which has the augmentation, is missing or damaged.
        LineageError: that card is from another run.
    """
    if not path.exists():
        return {}
    found = StudentsSpread.read(path, f"remove it, or {_STUDY}")
    used = run.data.fingerprint, run.teacher.weights_sha256, run.energy_sha256, run.soft_labels.augmentation
    if (found.data, found.teacher, found.energy, found.augmentation) != used:
        logging.warning(
            "%s is of other data, another teacher, other energies or another augmentation and is left out; %s",
            *(path, _STUDY),
        )
        return {}
    older = [each.name for each in run.students if each.name in found.students and not _is_of(found, each)]
    for name in older:
        logging.warning("%s has %s with other parameters, which is left out; %s", path, name, _STUDY)
    kept = {each.name: found.students[each.name] for each in run.students if _is_of(found, each)}
    return {
        name: spread
        if spread.difference is None or spread.difference.reference in kept
        else spread.model_copy(update={"difference": None})
        for name, spread in kept.items()
    }


def _is_of(found: StudentsSpread, student: NetworkRun) -> bool:
    spread, card = found.students.get(student.name), student.card
    if spread is None or _made_by(spread.distill, spread) != _made_by(card.distill or {}, card.lineage):
        return False
    # a card without companion batches has that alone of the block
    return (card.heda or {}).items() <= found.heda.items()


def _made_by(distill: Mapping[str, Any], files: StudentSpread | NetworkLineage) -> tuple[Any, ...]:
    # the content of the initial weights counts, not where they lie
    return {**distill, "initial_weights": None}, files.initial_weights, files.soft_labels


def read_curves(run: Run) -> dict[str, dict[str, Curve]]:
    """Read the learning curves of the networks trained in this run, as in :class:`Inputs`.

    Raises:
        DataError: a curve is damaged.
        LineageError: the curves are from another network.
    """
    curves: dict[str, dict[str, Curve]] = {}
    for network in run.networks:
        files = sorted((network.places.curves / "plots/metrics").glob("*.tsv"))
        if files:
            network.check_curves()
            curves[network.name] = {path.stem: _read_curve(path) for path in files}
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
