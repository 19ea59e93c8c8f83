"""The arms of the speed benchmark by name, and the comparisons between them.

python -m bench.arms ARM SETTING    (the setting as JSON)

runs one arm once and prints its memory as JSON, in MiB: ``imported`` after all imports, and ``peak``. On a CPU it is
the resident memory of the process without the loader's workers, on a GPU the memory that torch has allocated.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.common import Comparison
from bench.reference import Reference
from bench.setting import CE_WEIGHT, CROP_PADDING, KD_WEIGHT, ROOT, TEMPERATURES, Setting
from pipeline.compute.device import TrainingPrecision, autocast, fastest_kernels, full_fp32
from pipeline.config import PadCropParams, Params, ViewName
from pipeline.data.augmentation import NONE
from pipeline.data.loader import Images, steps_per_epoch
from pipeline.data.pixels import StreamedPixels
from pipeline.data.store import FileSplit, read_card, read_split
from pipeline.distillation.losses.kd import kd
from pipeline.distillation.student import ScoredImages, train_student
from pipeline.energy.groups import EnergyGroups, energy_score
from pipeline.energy.scoring import score_images
from pipeline.energy.subset import select_subset
from pipeline.energy.temperatures import sample_temperatures
from pipeline.soft_labels.rows import Rows
from pipeline.soft_labels.table import SoftLabels, StoredAnswers
from pipeline.training.card import EpochRecord
from pipeline.training.session import Session

ENERGY_TEMPERATURE = 4.0


class Ours:
    """Images/s of pipeline.distillation.student.train_student in the second of two epochs, without validation.

    With HE-DA too, only the images of the clean batches count.

    Args:
        fraction: f of HE-DA; 0 for none.
        storage: packed, or files that are decoded while training.
        compiled: whether the networks are compiled, during the first epoch.
        view: of the images; the answers to stored ones are random, and of so many classes as are kept as shipped.
    """

    def __init__(
        self,
        setting: Setting,
        fraction: float = 0.0,
        storage: str = "packed",
        *,
        compiled: bool = False,
        view: ViewName = "clean",
    ) -> None:
        self._setting = setting
        self._params = setting.params(fraction, epochs=2, compiled=compiled, view=view)
        self._device = torch.device(setting.device)
        crop = PadCropParams(name="pad", padding=CROP_PADDING)
        views = NONE.model_copy(update={"crop": crop, "horizontal_flip": True})
        images = setting.images("train", storage, views)
        self._validation = setting.images("val", storage)
        # the groups of the images do not affect the speed, so random energies are enough
        energy = torch.randn(len(images), generator=torch.Generator().manual_seed(0)).to(self._device)
        groups = EnergyGroups.fit(energy, 0.2, 0.2)
        self._image_count = steps_per_epoch(len(images), setting.batch_size) * setting.batch_size
        self._scored = ScoredImages(
            images,
            groups,
            ENERGY_TEMPERATURE,
            select_subset(energy, fraction or 1.0),
            soft_labels=_soft_labels(setting, images, self._params) if view == "stored" else None,
        )

    def __call__(self) -> float:
        *_, last = self._epochs()
        return self._image_count / last.seconds

    def chosen_precision(self) -> TrainingPrecision:
        """The precision that the pipeline chooses by timing."""
        return next(self._epochs()).precision

    def _epochs(self) -> Iterator[EpochRecord]:
        student, teacher = (self._setting.network(name) for name in (self._setting.student, self._setting.teacher))
        session = Session(self._device)
        return train_student(student, teacher, self._scored, self._validation, self._params, session)


def _soft_labels(setting: Setting, images: Images, params: Params) -> SoftLabels:
    """Random answers to two mixed views of each image."""
    classes = len(read_card(setting.store()).class_names)
    rows = Rows(len(images), 2, 0, torch.empty(0, dtype=torch.int64, device=images.device))
    logits = torch.randn(len(rows), classes, generator=torch.Generator().manual_seed(0))
    kept, label = logits.log_softmax(dim=1).topk(min(classes, params.soft_labels.classes))
    answers = StoredAnswers(kept.half().numpy(), label.int().numpy(), *torch.zeros(2, len(rows)).numpy())
    return SoftLabels(Path(), rows, answers, classes, seed=0, mixed=True)


class Scoring:
    """Images/s of the pipeline's scoring pass over the training images."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.images = setting.images("train")
        self.teacher = setting.network(setting.teacher).to(memory_format=torch.channels_last)  # as the stage does
        score(self.teacher, self.images)

    def __call__(self) -> float:
        started = self.setting.clock()
        score(self.teacher, self.images)
        return len(self.images) / (self.setting.clock() - started)


