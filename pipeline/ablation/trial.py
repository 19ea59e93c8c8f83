"""One trial of a study: distill a student, and measure it on the test split at its last and at its best epoch.

Data, teacher, energies and subset are made by the code of the stages, each once for all trials that share it.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from pipeline.ablation.study import Trial
from pipeline.compute.device import TrainingPrecision
from pipeline.config import PRETRAINED, NetworkParams, Params
from pipeline.data.loader import open_images
from pipeline.data.normalisation import Normalisation
from pipeline.data.store import make_store
from pipeline.distillation.student import check_networks, trained_student
from pipeline.energy.scoring import score_splits
from pipeline.energy.subset import make_subset
from pipeline.errors import CheckpointError, ParamsError
from pipeline.evaluation.accuracy import balanced_accuracy, is_long_tailed, shot_accuracy, shot_groups
from pipeline.lineage import Places, Run
from pipeline.portable.accuracy import group_accuracy, top1_correct
from pipeline.portable.files import atomic_file, atomic_folder, sha256_file
from pipeline.soft_labels.storing import make_soft_labels
from pipeline.store.documents import Document, Hash, Part, Share, check_lineage
from pipeline.training.card import EpochRecord
from pipeline.training.checkpoint import code_hash
from pipeline.training.inference import all_logits
from pipeline.training.session import Session
from pipeline.training.teacher import make_teacher

CHECKPOINTS = "checkpoints"
_STUDENT = "student"  # every arm has one, that of its block distill
_REMEDY = "remove it and run the study again"


class EpochAccuracy(Part):
    """Test accuracy of a student with its weights after one epoch."""

    epoch: int
    val_top1: Share
    top1: Share
    balanced_accuracy: Share
    top1_low_energy: Share | None
    top1_mid_energy: Share | None
    top1_high_energy: Share | None
    top1_many_shot: Share | None
    top1_medium_shot: Share | None
    top1_few_shot: Share | None


class TrialResult(Document):
    """The result of a trial.

    Attributes:
        best_validation: of the epoch with the highest validation top-1.
        val_top1, train_loss: of each epoch.
        seconds_per_epoch: median without the first epoch, which includes compilation and the choice of kernels.
        precision: of the forward passes of its training; None in results from before it was recorded.
        code: hash of the code that trained it.
        lineage: hashes of the data, the teacher, the energies, and of soft labels and initial weights if it has any.
    """

    FORMAT = 2

    seed: int
    last: EpochAccuracy
    best_validation: EpochAccuracy
    val_top1: list[float]
    train_loss: list[float]
    seconds_per_epoch: Annotated[float, Field(ge=0)]
    device: str
    threads: int
    precision: TrainingPrecision | None = None
    code: str
    long_tail: bool
    lineage: dict[str, Hash]


class StoringTime(Document):
    """How long the soft labels took that lie beside it."""

    seconds: Annotated[float, Field(gt=0)]


def places_of(params: Params, root: Path, seed: int = 0) -> Places:
    """Places under ``root`` of the inputs of a student, named by a hash of all parameters that decide them.

    Args:
        seed: of the student, for a subset drawn at random.
    """
    packing = params.data.model_dump(mode="json", exclude={"augmentation"})
    taught = [packing, params.data.augmentation.model_dump(mode="json"), _by_content(params.teacher), params.seed]
    scored = [*taught, params.energy.model_dump(mode="json")]
    energy = root / f"energy-{_key(scored)}"
    subset = f"subset-{_key([scored, params.heda.fraction, params.heda.subset, seed])}.parquet"
    labels = params.soft_labels.model_dump(mode="json", exclude={"max_gb"})
    for teacher in labels["teachers"]:
        teacher["checkpoint"] = _content(teacher["checkpoint"])
    stored = [scored, taught, labels, subset if params.soft_labels.extra_views else None]
    return Places(
        data=root / f"data-{_key(packing)}",
        teacher=root / f"teacher-{_key(taught)}",
        energy=energy / "train.parquet",
        energy_test=energy / "test.parquet",
        subset=root / subset,
        soft_labels=root / f"soft-labels-{_key(stored)}",
        students=root / "students",
    )


def result_path(trial: Trial, root: Path) -> Path:
    """Place of a trial's result, named by a hash of all parameters that decide it, not by its arm."""
    params = trial.params
    student = _by_content(params.distill)
    shots = [params.evaluate.many_shot_above, params.evaluate.few_shot_below]
    places = places_of(params, root, trial.seed)
    decisive = [places.energy.parent.name, student, params.heda.model_dump(mode="json"), shots, trial.seed]
    if params.distill.view == "stored":
        decisive.append(places.soft_labels.name)
    return root / "runs" / f"{_key(decisive)}.json"


