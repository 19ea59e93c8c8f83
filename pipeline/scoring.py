"""One pass of the frozen teacher over a split: energy, confidence and correctness of every image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.data.loader import Images
from pipeline.energy import energy_score
from pipeline.errors import DataError
from pipeline.inference import logits_in_batches


@dataclass(frozen=True)
class Scores:
    """Of N images in order: label int64, energy float32, confidence float32 (largest probability), correct bool."""

    label: NDArray[np.int64]
    energy: NDArray[np.float32]
    confidence: NDArray[np.float32]
    correct: NDArray[np.bool_]


def score_images(
    teacher: nn.Module,
    images: Images,
    temperature: float,
    on_images: Callable[[int], None] = lambda count: None,
) -> Scores:
    """Score the un-augmented images with the teacher in float32 (METHOD: energy score).

    Args:
        temperature: T_E.

    Raises:
        DataError: an energy is not finite; names the first such image.
    """
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch, logits in logits_in_batches(teacher, images):
        confidence, answer = torch.softmax(logits, dim=1).max(dim=1)
        parts.append((energy_score(logits, temperature), confidence, answer == batch.labels))
        on_images(len(batch.labels))
    energy, confidence, correct = (torch.cat(column).cpu() for column in zip(*parts, strict=True))
    bad = (~torch.isfinite(energy)).nonzero().flatten()
    if bad.numel():
        raise DataError(
            f"the teacher gives {bad.numel()} images an energy that is not finite, the first at index {int(bad[0])}; "
            "its weights are damaged or its logits overflow, so use another checkpoint"
        )
    return Scores(images.labels.cpu().numpy(), energy.numpy(), confidence.numpy(), correct.numpy())
