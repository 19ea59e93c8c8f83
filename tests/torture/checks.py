"""Beside kills: a second `dvc repro`, files of dvc itself that a kill has cut short, and what checkpoints cost."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline.config import load_params
from pipeline.data.loader import open_images
from pipeline.data.normalisation import Normalisation
from pipeline.data.store import read_card
from pipeline.store.paths import DATA, PARAMS
from pipeline.training.checkpoint import Checkpoint
from pipeline.training.loop import train_classifier
from pipeline.training.session import Session
from pipeline.training.weights import build_network
from tests.torture.clone import ROOT
from tests.torture.kill import Undisturbed
from tests.torture.repro import Repro, check

Outcome = dict[str, Any]  # of one check: its name, whether it passed, and what was seen, in a few words

_NETWORKS = ("resnet8", "resnet20")  # whose checkpoints are timed
_CPU = torch.device("cpu")


def second_repro(folder: Path, expected: Undisturbed) -> Outcome:
    """A second `dvc repro` while the first one trains."""
    shutil.copytree(expected.folder, folder, symlinks=True)
    first = Repro(folder, "--force", "--single-item", "train_teacher")
    while not (first.begun or first.ended):
        time.sleep(0.01)
    second = Repro(folder, "train_teacher")
    code = second.wait()
    named = f"(PID {first.process.pid})" in second.output
    ended_well = first.wait() == 0 and not expected.differing(folder, "train_teacher")
    seen = "the second is refused and names the process of the first" if named else second.output.strip()[-200:]
    return _outcome("two `dvc repro` at once", code != 0 and named and ended_well, seen)


def _outcome(name: str, passed: bool, seen: str) -> Outcome:
    return {"name": name, "passed": passed, "seen": seen.replace("\n", " ")}


def _cut(name: str, path: str) -> Callable[[Path, Undisturbed], Outcome]:
    def cut(folder: Path, expected: Undisturbed) -> Outcome:
        shutil.copytree(expected.folder, folder, symlinks=True)
        file = folder / path
        content = file.read_bytes() if file.exists() else b'{"write": {}, "read": {}}'
        file.write_bytes(content[: len(content) // 2])
        before = check(folder)
        repro = Repro(folder)
        code = repro.wait()
        seen = f"repaired by `make repro`, which ran {', '.join(stage for stage, _ in repro.begun) or 'nothing'} again"
        if before.returncode or code:
            seen = (before.stderr + repro.output).strip()[-200:]
        same = not any(expected.differing(folder, stage) for stage in expected.comparable)
        return _outcome(f"{name} cut short", not before.returncode and code == 0 and same, seen)

    return cut


CHECKS: tuple[Callable[[Path, Undisturbed], Outcome], ...] = (
    second_repro,
    _cut("dvc.lock", "dvc.lock"),
    _cut("dvc's list of users of files", ".dvc/tmp/rwlock"),
)


def checkpoint_costs(expected: Undisturbed) -> list[dict[str, Any]]:
    """Cost of writing crash checkpoints when networks are trained on the data of a run, as params.yaml trains.

    Returns:
        of each training its ``seconds``, validation and checkpoints included; of these ``saving_seconds``, the writing
        of checkpoints until they were on the disk, and its ``share``; and ``size_bytes`` of a checkpoint.
    """
    data, training, costs = expected.folder / DATA, load_params(ROOT / PARAMS).teacher.training, []
    normalisation = Normalisation.of(read_card(data))
    images, validation = (open_images(data, split, _CPU, normalisation) for split in ("train", "val"))
    for name in _NETWORKS:
        with tempfile.TemporaryDirectory(prefix="checkpoint-", dir=data.parent) as folder:  # on the disk of a run
            checkpoint = Checkpoint(Path(folder))
            started = time.perf_counter()
            torch.manual_seed(0)
            network = build_network(name, int(images.labels.max()) + 1, "network")
            epochs = len(list(train_classifier(network, images, validation, training, 0, Session(_CPU), checkpoint)))
            seconds, saving = time.perf_counter() - started, checkpoint._spent
            size = sum(path.stat().st_size for path in Path(folder).iterdir())
        cost = {"network": name, "epochs": epochs, "images": len(images), "seconds": seconds}
        costs.append(cost | {"saving_seconds": saving, "size_bytes": size, "share": saving / seconds})
    return costs
