"""As many epochs of each arm as fit into the same seconds, so that a study compares what a person gets for the time."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

from pipeline.ablation.jobs import Slurm
from pipeline.ablation.schedule import run_study
from pipeline.ablation.study import Study
from pipeline.ablation.trial import places_of, storing_seconds
from pipeline.config import Params, validated
from pipeline.errors import ParamsError
from pipeline.lineage import Run
from pipeline.soft_labels.storing import planned_views

_EPOCHS = 3  # of a pilot: the first one compiles and chooses kernels, the median of the others counts


def in_equal_time(
    study: Study, root: Path, slurm: Slurm | None = None, on_start: Callable[[str], None] = lambda what: None
) -> Study:
    """The study with as many epochs in each arm as the ``seconds`` of its file allow, soft labels included.

    A pilot of each arm, one at a time, measures what an epoch and a stored view cost; meanwhile the machine must be
    idle. The trials themselves may run several at a time: their number of epochs is then given.

    Args:
        root: as of :func:`pipeline.ablation.schedule.run_study`; pilots are kept there and not repeated.

    Raises:
        ParamsError: the seconds are too few for an arm, or for all of its soft labels to be used.
        EnergyKDError: as of :func:`pipeline.ablation.schedule.run_study`.
    """
    seconds = study.file.seconds
    if seconds is None:
        return study
    file = study.file.model_copy(update={"seeds": study.file.seeds[:1]})
    pilots = replace(study, file=file, arms={name: _pilot(params) for name, params in study.arms.items()})
    measured = run_study(pilots, root, 1, slurm, on_start)
    costs: dict[str, list[float]] = {}
    for trial, result in measured:
        costs.setdefault(_work(trial.params), []).append(result.seconds_per_epoch)
    arms = {}
    for trial, _ in measured:
        params, seconds_per_epoch = study.arms[trial.arm], median(costs[_work(trial.params)])
        left = seconds
        if params.distill.view == "stored":
            images = Run(places_of(params, root)).data.counts.train
            left -= storing_seconds(trial, root) * planned_views(params, images) / planned_views(trial.params, images)
        epochs = int(left / seconds_per_epoch)
        if epochs < 1 + params.distill.training.warmup_epochs:
            raise ParamsError(
                f"seconds of the study are {seconds:g}, of which arm {trial.arm!r} has {left:.1f} left for epochs of "
                f"{seconds_per_epoch:.1f} s; raise them"
            )
        arms[trial.arm] = validated(Params, _with(params, epochs).model_dump(), f"arm {trial.arm!r}, {epochs} epochs")
    return replace(study, arms=arms)


def _work(params: Params) -> str:
    """What a training step computes: arms that are alike in it share the median of their pilots, so that the noise of
    this machine gives none of them more epochs."""
    numbers = {"temperatures", "assignment", "sample_weight"}
    heda = params.heda.model_dump_json(exclude={"subset", "kd_weight", "mixed_label_weight"})
    return params.distill.model_dump_json(exclude=numbers) + heda


def _pilot(params: Params) -> Params:
    labels = params.soft_labels.model_copy(update={"views": min(params.soft_labels.views, 1), "extra_views": 0})
    return _with(params, _EPOCHS).model_copy(update={"soft_labels": labels})


def _with(params: Params, epochs: int) -> Params:
    training = params.distill.training.model_copy(update={"epochs": epochs})
    distill = params.distill.model_copy(update={"training": training})
    return params.model_copy(update={"distill": distill, "students": dict.fromkeys(params.students, distill)})