def read_result(trial: Trial, root: Path) -> TrialResult:
    """The result of a finished trial.

    Raises:
        DataError: it is missing or damaged.
        LineageError: its student was made from other data, another teacher, other energies or other soft labels.
    """
    path = result_path(trial, root)
    result = TrialResult.read(path, _REMEDY)
    made_from = _made_from(Run(places_of(trial.params, root, trial.seed)), trial.params)
    check_lineage(path, result.lineage, made_from, _REMEDY)
    return result


def take_inputs(params: Params, root: Path, run: Run) -> None:
    """Copy data, teacher and energies of a run that was made with these parameters, unless they are there."""
    own, theirs = places_of(params, root), run.places
    for source, target in ((theirs.data, own.data), (theirs.teacher, own.teacher)):
        if not target.exists():
            with atomic_folder(target) as temporary:
                shutil.copytree(source, temporary, dirs_exist_ok=True)
    for source, target in ((theirs.energy, own.energy), (theirs.energy_test, own.energy_test)):
        if not target.exists():
            with atomic_file(target) as temporary:
                shutil.copy(source, temporary)


def make_data(params: Params, root: Path) -> None:
    """Pack the data, unless that was done; an existing store is kept even if its source images have changed."""
    folder = places_of(params, root).data
    if not folder.exists():
        make_store(folder, params.data)


def has_inputs(params: Params, root: Path) -> bool:
    """Whether :func:`make_inputs` has nothing to do."""
    places = places_of(params, root)
    return places.teacher.exists() and places.energy_test.exists()


def make_inputs(params: Params, root: Path, on_epoch: Callable[[EpochRecord], None] = lambda record: None) -> None:
    """Make the teacher and the energies, unless that was done; the data must be packed."""
    places = places_of(params, root)
    session = Session.on(params.device, checkpoints=root / CHECKPOINTS, on_epoch=on_epoch)
    if not places.teacher.exists():
        make_teacher(Run(places), params, session)
    if not places.energy_test.exists():
        score_splits(Run(places), params.energy, session)


def soft_labels_of(trial: Trial, root: Path) -> Path | None:
    """Place of the soft labels that a trial needs and that do not exist."""
    places = places_of(trial.params, root, trial.seed)
    made = places.soft_labels.with_suffix(".json").exists()  # written last
    return None if trial.params.distill.view != "stored" or made else places.soft_labels


def store_soft_labels(trial: Trial, root: Path, on_epoch: Callable[[EpochRecord], None] = lambda record: None) -> None:
    """Make the soft labels of a trial, and note how long that took; its other inputs must exist."""
    run = Run(places_of(trial.params, root, trial.seed))
    _need_subset(run, trial)
    started = time.perf_counter()
    make_soft_labels(run, trial.params, Session.on(trial.params.device, checkpoints=root / CHECKPOINTS))
    StoringTime(seconds=time.perf_counter() - started).write(run.places.soft_labels.with_suffix(".json"))


def storing_seconds(trial: Trial, root: Path) -> float:
    """How long the soft labels of a trial took to store."""
    path = places_of(trial.params, root, trial.seed).soft_labels.with_suffix(".json")
    return StoringTime.read(path, _REMEDY).seconds


def _need_subset(run: Run, trial: Trial) -> None:
    if not run.places.subset.exists():
        make_subset(run, trial.params.heda, trial.seed)


def check_arm(name: str, params: Params, root: Path) -> None:
    """Build the networks of an arm, so that a mistake shows before a teacher is trained; the data must be packed.

    Raises:
        ParamsError: a network does not exist or cannot take the images, or stages of a feature loss do not fit.
    """
    data = Run(places_of(params, root)).data
    try:
        check_networks(params, len(data.class_names), data.image)
    except (CheckpointError, ParamsError) as error:
        raise ParamsError(f"arm {name!r}: {error}") from None


