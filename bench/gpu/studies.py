"""Studies of the pipeline's own training, stopped at an epoch when the time of a call is up and gone on with later."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.gpu.call import Call, TimeUp
from bench.setting import ROOT, changed
from pipeline.ablation.results import document, energy_picture, markdown, write_results
from pipeline.ablation.run import finished
from pipeline.ablation.schedule import distinct_upstreams, run_study
from pipeline.ablation.study import Run, Study, load_study
from pipeline.ablation.upstream import teacher_report
from pipeline.config import Params, validated
from stages.common import progress

# teacher, student, then the beta of DKD and the learning rate that the published recipe has for them
PAIRS = {
    "wrn_40_2 to wrn_16_2": ("wrn_40_2", "wrn_16_2", 6.0, 0.05),
    "resnet32x4 to resnet8x4": ("resnet32x4", "resnet8x4", 8.0, 0.05),
    "vgg13 to vgg8": ("vgg13", "vgg8", 6.0, 0.05),
    "resnet32x4 to ShuffleV2": ("resnet32x4", "ShuffleV2", 8.0, 0.01),
}
_QUICK_NOTE = "A smoke test of this study with tiny networks on few small images: its figures mean nothing."
_QUICK_TRAINING = {
    "epochs": 2,
    "batch_size": 16,
    "learning_rate": 0.02,
    "schedule": "cosine",
    "milestones": [],
    "warmup_epochs": 0,
}
_QUICK = {
    "data": {"image_size": 8, "crop_padding": 1, "max_images_per_class": 12},
    "teacher": {"network": "resnet8", "minimum_top1": 0.0, "training": _QUICK_TRAINING},
    "distill": {"network": "resnet8", "training": _QUICK_TRAINING},
}


def run(name: str, call: Call) -> str:
    """Do the study ablations/<name>.yaml and return its page."""
    return _page(load(name, call), call)


def published(call: Call) -> str:
    """Do ablations/tiny64.yaml for each pair of the published table, one after the other, and return their pages."""
    study = load("tiny64", call)
    pages = []
    for number, pair in enumerate(PAIRS, start=1):
        out = call.out and call.out.with_name(f"{call.out.name}_{number}")
        own = study if call.quick else of_pair(study, pair)
        pages.append(_page(replace(own, title=f"{study.title}, {pair}"), replace(call, out=out)))
    return "\n\n".join(pages)


def of_pair(study: Study, pair: str) -> Study:
    """The study with the networks of a pair and what the published recipe has for them."""
    teacher, student, beta, rate = PAIRS[pair]
    distill = {"network": student, "dkd": {"beta": beta}, "training": {"learning_rate": rate}}
    return with_changes(study, {"teacher": {"network": teacher}, "distill": distill})


def load(name: str, call: Call) -> Study:
    """The study ablations/<name>.yaml on the images of the call, and small if that was asked for."""
    study = load_study(ROOT / "ablations" / f"{name}.yaml", ROOT / "params.yaml")
    study = replace(study, seeds=study.seeds[: call.seeds])
    if call.data is not None:
        study = with_changes(study, {"data": {"root": str(call.data)}})
    if not call.quick:
        return study
    tail = min(params.data.imbalance_factor for params in study.arms.values())
    digits = {"name": "digits"} if call.data is None else {}
    small = changed(_QUICK, {"data": {"imbalance_factor": min(tail, 10.0), **digits}})
    return with_changes(replace(study, note=_QUICK_NOTE, seeds=study.seeds[:2]), small)


def with_changes(study: Study, changes: Mapping[str, Any]) -> Study:
    """The study with the same changes to the parameters of every arm."""
    arms = {
        name: validated(Params, changed(params.model_dump(mode="json"), dict(changes)), f"arm {name!r}")
        for name, params in study.arms.items()
    }
    return replace(study, arms=arms)


def root(call: Call) -> Path:
    """Where data, teachers, energies and runs of all studies of this state lie: those that are the same are shared."""
    return call.state / "studies"


def results_of(study: Study, call: Call) -> list[tuple[Run, dict[str, Any]]]:
    """Every run of the study, those of earlier calls included.

    Raises:
        TimeUp: the time is up; finished runs and the last stored epoch of the others are kept.
        EnergyKDError: as of :func:`pipeline.ablation.schedule.run_study`.
    """
    folder, runs = root(call), study.runs()
    missing = not all(finished(each, folder) for each in runs)
    epochs = sum(each.params.distill.training.epochs for each in runs)
    doing = study.name
    with progress(study.name, epochs, "epoch") as advance:

        def on_start(what: str) -> None:
            nonlocal doing
            doing = f"{study.name}, {what}"
            call.check(doing)

        def on_epochs(count: int) -> None:
            advance(count)
            call.check(doing)

        try:
            with call.computing() if missing else nullcontext():
                return run_study(study, folder, call.jobs, on_start, on_epochs)
        except TimeUp as stopped:
            done = sum(finished(each, folder) for each in runs)
            raise TimeUp(f"{stopped}, {done} of {len(runs)} runs finished") from None


def _page(study: Study, call: Call) -> str:
    results = results_of(study, call)
    upstreams = distinct_upstreams(study, root(call))
    content = document(study, [teacher_report(params, root(call)) for params in upstreams], results)
    content |= {"note": f"{study.note}\n\n{call.origin()}"}
    if call.out is not None:
        write_results(call.out.parent, call.out.name, content, energy_picture(upstreams[0], root(call)))
    return markdown(content, f"{call.out.name if call.out else study.name}.svg")
