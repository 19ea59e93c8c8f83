from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from submitit import Job, LocalExecutor, LocalJob
from submitit.core.utils import DelayedSubmission, cloudpickle_dump

from pipeline.ablation import jobs
from pipeline.ablation.results import Row, StudyResult, TeacherResult
from pipeline.ablation.study import Study, load_study
from pipeline.ablation.trial import EpochAccuracy
from stages import limit_spinning
from tests.conftest import ROOT

limit_spinning()  # in the processes of the trials, as `make ablation` does

LAST = {
    "epoch": 1,
    "val_top1": 0.8,
    "top1_low_energy": 0.9,
    "top1_mid_energy": 0.7,
    "top1_high_energy": 0.4,
    "top1_many_shot": 0.8,
    "top1_medium_shot": None,
    "top1_few_shot": None,
}
QUICK = {"epochs": 2, "batch_size": 64, "precision": "fp32"}


def tiny_study() -> dict[str, Any]:
    """Two arms of two epochs on 400 digits at 8 x 8 pixels."""
    return {
        "title": "a study",
        "note": "for tests",
        "reference": "KD",
        "seeds": [0, 1],
        "params": {
            "device": "cpu",
            "data": {"image_size": 8, "augmentation": {"crop": {"padding": 1}}, "max_images_per_class": 40},
            "teacher": {"network": "resnet8", "minimum_top1": 0.0, "training": dict(QUICK)},
            "distill": {
                "temperatures": {"low_energy": 4.0, "mid": 4.0, "high_energy": 4.0},
                "training": dict(QUICK),
            },
            "heda": {"mix": "none"},
        },
        "arms": {"KD": {}, "random subset": {"heda": {"mix": "cutmix", "subset": "random"}}},
    }


def write_study(folder: Path, **changes: Any) -> Study:
    """A study file with some keys replaced, loaded over the parameters as shipped."""
    path = folder / "tiny.yaml"
    with path.open("w") as file:
        YAML().dump(tiny_study() | changes, file)
    return load_study(path, ROOT / "params.yaml")


@pytest.fixture
def make_study(tmp_path: Path) -> Callable[..., Study]:
    return partial(write_study, tmp_path)


class _JobHere(LocalJob[str | None]):
    """Work that this process does when it is first asked whether it is done."""

    def done(self, force_check: bool = False) -> bool:
        if not self.paths.result_pickle.exists():
            work = DelayedSubmission.load(self.paths.submitted_pickle)
            with self.paths.stdout.open("w") as log, contextlib.redirect_stdout(log):
                outcome = work.result()
            cloudpickle_dump(("success", outcome), self.paths.result_pickle)
        return True


class _ExecutorHere(LocalExecutor):
    """submitit's executor with the same files, but without processes."""

    _numbers = count()

    def submit_array(self, works: Sequence[jobs.Work]) -> list[Job[str | None]]:
        return [self.submit(replace(work, owner=None)) for work in works]  # with an owner, this process would end

    def _submit_command(self, command: str) -> Job[str | None]:
        return _JobHere(self.folder, f"here{next(self._numbers)}")


@contextlib.contextmanager
def in_this_process() -> Iterator[None]:
    """Trials run one after the other in this process: a process of its own takes longer to import torch than to train.

    For tests that are not about processes.
    """
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")  # otherwise a trial sets it, for all tests that follow
        patch.setattr(jobs, "_local_executor", _ExecutorHere)
        patch.setattr(jobs, "_POLL_SECONDS", 0.0)
        try:
            yield
        finally:
            torch.set_num_threads(threads)


@pytest.fixture
def trials_here() -> Iterator[None]:
    with in_this_process():
        yield


@pytest.fixture
def result(make_study) -> StudyResult:
    """Results that were made up: two arms, two seeds."""
    study, found = make_study(), []
    for trial, top1 in zip(study.trials(), (0.70, 0.74, 0.72, 0.761), strict=True):
        last, best = (EpochAccuracy(**LAST, top1=value, balanced_accuracy=top1) for value in (top1, top1 + 0.001))
        found.append(
            Row(
                arm=trial.arm,
                seed=trial.seed,
                last=last,
                best_validation=best,
                val_top1=[0.7, 0.8],
                train_loss=[2.0, 1.0],
                seconds_per_epoch=1.5,
                device="cpu",
                threads=1,
                precision="fp32",
                code="abc",
                long_tail=False,
                lineage={"data": "0" * 64, "teacher": "1" * 64, "energy": "2" * 64},
            )
        )
    return StudyResult(
        title=study.file.title,
        note=study.file.note,
        reference=study.reference,
        comparisons=[],
        seeds=list(study.file.seeds),
        teachers=[TeacherResult(network="resnet8", epochs=2, val_top1=0.9, test_top1=0.8765)],
        settings={arm: params.model_dump(mode="json") for arm, params in study.arms.items()},
        rows=found,
    )