def execute(trial: Trial, root: Path, on_epoch: Callable[[EpochRecord], None] = lambda record: None) -> None:
    """Run the trial and write its result to :func:`result_path`; its inputs must exist.

    A trial that was stopped goes on from its last stored epoch.

    Raises:
        EnergyKDError: as of :func:`make_subset` and :func:`trained_student`.
    """
    training = trial.params.distill.training.model_copy(update={"keep": "last"})  # both epochs are measured
    distill = trial.params.distill.model_copy(update={"training": training})
    update = {"seed": trial.seed, "distill": distill, "students": {_STUDENT: distill}}
    params = trial.params.model_copy(update=update)
    path = result_path(trial, root)
    run = Run(replace(places_of(trial.params, root, trial.seed), students=path.with_suffix("")))
    _need_subset(run, trial)
    # a folder of its own: two trials may differ only in how their students are measured
    checkpoints = root / CHECKPOINTS / path.stem
    session = Session.on(params.device, checkpoints=checkpoints, keep_best=True, on_epoch=on_epoch)
    device = session.device
    with trained_student(run, _STUDENT, params, session) as student:
        normalisation = Normalisation(tuple(student.facts["mean"]), tuple(student.facts["std"]))
        initial = student.facts["lineage"].initial_weights
        records, last = student.records, measure(student.network, run, params, normalisation, device)
        best_epoch = student.checkpoint.load_best(student.network)
        best = last if best_epoch == len(records) - 1 else measure(student.network, run, params, normalisation, device)
        TrialResult(
            seed=trial.seed,
            last=EpochAccuracy(epoch=len(records) - 1, val_top1=records[-1].val_top1, **last),
            best_validation=EpochAccuracy(epoch=best_epoch, val_top1=records[best_epoch].val_top1, **best),
            val_top1=[record.val_top1 for record in records],
            train_loss=[record.train_loss for record in records],
            seconds_per_epoch=float(np.median([record.seconds for record in records[1:] or records])),
            device=str(device),
            threads=torch.get_num_threads(),
            precision=records[-1].precision,
            code=code_hash("distill")[:12],
            long_tail=is_long_tailed(np.asarray(run.data.train_class_counts)),
            lineage=_made_from(run, params) | ({"initial_weights": initial} if initial is not None else {}),
        ).write(path)
    shutil.rmtree(session.checkpoints)


def measure(
    student: nn.Module, run: Run, params: Params, normalisation: Normalisation, device: torch.device
) -> dict[str, Any]:
    """Test accuracy of a student: of all images, by energy group and by frequency of the classes."""
    test = open_images(run.places.data, "test", device, normalisation)
    logits, labels = all_logits(student, test).numpy(), test.labels.cpu().numpy()
    correct: NDArray[np.bool_] = top1_correct(logits, labels)
    counts = np.asarray(run.data.train_class_counts)
    shots = shot_groups(counts, params.evaluate.many_shot_above, params.evaluate.few_shot_below)
    groups = group_accuracy(correct, run.energy_test.columns["group"])
    return {
        "top1": float(correct.mean()),
        "balanced_accuracy": balanced_accuracy(correct, labels),
        **{f"top1_{name}_energy": value for name, value in groups.items()},
        **shot_accuracy(correct, labels, shots).model_dump(),
    }


def _by_content(params: NetworkParams) -> dict[str, Any]:
    """A block of params.yaml as JSON, with the hash of a file of weights in place of its path; a missing file, which
    loading reports, has none."""
    values = params.model_dump(mode="json")
    for key in {"checkpoint", "initial_weights"} & values.keys():
        if values[key] not in (None, PRETRAINED):
            values[key] = _content(values[key])
    return values


def _content(path: str) -> str:
    return sha256_file(Path(path)) if Path(path).is_file() else ""


def _made_from(run: Run, params: Params) -> dict[str, str]:
    made_from = {"data": run.data.fingerprint, "teacher": run.teacher.weights_sha256, "energy": run.energy_sha256}
    return made_from | ({"soft_labels": run.soft_labels_sha256} if params.distill.view == "stored" else {})


def _key(values: Any) -> str:
    """A short hash of JSON-like values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
