"""What exported files are tested against: the student's own weights, and the energies of the test images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from torch import nn

from pipeline.data.store import read_card
from pipeline.store.documents import read_manifest
from pipeline.store.paths import DATA, ENERGY_TEST, EXPORT_MANIFEST, STUDENT
from pipeline.store.tables import FROM_TEACHER, check_lineage, check_scored, read_energy
from pipeline.training.weights import read_network


@dataclass(frozen=True)
class Reference:
    """Of one run.

    Attributes:
        data: card of the data.
        student: in eval mode on the CPU.
        groups: int8 [N], energy group of each test image.
        energy_temperature: T_E of the energies.
        exported: hashes of what the exported files were made from.
    """

    data: Mapping[str, Any]
    student: nn.Module
    groups: NDArray[Any]
    energy_temperature: float
    exported: Mapping[str, str]


def read_reference() -> Reference:
    """Read it and check that it comes from one run.

    Raises:
        DataError: an artifact is missing or damaged.
        LineageError: two artifacts come from different runs.
    """
    data = read_card(DATA)
    student, card = read_network(STUDENT)
    scores, scored = read_energy(ENERGY_TEST)
    exported = read_manifest(EXPORT_MANIFEST)["lineage"]
    check_lineage(STUDENT, card["lineage"], {"data": data["fingerprint"]})
    check_lineage(ENERGY_TEST, scored, {"split": "test"} | {key: card["lineage"][key] for key in FROM_TEACHER})
    check_lineage(EXPORT_MANIFEST, exported, {"data": data["fingerprint"], "student": card["weights_sha256"]})
    check_scored(ENERGY_TEST, scores, data["counts"]["test"])
    return Reference(data, student, scores["group"], scored["temperature"], exported)
