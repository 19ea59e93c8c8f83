"""The chain of artifacts from the images to the measurements: each is read once, when it is first used, and its
recorded hashes are compared with the artifacts that it was made from."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pipeline.config import TEACHER
from pipeline.errors import DataError, LineageError
from pipeline.portable.documents import MeasuredRow
from pipeline.portable.files import sha256_file
from pipeline.store import paths
from pipeline.store.answers import Answers, FileAnswers, Key
from pipeline.store.documents import (
    ONE_RUN,
    CurvesCard,
    DataCard,
    EvaluatedRow,
    Evaluation,
    ExportedFile,
    ExportManifest,
    MadeFrom,
    MeasuredFrom,
    Measurement,
    NetworkCard,
    Part,
    Role,
    SoftLabelCard,
    check_lineage,
)
from pipeline.store.tables import EnergyLineage, SubsetLineage, Table, read_table

T = TypeVar("T")


@dataclass(frozen=True)
class NetworkPlaces:
    """Where the artifacts of a network lie; the first three are folders."""

    weights: Path
    export: Path
    curves: Path
    evaluation: Path
    answers: Path


@dataclass(frozen=True)
class Places:
    """Where the artifacts of a run lie."""

    data: Path = paths.DATA
    teacher: Path = paths.TEACHER
    energy: Path = paths.ENERGY
    energy_test: Path = paths.ENERGY_TEST
    subset: Path = paths.SUBSET
    soft_labels: Path = paths.SOFT_LABELS
    teacher_export: Path = paths.TEACHER_EXPORT
    students: Path = paths.STUDENTS
    teacher_reports: Path = paths.TEACHER_REPORTS
    student_reports: Path = paths.STUDENT_REPORTS
    benchmark: Path = paths.BENCHMARK

    def network(self, name: str) -> NetworkPlaces:
        """Those of the teacher, or of the student of this name."""
        if name == TEACHER:
            weights, export, reports = self.teacher, self.teacher_export, self.teacher_reports
        else:
            folder, reports = self.students / name, self.student_reports / name
            weights, export = folder / paths.NETWORK, folder / paths.EXPORT
        return NetworkPlaces(
            weights, export, reports / paths.CURVES, reports / paths.EVALUATION, reports / paths.ANSWERS
        )


class Run:
    """The artifacts of one run.

    Args:
        students: names of the students, for what is measured of all networks together.

    Raises (each property):
        DataError: the artifact, or one that it was made from, is missing, damaged or of another format.
        LineageError: it was made from other artifacts than the present ones; both hashes are named.
    """

    def __init__(self, places: Places | None = None, students: Iterable[str] = ()) -> None:
        self.places = places or Places()
        self._networks: dict[str, NetworkRun] = {}
        self._students = tuple(students)

    def network(self, name: str) -> "NetworkRun":
        """The artifacts of the teacher, or of the student of this name."""
        return self._networks.setdefault(name, NetworkRun(self, name))

    @property
    def students(self) -> "list[NetworkRun]":
        """In the order of params.yaml."""
        return [self.network(name) for name in self._students]

    @property
    def networks(self) -> "list[NetworkRun]":
        """The students and, last, the teacher."""
        return [*self.students, self.network(TEACHER)]

    @cached_property
    def data(self) -> DataCard:
        """Card of the packed store."""
        return DataCard.read(self.places.data / paths.DATA_CARD)

    @property
    def teacher(self) -> NetworkCard:
        """Card of the teacher."""
        return self.network(TEACHER).card

    @cached_property
    def energy_sha256(self) -> str:
        """Hash of the energy table of the training images, without reading the table."""
        return _hash(self.places.energy)

    @cached_property
    def subset_sha256(self) -> str:
        """Hash of the subset table."""
        return _hash(self.places.subset)

    @cached_property
    def energy(self) -> Table[EnergyLineage]:
        """Energies of the training images [N], in order."""
        return self._energies(self.places.energy, "train", {})

    @cached_property
    def energy_test(self) -> Table[EnergyLineage]:
        """Energies of the test images, in order, under the groups of the training images."""
        return self._energies(self.places.energy_test, "test", {"energy": self.energy_sha256})

    def _energies(self, path: Path, split: str, more: Mapping[str, str]) -> Table[EnergyLineage]:
        table = read_table(path, EnergyLineage)
        made_from = {"split": split, "data": self.data.fingerprint, "teacher": self.teacher.weights_sha256, **more}
        _checked(path, table, table.lineage, made_from)
        images = getattr(self.data.counts, split)
        # after the lineage, which gives the better message for a file of another run
        if not np.array_equal(table.columns["index"], np.arange(images)):
            raise DataError(f"{path} does not list the images 0 to {images - 1}; run `dvc repro` to make it anew")
        return table

    @cached_property
    def subset(self) -> Table[SubsetLineage]:
        """The training images that HE-DA mixes, by index."""
        path, images = self.places.subset, self.data.counts.train
        table = read_table(path, SubsetLineage)
        _checked(path, table, table.lineage, {"data": self.data.fingerprint, "energy": self.energy_sha256})
        if table.columns["index"].max(initial=0) >= images:
            raise DataError(f"{path} has images that are not among the {images}; run `dvc repro` to make it anew")
        return table

    @cached_property
    def soft_labels_sha256(self) -> str:
        """Hash of the card of the teachers' stored answers."""
        return _hash(self.places.soft_labels / paths.CARD)

    @cached_property
    def soft_labels(self) -> SoftLabelCard:
        """Card of the teachers' stored answers."""
        path = self.places.soft_labels / paths.CARD
        card = SoftLabelCard.read(path)
        made_from = {"data": self.data.fingerprint, "teacher": self.teacher.weights_sha256}
        if card.extra_views:
            made_from["subset"] = self.subset_sha256
        return _checked(path, card, card, made_from)

    def measured_from(self, networks: "Iterable[NetworkRun]") -> MeasuredFrom:
        """Hashes of the artifacts that a measurement of these networks is made from."""
        return MeasuredFrom(
            data=self.data.fingerprint,
            teacher=self.teacher.weights_sha256,
            energy=self.energy_sha256,
            networks={network.name: network.card.weights_sha256 for network in networks},
        )

    @property
    def files(self) -> list[ExportedFile]:
        """The exported files of all networks."""
        return [file for network in self.networks for file in network.exported.files]

    @cached_property
    def answers(self) -> dict[Key, FileAnswers]:
        """Answers of the exported files of all networks, by file and runtime."""
        return {key: found for network in self.networks for key, found in network.answers.files.items()}

    @cached_property
    def benchmark(self) -> Measurement:
        """Latency of the exported files on this machine."""
        path = self.places.benchmark
        found = Measurement.read(path)
        # the teacher has no file for some runtimes, students have one for each
        measured = found.lineage.networks
        expected = self.measured_from(
            network for network in self.networks if network.student or network.name in measured
        )
        for name, sha256 in expected.networks.items():
            check_lineage(path, measured, {name: sha256})
        check_lineage(path, found.lineage.model_dump(), expected.model_dump(exclude={"networks"}))
        _check_rows(path, found.rows, self.files)
        return found


