"""One run of a study: distill a student, and measure it on the test split at its last and at its best epoch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, Field
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import nn

from pipeline.ablation.study import Run
from pipeline.ablation.upstream import CHECKPOINTS, content_hash, fit_groups, key_of, locate, made_from, read_scores
from pipeline.compute.device import choose_device
from pipeline.config import Params, checked
from pipeline.data.loader import open_images, training_views
from pipeline.data.store import read_card
from pipeline.distillation.feature_loss import feature_loss
from pipeline.distillation.student import ScoredImages, distill
from pipeline.energy.groups import EnergyGroups
from pipeline.energy.subset import select_subset
from pipeline.errors import CheckpointError, DataError, ParamsError
from pipeline.evaluation.accuracy import (
    balanced_accuracy,
    group_accuracy,
    is_long_tailed,
    shot_accuracy,
    shot_groups,
    top1_correct,
)
from pipeline.store.atomic import atomic_file
from pipeline.store.documents import Share
from pipeline.store.tables import check_lineage, read_json, write_json
from pipeline.training.checkpoint import code_hash, open_checkpoint
from pipeline.training.inference import all_logits
from pipeline.training.loop import EpochRecord
from pipeline.training.weights import build_network, build_student, check_runs, read_network

BEST = "best.safetensors"


class _Measured(BaseModel):
    top1: Share
    balanced_accuracy: Share
    top1_high_energy: Share | None
    top1_many_shot: Share | None
    top1_medium_shot: Share | None
    top1_few_shot: Share | None


class _Result(BaseModel):
    """What the table of a study takes for granted of a run's result."""

    seed: int
    last: _Measured
    best_validation: _Measured
    seconds_per_epoch: Annotated[float, Field(ge=0)]
    device: str
    threads: int
    code: str
    long_tail: bool
    lineage: dict[str, str]


def result_path(run: Run, root: Path) -> Path:
    """Where the result of a run lies: under a name of all parameters that decide it, not of its arm."""
    upstream = locate(run.params, root)
    energy, distillation, heda = (
        getattr(run.params, block).model_dump(mode="json") for block in ("energy", "distill", "heda")
    )
    shots = [run.params.evaluate.many_shot_above, run.params.evaluate.few_shot_below]
    distillation["initial_weights"] = content_hash(run.params.distill.initial_weights)
    return root / "runs" / f"{key_of(upstream.teacher.name, energy, distillation, heda, shots, run.seed)}.json"


def finished(run: Run, root: Path) -> bool:
    """Whether the run was done before."""
    return result_path(run, root).exists()


def read_result(run: Run, root: Path) -> dict[str, Any]:
    """What a finished run gave.

    Raises:
        DataError: it is missing or damaged.
        LineageError: its student was taught by another teacher, or on other data.
    """
    path, remedy = result_path(run, root), "remove it and run the study again"
    result = checked(_Result, read_json(path), path, remedy)
    check_lineage(path, result["lineage"], made_from(run.params, root), remedy)
    return result


def check_arm(name: str, params: Params, root: Path) -> None:
    """Build the networks of an arm, so that a mistake shows before a teacher is trained; the data must be packed.

    Raises:
        ParamsError: a network does not exist or cannot take the images, or stages of a feature loss do not fit.
    """
    data = read_card(locate(params, root).data)
    classes, size = len(data["class_names"]), data["image_size"]
    try:
        student = build_student(params.distill, classes)
        teacher = build_network(params.teacher.network, classes, "teacher.network")
        check_runs(student, "distill.network", classes, size)
        check_runs(teacher, "teacher.network", classes, size)
        feature_loss(params.distill, student, teacher, size)
    except (CheckpointError, ParamsError) as error:
        raise ParamsError(f"arm {name!r}: {error}") from None


