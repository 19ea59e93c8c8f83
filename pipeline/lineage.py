"""The chain of artifacts from the images to the measurements: each is read once, when it is first used, and its
recorded hashes are compared with the artifacts that it was made from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pipeline.errors import DataError, LineageError
from pipeline.portable.files import sha256_file
from pipeline.store import paths
from pipeline.store.documents import (
    ONE_RUN,
    CurvesCard,
    DataCard,
    Evaluation,
    ExportManifest,
    MadeFrom,
    Measurement,
    NetworkCard,
    Part,
    check_lineage,
)
from pipeline.store.tables import EnergyLineage, SubsetLineage, Table, read_table

T = TypeVar("T")
M = TypeVar("M", Evaluation, Measurement)


@dataclass(frozen=True)
class Places:
    """Where the artifacts of a run lie."""

    data: Path = paths.DATA
    teacher: Path = paths.TEACHER
    energy: Path = paths.ENERGY
    energy_test: Path = paths.ENERGY_TEST
    subset: Path = paths.SUBSET
    student: Path = paths.STUDENT
    export: Path = paths.EXPORT
    evaluation: Path = paths.EVALUATION
    benchmark: Path = paths.BENCHMARK
    curves: Mapping[str, Path] = field(default_factory=lambda: paths.CURVES)


class Run:
    """The artifacts of one run.

    Raises (each property):
        DataError: the artifact, or one that it was made from, is missing, damaged or of another format.
        LineageError: it was made from other artifacts than the present ones; both hashes are named.
    """

    def __init__(self, places: Places | None = None) -> None:
        self.places = places or Places()

    @cached_property
    def data(self) -> DataCard:
        """Card of the packed store."""
        return DataCard.read(self.places.data / paths.DATA_CARD)

    @cached_property
    def teacher(self) -> NetworkCard:
        """Card of the teacher."""
        card = NetworkCard.read(self.places.teacher / paths.CARD)
        return _checked(self.places.teacher, card, card.lineage, {"data": self.data.fingerprint})

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
    def student(self) -> NetworkCard:
        """Card of the student."""
        card = NetworkCard.read(self.places.student / paths.CARD)
        made_from = {"data": self.data.fingerprint, "teacher": self.teacher.weights_sha256}
        made_from |= {"energy": self.energy_sha256}
        return _checked(self.places.student, card, card.lineage, made_from)

    @cached_property
    def made_from(self) -> MadeFrom:
        """Hashes of the artifacts that the exported files are made from."""
        return MadeFrom(
            data=self.data.fingerprint,
            teacher=self.teacher.weights_sha256,
            energy=self.energy_sha256,
            student=self.student.weights_sha256,
        )

    @cached_property
    def exported(self) -> ExportManifest:
        """The exported files."""
        manifest = ExportManifest.read(self.places.export / paths.MANIFEST)
        return _checked(self.places.export / paths.MANIFEST, manifest, manifest.lineage, self.made_from.model_dump())

    @cached_property
    def evaluation(self) -> Evaluation:
        """Accuracy of the exported files."""
        return self._measured(self.places.evaluation, Evaluation)

    @cached_property
    def benchmark(self) -> Measurement:
        """Latency of the exported files on this machine."""
        return self._measured(self.places.benchmark, Measurement)

    def _measured(self, path: Path, kind: type[M]) -> M:
        found = kind.read(path)
        _checked(path, found, found.lineage, self.made_from.model_dump())
        files = {file.name: file.sha256 for file in self.exported.files}
        for row in found.rows:
            if row.name not in files:
                raise LineageError(
                    f"{path} has a row for {row.name}, which the export manifest does not list; {ONE_RUN}"
                )
            if row.sha256 != files[row.name]:
                raise LineageError(
                    f"{path} measured {row.name} with hash {str(row.sha256)[:12]}, but the exported file has hash "
                    f"{files[row.name][:12]}; {ONE_RUN}"
                )
        return found

    def check_curves(self, role: str, card: NetworkCard) -> None:
        """Refuse learning curves that do not belong to the network with this card."""
        folder = self.places.curves[role]
        found = CurvesCard.read(folder / paths.CURVES_CARD)
        _checked(folder, found, {found.role: found.weights_sha256}, {role: card.weights_sha256})


def _checked(path: Path, artifact: T, lineage: Part | Mapping[str, Any], expected: Mapping[str, str]) -> T:
    check_lineage(path, lineage.model_dump() if isinstance(lineage, Part) else lineage, expected)
    return artifact


def _hash(path: Path) -> str:
    try:
        return sha256_file(path)
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; run `dvc repro` to make it") from None