class NetworkRun:
    """The artifacts of the teacher or of one student; each property raises as those of :class:`Run` do."""

    def __init__(self, run: Run, name: str) -> None:
        self.run, self.name = run, name
        self.places = run.places.network(name)

    @property
    def role(self) -> Role:
        return "teacher" if self.name == TEACHER else "student"

    @property
    def student(self) -> str | None:
        """Name of the student; None for the teacher."""
        return None if self.name == TEACHER else self.name

    def _stage(self, work: str) -> str:
        """The stage that exports or evaluates the network."""
        return work if self.student else f"{work}_{TEACHER}"

    @cached_property
    def card(self) -> NetworkCard:
        """Card of the network."""
        card, run = NetworkCard.read(self.places.weights / paths.CARD), self.run
        made_from = {"data": run.data.fingerprint}
        if self.role == "student":
            made_from |= {"teacher": run.teacher.weights_sha256, "energy": run.energy_sha256}
        return _checked(self.places.weights, card, card.lineage, made_from)

    @cached_property
    def made_from(self) -> MadeFrom:
        """Hashes of the artifacts that the exported files are made from."""
        return MadeFrom(
            data=self.run.data.fingerprint,
            teacher=self.run.teacher.weights_sha256,
            energy=self.run.energy_sha256,
            network=self.card.weights_sha256,
        )

    @cached_property
    def exported(self) -> ExportManifest:
        """The exported files."""
        path = self.places.export / paths.MANIFEST
        manifest = ExportManifest.read(path, stage=self._stage("export"))
        return _checked(path, manifest, manifest.lineage, self.made_from.model_dump())

    @cached_property
    def evaluation(self) -> Evaluation:
        """Accuracy of the exported files."""
        path = self.places.evaluation
        found = Evaluation.read(path, stage=self._stage("evaluate"))
        _checked(path, found, found.lineage, self.made_from.model_dump())
        _check_rows(path, found.rows, self.exported.files)
        return found

    @cached_property
    def answers(self) -> Answers:
        """Answers of the network and of its exported files to each image."""
        path = self.places.answers
        check_lineage(self.places.evaluation, {"answers": self.evaluation.answers_sha256}, {"answers": _hash(path)})
        return Answers.read(path)

    def check_curves(self) -> None:
        """Refuse learning curves that do not belong to this network."""
        found = CurvesCard.read(self.places.curves / paths.CURVES_CARD)
        _checked(self.places.curves, found, {found.role: found.weights_sha256}, {self.role: self.card.weights_sha256})


def _check_rows(
    path: Path, rows: Iterable[EvaluatedRow] | Iterable[MeasuredRow], exported: Iterable[ExportedFile]
) -> None:
    files = {file.name: file.sha256 for file in exported}
    for row in rows:
        if row.name not in files:
            raise LineageError(f"{path} has a row for {row.name}, which the export manifest does not list; {ONE_RUN}")
        if row.sha256 != files[row.name]:
            raise LineageError(
                f"{path} measured {row.name} with hash {str(row.sha256)[:12]}, but the exported file has hash "
                f"{files[row.name][:12]}; {ONE_RUN}"
            )


def _checked(path: Path, artifact: T, lineage: Part | Mapping[str, Any], expected: Mapping[str, str]) -> T:
    check_lineage(path, lineage.model_dump() if isinstance(lineage, Part) else lineage, expected)
    return artifact


def _hash(path: Path) -> str:
    try:
        return sha256_file(path)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; run `dvc repro` to make it") from None