def execute(run: Run, root: Path, on_epoch: Callable[[EpochRecord], None] = lambda record: None) -> None:
    """Do the run and write its result to :func:`result_path`; the upstream must be there.

    A run that was stopped goes on from its last finished epoch.

    Raises:
        EnergyKDError: as of the stages that do the same.
    """
    params = run.params.model_copy(update={"seed": run.seed})
    upstream = locate(run.params, root)
    device = choose_device(params.device)
    torch.manual_seed(params.seed)
    data = read_card(upstream.data)
    teacher, _ = read_network(upstream.teacher)
    student = build_student(params.distill, len(data["class_names"]))
    energy = read_scores(run.params, root, "train")["energy"]
    groups = fit_groups(params, energy)
    test_energy = read_scores(run.params, root, "test")["energy"]
    test_groups = groups.assign(torch.from_numpy(test_energy.copy())).numpy()
    try:
        subset = select_subset(torch.from_numpy(energy.copy()), params.heda.fraction, params.heda.subset, params.seed)
    except ValueError as error:
        raise DataError(f"heda.fraction: {error}; raise the fraction or add images") from None
    views = training_views(params.data)
    scored = ScoredImages(
        open_images(upstream.data, "train", device, **views),
        EnergyGroups(groups.codes.to(device), groups.low_threshold, groups.high_threshold),
        params.energy.temperature,
        subset.to(device),
    )
    path = result_path(run, root)
    with open_checkpoint(root / CHECKPOINTS, "student", {"run": path.stem}) as checkpoint:
        best = BestWeights(checkpoint.folder / BEST, student)

        def keep(record: EpochRecord) -> None:
            best.offer(record)
            on_epoch(record)

        records = distill(
            student,
            teacher,
            scored,
            open_images(upstream.data, "val", device),
            params,
            checkpoint=checkpoint,
            on_epoch=keep,
        )
        test = open_images(upstream.data, "test", device)
        shots = shot_groups(
            np.asarray(data["train_class_counts"]), params.evaluate.many_shot_above, params.evaluate.few_shot_below
        )

        def measure(epoch: int) -> dict[str, Any]:
            logits, labels = all_logits(student, test).numpy(), test.labels.cpu().numpy()
            correct = top1_correct(logits, labels)
            return {
                "epoch": epoch,
                "val_top1": records[epoch].val_top1,
                "top1": float(correct.mean()),
                "balanced_accuracy": balanced_accuracy(correct, labels),
                **{f"top1_{name}_energy": value for name, value in group_accuracy(correct, test_groups).items()},
                **shot_accuracy(correct, labels, shots),
            }

        last = measure(len(records) - 1)
        best_epoch = best.load()
        result: dict[str, Any] = {
            "schema": 1,
            "seed": run.seed,
            "last": last,
            "best_validation": measure(best_epoch) if best_epoch != last["epoch"] else last,
            "val_top1": [record.val_top1 for record in records],
            "train_loss": [record.train_loss for record in records],
            # the first pays for what is compiled and timed
            "seconds_per_epoch": float(np.median([record.seconds for record in records[1:] or records])),
            "device": str(device),
            "threads": torch.get_num_threads(),
            "code": code_hash("distill")[:12],
            "long_tail": is_long_tailed(np.asarray(data["train_class_counts"])),
            "lineage": made_from(run.params, root),
        }
        write_json(path, result)


class BestWeights:
    """The weights of the epoch with the highest validation top-1, the first of equals, in a file beside the checkpoint.

    Args:
        network: where weights are taken from, and put back into.
    """

    def __init__(self, path: Path, network: nn.Module) -> None:
        self._path = path
        self._network = network
        self._top1 = -1.0

    def offer(self, record: EpochRecord) -> None:
        """Take note of a finished epoch. A resumed run offers its earlier epochs again; these are stored already."""
        if record.val_top1 <= self._top1:
            return
        self._top1 = record.val_top1
        if self._stored_epoch() >= record.epoch:
            return
        state = {name: value.detach().cpu().contiguous() for name, value in self._network.state_dict().items()}
        with atomic_file(self._path) as temporary:
            temporary.write_bytes(save(state, metadata={"epoch": str(record.epoch)}))

    def load(self) -> int:
        """Put the best weights into the network and return their epoch."""
        self._network.load_state_dict(load_file(self._path))
        return self._stored_epoch()

    def _stored_epoch(self) -> int:
        if not self._path.exists():
            return -1
        with safe_open(self._path, framework="pt") as file:
            return int(file.metadata()["epoch"])
