"""(c) The limit: the same networks on data that are already there, and nothing else."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.ours import ENERGY_TEMPERATURE, Scoring, score
from bench.setting import CE_WEIGHT, KD_WEIGHT, TEMPERATURES, Setting
from pipeline.compute.device import autocast, compiled, fastest_kernels, full_fp32
from pipeline.data.loader import open_images
from pipeline.distillation.losses import kd
from pipeline.energy.groups import EnergyGroups, energy_score, sample_temperatures


class BareStep:
    """Images/s of the bare training step: one batch on the device, normalised; no augmentation, no loader.

    Precision, memory format, optimizer and loss are those of the pipeline.

    Args:
        compiled: whether the networks' passes are compiled, before the timed steps.
    """

    def __init__(self, setting: Setting, *, compiled: bool = False) -> None:
        self._setting = setting
        self._compile: Literal["on", "off"] = "on" if compiled else "off"
        images = open_images(setting.store(), "train", torch.device(setting.device))
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
        tau = self._temperatures(teacher)
        optimizer = torch.optim.SGD(
            student.parameters(),
            lr=training.learning_rate,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
            fused=True,
        )
        forward = compiled(student, self._compile, images.device)
        teacher = compiled(teacher, self._compile, images.device)
        for step in range(setting.warmup_steps + setting.steps):
            if step == setting.warmup_steps:
                started = setting.clock()
            with autocast(training.precision, images.device):
                with torch.no_grad():
                    teacher_logits = teacher(images).float()
                student_logits = forward(images).float()
                loss = CE_WEIGHT * F.cross_entropy(student_logits, labels)
                loss = loss + KD_WEIGHT * kd(student_logits, teacher_logits, tau).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        return setting.image_count / (setting.clock() - started)

    def _temperatures(self, teacher: nn.Module) -> Tensor:
        with torch.no_grad():
            energy = energy_score(teacher(self._batch.images), ENERGY_TEMPERATURE)
        return sample_temperatures(EnergyGroups.fit(energy, 0.2, 0.2).codes, **TEMPERATURES)


class BareForward:
    """Images/s of the teacher's forward alone, in the precision and the batch sizes that the scoring pass gives it."""

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
        ((precision, tf32),) = self._precisions
        with torch.inference_mode(), self._autocast(precision), nullcontext() if tf32 else full_fp32():
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

    def _autocast(self, precision: torch.dtype) -> AbstractContextManager[object]:
        if precision == torch.float32:
            return nullcontext()
        return torch.autocast(self._setting.device, dtype=precision)