def score(teacher: nn.Module, images: Images) -> None:
    """One scoring pass of the pipeline."""
    with TemporaryDirectory() as folder:
        score_images(teacher, images, ENERGY_TEMPERATURE, Path(folder))


class BareStep:
    """Images/s of the bare training step: one batch on the device, normalised; no augmentation, no loader.

    Precision, memory format, optimizer and loss are those of the pipeline, so this is its upper limit.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        images = setting.images("train")
        self._batch = next(images.batches(setting.batch_size))

    @fastest_kernels()
    def __call__(self) -> float:
        setting, images, labels = self._setting, self._batch.images, self._batch.labels
        training = setting.params().distill.training
        student, teacher = (
            setting.network(name).to(memory_format=torch.channels_last) for name in (setting.student, setting.teacher)
        )
        student.train()
        teacher.eval().requires_grad_(False)
        with torch.no_grad():
            energy = energy_score(teacher(images), ENERGY_TEMPERATURE)
        tau = sample_temperatures(EnergyGroups.fit(energy, 0.2, 0.2).codes, **TEMPERATURES)
        optimizer = torch.optim.SGD(
            student.parameters(),
            lr=training.learning_rate,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
            fused=True,
        )
        for step in range(setting.warmup_steps + setting.steps):
            if step == setting.warmup_steps:
                started = setting.clock()
            with autocast(training.precision, images.device):
                with torch.no_grad():
                    teacher_logits = teacher(images).float()
                student_logits = student(images).float()
                loss = CE_WEIGHT * F.cross_entropy(student_logits, labels)
                loss = loss + KD_WEIGHT * kd(student_logits, teacher_logits, tau).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return setting.image_count / (setting.clock() - started)


class BareDecoder:
    """Images/s of the worker processes that decode files; nothing is made of the images."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        folder = setting.store("files")
        paths = cast(FileSplit, read_split(folder, "train")).paths
        self._pixels = StreamedPixels(paths, read_card(folder).image, torch.device("cpu"), padding=0)
        self._indices = torch.split(torch.arange(len(paths)), setting.batch_size)

    def __call__(self) -> float:
        started = self._setting.clock()
        count = sum(len(places) for _, places in self._pixels.fetch(self._indices))
        return count / (self._setting.clock() - started)


