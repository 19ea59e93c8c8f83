"""What the runs of a study share: packed data, a teacher and its energies, each made once and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.compute.device import choose_device
from pipeline.config import Params
from pipeline.data.loader import open_images, training_views
from pipeline.data.sources import open_source
from pipeline.data.splits import split
from pipeline.data.store import read_card, write_store
from pipeline.energy.groups import EnergyGroups, telling_groups
from pipeline.energy.scoring import score_images
from pipeline.errors import DataError
from pipeline.store import tables as artifacts
from pipeline.store.documents import read_network_card
from pipeline.store.tables import check_lineage, sha256_file, write_table_parts
from pipeline.training.checkpoint import crash_folder
from pipeline.training.loop import EpochRecord
from pipeline.training.teacher import make_teacher
from pipeline.training.weights import read_network

SCORED_SPLITS = ("train", "test")
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Upstream:
    """Folders of the packed store, of the teacher and of its energies (one Parquet file per scored split)."""

    data: Path
    teacher: Path
    energy: Path


def key_of(*values: Any) -> str:
    """A short name for whatever JSON-like values decide a result."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def locate(params: Params, root: Path) -> Upstream:
    """Where under ``root`` the inputs of a run with these parameters lie or will lie."""
    data = root / f"data-{key_of(_packing(params))}"
    views = training_views(params.data)
    given = content_hash(params.teacher.checkpoint)
    teacher_key = key_of(_packing(params), views, params.teacher.model_dump(mode="json"), given, params.seed)
    energy_key = key_of(teacher_key, params.energy.temperature)
    return Upstream(data, root / f"teacher-{teacher_key}", root / f"energy-{energy_key}")


def pack(params: Params, root: Path) -> None:
    """Pack the data, unless that was done. A store is not made anew when the images it came from change."""
    folder = locate(params, root).data
    if not folder.exists():
        source = open_source(params.data)
        write_store(folder, source, split(source, params.data), params.data)


def teach(params: Params, root: Path, on_epoch: Callable[[EpochRecord], None] = lambda record: None) -> None:
    """Make the teacher and score the images with it, unless that was done. The data must be packed."""
    upstream = locate(params, root)
    device = choose_device(params.device)
    if not upstream.teacher.exists():
        make_teacher(upstream.teacher, upstream.data, params, device, root / CHECKPOINTS, on_epoch=on_epoch)
    for name in SCORED_SPLITS:
        path = upstream.energy / f"{name}.parquet"
        if not path.exists():
            teacher, card = read_network(upstream.teacher)
            teacher.to(device).to(memory_format=torch.channels_last)
            images, temperature = open_images(upstream.data, name, device), params.energy.temperature
            lineage = {"data": read_card(upstream.data)["fingerprint"], "teacher": card["weights_sha256"]}
            decides = {**lineage, "temperature": temperature, "split": name, "device": device.type}
            with crash_folder(root / CHECKPOINTS, "energy", decides, "scoring these images") as folder:
                parts = score_images(teacher, images, temperature, folder)
                write_table_parts(path, (vars(scores) for _, scores in parts), lineage)


def teacher_report(params: Params, root: Path) -> dict[str, Any]:
    """What a study says of its teacher: network, epochs, and top-1 on the validation and test splits."""
    card = read_network_card(locate(params, root).teacher)
    columns = read_scores(params, root, "test")
    return {
        "network": card["network"],
        "epochs": card["epochs"],
        "val_top1": card["val_top1"],
        "test_top1": float(columns["correct"].mean()),
    }


def read_scores(params: Params, root: Path, name: str) -> dict[str, NDArray[Any]]:
    """Columns of the energy table of a scored split.

    Raises:
        DataError: it is missing, damaged or no such table.
        LineageError: it was made from other data or another teacher.
    """
    upstream = locate(params, root)
    path = upstream.energy / f"{name}.parquet"
    columns, lineage = artifacts.read_scores(path)
    data = read_card(upstream.data)
    check_lineage(path, lineage, made_from(params, root))
    if len(columns["energy"]) != data["counts"][name]:
        raise DataError(f"{path} has {len(columns['energy'])} images, not {data['counts'][name]}; remove it")
    return columns


def made_from(params: Params, root: Path) -> dict[str, str]:
    """Hashes of the data and of the teacher, which energies and runs record."""
    upstream = locate(params, root)
    teacher = read_network_card(upstream.teacher)
    data = read_card(upstream.data)["fingerprint"]
    check_lineage(upstream.teacher, teacher["lineage"], {"data": data})
    return {"data": data, "teacher": teacher["weights_sha256"]}


def fit_groups(params: Params, energy: NDArray[np.float32]) -> EnergyGroups:
    """The groups that ``params.energy`` makes of the energies of the training split."""
    return telling_groups(torch.from_numpy(energy.copy()), params.energy.low_fraction, params.energy.high_fraction)


def content_hash(checkpoint: str | None) -> str | None:
    """Hash of a given checkpoint, None for None, "" where the file is missing: whoever loads it says so."""
    if checkpoint is None:
        return None
    path = Path(checkpoint)
    if not path.is_file():
        return ""
    status = path.stat()
    return _hash_of_version(path, status.st_size, status.st_mtime_ns)


@cache
def _hash_of_version(path: Path, size: int, changed: int) -> str:
    """The same, read once for each version of the file: every run asks for it."""
    return sha256_file(path)


def _packing(params: Params) -> dict[str, Any]:
    """The part of the data block that decides the packed store."""
    return params.data.model_dump(mode="json", exclude={"crop_padding", "horizontal_flip"})
