"""(a) The plain reference mode: the training step that public code bases of knowledge distillation share.

It follows RepDistiller (Tian et al.), mdistiller (Zhao et al.) and code derived from them, such as that of the energy
paper:

- the data set is uint8 in memory, as torchvision.datasets.CIFAR10 holds it; each image becomes a Pillow image and goes
  through RandomCrop(32, padding=4), RandomHorizontalFlip, ToTensor and Normalize in a DataLoader with 2 workers;
- float32, contiguous, eager; torch.optim.SGD with its defaults, momentum 0.9, weight decay 5e-4;
- teacher in eval mode under no_grad; 0.1 * cross-entropy + 0.9 * KL divergence at the constant temperature 4, times 16;
- the loss is read by ``.item()`` in each step, for the running mean.

Nothing is slowed down on purpose. Left out, in favour of the reference, are top-1 and top-5 of each batch and the
progress bar. Memory is pinned where there is a GPU, and cuDNN chooses its fastest kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler

from bench.setting import CE_WEIGHT, CROP_PADDING, KD_WEIGHT, LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, Setting
from pipeline.compute.device import fastest_kernels
from pipeline.data.store import read_card, read_split

_TEMPERATURE = 4.0
_WORKERS = 2
_PREFETCHED = 2  # batches of each worker, torch's default


class Reference:
    """Images/s of the plain reference mode."""

    def __init__(self, setting: Setting) -> None:
        from torchvision import transforms  # noqa: PLC0415  takes seconds and megabytes that no other arm needs

        self._setting = setting
        card, split = read_card(setting.store()), read_split(setting.store(), "train")
        augment = transforms.Compose(
            [
                transforms.RandomCrop(setting.image_size, padding=CROP_PADDING),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(card.mean, card.std),
            ]
        )
        self._data_set = _InMemory(np.array(split.images), split.labels, augment)

    @fastest_kernels()
    def __call__(self) -> float:
        setting = self._setting
        student, teacher = setting.network(setting.student), setting.network(setting.teacher)
        student.train()
        teacher.eval()
        optimizer = torch.optim.SGD(
            student.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
        )
        loss_sum = 0.0
        for step, batch in enumerate(self._loader()):
            if step == setting.warmup_steps:
                started = setting.clock()
            images, labels = (part.to(setting.device, non_blocking=True) for part in batch)
            student_logits = student(images)
            with torch.no_grad():
                teacher_logits = teacher(images)
            loss = CE_WEIGHT * F.cross_entropy(student_logits, labels)
            loss = loss + KD_WEIGHT * kd_loss(student_logits, teacher_logits, _TEMPERATURE)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss_sum += loss.item()
            if step + 1 == setting.warmup_steps + setting.steps:
                break
        return setting.image_count / (setting.clock() - started)

    def _loader(self) -> DataLoader[Any]:
        setting = self._setting
        # more batches than are used, so that the workers are as busy in the last timed step as in the first
        steps = setting.warmup_steps + setting.steps + _WORKERS * _PREFETCHED
        return DataLoader(
            self._data_set,
            batch_size=setting.batch_size,
            # many shuffled passes as one epoch, so that restarting the workers for each epoch is not timed
            sampler=RandomSampler(self._data_set, num_samples=steps * setting.batch_size),
            num_workers=_WORKERS,
            pin_memory=setting.device == "cuda",
        )


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of the logits [B, K] at one temperature, times its square; mean over the batch."""
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.softmax(teacher_logits / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean") * temperature**2


class _InMemory(Dataset[tuple[Tensor, int]]):
    """uint8 images [N, S, S, 3] and labels, as torchvision's CIFAR10."""

    def __init__(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64], augment: Callable[[Image.Image], Tensor]
    ) -> None:
        self._images, self._labels, self._augment = images, labels.tolist(), augment

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._augment(Image.fromarray(self._images[index])), self._labels[index]