class BareForward:
    """Images/s of the teacher's forward pass alone, in the precision and batch sizes of the scoring pass."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        scoring = Scoring(setting)
        self._sizes: list[int] = []
        self._precisions: set[tuple[torch.dtype, bool]] = set()
        handle = scoring.teacher.register_forward_pre_hook(self._note)
        score(scoring.teacher, scoring.images)
        handle.remove()
        self._teacher = setting.network(setting.teacher).to(memory_format=torch.channels_last).eval()
        self._images = next(scoring.images.batches(max(self._sizes))).images

    @fastest_kernels()
    def __call__(self) -> float:
        ((dtype, tf32),) = self._precisions
        mixed = torch.autocast(self._setting.device, dtype, enabled=dtype != torch.float32)
        with torch.inference_mode(), mixed, nullcontext() if tf32 else full_fp32():
            self._teacher(self._images)
            started = self._setting.clock()
            for size in self._sizes:
                self._teacher(self._images[:size])
            return sum(self._sizes) / (self._setting.clock() - started)

    def _note(self, _: nn.Module, inputs: tuple[Tensor]) -> None:
        device = inputs[0].device.type
        self._sizes.append(len(inputs[0]))
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else inputs[0].dtype
        self._precisions.add((dtype, torch.backends.cudnn.allow_tf32))


FRACTIONS = (0.2, 0.3, 0.4, 0.5, 1.0)


def _heda(fraction: float) -> str:
    return f"ours, HE-DA f = {fraction:g}"


# each arm is built once and called once per round for its images/s; compared arms are close to each other
ARMS: dict[str, Callable[[Setting], Callable[[], float]]] = {
    "reference": Reference,
    "ours": Ours,
    "ours, compiled": partial(Ours, compiled=True),
    "bare step": BareStep,
    "ours, mixed views": partial(Ours, view="mixed"),
    "ours, stored views": partial(Ours, view="stored"),
    "ours, compiled, stored views": partial(Ours, compiled=True, view="stored"),
    "ours, files": partial(Ours, storage="files"),
    "bare decoder": BareDecoder,
    **{_heda(fraction): partial(Ours, fraction=fraction) for fraction in FRACTIONS},
    "scoring": Scoring,
    "bare forward": BareForward,
}
COMPARISONS = (
    Comparison("(b)/(a) ours / plain reference mode", "ours", "reference", at_least=3.0),
    Comparison("(b)/(a) ours, compiled / plain reference mode", "ours, compiled", "reference"),
    Comparison("(b)/(a) ours, stored views / plain reference mode", "ours, stored views", "reference", at_least=2.5),
    Comparison("(b)/(a) the same, compiled / plain", "ours, compiled, stored views", "reference"),
    Comparison("(b) stored views / mixed ones", "ours, stored views", "ours, mixed views", at_least=1.7),
    Comparison("(b) mixed views / clean ones", "ours, mixed views", "ours"),
    Comparison("(b)/(c) ours / bare step on resident data", "ours", "bare step", at_least=0.95),
    Comparison("(d) scoring / bare teacher forward", "scoring", "bare forward", at_least=0.95),
    *(
        # speed without HE-DA over speed with it: the cost of a step with HE-DA, in steps without
        Comparison(f"(b') cost of HE-DA, f = {f:g} / f = 0", "ours", _heda(f), at_most=1.45 if f == 0.4 else None)
        for f in FRACTIONS
    ),
    Comparison("(e) packed store / files decoded in workers", "ours", "ours, files"),
    Comparison("(f) files decoded in workers / bare decoder", "ours, files", "bare decoder"),
    Comparison("(f) files decoded in workers / bare step on resident data", "ours, files", "bare step"),
)

MEMORY_ARMS = ("reference", "ours", "scoring")


def measure_memory(arms: Sequence[str], setting: Setting) -> dict[str, dict[str, float]]:
    """Memory of each arm in MiB, ``imported`` and ``peak``; the arms run in child processes at the same time."""

    def in_child(arm: str) -> dict[str, float]:
        command = [sys.executable, "-m", "bench.arms", arm, json.dumps(asdict(setting))]
        found: dict[str, float] = json.loads(subprocess.check_output(command, cwd=ROOT))
        return found

    with ThreadPoolExecutor() as pool:
        return dict(zip(arms, pool.map(in_child, arms), strict=True))


def _own_memory(arm: str, setting: Setting) -> dict[str, float]:
    imported = _mebibytes("VmRSS") if setting.device == "cpu" else torch.cuda.memory_allocated() / 2**20
    ARMS[arm](setting)()
    peak = _mebibytes("VmHWM") if setting.device == "cpu" else torch.cuda.max_memory_allocated() / 2**20
    return {"imported": round(imported, 1), "peak": round(peak, 1)}


def _mebibytes(key: str) -> float:
    # not getrusage, whose peak starts at that of the parent process on Linux
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(re.findall(rf"^{key}:\s+(\d+) kB$", status, re.MULTILINE)[0]) / 1024


if __name__ == "__main__":
    print(json.dumps(_own_memory(sys.argv[1], Setting(**json.loads(sys.argv[2])))))
